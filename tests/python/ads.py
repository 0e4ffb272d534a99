"""A control plane for tests: delta ADS on the published protos alone.

It serves what its standard input says, a JSON object a line:

    {"set": [RESOURCE, ...], "remove": [{"type": URL, "name": NAME}, ...], "id": NUMBER}
    {"say": [BASE64, ...], "to": AGENT, "times": NUMBER, "id": NUMBER}

The second says messages as they are, in their order and so often, to the clients whose user agent begins so. A resource is the JSON form of an Any with a field "name" beside it, which names it on the wire. The first line of its output says
where it listens: {"tls": PORT, "plain": PORT}. Then comes a line for each command that is in force, {"done": ID, "changed": [URL,
...]}, with the types of which something is new or another than before, one for each stream that a client opens, {"stream": AGENT},
one for each response, {"sent": AGENT}, and one for each request of a client, with the client's user agent, the type and, where it
answers a response, what it rejected and which command was the last that the response knew of.

usage: ads.py CERTIFICATE KEY ROOT [TLS-PORT PLAIN-PORT]
"""

import base64
import hashlib
import itertools
import json
import queue
import sys
import threading
from concurrent import futures

import grpc
from google.protobuf import any_pb2, json_format

from envoy.service.discovery.v3 import discovery_pb2

# What the JSON form of an Any may hold has to be known.
from envoy.config.cluster.v3 import cluster_pb2  # noqa: F401
from envoy.config.endpoint.v3 import endpoint_pb2  # noqa: F401
from envoy.config.listener.v3 import listener_pb2  # noqa: F401
from envoy.config.route.v3 import route_pb2  # noqa: F401
from envoy.config.trace.v3 import opentelemetry_pb2  # noqa: F401
from envoy.extensions.access_loggers.stream.v3 import stream_pb2  # noqa: F401
from envoy.extensions.clusters.aggregate.v3 import cluster_pb2 as _aggregate  # noqa: F401
from envoy.extensions.filters.http.cors.v3 import cors_pb2  # noqa: F401
from envoy.extensions.filters.http.fault.v3 import fault_pb2  # noqa: F401
from envoy.extensions.filters.http.local_ratelimit.v3 import local_rate_limit_pb2  # noqa: F401
from envoy.extensions.filters.http.rbac.v3 import rbac_pb2  # noqa: F401
from envoy.extensions.filters.http.router.v3 import router_pb2  # noqa: F401
from envoy.extensions.filters.http.stateful_session.v3 import stateful_session_pb2  # noqa: F401
from envoy.extensions.http.stateful_session.cookie.v3 import cookie_pb2  # noqa: F401
from envoy.extensions.filters.listener.http_inspector.v3 import http_inspector_pb2  # noqa: F401
from envoy.extensions.filters.listener.tls_inspector.v3 import tls_inspector_pb2  # noqa: F401
from envoy.extensions.load_balancing_policies.maglev.v3 import maglev_pb2  # noqa: F401
from envoy.extensions.load_balancing_policies.ring_hash.v3 import ring_hash_pb2  # noqa: F401
from envoy.extensions.transport_sockets.tls.v3 import secret_pb2  # noqa: F401
from envoy.extensions.transport_sockets.tls.v3 import tls_pb2  # noqa: F401
from envoy.extensions.filters.listener.proxy_protocol.v3 import proxy_protocol_pb2  # noqa: F401
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2  # noqa: F401
from envoy.extensions.filters.network.rbac.v3 import rbac_pb2 as _network_rbac  # noqa: F401
from envoy.extensions.filters.network.tcp_proxy.v3 import tcp_proxy_pb2  # noqa: F401
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2  # noqa: F401

# Make before break: what is referred to comes before what refers to it.
ORDER = ["Cluster", "ClusterLoadAssignment", "Listener", "RouteConfiguration"]
ENDPOINTS = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"

lock = threading.Lock()
resources = {}  # type -> name -> (version, Any)
streams = set()
latest = 0  # The last command that is in force.


def say(line):
    with lock:
        print(json.dumps(line), flush=True)


def rank(type_url):
    name = type_url.rsplit(".", 1)[-1]
    return ORDER.index(name) if name in ORDER else len(ORDER)


class Subscription:
    """What a stream knows of one type."""

    def __init__(self):
        self.wildcard = False
        self.explicit = set()
        self.sent = {}

    def wants(self, name):
        return self.wildcard or name in self.explicit

    def news(self, known, asked):
        """What is to be sent and to be removed; `asked`: names that must be answered in any case."""
        fresh = {
            name: entry
            for name, entry in known.items()
            if self.wants(name) and (self.sent.get(name) != entry[0] or name in asked)
        }
        gone = [name for name in self.sent if name not in known or not self.wants(name)]
        missing = [name for name in asked if name not in known]
        return fresh, sorted({name for name in gone if name not in known} | set(missing))


