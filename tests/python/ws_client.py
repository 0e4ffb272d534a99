"""ws_client.py PROXY HOST: a WebSocket conversation with HOST whose TCP connection goes to PROXY (ip:port)."""
import asyncio
import sys

from websockets.asyncio.client import connect


async def main(proxy, host):
    address, port = proxy.rsplit(":", 1)
    async with connect(f"ws://{host}/chat", host=address, port=int(port), proxy=None, max_size=None) as connection:
        for message in ["hello", "x" * 1_000_000, b"\x00\xff" * 1000, ""]:
            await connection.send(message)
            assert await connection.recv() == message, "another message came back"
        await connection.ping()
    print("ok")


asyncio.run(main(*sys.argv[1:]))
