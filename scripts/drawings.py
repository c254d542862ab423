"""Drawings by the thousand, for trials of scans: coloured rectangles, the same ones for the same numbers.

    drawings.py FOLDER N     writes N, by turns into the folders a, b, c and d of FOLDER
"""

import random
import struct
import sys
import zlib
from pathlib import Path

SIDE = 96


def drawing(seed):
    """A PNG file of some coloured rectangles."""
    chance = random.Random(seed)
    pixels = [bytearray(bytes(chance.randrange(256) for _ in range(3)) * SIDE) for _ in range(SIDE)]
    for _ in range(5):
        left, top = chance.randrange(SIDE - 8), chance.randrange(SIDE - 8)
        width, height = chance.randint(8, SIDE - left), chance.randint(8, SIDE - top)
        colour = bytes(chance.randrange(256) for _ in range(3))
        for row in pixels[top : top + height]:
            row[3 * left : 3 * (left + width)] = colour * width

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 2, 0, 0, 0)
    rows = zlib.compress(b"".join(b"\0" + row for row in pixels), 1)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def main():
    folder, n_drawings = Path(sys.argv[1]), int(sys.argv[2])
    for seed in range(n_drawings):
        place = folder / "abcd"[seed % 4]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{seed:06}.png").write_bytes(drawing(seed))


if __name__ == "__main__":
    main()
