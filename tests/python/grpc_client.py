"""grpc_client.py ADDRESS: calls all four kinds of methods and checks every answer."""
import queue
import sys

import grpc

channel = grpc.insecure_channel(sys.argv[1], options=[("grpc.default_authority", "echo.shop")])
timeout = 15

unary = channel.unary_unary("/test.Echo/Unary")
response, call = unary.with_call(b"abc", timeout=timeout)
assert response == b"cba", response
assert ("seen-by", "server") in call.trailing_metadata(), call.trailing_metadata()
big = bytes(range(256)) * 12_000
assert unary(big, timeout=timeout) == big[::-1], "a large message changed"

try:
    unary(b"fail", timeout=timeout)
    raise SystemExit("no error came back")
except grpc.RpcError as error:
    assert error.code() == grpc.StatusCode.FAILED_PRECONDITION, error
    assert error.details() == "as asked", error

try:
    channel.unary_unary("/test.Echo/None")(b"", timeout=timeout)
    raise SystemExit("no error came back")
except grpc.RpcError as error:
    assert error.code() == grpc.StatusCode.UNIMPLEMENTED, error

stream = channel.unary_stream("/test.Echo/ServerStream")
assert list(stream(b"500", timeout=timeout)) == [b"%d" % index for index in range(500)]

collect = channel.stream_unary("/test.Echo/ClientStream")
assert collect(iter([b"x" * 1000] * 300), timeout=timeout) == b"300000"

# One message at a time, each answered before the next is sent: nothing on the way may wait for more.
outbox = queue.Queue()
replies = channel.stream_stream("/test.Echo/Both")(iter(outbox.get, None), timeout=timeout)
for index in range(50):
    outbox.put(b"m%d" % index)
    assert next(replies) == b"M%d" % index
outbox.put(None)
assert list(replies) == []
print("ok")
