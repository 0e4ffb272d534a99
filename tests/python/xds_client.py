"""xds_client.py TARGET: calls test.Echo/Unary over proxyless gRPC whenever a line comes in, and prints what came back.

A line in is a JSON object, {"metadata": {...}}; a line out is {"code": NAME, "details": TEXT, "reply": TEXT}. The certificates and
the control plane are those of GRPC_XDS_BOOTSTRAP.
"""
import json
import sys

import grpc
import grpc.experimental

credentials = grpc.xds_channel_credentials(grpc.experimental.insecure_channel_credentials())
channel = grpc.secure_channel(sys.argv[1], credentials)
call = channel.unary_unary("/test.Echo/Unary")
for line in sys.stdin:
    wish = json.loads(line)
    metadata = tuple(wish.get("metadata", {}).items())
    try:
        reply = call(b"abc", timeout=wish.get("timeout", 5), metadata=metadata)
        said = {"code": "OK", "details": "", "reply": reply.decode()}
    except grpc.RpcError as error:
        said = {"code": error.code().name, "details": error.details(), "reply": ""}
    print(json.dumps(said), flush=True)
