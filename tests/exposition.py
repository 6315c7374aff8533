"""Reads what /metrics says."""

from collections.abc import Mapping
from typing import TypeAlias

import httpx
from prometheus_client.parser import text_string_to_metric_families

Series: TypeAlias = dict[tuple[str, frozenset[tuple[str, str]]], float]


def parse(text: str) -> Series:
    """Each sample by its name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(series: Series, name: str, labels: Mapping[str, str] | None = None) -> float:
    """One sample. Raises KeyError where it is not there."""
    return series[name, frozenset((labels or {}).items())]


def names(series: Series) -> set[str]:
    return {name for name, _ in series}


async def scrape(url: str, **options: object) -> Series:
    """What a process at `url` shows."""
    async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
        answer = await client.get(f"{url}/metrics", **options)  # type: ignore[arg-type]
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return parse(answer.text)
