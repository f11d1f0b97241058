"""Pictures as text: which pixel becomes which half of which character."""

import io

import pytest
from PIL import Image

from tinyserve.demo.half_blocks import can_show, half_blocks

RED, BLUE = "255;0;0", "0;0;255"


def test_a_character_is_two_pixels_one_above_the_other() -> None:
    image = Image.new("RGB", (2, 2), "red")
    image.putpixel((1, 0), (0, 0, 255))
    image.putpixel((1, 1), (0, 255, 0))
    assert half_blocks(image, 2) == f"\x1b[38;2;{RED};48;2;{RED}m▀\x1b[38;2;{BLUE};48;2;0;255;0m▀\x1b[0m"


@pytest.mark.parametrize(("size", "lines"), [((160, 160), 12), ((160, 80), 6), ((80, 160), 24), ((1000, 1), 1)])
def test_proportions_are_kept(size: tuple[int, int], lines: int) -> None:
    text = half_blocks(Image.new("RGB", size, "blue"), 24).splitlines()
    assert len(text) == lines
    assert all(line == f"\x1b[38;2;{BLUE};48;2;{BLUE}m▀" * 24 + "\x1b[0m" for line in text)


def test_other_modes_are_shown_in_colour() -> None:
    assert half_blocks(Image.new("L", (2, 2), 255), 2).count("38;2;255;255;255") == 2


def test_a_file_is_no_terminal() -> None:
    assert not can_show(io.StringIO(), {"COLORTERM": "truecolor"})
