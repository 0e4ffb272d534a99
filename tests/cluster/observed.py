"""What the bookshop's operators see in a cluster: its traces in Jaeger, and its metrics in Prometheus.

In: the bookshop as the steps before have left it. Out: the steps that install both and look into them."""
import json
from pathlib import Path
from urllib.parse import quote

from cluster import WGET, get, kubectl, running, shop, until

EDGES = [("customers", "web"), ("web", "cart"), ("web", "recommend"), ("cart", "stock")]


def traced():
    """kubectl apply -k manifests/jaeger: each request is one trace in Jaeger, with every hop, also what is refused and retried"""
    kubectl("apply", "-k", "manifests/jaeger")
    kubectl("-n", "jaeger", "rollout", "status", "deployment/jaeger", "--timeout=120s")
    programmed = 'jsonpath={.status.ancestors[0].conditions[?(@.type=="Programmed")].status}=True'
    kubectl("-n", "tulle-system", "wait", f"--for={programmed}", "telemetrypolicy/jaeger", "--timeout=60s")

    [spans] = new_traces(lambda: get("http://web.shop/", "--header", "b3: 1"), 1)
    assert {span["service"] for span in spans.values()} == {"customers", "web", "cart", "recommend", "stock"}, spans
    edges = {(span["service"], server_of(spans, span)) for span in spans.values() if is_attempt(span)}
    assert edges == set(EDGES), edges
    assert any(span.get("http.route") == "shop/stock#0:split" for span in spans.values()), spans

    refused = lambda: get("http://stock.shop/stock/the-tale-of-tulle", "--header", "b3: 1", fails=True)
    [spans] = new_traces(refused, 1)
    [server] = [span for span in spans.values() if span["span.kind"] == "server"]
    assert len(spans) == 3 and all(span["error"] is True for span in spans.values()), spans
    assert (server["http.response.status_code"], server["error.type"]) == (403, "http_request_denied"), server
    assert server["tulle.peer.principal"] == "spiffe://cluster.local/ns/shop/sa/customers", server

    many = requests(400, "--header 'b3: 1'")
    found = new_traces(lambda: shop("exec", "deploy/customers", "--", "/busybox", "sh", "-c", many), 400)
    again = [span for spans in found for span in spans.values() if span.get("http.request.resend_count")]
    assert again, "not one of 400 was tried again, while stock-v2 fails at 2 % of all requests"
    return f"{len(found) + 2} traces, {sum(map(len, found))} spans, {len(again)} of them of retries"


def scraped():
    """kubectl apply -k manifests/prometheus: every pod is scraped, and every query of the dashboard has an answer"""
    kubectl("apply", "-k", "manifests/prometheus")
    kubectl("-n", "prometheus", "rollout", "status", "deployment/prometheus", "--timeout=120s")
    control = json.loads(kubectl("-n", "tulle-system", "get", "pods", "-l", "tulle.dev/component=control-plane", "-o", "json"))
    expected = {pod["metadata"]["name"] for pod in running("") + control["items"]}

    def up():
        targets = prometheus("targets?state=active")["activeTargets"]
        names = [target["labels"]["pod"] for target in targets if target["health"] == "up"]
        return len(names) == len(targets) and sorted(names) == sorted(expected)

    until(up, f"each of {sorted(expected)} is a target, once, and answers", seconds=90)
    shop("exec", "deploy/customers", "--", "/busybox", "sh", "-c", requests(100))
    panels = json.loads(Path("manifests/grafana/tulle.json").read_text())["panels"]
    # The bookshop speaks nothing but HTTP.
    targets = [target for panel in panels if not panel["title"].startswith("TCP") for target in panel.get("targets", [])]
    queries = [target["expr"].replace("$__rate_interval", "1m").replace("$namespace", ".*") for target in targets]
    for query in queries:
        until(lambda: prometheus(f"query?query={quote(query)}")["result"], f"an answer to {query}", seconds=60)
    edges = prometheus(f"query?query={quote('sum by (source_workload, destination_workload) (http_client_request_duration_seconds_count)')}")
    told = {(edge["metric"].get("source_workload"), edge["metric"].get("destination_workload")) for edge in edges["result"]}
    for client, server in EDGES:
        assert (f"shop/{client}", f"shop/{server}") in told, told
    return f"{len(expected)} pods, {len(queries)} queries"


def new_traces(act, count):
    """The spans of each trace that an act of the customers makes, by their IDs, once there are so many and each is whole: one
    root, every other span's parent is there, and each attempt found the peer that it names."""
    known = set(traces())
    act()

    def broken():
        found = {trace: spans for trace, spans in traces().items() if trace not in known}
        if len(found) != count:
            return f"{len(found)} traces of {count}"
        for trace, spans in found.items():
            roots = [span for span in spans.values() if not span["parent"]]
            orphans = [span for span in spans.values() if span["parent"] and span["parent"] not in spans]
            alone = [span for span in spans.values() if is_attempt(span) and not server_of(spans, span)]
            if len(roots) != 1 or orphans or alone:
                return f"{trace}: roots {roots}, orphans {orphans}, attempts without a peer {alone}"
        new_traces.found = list(found.values())
        return None

    until(lambda: broken() is None, broken)
    return new_traces.found


def traces():
    """The traces in which the customers have a part: spans by their IDs, each with its tags."""
    path = "/api/v1/namespaces/jaeger/services/jaeger:16686/proxy/api/traces?service=customers&limit=5000&lookback=1h"
    found = {}
    for trace in json.loads(kubectl("get", "--raw", path))["data"]:
        spans = found[trace["traceID"]] = {}
        for span in trace["spans"]:
            parents = [reference["spanID"] for reference in span["references"] if reference["refType"] == "CHILD_OF"]
            spans[span["spanID"]] = {tag["key"]: tag["value"] for tag in span["tags"]} | {
                "id": span["spanID"], "name": span["operationName"], "parent": parents[0] if parents else None,
                "service": trace["processes"][span["processID"]]["serviceName"],
            }
    return found


def is_attempt(span):
    return span["name"].endswith(" attempt")


def server_of(spans, attempt):
    """The service that an attempt has found: the span below it is that of the peer which it names, and the other way round."""
    for span in spans.values():
        if span["parent"] == attempt["id"] and span["span.kind"] == "server":
            names = [end.get("tulle.peer.principal", "").rsplit("/", 1)[-1] for end in (attempt, span)]
            return span["service"] if names == [span["service"], attempt["service"]] else None
    return None


def prometheus(question):
    path = f"/api/v1/namespaces/prometheus/services/prometheus:9090/proxy/api/v1/{question}"
    return json.loads(kubectl("get", "--raw", path))["data"]


def requests(count, options=""):
    return f"i=0; while [ $i -lt {count} ]; do {' '.join(WGET)} {options} http://web.shop/; i=$((i + 1)); done"
