"""What one model is measured as: the precision of its weights and of its cache, with or without recorded steps."""

from dataclasses import dataclass
from typing import cast, get_args

from tinyserve.config import KvCacheDtype, Precision

GROUP_SIZE = 128


@dataclass(frozen=True)
class Variant:
    precision: Precision = "W4A16"
    kv_cache_dtype: KvCacheDtype = "auto"
    enforce_eager: bool = False

    def __str__(self) -> str:
        words = [self.precision, *([self.kv_cache_dtype] if self.kv_cache_dtype != "auto" else [])]
        return ",".join([*words, "eager"] if self.enforce_eager else words)

    @classmethod
    def parse(cls, text: str) -> "Variant":
        """From what str() makes, as "W4A16,fp8,eager".

        Raises:
            ValueError: a word is not known.
        """
        precision, *others = text.split(",")
        caches = [word for word in others if word != "eager"]
        if precision not in get_args(Precision) or len(caches) > 1 or not set(caches) <= {*get_args(KvCacheDtype)}:
            raise ValueError(f"{text}: a precision (W4A16 or W16A16), then int8 or fp8, then eager, between commas")
        cache = cast(KvCacheDtype, caches[0]) if caches else "auto"
        return cls(cast(Precision, precision), cache, "eager" in others)

    @property
    def group(self) -> int | None:
        return GROUP_SIZE if self.precision == "W4A16" else None
