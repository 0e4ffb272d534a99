"""A gRPC server of all four kinds of methods, over bytes. Prints its port."""
import concurrent.futures

import grpc


def unary(request, context):
    if request == b"fail":
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "as asked")
    context.set_trailing_metadata((("seen-by", "server"),))
    return request[::-1]


def server_stream(request, context):
    for index in range(int(request)):
        yield b"%d" % index


def client_stream(requests, context):
    return b"%d" % sum(len(request) for request in requests)


def both(requests, context):
    for request in requests:
        yield request.upper()


handlers = grpc.method_handlers_generic_handler("test.Echo", {
    "Unary": grpc.unary_unary_rpc_method_handler(unary),
    "ServerStream": grpc.unary_stream_rpc_method_handler(server_stream),
    "ClientStream": grpc.stream_unary_rpc_method_handler(client_stream),
    "Both": grpc.stream_stream_rpc_method_handler(both),
})
# Half as patient as usual with clients that ping for no reason (gRFC A8), so that who does so is found out in half the time.
server = grpc.server(concurrent.futures.ThreadPoolExecutor(16), options=[("grpc.http2.max_ping_strikes", 1)])
server.add_generic_rpc_handlers((handlers,))
port = server.add_insecure_port("127.0.0.1:0")
server.start()
print(port)
server.wait_for_termination()
