"""Redis servers of a test's own: with a port and passwords, with TLS before them, with a Sentinel over them."""

import asyncio
import concurrent.futures
import contextlib
import datetime as dt
import ipaddress
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from server.embedded.children import end, spawn
from server.embedded.redis import find_binary

START_SECONDS_MAX = 10.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def redis_process(port: int, *options: str) -> "Iterator[subprocess.Popen[bytes]]":
    """`redis-server` with these arguments, listening on `port` of 127.0.0.1; a file of settings comes first."""
    binary = find_binary()
    assert binary is not None
    process = spawn([str(binary), *options], death_signal=signal.SIGKILL, output=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + START_SECONDS_MAX
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.2):
                break
            assert process.poll() is None, "it did not start"
            assert time.monotonic() < deadline, "it does not listen"
            time.sleep(0.01)
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGCONT)
        end([process], signal.SIGKILL, 5.0)


def alone(port: int, folder: Path) -> Sequence[str]:
    """The arguments of a server that keeps nothing."""
    return ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", str(folder)]


def certificate(folder: Path) -> tuple[Path, Path]:
    """One that signs itself, for 127.0.0.1, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "redis of a test")])
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(address, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, private = folder / "redis.pem", folder / "redis.key"
    pem.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return pem, private


@contextlib.contextmanager
def tls_before(port: int, pem: Path, private: Path) -> Iterator[int]:
    """A port of 127.0.0.1 that speaks TLS and passes everything on to `port`; on a loop of its own."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem, private)
    listening: concurrent.futures.Future[int] = concurrent.futures.Future()
    over = threading.Event()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                writer.write(data)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(forward(reader, inner_writer), forward(inner_reader, writer))
        await asyncio.gather(writer.wait_closed(), inner_writer.wait_closed(), return_exceptions=True)

    async def until_over() -> None:
        async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context) as server:
            listening.set_result(int(server.sockets[0].getsockname()[1]))
            await asyncio.to_thread(over.wait)

    thread = threading.Thread(target=asyncio.run, args=(until_over(),))
    thread.start()
    try:
        yield listening.result(START_SECONDS_MAX)
    finally:
        over.set()
        thread.join()
