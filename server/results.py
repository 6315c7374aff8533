"""The pictures that are kept here, and their route. Who knows a name may see it: it has 144 random bits or more."""

import contextlib
import os
import re
import secrets
from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, Response

from server.errors import NotFound

PATH = "/results/"
NAME = re.compile(r"[A-Za-z0-9_-]{22,64}\.(png|jpg|webp)", re.ASCII)
TYPES = {"png": "image/png", "jpg": "image/jpeg", "webp": "image/webp"}


class Results:
    """GET /results/{name}"""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def answer(self, request: Request) -> Response:
        """The picture, for ever the same under its name."""
        name = request.path_params["name"]
        match = NAME.fullmatch(name)
        if match is None or not (self._folder / name).is_file():
            raise NotFound
        return FileResponse(
            self._folder / name,
            media_type=TYPES[match[1]],
            headers={
                "Cache-Control": "private, max-age=31536000, immutable",
                "Content-Security-Policy": "default-src 'none'; sandbox",
            },
        )


def save(folder: Path, name: str, data: bytes) -> None:
    """Whole or not at all under its name, and on the disk when this returns. Raises OSError.

    A reader never sees half a picture; and a task is committed as completed next: its picture must be as durable.
    """
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".{secrets.token_hex(8)}.part"  # two may save one name at once
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(folder / name)
    except OSError:
        discard(folder, part.name)
        raise
    entry = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(entry)
    finally:
        os.close(entry)


def discard(folder: Path, name: str) -> None:
    """Take a picture away that nobody was told of."""
    with contextlib.suppress(FileNotFoundError):
        (folder / name).unlink()
