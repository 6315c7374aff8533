"""Holds what is sent to a generator to its description, and its tokens to one run and one purpose."""

from urllib.parse import parse_qs, urlsplit

import msgspec
import pytest

from server.dispatch.job import Addresses, compose, webhook_purpose
from server.dispatch.token import BadToken, make_token, read_token
from server.generators import Generator
from server.template import read_template

pytestmark = pytest.mark.pure

SECRET = b"k" * 32
HERE = Addresses("http://web.internal:8000", "https://app.test", SECRET)
PARAMS = {"seed": 7, "prompt": "not this one", "size": "large"}
TEMPLATE = read_template({"input": {"text": "{prompt}", "seed": "{params.seed}", "steps": "{params.steps}"}})


def test_without_a_template() -> None:
    job = compose(Generator(url="https://g.test/?a={{b"), "t", 3, "a fox", PARAMS, HERE)
    assert job.url == "https://g.test/?a={b"
    assert msgspec.json.decode(job.body) == {"seed": 7, "size": "large", "prompt": "a fox"}
    assert job.headers == {
        "Taskbeam-Task-Id": "t",
        "Taskbeam-Attempt": "3",
        "Taskbeam-Progress-Url": "http://web.internal:8000/api/generate/progress",
        "Taskbeam-Progress-Token": make_token(SECRET, "t", 3),
    }
    assert (job.hidden_headers, job.hides_body) == (["Taskbeam-Progress-Token"], False)


def test_a_loopback_address_of_ours_is_told_to_those_it_is_of_use_to() -> None:
    here = Addresses("http://127.0.0.1:8000", "https://app.test", SECRET)
    for url, base in (
        ("https://g.test/", "https://app.test"),
        ("http://10.0.0.7/", "https://app.test"),
        ("http://127.0.0.1:9/", "http://127.0.0.1:8000"),
        ("http://localhost/", "http://127.0.0.1:8000"),
    ):
        job = compose(Generator(url=url), "t", 1, "a fox", {}, here)
        assert job.headers["Taskbeam-Progress-Url"] == f"{base}/api/generate/progress", url


def test_with_a_template_and_headers() -> None:
    generator = Generator(url="https://g.test/", body=TEMPLATE, headers=(("Authorization", "Bearer hunter2"),))
    job = compose(generator, "t", 1, "a fox", PARAMS, HERE)
    assert msgspec.json.decode(job.body) == {"input": {"text": "a fox", "seed": 7}}
    assert job.headers["Authorization"] == "Bearer hunter2"
    assert (job.hidden_headers, job.hides_body) == (["Taskbeam-Progress-Token", "Authorization"], False)


@pytest.mark.parametrize("name", ["webhookUrl", "progressToken"])
def test_a_body_with_a_token_is_hidden(name: str) -> None:
    generator = Generator(url="https://g.test/", body=read_template({"x": f"{{{name}}}"}), webhook="standard")
    job = compose(generator, "t", 1, "a fox", {}, HERE)
    assert job.hides_body
    assert make_token(SECRET, "t", 1, "progress" if name == "progressToken" else "webhook standard ") in str(job.body)


def test_where_it_calls_back() -> None:
    generator = Generator(name="slow", url="https://g.test/q?hook={webhookUrl}&x=1", webhook="fal")
    job = compose(generator, "t-1_a", 2, "a fox", {}, HERE)
    query = parse_qs(urlsplit(job.url).query)
    assert query["x"] == ["1"]
    told = urlsplit(query["hook"][0])
    assert (f"{told.scheme}://{told.netloc}", told.path) == ("https://app.test", "/api/generate/webhook/fal")
    said = {name: values[0] for name, values in parse_qs(told.query).items()}
    token = said.pop("token")
    assert said == {"task": "t-1_a", "attempt": "2", "generator": "slow"}
    assert read_token(SECRET, token, webhook_purpose(generator)) == ("t-1_a", 2)


def test_a_token_is_for_one_purpose() -> None:
    purposes = ["progress"] + [
        webhook_purpose(Generator(url="https://g.test/", name=name, webhook=webhook))
        for name in (None, "fal", "slow")
        for webhook in ("fal", "replicate")
    ]
    assert len(set(purposes)) == len(purposes)
    for purpose in purposes:
        token = make_token(SECRET, "t", 1, purpose)
        for other in purposes:
            if other == purpose:
                assert read_token(SECRET, token, other) == ("t", 1)
            else:
                with pytest.raises(BadToken):
                    read_token(SECRET, token, other)


def test_what_its_headers_hold_is_cut_out_of_texts() -> None:
    generator = Generator(url="https://g.test/", headers=(("Authorization", "Bearer hunter22"), ("X-Plan", "free")))
    said = "Incorrect API key provided: hunter22 (Bearer hunter22), plan free"
    assert generator.without_secrets(said) == "Incorrect API key provided: *** (***), plan free"
    assert "hunter22" not in repr(generator)
