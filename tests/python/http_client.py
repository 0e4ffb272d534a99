"""http_client.py PROXY URL COUNT: COUNT requests with aiohttp through an HTTP proxy, ten at a time."""
import asyncio
import sys

import aiohttp


async def main(proxy, url, count):
    body = b"x" * 100_000
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as session:
        slots = asyncio.Semaphore(10)

        async def one():
            async with slots, session.post(url, data=body, proxy=proxy) as response:
                assert response.status == 200, response.status
                assert await response.read() == body, "another body came back"

        await asyncio.gather(*(one() for _ in range(int(count))))
    print("ok")


asyncio.run(main(*sys.argv[1:]))
