"""Pictures composed of drawings, what each of their patches shows, and their captions."""

import random
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from words import BACKGROUNDS, GROUNDS, NOUNS, PATCH_WORDS, article

SIZE = 112  # pixels a side
PATCH = 14
GRID = SIZE // PATCH
# A patch shows an object from this share of its pixels on.
COVERED = 0.35
# Pairs of classes that no training picture holds together: every pair whose hash falls here.
HELD_OUT_SHARE = 0.1


@dataclass
class Placed:
    """An object of a scene: its class and its square, in pixels."""

    noun: str
    left: int
    top: int
    size: int

    def where(self) -> str:
        """The object's place, as captions say it."""
        x = (self.left + self.size / 2) / SIZE
        y = (self.top + self.size / 2) / SIZE
        if abs(x - 0.5) < 0.14 and abs(y - 0.5) < 0.14:
            return "in the center"
        if abs(x - 0.5) >= abs(y - 0.5):
            return "on the left" if x < 0.5 else "on the right"
        return "at the top" if y < 0.5 else "at the bottom"


@dataclass
class Scene:
    """A picture's content: objects from left to right, and the background."""

    objects: list[Placed]
    ground: str

    def nouns(self) -> list[str]:
        return [placed.noun for placed in self.objects]

    def caption(self) -> str:
        parts = [f"{article(placed.noun)} {placed.where()}" for placed in self.objects]
        if len(parts) > 1:
            parts = [", ".join(parts[:-1]) + " and " + parts[-1]]
        return f"The image shows {parts[0]}, {BACKGROUNDS[self.ground][0]}."


def is_held_out(nouns: list[str]) -> bool:
    """Whether two of the classes form a pair that no training picture holds."""
    pairs = [(a, b) for a in nouns for b in nouns if a < b]
    return any(random.Random(f"{a} {b}").random() < HELD_OUT_SHARE for a, b in pairs)


def sample(rng: random.Random, n_objects: int, held_out: bool) -> Scene:
    """A scene whose objects hardly overlap; with two objects or more, of a pair that is held out
    from training or of none that is."""
    while True:
        nouns = rng.sample(NOUNS, n_objects)
        if n_objects == 1 or is_held_out(nouns) == held_out:
            break
    smallest, largest = {1: (44, 92), 2: (38, 58), 3: (34, 48)}[n_objects]
    while True:
        objects: list[Placed] = []
        for noun in nouns:
            size = rng.randint(smallest, largest)
            placed = Placed(noun, rng.randint(0, SIZE - size), rng.randint(0, SIZE - size), size)
            if any(overlap(placed, other) > 0.04 for other in objects):
                break
            objects.append(placed)
        places = {placed.where() for placed in objects}
        if len(objects) == n_objects and len(places) == n_objects:
            break
    objects.sort(key=lambda placed: placed.left + placed.size / 2)
    return Scene(objects, rng.choice(GROUNDS))


def overlap(a: Placed, b: Placed) -> float:
    """The overlap of two squares as a share of the smaller one."""
    width = min(a.left + a.size, b.left + b.size) - max(a.left, b.left)
    height = min(a.top + a.size, b.top + b.size) - max(a.top, b.top)
    return max(width, 0) * max(height, 0) / min(a.size, b.size) ** 2


def ground_pixels(rng: random.Random, ground: str) -> np.ndarray:
    """A background, `[SIZE, SIZE, 3]` u8: its colour, varied, with its texture."""
    _, colour, texture = BACKGROUNDS[ground]
    noise = np.random.default_rng(rng.getrandbits(32))
    pixels = np.ones((SIZE, SIZE, 3)) * colour + noise.normal(0, 9, 3)
    y, x = np.mgrid[0:SIZE, 0:SIZE]
    if texture == "plain":
        pixels += rng.uniform(-14, 14) * (y / SIZE - 0.5)[..., None]
        pixels += rng.uniform(0, 6) * noise.normal(0, 1, (SIZE, SIZE, 1))
    elif texture == "blades":
        blades = noise.normal(0, 24, (SIZE // 7, SIZE, 1)).repeat(7, axis=0)
        pixels += blades
    elif texture == "grains":
        pixels += noise.normal(0, 17, (SIZE, SIZE, 1))
    elif texture == "waves":
        phase = rng.uniform(0, 6)
        pixels += (15 * np.sin(y / rng.uniform(2, 4) + phase + np.sin(x / 9)))[..., None]
    elif texture == "fade":
        pixels += (70 * (y / SIZE - 0.4))[..., None] * [1, 0.6, 0.1]
    return pixels.clip(0, 255).astype(np.uint8)


def vary(rng: random.Random, drawing: Image.Image) -> Image.Image:
    """A drawing mirrored, turned, stretched and recoloured a little."""
    if rng.random() < 0.5:
        drawing = drawing.transpose(Image.FLIP_LEFT_RIGHT)
    drawing = drawing.rotate(rng.uniform(-14, 14), Image.BICUBIC)
    narrower = round(drawing.width * rng.uniform(0, 0.1)), round(drawing.height * rng.uniform(0, 0.1))
    stretched = Image.new("RGBA", drawing.size)
    inner = drawing.resize((drawing.width - 2 * narrower[0], drawing.height - 2 * narrower[1]), Image.BICUBIC)
    stretched.paste(inner, narrower)
    drawing = stretched
    alpha = drawing.getchannel("A")
    gains = np.array([rng.uniform(0.85, 1.15) for _ in range(3)])
    pixels = np.asarray(drawing.convert("RGB")) * gains
    colour = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    for enhancer in (ImageEnhance.Color, ImageEnhance.Brightness, ImageEnhance.Contrast):
        colour = enhancer(colour).enhance(rng.uniform(0.75, 1.25))
    if rng.random() < 0.2:
        colour = colour.filter(ImageFilter.GaussianBlur(rng.uniform(0, 1.5)))
    colour.putalpha(alpha)
    return colour


def draw(
    rng: random.Random, scene: Scene, drawings: dict[str, list[np.ndarray]], varied: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The picture, `[SIZE, SIZE, 3]` u8, and each patch's word, `[GRID, GRID]`, as an index into
    `PATCH_WORDS`."""
    picture = Image.fromarray(ground_pixels(rng, scene.ground))
    owner = np.full((SIZE, SIZE), -1)
    for i, placed in enumerate(scene.objects):
        drawing = Image.fromarray(rng.choice(drawings[placed.noun]))
        if varied:
            drawing = vary(rng, drawing)
        drawing = drawing.resize((placed.size, placed.size), Image.LANCZOS)
        picture.paste(drawing, (placed.left, placed.top), drawing)
        square = owner[placed.top : placed.top + placed.size, placed.left : placed.left + placed.size]
        square[np.asarray(drawing.getchannel("A")) > 127] = i
    words = np.full((GRID, GRID), PATCH_WORDS.index(scene.ground))
    patches = owner.reshape(GRID, PATCH, GRID, PATCH).transpose(0, 2, 1, 3).reshape(GRID, GRID, -1)
    for i, placed in enumerate(scene.objects):
        words[(patches == i).mean(-1) >= COVERED] = PATCH_WORDS.index(placed.noun)
    return np.asarray(picture), words
