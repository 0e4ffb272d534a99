"""An aiohttp server that sends every body back, as it comes in. Prints its port."""
import asyncio

from aiohttp import web


async def echo(request):
    response = web.StreamResponse(headers={"x-method": request.method, "x-path": request.path_qs})
    await response.prepare(request)
    async for chunk in request.content.iter_any():
        await response.write(chunk)
    await response.write_eof()
    return response


async def main():
    app = web.Application(client_max_size=0)
    app.router.add_route("*", "/{path:.*}", echo)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(site._server.sockets[0].getsockname()[1])
    await asyncio.Event().wait()


asyncio.run(main())
