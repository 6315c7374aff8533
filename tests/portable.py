"""`python -m tests.portable web …`: the command line with uvicorn's own protocols, as under any ASGI server.

Nothing can be handed over then, and streams and WebSockets take the portable path.
"""

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from server import serve
from server.cli import main

if __name__ == "__main__":
    serve.LimitedHttp = HttpToolsProtocol  # type: ignore[assignment,attr-defined]
    serve.LimitedWebSocket = WebSocketsSansIOProtocol  # type: ignore[assignment,attr-defined]
    main()