class Stream:
    def __init__(self):
        self.queue = queue.Queue()
        self.types = {}
        self.nonces = itertools.count(1)
        self.told = {}  # By nonce, the last command that was in force then.
        self.agent = ""

    def read(self, requests):
        try:
            for request in requests:
                self.queue.put(request)
        except grpc.RpcError:
            pass
        self.queue.put(None)

    def take(self, request):
        """Applies a request; the names that it wants an answer for."""
        if not self.agent:
            self.agent = request.node.user_agent_name
            say({"stream": self.agent})
        first = request.type_url not in self.types
        subscription = self.types.setdefault(request.type_url, Subscription())
        subscribed = set(request.resource_names_subscribe)
        if first:
            subscription.sent = dict(request.initial_resource_versions)
            if not subscribed and rank(request.type_url) in (0, 2):
                subscription.wildcard = True
        if "*" in subscribed:
            subscription.wildcard = True
        subscription.explicit |= subscribed - {"*"}
        for name in request.resource_names_unsubscribe:
            subscription.explicit.discard(name)
            subscription.sent.pop(name, None)
        say(
            {
                "agent": self.agent,
                "type": request.type_url,
                "answers": self.told.pop(request.response_nonce, None),
                "subscribe": sorted(subscribed),
                "error": request.error_detail.message,
            }
        )
        return subscribed - {"*"}

    def responses(self, asked_type, asked):
        clusters = False
        for type_url in sorted(self.types, key=rank):
            subscription = self.types[type_url]
            with lock:
                known, command = dict(resources.get(type_url, {})), latest
            names = set(asked) if type_url == asked_type else set()
            if type_url == ENDPOINTS and clusters:
                # Envoy warms a changed cluster only once its endpoints have come again.
                names |= {name for name in subscription.explicit if name in known}
            fresh, gone = subscription.news(known, names)
            if not fresh and not gone:
                continue
            clusters = clusters or rank(type_url) == 0
            response = discovery_pb2.DeltaDiscoveryResponse(type_url=type_url, nonce=str(next(self.nonces)))
            self.told[response.nonce] = command
            say({"sent": self.agent})
            for name, (version, value) in sorted(fresh.items()):
                response.resources.append(discovery_pb2.Resource(name=name, version=version, resource=value))
                subscription.sent[name] = version
            for name in gone:
                response.removed_resources.append(name)
                subscription.sent.pop(name, None)
            yield response


class Ads:
    def DeltaAggregatedResources(self, requests, context):
        stream = Stream()
        threading.Thread(target=stream.read, args=(requests,), daemon=True).start()
        with lock:
            streams.add(stream)
        try:
            while (request := stream.queue.get()) is not None:
                if request == "changed":
                    yield from stream.responses(None, ())
                elif isinstance(request, bytes):
                    yield request
                else:
                    asked = stream.take(request)
                    yield from stream.responses(request.type_url, asked)
        finally:
            with lock:
                streams.discard(stream)


def obey(command):
    global latest
    changed = set()
    with lock:
        latest = command["id"]
        for resource in command.get("set", []):
            name = resource.pop("name@wire")
            value = json_format.ParseDict(resource, any_pb2.Any())
            # The same bytes for the same resource, and so the same version.
            version = hashlib.sha256(value.SerializeToString(deterministic=True)).hexdigest()[:16]
            known = resources.setdefault(value.type_url, {})
            if known.get(name, ("",))[0] != version:
                changed.add(value.type_url)
            known[name] = (version, value)
        for resource in command.get("remove", []):
            resources.get(resource["type"], {}).pop(resource["name"], None)
        for stream in streams:
            if "say" not in command:
                stream.queue.put("changed")
            elif stream.agent.startswith(command["to"]):
                for message in [base64.b64decode(text) for text in command["say"]] * command["times"]:
                    stream.queue.put(message)
    say({"done": command["id"], "changed": sorted(changed)})


def handler(ads):
    """As generated, but that a message may also be bytes, which are sent as they are."""
    method = grpc.stream_stream_rpc_method_handler(
        ads.DeltaAggregatedResources,
        request_deserializer=discovery_pb2.DeltaDiscoveryRequest.FromString,
        response_serializer=lambda said: said if isinstance(said, bytes) else said.SerializeToString(),
    )
    service = "envoy.service.discovery.v3.AggregatedDiscoveryService"
    return grpc.method_handlers_generic_handler(service, {"DeltaAggregatedResources": method})


def main():
    certificate, key, root = (open(path, "rb").read() for path in sys.argv[1:4])
    server = grpc.server(
        futures.ThreadPoolExecutor(32),
        options=[("grpc.max_receive_message_length", 64 << 20), ("grpc.max_send_message_length", 64 << 20)],
    )
    server.add_generic_rpc_handlers((handler(Ads()),))
    credentials = grpc.ssl_server_credentials([(key, certificate)], root, require_client_auth=True)
    tls, plain = sys.argv[4:6] or (0, 0)
    tls = server.add_secure_port(f"127.0.0.1:{tls}", credentials)
    plain = server.add_insecure_port(f"127.0.0.1:{plain}")
    server.start()
    say({"tls": tls, "plain": plain})
    for line in sys.stdin:
        obey(json.loads(line))
    server.stop(None)


main()
