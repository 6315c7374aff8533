"""Takes a line of curl apart, so that a test sends what people copy."""

import shlex
from dataclasses import dataclass, field
from urllib.parse import urlsplit

OURS = ("localhost:8000", "localhost:8080")


@dataclass
class Line:
    """`target` is the path and query."""

    method: str = ""
    target: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    data: str | None = None


def read(source: str) -> Line:
    """The request that this line makes; knows -N, -X, -H and -d, and the addresses of our documents."""
    words = iter(shlex.split(source.replace("\\\n", " ")))
    assert next(words) == "curl"
    line = Line()
    for word in words:
        match word:
            case "-N":
                pass
            case "-X":
                line.method = next(words)
            case "-H":
                name, _, value = next(words).partition(": ")
                line.headers[name] = value
            case "-d":
                line.data = next(words)
            case _:
                assert not line.target, f"a second address: {word}"
                address = urlsplit(word if "://" in word else f"http://{word}")
                assert address.scheme == "http"
                assert address.netloc in OURS, word
                line.target = address.path + (f"?{address.query}" if address.query else "")
    line.method = line.method or ("GET" if line.data is None else "POST")
    if line.data is not None:
        line.headers = {"Content-Type": "application/x-www-form-urlencoded", **line.headers}
    return line
