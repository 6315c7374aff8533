"""The process `taskbeam generator`."""

from urllib.parse import urlsplit

from server import log
from server.generator.app import Generator
from server.serve import run_app
from server.settings import Settings

# A picture takes longer than anybody waits for an end; whoever asked for it asks again.
GRACEFUL_SECONDS = 2


def run_generator(settings: Settings, fd: int | None = None) -> None:
    """Serve the built-in generator where GENERATOR_URL says, until told to end."""
    log.configure(settings, "generator")
    parts = urlsplit(settings.generator_url or "http://127.0.0.1:8090/")
    generator = Generator(settings)
    run_app(
        generator.app,
        host=parts.hostname or "127.0.0.1",
        port=parts.port or 8090,
        fd=fd,
        on_exit=generator.closing,
        graceful_seconds=GRACEFUL_SECONDS,
    )
