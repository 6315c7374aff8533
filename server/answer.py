"""What a route that is called often needs of a request and its answer, without the framework's objects for them."""

from starlette.types import Scope, Send


def header(scope: Scope, name: bytes) -> str:
    """The first header of that name, in lower case; "" where there is none."""
    for key, value in scope["headers"]:
        if key == name:
            found: str = value.decode("latin-1")
            return found
    return ""


async def send_json(send: Send, body: bytes) -> None:
    """200 with a body of JSON."""
    headers = [(b"content-length", b"%d" % len(body)), (b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
