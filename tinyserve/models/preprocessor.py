"""Reads preprocessor_config.json: how pixels become numbers. What it asks for beyond that is refused, never ignored.

It knows settings only; the pixels themselves are image_pixels.py's.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Triple = tuple[float, float, float]

BICUBIC = 3  # PIL's number
CLIP_MEAN: Triple = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Triple = (0.26862954, 0.26130258, 0.27577711)
HALF: Triple = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Preprocessor:
    mean: Triple
    std: Triple
    resample: int  # PIL.Image.Resampling
    rescale: float
    center_crop: bool
    pad: bool  # to a square of the mean colour

    @classmethod
    def from_hf(cls, settings: Mapping[str, Any], image_size: int, is_siglip: bool) -> "Preprocessor":
        """Reads the file; what it leaves out is as the kind of tower has it.

        Args:
            settings: as parsed.
            image_size: side of the tower's input in px, which the file must agree with.
            is_siglip: the tower is SigLIP's, else CLIP's.

        Raises:
            ValueError: a field has the wrong type, or asks for something that is not done.
        """
        for name in ("do_resize", "do_rescale", "do_normalize"):
            if not settings.get(name, True):
                raise _wrong(name, "true", settings[name])
        center_crop = bool(settings.get("do_center_crop", not is_siglip))
        for name in ("size", "crop_size") if center_crop else ("size",):
            if settings.get(name) is not None and not _is_size(settings[name], image_size):
                raise _wrong(name, f"the vision tower's {image_size} px", settings[name])
        std = _triple(settings, "image_std", HALF if is_siglip else CLIP_STD)
        if 0 in std:
            raise _wrong("image_std", "three numbers other than 0", settings["image_std"])
        resample = settings.get("resample", BICUBIC)
        if resample not in range(6):
            raise _wrong("resample", "a number from 0 to 5", resample)
        rescale = settings.get("rescale_factor", 1 / 255)
        if not _is_number(rescale):
            raise _wrong("rescale_factor", "a number", rescale)
        return cls(
            mean=_triple(settings, "image_mean", HALF if is_siglip else CLIP_MEAN),
            std=std,
            resample=int(resample),
            rescale=float(rescale),
            center_crop=center_crop,
            # another kind of processor, LLaVA-NeXT's, pads batches and calls that do_pad
            pad=bool(settings.get("do_pad")) and str(settings.get("image_processor_type")).startswith("LlavaImage"),
        )


def _is_size(value: object, side: int) -> bool:
    """Whether every side that is given, as a number or by its name, is `side`."""
    given = {x for x in value.values() if x is not None} if isinstance(value, Mapping) else {value}
    return given == {side}


def _triple(settings: Mapping[str, Any], name: str, default: Triple) -> Triple:
    value = settings.get(name, default)
    if not isinstance(value, list | tuple) or len(value) != 3 or not all(map(_is_number, value)):
        raise _wrong(name, "three numbers", value)
    return float(value[0]), float(value[1]), float(value[2])


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _wrong(name: str, allowed: str, came: object) -> ValueError:
    return ValueError(f"preprocessor_config.json: {name} must be {allowed}, got {came!r}")
