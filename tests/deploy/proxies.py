"""The real nginx and Caddy with the configurations of docs/deploy/, in front of a test's web processes.

Only what differs on every machine is replaced: ports, the certificate, the file of users, where its own files lie.
"""

import datetime as dt
import os
import shutil
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from server.embedded.children import end, spawn
from tests.deployment import Deployment, listen

FILES = Path(__file__).parents[2] / "docs" / "deploy"
NAME = "tasks.example.com"
ORIGIN = f"https://{NAME}"
USER, PASSWORD = "alice", "a password of the tests"
# bcrypt of the least cost: ten browsers that log in at once would take seconds with the usual one.
PASSWORD_HASH = "$2b$04$abcdefghijklmnopqrstuuzzjWYX9ziq/z9PGEfqaY.69BPe06tMC"
READY_SECONDS_MAX = 10.0


def replaced(text: str, changes: Mapping[str, str]) -> str:
    """`text` with each key put by its value; every key has to be there, or the test no longer fits the file."""
    for old, new in changes.items():
        assert old in text, f"{old!r} is no longer in the file"
        text = text.replace(old, new)
    return text


def free_port() -> int:
    with listen() as found:
        return int(found.getsockname()[1])


class Proxy:
    """Its public side is `client()` (as a browser that has the password) and its own machine's side `inner_url`."""

    binary: str | None
    file: str
    # What takes the password out of the configuration, and what a stranger is then told.
    without_password: Mapping[str, str]
    shut: int

    def __init__(self, here: Deployment) -> None:
        self.folder = here.folder / "proxy"
        self.folder.mkdir()
        self.folder.chmod(0o755)
        self.log = self.folder / "log"
        self.port, self.inner_port = free_port(), free_port()
        self.inner_url = f"http://127.0.0.1:{self.inner_port}"
        self.webs = [server.port for server in here.webs]
        self._process: subprocess.Popen[bytes] | None = None
        certificate(self.folder, NAME)

    def command(self, changes: Mapping[str, str]) -> list[str]:
        """Write the configuration, with `changes` of the test's own, and say how it is run."""
        raise NotImplementedError

    def start(self, changes: Mapping[str, str] | None = None) -> None:
        with self.log.open("ab") as output:
            argv = self.command(changes or {})
            env = {**os.environ, "XDG_DATA_HOME": str(self.folder), "XDG_CONFIG_HOME": str(self.folder)}
            self._process = spawn(argv, env=env, output=output, death_signal=signal.SIGTERM)
        deadline = time.monotonic() + READY_SECONDS_MAX
        while True:
            assert self._process.poll() is None, self.log.read_text()
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
                if httpx.get(f"{self.inner_url}/healthz", trust_env=False).status_code == 200:
                    return
            except (httpx.HTTPError, OSError):
                assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)

    def stop(self) -> None:
        if self._process is not None:
            end([self._process], signal.SIGTERM, 5)

    def tls(self) -> ssl.SSLContext:
        """What trusts its certificate; one a client, since a client notes in it what it speaks."""
        return ssl.create_default_context(cafile=self.folder / "tls.crt")

    def client(
        self, *, password: str | None = PASSWORD, connections: int = 10, http2: bool = True, **options: Any
    ) -> httpx.AsyncClient:
        """A client that has looked the name up and found this proxy; it speaks one version of HTTP only."""
        limits = httpx.Limits(max_connections=connections)
        transport = _Pinned(self.port, verify=self.tls(), http1=not http2, http2=http2, trust_env=False, limits=limits)
        auth = None if password is None else (USER, password)
        return httpx.AsyncClient(base_url=ORIGIN, transport=transport, auth=auth, timeout=30, **options)


def certificate(folder: Path, name: str) -> ssl.SSLContext:
    """For a server of that name; the files are tls.crt, which is its own authority, and tls.key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(minutes=5))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "tls.crt").write_bytes(made.public_bytes(pem))
    (folder / "tls.key").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "tls.crt", folder / "tls.key")
    return context


class _Pinned(httpx.AsyncHTTPTransport):
    """Connects to a port of this machine, whatever the name; Host and SNI stay those of the name."""

    def __init__(self, port: int, **options: Any) -> None:
        super().__init__(**options)
        self._port = port

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        request.extensions = {"sni_hostname": request.url.host, **request.extensions}
        request.url = request.url.copy_with(host="127.0.0.1", port=self._port)
        return await super().handle_async_request(request)


class Nginx(Proxy):
    binary = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    file = "nginx.conf"
    own: Mapping[str, str] = {"/etc/nginx/taskbeam.users": "users"}
    without_password = {'auth_basic "Taskbeam"': "auth_basic off"}  # noqa: RUF012
    shut = 421

    def command(self, changes: Mapping[str, str]) -> list[str]:
        hashed = subprocess.run(
            ["/usr/bin/openssl", "passwd", "-6", "-stdin"], input=PASSWORD, capture_output=True, text=True, check=True
        ).stdout
        (self.folder / "users").write_text(f"{USER}:{hashed}")
        text = replaced(
            (FILES / self.file).read_text(),
            {
                "listen 443 ": f"listen 127.0.0.1:{self.port} ",
                "listen 80 ": f"listen 127.0.0.1:{free_port()} ",
                "127.0.0.1:8000;": f"127.0.0.1:{self.inner_port};",
                "127.0.0.1:8001 ": f"127.0.0.1:{self.webs[0]} ",
                "127.0.0.1:8002 ": f"127.0.0.1:{self.webs[1]} ",
                "/etc/nginx/taskbeam.crt": str(self.folder / "tls.crt"),
                "/etc/nginx/taskbeam.key": str(self.folder / "tls.key"),
                **{place: str(self.folder / name) for place, name in self.own.items()},
                "/run/nginx.pid": str(self.folder / "pid"),
                **changes,
            },
        )
        path = self.folder / "nginx.conf"
        path.write_text(text)
        return [self.binary or "nginx", "-p", str(self.folder), "-c", str(path), "-g", "daemon off;"]


class Caddy(Proxy):
    binary = shutil.which("caddy")
    file = "Caddyfile"
    without_password = {"basicauth {\n\t\t\t\timport users\n\t\t\t}\n": ""}  # noqa: RUF012
    shut = 403

    def command(self, changes: Mapping[str, str]) -> list[str]:
        (self.folder / "users").write_text(f"{USER} {PASSWORD_HASH}\n")
        own = f"admin off\n\tauto_https disable_redirects\n\thttps_port {self.port}\n\tlog {{"
        text = replaced(
            (FILES / self.file).read_text(),
            {
                "\tlog {": f"\t{own}",
                f"\n{NAME} {{": f"\n{NAME} {{\n\ttls {self.folder}/tls.crt {self.folder}/tls.key",
                "http://:8000 ": f"http://:{self.inner_port} ",
                "127.0.0.1:8001 ": f"127.0.0.1:{self.webs[0]} ",
                "127.0.0.1:8002": f"127.0.0.1:{self.webs[1]}",
                **changes,
            },
        )
        path = self.folder / "Caddyfile"
        path.write_text(text)
        return [self.binary or "caddy", "run", "--config", str(path), "--adapter", "caddyfile"]


class NginxSignIn(Nginx):
    file = "nginx-sign-in.conf"
    own: Mapping[str, str] = {}


class CaddySignIn(Caddy):
    file = "Caddyfile-sign-in"
