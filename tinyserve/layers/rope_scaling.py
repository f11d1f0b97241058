"""How a model's rotary frequencies were changed for longer texts than it was first trained on, by its rope_type.

Formulas and defaults are those of transformers' modeling_rope_utils, so that a model sees the frequencies it was
trained with. A new type is one more class and one more line in SCALINGS.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor
from typing_extensions import Self


class Scaling(Protocol):
    @property
    def attention_factor(self) -> float:
        """What cosines and sines are multiplied with, so that scores are by its square."""
        ...

    def frequencies(self, theta: float, rotary_dim: int, num_positions: int) -> Tensor:
        """Radians per position, fp32 [R/2], for texts of up to num_positions tokens."""
        ...

    @classmethod
    def read(cls, settings: Mapping[str, Any]) -> Self:
        """From config.json's rope settings, with max_position_embeddings and original_max_position_embeddings.

        Raises:
            ValueError: a setting that it needs is missing.
        """
        ...


def _plain(theta: float, rotary_dim: int) -> Tensor:
    """fp32 [R/2]: theta ** (-2i / R)."""
    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.int64).float() / rotary_dim
    return 1.0 / (theta**exponents)


def _needed(settings: Mapping[str, Any], *names: str) -> list[Any]:
    for name in names:
        if settings.get(name) is None:
            raise ValueError(f"config.json: rope_type {settings['rope_type']!r} needs {name!r}")
    return [settings[name] for name in names]


@dataclass(frozen=True)
class Unscaled:
    attention_factor: ClassVar[float] = 1.0

    @classmethod
    def read(cls, settings: Mapping[str, Any]) -> Self:
        return cls()

    def frequencies(self, theta: float, rotary_dim: int, num_positions: int) -> Tensor:
        return _plain(theta, rotary_dim)


@dataclass(frozen=True)
class Linear:
    """All positions lie `factor` times closer."""

    factor: float
    attention_factor: ClassVar[float] = 1.0

    @classmethod
    def read(cls, settings: Mapping[str, Any]) -> Self:
        return cls(*map(float, _needed(settings, "factor")))

    def frequencies(self, theta: float, rotary_dim: int, num_positions: int) -> Tensor:
        return _plain(theta, rotary_dim) / self.factor


@dataclass(frozen=True)
class Dynamic:
    """NTK-aware: beyond the trained context theta grows with the text.

    transformers takes the longest text of a batch so far, and leaves keys in the cache as they were turned before; a
    request's output would then depend on its neighbours. Here theta is that of texts of num_positions tokens, for every
    text: up to the trained context both are the same.
    """

    factor: float
    trained: int  # positions
    attention_factor: ClassVar[float] = 1.0

    @classmethod
    def read(cls, settings: Mapping[str, Any]) -> Self:
        factor, trained = _needed(settings, "factor", "max_position_embeddings")
        return cls(float(factor), int(trained))

    def frequencies(self, theta: float, rotary_dim: int, num_positions: int) -> Tensor:
        length = max(num_positions, self.trained)
        stretch = (self.factor * length / self.trained) - (self.factor - 1)
        return _plain(theta * stretch ** (rotary_dim / (rotary_dim - 2)), rotary_dim)


@dataclass(frozen=True)
class Llama3:
    """Long wavelengths are stretched by `factor`, short ones kept, those between blended (Llama 3.1's long context)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    trained: int
    attention_factor: ClassVar[float] = 1.0

    @classmethod
    def read(cls, settings: Mapping[str, Any]) -> Self:
        factor, low, high = _needed(settings, "factor", "low_freq_factor", "high_freq_factor")
        return cls(float(factor), float(low), float(high), int(settings["original_max_position_embeddings"]))

    def frequencies(self, theta: float, rotary_dim: int, num_positions: int) -> Tensor:
        frequencies = _plain(theta, rotary_dim)
        low, high = self.low_freq_factor, self.high_freq_factor
        wavelengths = 2 * math.pi / frequencies
        stretched = torch.where(wavelengths > self.trained / low, frequencies / self.factor, frequencies)
        smooth = (self.trained / wavelengths - low) / (high - low)
        blended = (1 - smooth) * stretched / self.factor + smooth * stretched
        is_between = (wavelengths >= self.trained / high) & (wavelengths <= self.trained / low)
        return torch.where(is_between, blended, stretched)


@dataclass(frozen=True)
class Yarn:
    """Stretched by `factor` where a text turned less than beta_slow times, kept where more than beta_fast (YaRN).

    Peng and others, https://arxiv.org/abs/2309.00071; attention_factor is what its equation 22 makes of the factor, or
    DeepSeek's quotient of two such, where the configuration does not give it.
    """

    factor: float
    trained: int
    attention_factor: float
    beta_fast: float  # turns over the trained context
    beta_slow: float
    truncate: bool  # the range between is of whole dimensions

    @classmethod
    def read(cls, settings: Mapping[str, Any]) -> Self:
        trained = int(settings["original_max_position_embeddings"])
        factor = _factor(settings, trained)
        attention = settings.get("attention_factor")
        if attention is None:
            mscale, mscale_all_dim = settings.get("mscale"), settings.get("mscale_all_dim")
            if mscale and mscale_all_dim:
                attention = _yarn_magnitude(factor, mscale) / _yarn_magnitude(factor, mscale_all_dim)
            else:
                attention = _yarn_magnitude(factor, 1.0)
        beta_fast, beta_slow = settings.get("beta_fast") or 32, settings.get("beta_slow") or 1
        truncate = bool(settings.get("truncate", True))
        return cls(factor, trained, float(attention), float(beta_fast), float(beta_slow), truncate)

    def frequencies(self, theta: float, rotary_dim: int, num_positions: int) -> Tensor:
        def dimension(turns: float) -> float:  # that turns so often over the trained context
            return rotary_dim * math.log(self.trained / (turns * 2 * math.pi)) / (2 * math.log(theta))

        low, high = dimension(self.beta_fast), dimension(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, rotary_dim - 1)
        high += 0.001 if low == high else 0
        ramp = ((torch.arange(rotary_dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
        periods = theta ** (torch.arange(0, rotary_dim, 2).float() / rotary_dim)
        kept = 1 - ramp
        return 1.0 / (self.factor * periods) * (1 - kept) + 1.0 / periods * kept


@dataclass(frozen=True)
class LongRope:
    """Each dimension has a factor of its own: one list for texts within the trained context, one for longer ones.

    transformers chooses by the longest text of a batch, here num_positions does, for every text, as in Dynamic.
    """

    short_factor: tuple[float, ...]  # [R/2]
    long_factor: tuple[float, ...]  # [R/2]
    trained: int
    attention_factor: float

    @classmethod
    def read(cls, settings: Mapping[str, Any]) -> Self:
        trained = int(settings["original_max_position_embeddings"])
        short, long = _needed(settings, "short_factor", "long_factor")
        factor, attention = _factor(settings, trained), settings.get("attention_factor")
        if attention is None:
            attention = 1.0 if factor <= 1.0 else math.sqrt(1 + math.log(factor) / math.log(trained))
        return cls(tuple(map(float, short)), tuple(map(float, long)), trained, float(attention))

    def frequencies(self, theta: float, rotary_dim: int, num_positions: int) -> Tensor:
        factors = torch.tensor(self.long_factor if num_positions > self.trained else self.short_factor)
        if factors.shape != (rotary_dim // 2,):
            expected = f"one factor for each of {rotary_dim // 2} pairs of dimensions"
            raise ValueError(f"config.json: rope_type 'longrope' needs {expected}, got {len(factors)}")
        exponents = torch.arange(0, rotary_dim, 2, dtype=torch.int64).float() / rotary_dim
        return 1.0 / (factors * theta**exponents)


def _factor(settings: Mapping[str, Any], trained: int) -> float:
    """How many times longer than the trained context texts may be."""
    given = settings.get("factor")
    return float(_needed(settings, "max_position_embeddings")[0] / trained if given is None else given)


def _yarn_magnitude(factor: float, scale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0


SCALINGS: dict[str, type[Scaling]] = {
    "default": Unscaled,
    "linear": Linear,
    "dynamic": Dynamic,
    "llama3": Llama3,
    "yarn": Yarn,
    "longrope": LongRope,
}
