"""Puts the figures of several processes together in one text, each sample with the slot it is of. Pure.

It works on what prometheus-client writes, where the samples of a metric follow its HELP and TYPE; values stay as they
are.
"""

from collections.abc import Mapping

HELP = b"# HELP "
SILENT = b"""\
# HELP taskbeam_processes_silent Processes behind the port that did not answer this scrape.
# TYPE taskbeam_processes_silent gauge
taskbeam_processes_silent %d
"""


def put_together(texts: Mapping[int, bytes], silent: int) -> bytes:
    """`texts` by slot, in the Prometheus text format; `silent` processes did not answer."""
    heads: dict[bytes, bytes] = {}
    samples: dict[bytes, list[bytes]] = {}
    for slot, text in sorted(texts.items()):
        name, label = b"", b'slot="%d"' % slot
        for line in text.splitlines(keepends=True):
            if line.startswith(HELP):
                name = line.split(b" ", 3)[2]
                new = name not in heads  # a process of another version may word it differently
                heads.setdefault(name, b"")
                lines = samples.setdefault(name, [])
            if not line.startswith(b"#"):
                lines.append(_labelled(line, label))
            elif new:
                heads[name] += line
    return b"".join([*(heads[name] + b"".join(lines) for name, lines in samples.items()), SILENT % silent])


def _labelled(line: bytes, label: bytes) -> bytes:
    name, brace, rest = line.partition(b"{")
    if brace:
        return b"%s{%s,%s" % (name, label, rest)
    name, _, value = line.partition(b" ")
    return b"%s{%s} %s" % (name, label, value)
