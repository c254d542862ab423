"""Drawings of the classes: downloads emoji sets from npm and renders them.

The sets for training are under permissive licences; Twemoji (CC-BY-4.0) is for evaluation only, and
nothing of it is kept.
"""

import base64
import hashlib
import io
import json
import tarfile
import urllib.request
from pathlib import Path

import numpy as np
import resvg_py
from PIL import Image

from words import CLASSES

# npm package @iconify-json/NAME: version, licence of the drawings, SHA-512 of the tarball
SETS = {
    "noto": ("1.2.9", "Apache-2.0", "DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw=="),
    "noto-v1": ("1.2.5", "Apache-2.0", "/DsVMius69Q0fRS53z7QK1TROSuar606jiIx+laXtdsYGMXpf6LtHBx6CGfoo3UHHb/XpBsw+1L1x3eyPqMuVA=="),
    "fluent-emoji": ("1.2.7", "MIT", "D8G6bKAyIsyxP1rzZtIWr/gg/fO4Rg1+DyCWlfqKK4h8W+4Em/Y0P6QYgJUQTlUcagzJvSyg+9OBv4hz4Hc/QA=="),
    "fluent-emoji-flat": ("1.2.6", "MIT", "RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw=="),
    "fxemoji": ("1.2.2", "Apache-2.0", "UAasRaxzFUKfIGSmLwnoarsssA4LX0VLLuEmplIqM6ZNQqIQRtav8tZ4H1neTlBreXuMQyAifr5jP4kn78DpiQ=="),
    "twemoji": ("1.2.5", "CC-BY-4.0", "uKpuIEV0v6K5BW3Mjdyl+XKFVAbbcPxAgifKvEMtZoUZB5+YiY5zaMm2uNNCxyXzAWU9yNLlj41WU6/mvgALsw=="),
}  # fmt: skip
UNSEEN = "twemoji"  # the vendor that nothing is trained on
SIZE = 128  # pixels a side of a rendered drawing


def download(name: str) -> dict:
    """The emoji set's `icons.json`, its tarball checked against its hash."""
    version, _, sha512 = SETS[name]
    url = f"https://registry.npmjs.org/@iconify-json/{name}/-/{name}-{version}.tgz"
    with urllib.request.urlopen(url, timeout=120) as response:
        tarball = response.read()
    found = base64.b64encode(hashlib.sha512(tarball).digest()).decode()
    if found != sha512:
        raise SystemExit(f"error: {url} has SHA-512 {found}, expected {sha512}")
    with tarfile.open(fileobj=io.BytesIO(tarball)) as tar:
        return json.load(tar.extractfile("package/icons.json"))


def render(icon_set: dict, drawing: str) -> np.ndarray | None:
    """RGBA pixels `[SIZE, SIZE, 4]` of a drawing, cut to what is not transparent; none if the set
    lacks it. FxEmojis writes names without hyphens."""
    icons = icon_set["icons"]
    icon = icons.get(drawing) or icons.get(drawing.replace("-", ""))
    if icon is None:
        return None
    width = icon.get("width", icon_set.get("width", 16))
    height = icon.get("height", icon_set.get("height", 16))
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="0 0 {width} {height}" width="256" height="256">{icon["body"]}</svg>'
    )
    image = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg)))).convert("RGBA")
    box = image.getchannel("A").point(lambda alpha: 255 * (alpha > 16)).getbbox()
    image = image.crop(box)
    side = max(image.size)
    square = Image.new("RGBA", (side, side))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return np.asarray(square.resize((SIZE, SIZE), Image.LANCZOS))


def make(out: Path) -> None:
    """Writes every drawing to `out` (npz): key `class/set/drawing`, `[SIZE, SIZE, 4]`."""
    drawings = {}
    for set_name in SETS:
        icon_set = download(set_name)
        for noun, (names, *_) in CLASSES.items():
            for name in names:
                pixels = render(icon_set, name)
                if pixels is not None:
                    drawings[f"{noun}/{set_name}/{name}"] = pixels
    np.savez_compressed(out, **drawings)
    counts = {noun: sum(key.startswith(f"{noun}/") for key in drawings) for noun in CLASSES}
    print(f"{len(drawings)} drawings of {len(CLASSES)} classes; fewest: {min(counts, key=counts.get)}")


def load(path: Path) -> dict[str, dict[str, list[np.ndarray]]]:
    """The drawings by set and class."""
    by_set: dict[str, dict[str, list[np.ndarray]]] = {name: {} for name in SETS}
    with np.load(path) as archive:
        for key in archive.files:
            noun, set_name, _ = key.split("/")
            by_set[set_name].setdefault(noun, []).append(archive[key])
    return by_set
