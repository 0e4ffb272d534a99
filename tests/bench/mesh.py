"""A control plane and sidecars as processes, for the benchmarks: every file in one folder, every port on loopback."""
import json
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BINARIES = ROOT / "target" / "release"
NAMESPACE = "default"


def binary(name):
    path = BINARIES / name
    if not path.is_file():
        raise SystemExit(f"{path} is missing; build it with: cargo build --release --workspace --bins")
    return path


class Program:
    """A process that says on its first line where it listens, and that ends with the `with` block."""

    def __init__(self, command, log):
        with open(log, "wb") as errors:
            self.process = subprocess.Popen(
                [str(word) for word in command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors
            )
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            raise SystemExit(f"{Path(command[0]).name} did not start: {Path(log).read_text(errors='replace')}")
        self.started = json.loads(line)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


class ControlPlane(Program):
    """A control plane on the manifests given, with its state in `folder`."""

    def __init__(self, folder, manifests):
        self.folder = Path(folder)
        self.state = self.folder / "state"
        (self.folder / "manifests").mkdir(parents=True, exist_ok=True)
        # JSON is YAML.
        documents = "".join(f"---\n{json.dumps(manifest)}\n" for manifest in manifests)
        (self.folder / "manifests" / "all.yaml").write_text(documents)
        command = [binary("tulle-control-plane"), "--manifests", self.folder / "manifests", "--state", self.state]
        command += ["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]
        super().__init__(command, self.folder / "control-plane.log")

    def sidecar(self, account, **settings):
        """The settings of a sidecar with one worker beside the workload of a service account."""
        token = self.folder / f"{account}.token"
        command = [binary("tulle"), "token", "--state", self.state, "-n", NAMESPACE, "--service-account", account]
        token.touch(mode=0o600)
        token.write_bytes(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        return {
            "workload": {"namespace": NAMESPACE, "serviceAccount": account, "name": account},
            "controlPlane": {
                "address": self.started["xds"],
                "rootFile": str(self.state / "root.pem"),
                "tokenFile": str(token),
            },
            "admin": "127.0.0.1:0",
            "health": "127.0.0.1:0",
            "workers": 1,
            "drain": {"gracePeriod": "0s"},
            **settings,
        }


def service(name, port, **fields):
    """A Service before the workload `server`."""
    ports = [{"name": name, "port": 80, "targetPort": port, **fields}]
    return thing("v1", "Service", name, {"selector": {"app": "server"}, "ports": ports})


def server(ports):
    """The workload `server`: `ports` gives, by name, the application's port and the sidecar's."""
    ports = [{"name": name, "port": app, "meshPort": mesh} for name, (app, mesh) in ports.items()]
    spec = {"address": "127.0.0.1", "serviceAccount": "server", "ports": ports}
    return thing("tulle.dev/v1alpha1", "Workload", "server", spec, {"app": "server"})


def strict():
    """Only mTLS, and only the client: what every pair of the comparison enforces."""
    target = {"kind": "Namespace", "name": NAMESPACE}
    # The concurrency limit counts, but does not refuse: closed loops saturate both ends by intent.
    inbound = {"targetRefs": [target], "mtls": {"mode": "Strict"}, "concurrencyLimit": {"min": 10000, "max": 10000}}
    mtls = thing("tulle.dev/v1alpha1", "InboundPolicy", "strict", inbound)
    rule = {"sources": [{"type": "ServiceAccount", "serviceAccount": {"name": "client"}}]}
    allow = {
        "targetRefs": [{"kind": "Pod", "selector": {"matchLabels": {"app": "server"}}}],
        "action": "ALLOW",
        "rules": [rule],
    }
    return [mtls, thing("tulle.dev/v1alpha1", "AuthorizationPolicy", "client-only", allow)]


def thing(version, kind, name, spec, labels=None):
    metadata = {"name": name, "namespace": NAMESPACE, "labels": labels or {}}
    return {"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec}
