"""The pieces of work of bench_attention, as data: whose heads, how many requests, how much context, which cache.

The limit of one counts the queries, the results and every key and value once, in the fewest bytes that hold them (a
cache of 8 bits one byte an element, no scales), and the products of queries with the keys they see.
"""

from dataclasses import dataclass

CACHE_BYTES = {"bfloat16": 2, "fp8": 1, "int8": 1}  # of an element


@dataclass(frozen=True)
class Heads:
    name: str  # of a model that has these
    num_heads: int
    num_kv_heads: int
    head_dim: int = 128


GQA = Heads("Llama-3-8B", 32, 8)
MHA = Heads("Llama-2-7B", 32, 32)
WIDE_GROUP = Heads("Qwen2.5-7B", 28, 4)


@dataclass(frozen=True)
class Case:
    """A step of `batch` requests, each with so many new tokens behind the others of its context."""

    heads: Heads
    batch: int
    queries: int  # new tokens of each request: 1 in decoding
    context: int  # keys of each, those of its new tokens included
    cache: str = "bfloat16"  # one of CACHE_BYTES
    dtype: str = "bfloat16"  # of queries and results

    def __str__(self) -> str:
        new = "" if self.is_decode else f" {self.queries} new"
        return f"{self.heads.name} {self.batch} x {self.context}{new} {self.cache}"

    @property
    def is_decode(self) -> bool:
        return self.queries == 1

    @property
    def tokens(self) -> int:
        """Of the flat batch."""
        return self.batch * self.queries

    @property
    def kv_bytes(self) -> int:
        heads = self.heads
        return 2 * self.batch * self.context * heads.num_kv_heads * heads.head_dim * CACHE_BYTES[self.cache]

    @property
    def total_bytes(self) -> int:
        return self.kv_bytes + 4 * self.tokens * self.heads.num_heads * self.heads.head_dim

    @property
    def operations(self) -> int:
        """Two products for each query and each key it sees, a multiplication and an addition counting as two."""
        seen = self.queries * self.context - self.queries * (self.queries - 1) // 2
        return 4 * self.batch * seen * self.heads.num_heads * self.heads.head_dim


def decode_cases(heads: Heads, cache: str, sizes: tuple[tuple[int, int], ...]) -> list[Case]:
    return [Case(heads, batch, 1, context, cache) for batch, context in sizes]


SMALL = ((1, 1024), (1, 4096), (1, 16384), (8, 1024), (8, 4096))
LARGE = ((1, 65536), (16, 4096), (64, 1024), (64, 4096), (256, 1024))  # 64k keys or more
LARGE_MHA = ((1, 65536), (16, 4096), (64, 1024), (64, 4096))
PREFILL = (512, 1024, 2048, 4096, 8192)  # tokens
PREFIXES = (2048, 8192)  # tokens that are cached already, before 2048 new ones

DECODE = (
    *decode_cases(GQA, "bfloat16", SMALL + LARGE),
    *decode_cases(GQA, "fp8", ((1, 1024), (1, 16384), *LARGE)),
    *decode_cases(GQA, "int8", ((1, 1024), *LARGE)),
    *decode_cases(MHA, "bfloat16", ((1, 1024), (8, 1024), *LARGE_MHA)),
    *decode_cases(MHA, "fp8", ((1, 1024), *LARGE_MHA)),
    *decode_cases(MHA, "int8", ((1, 1024), (16, 4096))),
    *decode_cases(WIDE_GROUP, "bfloat16", ((1, 1024), (64, 4096))),
)
PREFILLS = (
    *(Case(GQA, 1, tokens, tokens) for tokens in PREFILL),
    *(Case(GQA, 1, 2048, prefix + 2048) for prefix in PREFIXES),
    Case(GQA, 4, 2048, 2048),
    Case(GQA, 16, 128, 4096),
    Case(GQA, 1, 2048, 2048, "fp8"),
    Case(MHA, 1, 2048, 2048),
)
ALL = (*DECODE, *PREFILLS)
# What a few minutes measure: a case of each target and each kind of heads and cache.
QUICK = (
    *decode_cases(GQA, "bfloat16", ((1, 1024), (1, 4096), (1, 65536), (16, 4096), (64, 1024), (64, 4096))),
    *decode_cases(GQA, "fp8", ((1, 1024), (1, 65536), (64, 1024), (64, 4096))),
    *decode_cases(GQA, "int8", ((64, 4096),)),
    *decode_cases(MHA, "bfloat16", ((1, 1024), (64, 1024))),
    *decode_cases(MHA, "fp8", ((64, 1024),)),
    *(Case(GQA, 1, tokens, tokens) for tokens in (512, 2048, 8192)),
    Case(GQA, 1, 2048, 4096),
)
