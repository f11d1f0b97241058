"""A picture as text: one half block for two pixels, in 24-bit colour, for terminals that can show it."""

from collections.abc import Mapping
from typing import TextIO

from PIL import Image

RESET = "\x1b[0m"


def can_show(stream: TextIO, environment: Mapping[str, str]) -> bool:
    """Whether `stream` is a terminal of 24-bit colours, as its user's environment says."""
    return stream.isatty() and environment.get("COLORTERM") in ("truecolor", "24bit")


def half_blocks(image: Image.Image, columns: int) -> str:
    """`image` over `columns` characters; a character is taken to be twice as high as wide."""
    rows = max(1, round(columns * image.height / image.width / 2))
    pixels = image.convert("RGB").resize((columns, 2 * rows), Image.Resampling.BOX).tobytes()
    colours = [";".join(map(str, pixels[at : at + 3])) for at in range(0, len(pixels), 3)]
    lines = [colours[at : at + columns] for at in range(0, len(colours), columns)]
    pairs = zip(lines[::2], lines[1::2], strict=True)
    return "\n".join(
        "".join(f"\x1b[38;2;{above};48;2;{below}m▀" for above, below in zip(upper, lower, strict=True)) + RESET
        for upper, lower in pairs
    )
