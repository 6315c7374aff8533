"""Draws a picture from a prompt: a landscape whose light, colours and shapes follow the words. Pure.

The same prompt and seed give the same bytes. Not a model and not meant as one: it stands in for a slow image
API, so that everything around it can be tried without an account anywhere.
"""

import colorsys
import hashlib
import io
import math
import random
from typing import TypeAlias

from PIL import Image, ImageChops, ImageDraw, ImageFilter

Color: TypeAlias = tuple[int, int, int]

SIZE = 512
# word in the prompt -> hue of the sky, in degrees
HUES = {
    "red": 4, "fire": 12, "fox": 18, "orange": 24, "autumn": 26, "sunset": 18, "desert": 34, "gold": 42, "sun": 40,
    "yellow": 50, "green": 130, "forest": 140, "spring": 110, "teal": 176, "sea": 196, "ocean": 202, "water": 198,
    "sky": 208, "blue": 218, "ice": 200, "winter": 212, "night": 234, "moon": 232, "star": 240, "purple": 275,
    "violet": 280, "dream": 288, "pink": 330, "rose": 342, "love": 346, "flower": 325, "cherry": 338,
}  # fmt: skip
NIGHT = ("night", "moon", "star", "dark", "midnight", "space", "galaxy", "owl", "winter", "dream")
WATER = ("sea", "ocean", "water", "lake", "river", "island", "boat", "beach", "wave", "reflection", "fish")
TREES = ("forest", "tree", "wood", "pine", "fox", "bear", "deer", "owl", "autumn", "winter", "cabin")


def draw(prompt: str, *, seed: int = 0, size: int = SIZE) -> bytes:
    """A PNG of `size` by `size` pixels."""
    return encode(paint(prompt, seed=seed, size=size))


