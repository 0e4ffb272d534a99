"""A client of CSDS on the published protos alone: what a server has, as the JSON form of its answer.

usage: csds.py ADDRESS
"""

import sys

import grpc
from google.protobuf import json_format

from envoy.service.status.v3 import csds_pb2, csds_pb2_grpc

# What the JSON form of an Any may hold has to be known.
from envoy.config.cluster.v3 import cluster_pb2  # noqa: F401
from envoy.config.endpoint.v3 import endpoint_pb2  # noqa: F401
from envoy.config.listener.v3 import listener_pb2  # noqa: F401
from envoy.config.route.v3 import route_pb2  # noqa: F401
from envoy.extensions.filters.http.router.v3 import router_pb2  # noqa: F401
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2  # noqa: F401

with grpc.insecure_channel(sys.argv[1]) as channel:
    stub = csds_pb2_grpc.ClientStatusDiscoveryServiceStub(channel)
    fetched = stub.FetchClientStatus(csds_pb2.ClientStatusRequest(), timeout=20)
    streamed = list(stub.StreamClientStatus(iter([csds_pb2.ClientStatusRequest()] * 2), timeout=20))
    assert streamed == [fetched] * 2, "the same to whoever asks"
    try:
        matchers = csds_pb2.ClientStatusRequest(node_matchers=[{}])
        stub.FetchClientStatus(matchers, timeout=20)
        raise AssertionError("there is but one node")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT, error
print(json_format.MessageToJson(fetched, indent=None))
