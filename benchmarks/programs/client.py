"""Asks a server with aiohttp, again and again, and prints the CPU time of a request; the server's is not in it."""

import asyncio
import subprocess
import sys
import time

import aiohttp

REQUESTS, REPEATS = 500, 7


async def seconds(session: aiohttp.ClientSession, url: str) -> float:
    """Return the CPU time of one request, on average."""
    start = time.process_time()
    for _ in range(REQUESTS):
        async with session.get(url) as response:
            await response.read()
    return (time.process_time() - start) / REQUESTS


async def main(port: str) -> None:
    """Print the least of some repeats: the machine's other work only adds."""
    async with aiohttp.ClientSession() as session:
        print(min([await seconds(session, f"http://127.0.0.1:{port}/") for _ in range(REPEATS)]))


with subprocess.Popen([sys.executable, "-I", "answering.py"], stdout=subprocess.PIPE, text=True) as server:
    assert server.stdout is not None
    asyncio.run(main(server.stdout.readline().strip()))
    server.terminate()
