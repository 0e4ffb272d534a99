"""What the checks of a cluster share: its users' tools, and load while something happens to it.

In: a cluster that KUBECONFIG names, with the bookshop in it. Out: what users see there. Nothing here decides whether that is right."""
import collections
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KUBECTL = ROOT / "target/kubernetes/kubectl"
# As for tests/cluster/images.
TULLE = ROOT / os.environ.get("TULLE_PROGRAMS", "target/x86_64-unknown-linux-gnu/release") / "tulle"
# Names of this machine's own cluster begin so (tests/cluster/common).
PREFIX = "tulle-cluster-"
WGET = ["/busybox", "timeout", "10", "/busybox", "wget", "-q", "-O", "-"]
DEPLOYMENTS = ["web", "cart", "recommend", "stock-v1", "stock-v2"]


def run(steps):
    """Takes steps, all or those that the command line names: a line for each; ends at the first that does not hold."""
    enter()
    unknown = set(sys.argv[1:]) - {step.__name__ for step in steps}
    if unknown:
        sys.exit(f"there are no steps {sorted(unknown)}; they are {[step.__name__ for step in steps]}")
    for step in [step for step in steps if not sys.argv[1:] or step.__name__ in sys.argv[1:]]:
        begin = time.monotonic()
        try:
            found = step()
        except AssertionError as failure:
            print(f"FAILED  {step.__doc__}\n{failure}")
            sys.exit(1)
        print(f"ok  {time.monotonic() - begin:6.1f} s  {step.__doc__}" + (f": {found}" if found else ""), flush=True)


def enter():
    """Goes to the repository's root; there must be a cluster to look at."""
    if not os.environ.get("KUBECONFIG"):
        sys.exit("KUBECONFIG must name the kubeconfig of a cluster, for example target/cluster/state/kubeconfig")
    os.environ["KUBECONFIG"] = str(Path(os.environ["KUBECONFIG"]).resolve())
    os.chdir(ROOT)


class Load:
    """Customers who ask for a page one after the other, four at a time, all the while. A page is known by a text in it."""

    def __init__(self, url="http://web.shop/", page='"book":'):
        self.page = page
        ask = f"page=$({' '.join(WGET)} {url} 2>&1)"
        one = f'until [ -e /done ]; do {ask} && echo "$page" || echo "FAILED $page"; done'
        self.loop = " & ".join([f"({one})"] * 4) + " & wait"

    def __enter__(self):
        shop("exec", "deploy/customers", "--", "/busybox", "rm", "-f", "/done")
        command = [KUBECTL, "-n", "shop", "exec", "deploy/customers", "--", "/busybox", "sh", "-c", self.loop]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        return self

    def __exit__(self, kind, *_):
        try:
            shop("exec", "deploy/customers", "--", "/busybox", "touch", "/done")
            self.said, _ = self.process.communicate(timeout=30)
        finally:
            self.process.kill()

    def pages(self):
        """How many were served, and what was said instead of each other page."""
        lines = [line for line in self.said.splitlines() if line]
        failed = [line for line in lines if self.page not in line]
        return len(lines) - len(failed), failed

    def unharmed(self):
        """How many were served, all of them."""
        served, failed = self.pages()
        assert served > 20 and not failed, f"{served} were served, others were not: {counts(failed)}"
        return f"{served} requests"


def counts(said):
    """What was said, how often, the most frequent first."""
    return "; ".join(f"{count} times {what}" for what, count in collections.Counter(said).most_common())


def until(holds, what, seconds=30):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"after {seconds} s, still not: {what}"
        time.sleep(0.2)


def restarted():
    """Replaces every pod of the shop's applications."""
    shop("rollout", "restart", *[f"deployment/{name}" for name in DEPLOYMENTS])
    rolled_out()


def rolled_out(seconds=120):
    """Waits until all of the shop is as it should be, each Deployment at most for so long."""
    for deployment in shop("get", "deployments", "-o", "name").split():
        shop("rollout", "status", deployment, f"--timeout={seconds}s")


def control_plane_ready():
    """Waits until the control plane is as it should be."""
    system("rollout", "status", "deployment/tulle-control-plane", "--timeout=120s")


def own_nodes():
    """The network namespaces of the nodes, where the cluster is this machine's own."""
    names = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout.split()
    return [name for name in names if re.fullmatch(PREFIX + r"n\d", name)]


def get(url, *options, fails=False):
    """What an application of the mesh gets."""
    return shop("exec", "deploy/customers", "--", *WGET, *options, url, fails=fails)


def outside(url, fails=False):
    """What an application gets that is not in the mesh."""
    return kubectl("-n", "outside", "exec", "caller", "--", *WGET, url, fails=fails)


def name_of(app):
    return running(f"app={app}")[0]["metadata"]["name"]


def running(selector, phase="Running"):
    pods = json.loads(shop("get", "pods", "-l", selector, f"--field-selector=status.phase={phase}", "-o", "json"))["items"]
    return [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]


def shop(*arguments, **options):
    return kubectl("-n", "shop", *arguments, **options)


def system(*arguments, **options):
    return kubectl("-n", "tulle-system", *arguments, **options)


def kubectl(*arguments, input=None, fails=False):
    """What it prints; where it must fail, or may (None), errors as well."""
    done = subprocess.run([KUBECTL, *arguments], input=input, capture_output=True, text=True, timeout=300)
    assert fails in (None, done.returncode != 0), f"kubectl {' '.join(arguments)}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout + ("" if fails is False else done.stderr)
