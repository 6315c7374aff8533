"""A picture that came inside an answer: recognised by its first bytes, whatever was said of its type. Pure.

Only what a browser shows as a picture and as nothing else: png, jpeg, webp.
"""

import base64
import binascii
import re
from typing import Literal, TypeAlias

import msgspec

PICTURE_BYTES_MAX = 24 * 1024 * 1024
Kind: TypeAlias = Literal["png", "jpg", "webp"]

_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
# The same first bytes in base64: what begins so is no URL.
_IN_BASE64 = ("iVBORw0KGg", "/9j/", "UklGR")
_SPACE = re.compile(r"\s+", re.ASCII)


class BadPicture(ValueError):
    """What should be a picture is none, or too large; the message is a sentence for the task's owner."""


class Picture(msgspec.Struct, frozen=True):
    """The bytes of a picture, and the end of its file name."""

    data: bytes
    kind: Kind


def kind_of(data: bytes) -> Kind | None:
    """What the bytes are by their beginning; None for anything but a picture."""
    if data.startswith(_PNG):
        return "png"
    if data.startswith(_JPEG):
        return "jpg"
    return "webp" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else None


def read_bytes(data: bytes) -> Picture | None:
    """The picture that these bytes are, None where they are none. Raises BadPicture for one that is too large."""
    kind = kind_of(data)
    if kind is None:
        return None
    if len(data) > PICTURE_BYTES_MAX:
        raise BadPicture(f"The generator's picture has more than {PICTURE_BYTES_MAX} bytes")
    return Picture(data, kind)


def read_text(text: str) -> Picture | None:
    """The picture in a data URL or in bare base64; None for text that is neither. Raises BadPicture."""
    if text[:5].lower() == "data:":
        about, _, text = text.partition(",")
        if not about.lower().endswith(";base64"):
            raise BadPicture("The generator's data URL is not in base64")
    elif not text.startswith(_IN_BASE64):
        return None
    if len(text) > PICTURE_BYTES_MAX * 4 // 3 + 4096:
        raise BadPicture(f"The generator's picture has more than {PICTURE_BYTES_MAX} bytes")
    bare = _SPACE.sub("", text)
    try:
        picture = read_bytes(base64.b64decode(bare + "=" * (-len(bare) % 4), validate=True))
    except (binascii.Error, ValueError) as error:
        if isinstance(error, BadPicture):
            raise
        raise BadPicture("The generator's picture is not base64") from None
    if picture is None:
        raise BadPicture("The generator's picture is none: only png, jpeg and webp are taken")
    return picture
