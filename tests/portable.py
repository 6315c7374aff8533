"""`python -m tests.portable web …`: the command line with uvicorn's own HTTP protocol, as under any ASGI server.

Nothing can be handed over then, and streams take the portable path.
"""

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from server import serve
from server.cli import main

if __name__ == "__main__":
    serve.LimitedHttp = HttpToolsProtocol  # type: ignore[assignment,attr-defined]
    main()
