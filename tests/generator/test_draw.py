"""Holds the built-in generator to the same picture for the same words, another for others, and to its formats."""

import io

import pytest
from PIL import Image

from server.generator import draw

pytestmark = pytest.mark.pure

SMALL = 48


def opened(data: bytes, kind: str) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    assert image.format == kind
    image.load()
    return image


def test_full_size() -> None:
    image = opened(draw.draw("a fox in the forest"), "PNG")
    assert (image.size, image.mode) == ((512, 512), "RGB")
    assert len(image.resize((64, 64)).getcolors(64 * 64) or ()) > 100, "a picture, not a plane"


def test_the_same_words_give_the_same_bytes() -> None:
    assert draw.draw("a fox", size=SMALL) == draw.draw("a fox", size=SMALL)


def test_other_words_and_other_seeds_give_other_pictures() -> None:
    prompts = ("a fox", "a fox ", "the sea at night", "")
    pictures = {draw.draw(prompt, size=SMALL) for prompt in prompts} | {draw.draw("a fox", seed=1, size=SMALL)}
    assert len(pictures) == len(prompts) + 1


def _brightness(prompt: str) -> float:
    red, green, blue = draw.paint(prompt, size=SMALL).resize((1, 1)).getpixel((0, 0))  # type: ignore[misc]  # RGB
    return (red + green + blue) / 3  # type: ignore[no-any-return,unused-ignore]


def test_words_are_seen_in_the_picture() -> None:
    assert _brightness("a city at night") < _brightness("a city at noon") - 20


@pytest.mark.parametrize("prompt", ["\0\n\x1b[2J", "\ud800", "😀é\u202e", "x" * 32_000])
def test_any_prompt_can_be_drawn(prompt: str) -> None:
    assert opened(draw.draw(prompt, size=SMALL), "PNG").size == (SMALL, SMALL)


def test_a_preview_is_small_enough_to_travel_with_the_progress() -> None:
    preview = draw.preview(draw.paint("a fox", size=SMALL))
    assert opened(preview, "JPEG").size == (64, 64)
    assert len(preview) < 3_000
