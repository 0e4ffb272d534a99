"""grpc_silent.py ADDRESS SECONDS: a call that is silent for so long, on which another message is then answered."""
import queue
import sys
import time

import grpc

outbox = queue.Queue()
channel = grpc.insecure_channel(sys.argv[1], options=[("grpc.default_authority", "echo.shop")])
replies = channel.stream_stream("/test.Echo/Both")(iter(outbox.get, None))
for pause in (0, float(sys.argv[2])):
    time.sleep(pause)
    outbox.put(b"message")
    assert next(replies) == b"MESSAGE"
outbox.put(None)
assert list(replies) == []
print("ok")
