"""An aiohttp server with a trivial handler and one that hands work over; it ends when its stdin does."""

import asyncio
import sys
import time

from aiohttp import web


async def hello(_request: web.Request) -> web.Response:
    """Answer at once."""
    return web.Response(text="hello")


async def hops(_request: web.Request) -> web.Response:
    """Answer after a task and a call in the executor's thread."""
    await asyncio.create_task(asyncio.sleep(0))
    await asyncio.get_running_loop().run_in_executor(None, int)
    return web.Response(text="hello")


async def flushed(_request: web.Request) -> web.Response:
    """Send all spans, and say the CPU time of the process."""
    from timing import flush

    await asyncio.get_running_loop().run_in_executor(None, flush)
    return web.Response(text=str(time.process_time()))


async def main() -> None:
    """Serve."""
    app = web.Application()
    app.router.add_get("/users/{id}", hello)
    app.router.add_get("/hops/{id}", hops)
    app.router.add_get("/flushed", flushed)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await runner.cleanup()


asyncio.run(main())
