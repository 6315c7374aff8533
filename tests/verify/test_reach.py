"""What cannot be verified is told in one line that says what to do, and no secret stands in it."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from server.clients.origin import BadUrl, Origin, authorization
from server.verify import reach as module
from server.verify.reach import NotReached, reach
from tests.deploy.proxies import certificate


@asynccontextmanager
async def answering(answer: bytes, **options: Any) -> AsyncIterator[int]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, **options)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


def problem(status: int, code: str) -> bytes:
    body = f'{{"status":{status},"code":"{code}","detail":"the words of the server"}}'.encode()
    return (
        b"HTTP/1.1 %d -\r\nContent-Type: application/problem+json\r\nContent-Length: %d\r\n\r\n"
        % (
            status,
            len(body),
        )
        + body
    )


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (problem(401, "unauthorized"), ["HTTP 401 unauthorized: the words", "--token", "--user"]),
        (b"HTTP/1.1 401 -\r\nContent-Length: 0\r\n\r\n", ["HTTP 401", "--user"]),
        (problem(403, "forbidden"), ["HTTP 403 forbidden", "not for this caller"]),
        (problem(421, "foreign_host"), ["HTTP 421 foreign_host", "its own machine"]),
        (problem(503, "unavailable"), ["HTTP 503 unavailable: the words"]),
        (
            b"HTTP/1.1 308 -\r\nLocation: https://tasks.example.com/\r\nContent-Length: 0\r\n\r\n",
            ["sends on to https://tasks.example.com/"],
        ),
        (
            b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 5\r\n\r\nhello",
            ["not a Taskbeam", "HTTP 200, text/html"],
        ),
        (b'HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n{"tasks": 7}', ["not a Taskbeam"]),
        (b"SSH-2.0-OpenSSH_9.2\r\n", ["does not answer in HTTP"]),
        (b"", ["does not answer in HTTP"]),
    ],
)
async def test_what_is_no_deployment_for_us(answer: bytes, told: list[str]) -> None:
    async with answering(answer) as port:
        with pytest.raises(NotReached) as refused:
            await reach(Origin.parse(f"http://127.0.0.1:{port}", authorization("my-secret-token", None)))
    for words in told:
        assert words in str(refused.value)
    assert "my-secret-token" not in str(refused.value)


async def test_where_nothing_is(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        with pytest.raises(NotReached, match=f"nothing listens at 127.0.0.1 port {port}"):
            await reach(Origin.parse(f"http://127.0.0.1:{port}", {}))

    async def no_such_name(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(module, "fetch", no_such_name)  # a real look-up takes as long as the network likes
    with pytest.raises(NotReached, match=r"the name tasks\.example\.com cannot be looked up: Name or service"):
        await reach(Origin.parse("https://tasks.example.com", {}))


async def test_tls_that_is_not_trusted_or_not_there(tmp_path: Path) -> None:
    async with answering(b"", ssl=certificate(tmp_path, "localhost")) as port:
        with pytest.raises(NotReached, match=r"certificate of localhost:\d+ is not trusted: .*SSL_CERT_FILE"):
            await reach(Origin.parse(f"https://localhost:{port}", {}))
    async with answering(b"HTTP/1.1 400 Bad Request\r\n\r\n") as port:
        with pytest.raises(NotReached, match=r"no TLS with .* plain http"):
            await reach(Origin.parse(f"https://127.0.0.1:{port}", {}))


async def test_a_description_that_is_not_passed_on() -> None:
    async with answering(b'HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n{"tasks":[]}') as port:
        assert await reach(Origin.parse(f"http://127.0.0.1:{port}", {})) == "unknown"


@pytest.mark.pure
@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("localhost:8000", "must begin with http://"),
        ("ws://localhost", "must begin with http://"),
        ("http://", "must begin with http://"),
        ("http://alice:hunter2@localhost", "--user"),
        ("http://localhost/?a=b", "neither a query"),
        ("http://localhost:port", "not a URL"),
        ("http://a..b", "name of the host"),
    ],
)
def test_what_is_no_address(url: str, told: str) -> None:
    with pytest.raises(BadUrl, match=told) as refused:
        Origin.parse(url, {})
    assert "hunter2" not in str(refused.value)


@pytest.mark.pure
def test_what_an_address_becomes() -> None:
    plain = Origin.parse("http://[::1]:8000/", {})
    assert (plain.address, plain.host, plain.prefix, plain.tls) == (("::1", 8000), "[::1]:8000", "", None)
    far = Origin.parse("https://Bücher.example/a b/", {"Authorization": "Bearer hunter2"})
    assert (far.address, far.host, far.prefix) == (("xn--bcher-kva.example", 443), "xn--bcher-kva.example", "/a%20b")
    assert far.tls is not None
    assert "hunter2" not in repr(far)
    sent = far.request("POST", "/api/generate", {"Accept": "x"}, b"body").decode()
    assert sent.startswith("POST /a%20b/api/generate HTTP/1.1\r\nHost: xn--bcher-kva.example\r\n")
    assert "Authorization: Bearer hunter2\r\n" in sent
    assert sent.endswith("Content-Length: 4\r\nAccept: x\r\n\r\nbody")


@pytest.mark.pure
def test_who_asks() -> None:
    assert authorization(None, None) == {}
    assert authorization(None, "alice:pass word") == {"Authorization": "Basic YWxpY2U6cGFzcyB3b3Jk"}
    for token, user in (("a\r\nb", None), ("a b", None), ("t", "u:p"), (None, "hunter2")):
        with pytest.raises(BadUrl) as refused:
            authorization(token, user)
        assert "hunter2" not in str(refused.value)
