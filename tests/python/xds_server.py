"""xds_server.py ADDRESS: a gRPC server that takes its listener from the control plane of GRPC_XDS_BOOTSTRAP. Prints its port."""
import concurrent.futures
import sys

import grpc

handlers = grpc.method_handlers_generic_handler("test.Echo", {
    "Unary": grpc.unary_unary_rpc_method_handler(lambda request, context: request[::-1]),
    "Both": grpc.stream_stream_rpc_method_handler(lambda requests, context: map(bytes.upper, requests)),
    "Secret": grpc.unary_unary_rpc_method_handler(lambda request, context: b"secret"),
})
# Who pings too often is to be told soon.
options = [("grpc.http2.max_ping_strikes", 1)]
server = grpc.server(concurrent.futures.ThreadPoolExecutor(4), options=options, xds=True)
server.add_generic_rpc_handlers((handlers,))
port = server.add_secure_port(sys.argv[1], grpc.xds_server_credentials(grpc.insecure_server_credentials()))
server.start()
print(port, flush=True)
server.wait_for_termination()
