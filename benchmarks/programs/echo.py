"""Sends a byte to a server in the same loop and waits for it to come back: on one connection, or on one each."""

import asyncio
import sys
from typing import Any

from timing import best, tracer


class Echo(asyncio.Protocol):
    """Sends back what comes."""

    def connection_made(self, transport: Any) -> None:
        """Keep the transport."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Send it back."""
        self._transport.write(data)


async def round_trips(count: int, *, connections: int) -> None:
    """Share the round trips between so many connections, opened one after the other."""
    server = await asyncio.get_running_loop().create_server(Echo, "127.0.0.1", 0)
    for _ in range(connections):
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        for _ in range(count // connections):
            writer.write(b"x")
            await reader.readexactly(1)
        writer.close()
        await writer.wait_closed()
    server.close()


with tracer.start_as_current_span("asker"):
    if sys.argv[1] == "trips":
        print(best(lambda count: asyncio.run(round_trips(count, connections=1)), 2_000))
    else:
        print(best(lambda count: asyncio.run(round_trips(count, connections=count)), 200))