def encode(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG", compress_level=4)
    return out.getvalue()


def preview(image: Image.Image, pixels: int = 64) -> bytes:
    """A small blurred JPEG of an unfinished picture, about 1 kB."""
    out = io.BytesIO()
    small = image.resize((pixels, pixels), Image.Resampling.BILINEAR).filter(ImageFilter.GaussianBlur(1.5))
    small.save(out, "JPEG", quality=60)
    return out.getvalue()


def paint(prompt: str, *, seed: int = 0, size: int = SIZE) -> Image.Image:
    """The picture itself: sky, light, stars or birds, ranges of hills in haze, trees, water, a little grain."""
    rng = random.Random(hashlib.sha256(f"{seed}\0{prompt}".encode("utf-8", "replace")).digest())  # noqa: S311
    words = prompt.lower()[:2_000]
    night = any(word in words for word in NIGHT)
    hue = next((h for word, h in HUES.items() if word in words), rng.randrange(360)) + rng.uniform(-6, 6)
    horizon = int(size * rng.uniform(0.56, 0.64))
    top, low = _sky_colors(hue, night, rng)
    image = _gradient(size, top, low, horizon)
    center = (int(size * rng.uniform(0.25, 0.75)), int(horizon * rng.uniform(0.3, 0.75)))
    image = _light(image, center, night, low, rng)
    if night:
        _stars(image, horizon, rng)
    else:
        _birds(image, horizon, rng)
    water = any(word in words for word in WATER) or rng.random() < 0.3
    layers = 3 if water else 5
    for layer in range(layers):
        depth = layer / (layers - 1)
        color = _mix(low, _hill_color(hue, night), 0.25 + 0.75 * depth)
        base = horizon + int((size - horizon) * depth * (0.12 if water else 0.62)) - int(size * 0.03)
        trees = depth > 0.6 and (any(word in words for word in TREES) or rng.random() < 0.4)
        image = _hills(image, base, color, low, size * (0.16 - 0.09 * depth), trees, rng)
    if water:
        image = _reflect(image, horizon + int((size - horizon) * 0.16), top, rng)
    return _finish(image, rng)


def _hsl(hue: float, saturation: float, lightness: float) -> Color:
    red, green, blue = colorsys.hls_to_rgb(hue % 360 / 360, lightness, saturation)
    return int(red * 255), int(green * 255), int(blue * 255)


def _mix(a: Color, b: Color, share: float) -> Color:
    return (
        int(a[0] + (b[0] - a[0]) * share),
        int(a[1] + (b[1] - a[1]) * share),
        int(a[2] + (b[2] - a[2]) * share),
    )


def _sky_colors(hue: float, night: bool, rng: random.Random) -> tuple[Color, Color]:
    if night:
        return _hsl(hue + rng.uniform(-10, 10), 0.55, 0.07), _hsl(hue + rng.uniform(15, 45), 0.45, 0.36)
    return _hsl(hue + rng.uniform(20, 50), 0.52, 0.46), _hsl(hue - rng.uniform(0, 20), 0.85, 0.83)


def _hill_color(hue: float, night: bool) -> Color:
    return _hsl(hue + 25, 0.42, 0.07 if night else 0.17)


def _gradient(size: int, top: Color, low: Color, horizon: int) -> Image.Image:
    column = Image.new("RGB", (1, size))
    for y in range(size):
        share = min(1.0, y / horizon)
        column.putpixel((0, y), _mix(top, low, share**1.35))
    return column.resize((size, size))


def _light(image: Image.Image, center: tuple[int, int], night: bool, low: Color, rng: random.Random) -> Image.Image:
    """Sun or moon: a wide glow, a narrow one, the disc."""
    size = image.width
    radius = int(size * rng.uniform(0.05, 0.085))
    x, y = center
    tint = (236, 238, 250) if night else _mix((255, 246, 220), low, 0.1)
    for reach, strength in ((5.0, 0.35), (2.2, 0.5)):
        glow = Image.new("L", (size // 4, size // 4))
        r = radius * reach / 4
        ImageDraw.Draw(glow).ellipse((x / 4 - r, y / 4 - r, x / 4 + r, y / 4 + r), fill=int(255 * strength))
        glow = glow.filter(ImageFilter.GaussianBlur(r * 0.5)).resize((size, size), Image.Resampling.BICUBIC)
        image = Image.composite(Image.new("RGB", image.size, tint), image, glow)
    disc = Image.new("L", (size, size))
    ImageDraw.Draw(disc).ellipse((x - radius, y - radius, x + radius, y + radius), fill=245)
    if night and rng.random() < 0.5:  # a crescent
        shift = int(radius * rng.uniform(0.35, 0.7))
        left, top = x - radius + shift, y - radius - shift // 3
        ImageDraw.Draw(disc).ellipse((left, top, left + 2 * radius, top + 2 * radius), fill=0)
    return Image.composite(Image.new("RGB", image.size, tint), image, disc.filter(ImageFilter.GaussianBlur(1)))


def _stars(image: Image.Image, horizon: int, rng: random.Random) -> None:
    pen = ImageDraw.Draw(image)
    for _ in range(rng.randrange(120, 220)):
        x, y = rng.randrange(image.width), int(horizon * rng.random() ** 1.4)
        shade = rng.randrange(120, 255)
        color = (shade, shade, min(255, shade + 15))
        if rng.random() < 0.08:
            pen.ellipse((x - 1, y - 1, x + 1, y + 1), fill=color)
        else:
            pen.point((x, y), fill=color)


def _birds(image: Image.Image, horizon: int, rng: random.Random) -> None:
    pen = ImageDraw.Draw(image, "RGBA")
    x0, y0 = rng.uniform(0.15, 0.7) * image.width, rng.uniform(0.2, 0.5) * horizon
    for _ in range(rng.randrange(0, 8)):
        x, y = x0 + rng.gauss(0, image.width * 0.07), y0 + rng.gauss(0, image.width * 0.03)
        wing = image.width * rng.uniform(0.008, 0.016)
        for side in (-1, 1):
            box = (x + side * wing - wing, y - wing * 0.5, x + side * wing + wing, y + wing)
            pen.arc(box, 200, 340, fill=(30, 30, 45, 170), width=2)


def _ridge(width: int, roughness: float, rng: random.Random) -> list[float]:
    """Heights along a range, 0 … 1: a few sines and a fine tooth."""
    waves = [(rng.uniform(0.6, 1.4) * 1.9**k, rng.uniform(0, math.tau), 0.55**k) for k in range(6)]
    total = sum(weight for *_, weight in waves)
    heights = []
    for x in range(width):
        wave = sum(w * math.sin(p + f * math.tau * x / width) for f, p, w in waves) / (2 * total)
        heights.append(0.5 + wave + rng.uniform(-1, 1) * roughness)
    return heights


def _hills(
    image: Image.Image, base: int, color: Color, haze: Color, height: float, trees: bool, rng: random.Random
) -> Image.Image:
    size = image.width
    mask = Image.new("L", image.size)
    pen = ImageDraw.Draw(mask)
    ridge = _ridge(size, 0.006, rng)
    tops = [base - height * h for h in ridge]
    pen.polygon([(0, size), *enumerate(tops), (size, size)], fill=255)
    if trees:
        x = 0
        while x < size:
            tall = height * rng.uniform(0.35, 0.8)
            foot = tops[min(x, size - 1)] + 3
            for part in range(3):  # a pine: three skirts
                y, spread = foot - tall * part * 0.28, tall * (0.2 - 0.05 * part)
                pen.polygon([(x - spread, y), (x + spread, y), (x, y - tall * 0.5)], fill=255)
            x += rng.randrange(5, 16)
    shade = Image.new("RGB", (1, size))
    for y in range(size):
        fade = min(1.0, max(0.0, (y - base + height) / (size * 0.3)))
        shade.putpixel((0, y), _mix(color, _mix(color, haze, 0.35), fade))
    return Image.composite(shade.resize(image.size), image, mask)


def _reflect(image: Image.Image, shore: int, tint: Color, rng: random.Random) -> Image.Image:
    """Still water below the shore: the picture upside down, row by row a little beside itself."""
    size = image.width
    out = image.copy()
    for y in range(shore, size):
        away = y - shore
        source = max(0, shore - 1 - int(away * 0.95))
        ripple = int(math.sin(away * 0.55 + rng.uniform(-0.4, 0.4)) * (1 + away * 0.035))
        row = ImageChops.offset(image.crop((0, source, size, source + 1)), ripple, 0)
        out.paste(Image.blend(row, Image.new("RGB", row.size, tint), min(0.55, 0.18 + away / size)), (0, y))
    ImageDraw.Draw(out, "RGBA").line((0, shore, size, shore), fill=(255, 255, 255, 50))
    return out


def _finish(image: Image.Image, rng: random.Random) -> Image.Image:
    """Darker corners and a grain, so that large areas are not flat."""
    size = image.width
    small = Image.new("L", (64, 64))
    for y in range(64):
        for x in range(64):
            distance = math.hypot(x - 31.5, y - 31.5) / 44.5
            small.putpixel((x, y), int(255 * max(0.0, distance - 0.45) * 0.75))
    vignette = small.resize((size, size), Image.Resampling.BICUBIC)
    image = Image.composite(Image.new("RGB", image.size, (8, 8, 18)), image, vignette)
    noise = Image.frombytes("L", (128, 128), bytes(128 + rng.randrange(-7, 8) for _ in range(128 * 128)))
    tile = Image.new("L", image.size)
    for y in range(0, size, 128):
        for x in range(0, size, 128):
            tile.paste(noise, (x, y))
    return ImageChops.overlay(image, Image.merge("RGB", (tile, tile, tile)))
