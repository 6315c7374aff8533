"""Holds templates to putting values, never structure, where the operator said, and to being refused by reason."""

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.template import BadTemplate, fill, fill_text, parse_template, placeholders

pytestmark = pytest.mark.pure

VALUES: dict[str, Any] = {
    "prompt": 'a "fox"\n{prompt} \\',
    "params.seed": 7,
    "params.scale": 7.5,
    "params.loras": [{"name": "x"}],
    "params.tiled": False,
    "params.nothing": None,
    "attempt": 2,
}


def filled(document: Any) -> Any:
    template = parse_template(msgspec.json.encode(document).decode())
    return fill(template, VALUES)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{prompt}", 'a "fox"\n{prompt} \\'),
        ("{params.seed}", 7),
        ("{params.scale}", 7.5),
        ("{params.loras}", [{"name": "x"}]),
        ("{params.tiled}", False),
        ("{params.nothing}", None),
        ("{attempt}", 2),
        ("{params.seed}!", "7!"),
        (" {params.seed}", " 7"),
        ("{params.seed}{params.scale}", "77.5"),
        ("{params.tiled}, {params.nothing}, {params.loras}", 'false, , [{"name":"x"}]'),
        ("{params.missing} in oil", " in oil"),
        ("{{prompt}}", "{prompt}"),
        ("{{{params.seed}}}", "{7}"),
        ("{{}}", "{}"),
        ("no placeholder", "no placeholder"),
        ("", ""),
    ],
)
def test_strings(text: str, value: Any) -> None:
    assert filled({"a": text}) == {"a": value}
    assert filled({"deep": [{"a": text}]}) == {"deep": [{"a": value}]}
    assert type(filled({"a": text})["a"]) is type(value)


def test_what_a_task_does_not_have_is_left_out() -> None:
    assert filled({"a": "{params.missing}", "b": "{params.seed}"}) == {"b": 7}
    assert filled({"a": {"b": "{params.missing}"}, "c": ["{params.missing}", "{params.seed}"]}) == {"a": {}, "c": [7]}
    assert filled({"a": 1, "b": None, "c": True, "d": [1.5]}) == {"a": 1, "b": None, "c": True, "d": [1.5]}


def test_keys_are_the_operators() -> None:
    assert filled({"{prompt}": "{params.seed}", "{": 1}) == {"{prompt}": 7, "{": 1}


def test_the_placeholders_are_known() -> None:
    template = parse_template('{"a":["{prompt} {params.x-1}"],"b":{"c":"{webhookUrl}"},"{taskId}":"{{attempt}}"}')
    assert template.names == {"prompt", "params.x-1", "webhookUrl"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{promt}", "has no placeholder {promt}"),
        ("{Prompt}", "has no placeholder"),
        ("{}", "has no placeholder"),
        ("{params}", "has no placeholder"),
        ("{params.}", "has no placeholder"),
        ("{params.a.b}", "has no placeholder"),
        ("{params.ä}", "has no placeholder"),
        ("{prompt", "single brace"),
        ("prompt}", "single brace"),
        ("{{prompt}", "single brace"),
        ("{prompt}}", "single brace"),
        ("{a{prompt}}", "single brace"),
    ],
)
def test_refused(text: str, reason: str) -> None:
    with pytest.raises(BadTemplate, match=reason):
        placeholders(text)
    with pytest.raises(BadTemplate, match=reason):
        parse_template(msgspec.json.encode({"a": [text]}).decode())


TEXT = st.text(st.characters(codec="utf-8"), max_size=40)


@given(prompt=TEXT, style=TEXT)
@settings(max_examples=40, deadline=None, derandomize=True, database=None)
def test_a_value_stays_a_value(prompt: str, style: str) -> None:
    """Whatever a user writes: no key, no other field, no second replacement."""
    template = parse_template('{"model":"m","prompt":"{prompt}","both":"{prompt}|{params.style}"}')
    body = fill(template, {"prompt": prompt, "params.style": style})
    assert body == {"model": "m", "prompt": prompt, "both": f"{prompt}|{style}"}
    assert fill_text("?{prompt}{{", {"prompt": prompt}) == f"?{prompt}{{"
