"""The figures of several processes in one text: whole for Prometheus, each sample of its slot."""

import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from server.fleet.exposition import put_together
from tests.exposition import parse, value
from tests.test_operations import told

pytestmark = pytest.mark.pure


def text(requests: int, lag: float, words: str = "Requests.") -> bytes:
    registry = CollectorRegistry()
    counted = Counter("requests", words, ["route"], registry=registry)
    counted.labels('/a{b} "c"').inc(requests)
    Counter("plain", "No label.", registry=registry).inc(requests)
    Histogram("lag_seconds", "Lag.", registry=registry, buckets=(1.0,)).observe(lag)
    return generate_latest(registry)


def test_each_sample_has_its_slot_and_each_metric_is_there_once() -> None:
    whole = put_together({0: text(3, 0.5), 2: text(4, 2.0, "Requests, told otherwise.")}, 1).decode()
    shown = parse(whole)
    for slot, requests in (("0", 3), ("2", 4)):
        assert value(shown, "requests_total", {"slot": slot, "route": '/a{b} "c"'}) == requests
        assert value(shown, "plain_total", {"slot": slot}) == requests
    assert value(shown, "lag_seconds_bucket", {"slot": "2", "le": "1.0"}) == 0
    assert value(shown, "lag_seconds_sum", {"slot": "2"}) == 2
    assert value(shown, "taskbeam_processes_silent") == 1
    names = [family.name for family in text_string_to_metric_families(whole)]
    assert len(names) == len(set(names)) >= 4
    assert whole.count("# HELP requests_total") == 1


def test_what_it_adds_is_told() -> None:
    (family,) = text_string_to_metric_families(put_together({}, 0).decode())
    assert told("The metrics of `serve`") == {family.name: (family.type, set())}
