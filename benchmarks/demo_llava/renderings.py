"""Pictures of single emoji at random size, place and angle, over random backgrounds, with noise; drawn in batches.

Pillow draws every glyph of the colour font once; a batch of pictures is then one affine resampling. It decides how
hard a picture is and knows nothing about names or models.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")  # Debian and Ubuntu: fonts-noto-color-emoji
STRIKE = 109  # the font's only bitmap size, px per em
CANVAS = 136  # px; what a glyph of that size needs
LEVELS = (CANVAS, CANVAS // 2, CANVAS // 4)  # glyph sizes to sample from: never more than 2x too fine, so no aliasing
SIDE = (0.45, 0.92)  # side of the glyph over the side of the picture
EASY_SIDE = 0.75
ANGLE = 25.0  # degrees, both ways
NOISE = 0.05  # largest standard deviation; the range of a picture is 0 to 1


class Renderings:
    """Draws pictures of glyph number n of `characters`."""

    def __init__(self, characters: Sequence[str], font: Path = FONT) -> None:
        """
        Raises:
            FileNotFoundError: the colour font is not installed.
        """
        if not font.is_file():
            raise FileNotFoundError(f"{font} is missing: apt-get install fonts-noto-color-emoji")
        face = ImageFont.truetype(str(font), STRIKE)
        drawn = [_draw(character, face) for character in characters]
        self._levels = [torch.stack([_premultiplied(image.resize((side, side))) for image in drawn]) for side in LEVELS]

    def draw(self, labels: Tensor, side: int, generator: torch.Generator, hardness: float = 1.0) -> Tensor:
        """One picture for each label.

        Args:
            labels: [B] int64, numbers of glyphs.
            side: px of a picture's side.
            hardness: 0 is large, upright and centred; 1 uses the whole range of sizes, places and angles.

        Returns:
            [B, 3, side, side] fp32 in 0..1.
        """
        count = len(labels)

        def uniform(low: float, high: float, *shape: int) -> Tensor:
            return low + (high - low) * torch.rand(count, *shape, generator=generator)

        scale = uniform(EASY_SIDE + hardness * (SIDE[0] - EASY_SIDE), SIDE[1])
        angle = torch.deg2rad(uniform(-ANGLE, ANGLE)) * hardness
        # centre in the coordinates of grid_sample, -1..1: the glyph's square stays inside before it is turned
        centre = uniform(-1, 1, 2) * (1 - scale)[:, None] * hardness
        cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
        turn = torch.stack([torch.stack([cos, sin], 1), torch.stack([-sin, cos], 1)], 1)  # [B, 2, 2]
        affine = torch.cat([turn, -turn @ centre[:, :, None]], 2)
        glyphs = self._sample(labels, affine, scale * side, side)
        pictures = glyphs[:, :3] + (1 - glyphs[:, 3:]) * _backgrounds(uniform, side)
        contrast, brightness = uniform(0.8, 1.2, 1, 1, 1), uniform(-0.1, 0.1, 1, 1, 1)
        pictures = (pictures - 0.5) * contrast + 0.5 + brightness
        noise = torch.randn(pictures.shape, generator=generator) * uniform(0, NOISE, 1, 1, 1)
        return (pictures + noise).clamp_(0, 1)

    def _sample(self, labels: Tensor, affine: Tensor, sizes: Tensor, side: int) -> Tensor:
        """[B, 4, side, side]: each glyph from the coarsest level that is still as fine as it appears, `sizes` px."""
        fine_enough = torch.stack([sizes <= level for level in LEVELS], 1).sum(1).clamp(min=1) - 1
        glyphs = torch.zeros(len(labels), 4, side, side)
        for number, level in enumerate(self._levels):
            rows = (fine_enough == number).nonzero()[:, 0]
            if len(rows):
                grid = functional.affine_grid(affine[rows], [len(rows), 4, side, side], align_corners=False)
                glyphs[rows] = functional.grid_sample(level[labels[rows]], grid, align_corners=False)
        return glyphs


def to_images(pictures: Tensor) -> list[Image.Image]:
    """[B, 3, S, S] in 0..1 as RGB images."""
    pixels = (pictures * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    return [Image.fromarray(array) for array in pixels]


def _draw(character: str, face: ImageFont.FreeTypeFont) -> Image.Image:
    image = Image.new("RGBA", (CANVAS, CANVAS))
    left, top, right, bottom = face.getbbox(character)
    place = ((CANVAS - left - right) / 2, (CANVAS - top - bottom) / 2)
    ImageDraw.Draw(image).text(place, character, font=face, embedded_color=True)
    return image


def _premultiplied(image: Image.Image) -> Tensor:
    """[4, H, W] fp32; colour times alpha, so that resampling bleeds no hidden colour."""
    pixels = torch.from_numpy(np.array(image, dtype=np.float32)).permute(2, 0, 1) / 255
    pixels[:3] *= pixels[3:]
    return pixels


def _backgrounds(uniform: Callable[..., Tensor], side: int) -> Tensor:
    """[B, 3, side, side]: from one plain colour to a smooth mixture of nine, in random proportion."""
    plain, mixture = uniform(0, 1, 3, 1, 1), uniform(0, 1, 3, 3, 3)
    share = uniform(-0.5, 1, 1, 1, 1).clamp_(min=0)  # a third of the backgrounds are plain
    coarse = plain + share * (mixture - plain)
    return functional.interpolate(coarse, size=(side, side), mode="bilinear", align_corners=True)
