"""Serves the pictures that were stored here. Who knows the name may see it: it has 144 random bits."""

import re
from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, Response

from server.errors import NotFound

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
