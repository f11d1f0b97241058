"""Pictures of every kind that a request may bring, made from a seed, and the files they come in."""

import base64
import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

# mode, width, height
KINDS = [
    *[("RGB", *size) for size in [(1, 1), (1, 4000), (4000, 1), (2, 3), (37, 100), (100, 37), (64, 64), (65, 64)]],
    *[("RGB", *size) for size in [(56, 56), (112, 56), (57, 113), (300, 200), (200, 300), (641, 479)]],
    *[("L", *size) for size in [(1, 1), (90, 50)]],
    *[("LA", *size) for size in [(40, 60), (61, 33)]],
    *[("RGBA", *size) for size in [(1, 1), (80, 50), (33, 190)]],
    *[("P", *size) for size in [(70, 70), (31, 90)]],
    *[("P with transparency", *size) for size in [(50, 40), (20, 77)]],
    *[("1", 45, 23), ("I;16", 64, 48), ("I;16", 15, 150)],
    *[("CMYK", *size) for size in [(60, 40), (29, 101)]],
]


def picture(kind: str, width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth colours with some noise: resizing them is neither trivial nor chaos."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / (3 + 5 * k) + k) + np.cos(y / (7 - k) - k) for k in range(4)]
    values = np.stack(waves, axis=-1) * 60 + 128 + random.normal(0, 20, (height, width, 4))
    colours = np.clip(values, 0, 255).astype(np.uint8)
    if kind == "I;16":
        return Image.fromarray((values[..., 0] * 3).clip(0, 65535).astype(np.uint16))
    if kind == "CMYK":
        return Image.fromarray(colours, "CMYK")
    if kind.startswith("P"):
        image = Image.fromarray(colours[..., :3]).quantize(16)
        if kind != "P":
            image.info["transparency"] = 3
        return image
    return Image.fromarray(colours if kind in ("RGBA", "LA") else colours[..., :3]).convert(kind)


def file_of(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def png_header(width: int, height: int) -> bytes:
    """The beginning of a PNG file that promises so many pixels, and an empty one after it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
