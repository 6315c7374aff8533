"""How one server process ends: what it took last is answered before its connections are closed."""

import asyncio
from typing import Any

import uvicorn

from server.fleet.listener import open_listener
from server.protocols import LimitedHttp
from server.serve import _Server


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        for part in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{part}.complete"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


async def test_a_connection_whose_request_was_on_its_way_is_answered() -> None:
    listener = open_listener("127.0.0.1", 0)
    config = uvicorn.Config(app, http=LimitedHttp, lifespan="on", log_config=None)
    config.load()
    server = _Server(config, listener, None, None)
    server.lifespan = config.lifespan_class(config)
    await server.startup()
    reader, writer = await asyncio.open_connection(*listener.getsockname())
    await asyncio.sleep(0.1)
    assert server.server_state.connections

    server._closing()
    ending = asyncio.create_task(server.shutdown())
    await asyncio.sleep(0)
    writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    await asyncio.wait_for(ending, 5)
    assert not server.server_state.connections
    writer.close()
    await writer.wait_closed()
