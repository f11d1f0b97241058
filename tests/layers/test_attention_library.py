"""What is asked of other libraries for attention, with stand-ins that have their arguments; themselves where they are.

The reference is tests/reference.py's, over batches that mix prompts, prompts behind a cached prefix and single tokens.
"""

import importlib.util
import inspect
import logging
from typing import Any

import attention_stand_ins
import numpy as np
import pytest
import reference
import torch
from attention_stand_ins import install
from torch import Tensor
from torch.nn.attention import varlen

from tinyserve.layers import attention_registry
from tinyserve.layers.attention import BatchLayout, LayerCache, attend_cached
from tinyserve.layers.attention_library import HostLayout, LibraryAttention, MayAttend, Scores
from tinyserve.layers.flashinfer_attention import load_flashinfer
from tinyserve.layers.varlen_attention import MAX_COPIED, load_flash_attn

NAMES = list(attention_registry.LIBRARIES)
MODULES = {"flash-attn": "flash_attn"}  # where it is not the library's name
CPU = torch.device("cpu")
S, D = 8, 64
SPANS = [(10, 11), (0, 20), (7, 16), (0, 3), (30, 41)]  # first and past the last token of each request
TOLERANCE = 2e-3


class Batch:
    """Random queries over a cache whose blocks are in no order; what lies behind a context is not a number."""

    def __init__(
        self,
        spans: list[tuple[int, int]] = SPANS,
        heads: tuple[int, int] = (4, 2),
        head_dim: int = D,
        dtype: torch.dtype = torch.float16,
        device: torch.device = CPU,
        seed: int = 0,
    ) -> None:
        random = torch.Generator().manual_seed(seed)
        lasts = [last for _, last in spans]
        max_blocks = -(-max(lasts) // S)
        tables = torch.randperm(max_blocks * len(spans), generator=random).view(len(spans), max_blocks)
        shape = (tables.numel(), heads[1], S, head_dim)
        k, v = (torch.randn(shape, generator=random).to(dtype) for _ in range(2))
        for table, last in zip(tables.tolist(), lasts, strict=True):
            for position in range(last, max_blocks * S):
                for part in (k, v):
                    part[table[position // S], :, position % S] = torch.nan
        starts = [0]
        for first, last in spans:
            starts.append(starts[-1] + last - first)
        self.q = torch.randn(starts[-1], heads[0], head_dim, generator=random).to(dtype).to(device)
        self.cache = LayerCache(k.to(device), v.to(device))
        self.host = HostLayout(S, *(np.array(x, dtype=np.int32) for x in (starts, lasts, tables.tolist())))
        self.tables, self.starts, self.lengths = (
            torch.tensor(x, device=device)
            for x in (self.host.block_tables, self.host.query_starts, self.host.context_lens)
        )

    def layout(self, library: MayAttend | None) -> BatchLayout:
        nothing = torch.empty(len(self.q), dtype=torch.int32)
        return BatchLayout(nothing, nothing, self.tables, self.starts, self.lengths, library=library)

    def step(self, library: LibraryAttention) -> MayAttend | None:
        return library.step(self.host, self.starts)

    def attend(self, library: LibraryAttention, scores: Scores) -> Tensor | None:
        attend = self.step(library)
        assert attend is not None
        return attend(self.q, self.cache.k, self.cache.v, scores)

    def expected(self, scores: Scores) -> Tensor:
        q, k, v = self.q.cpu(), self.cache.k.cpu(), self.cache.v.cpu()
        tables, starts, lengths = self.tables.cpu(), self.starts.cpu(), self.lengths.cpu()
        kinds = (scores.window, scores.soft_cap, scores.alibi_slopes)
        return reference.paged_attention(q, k, v, tables, starts, lengths, scores.scale, *kinds)


def load(name: str) -> LibraryAttention:
    return LibraryAttention(attention_registry.LIBRARIES[name](CPU))


def assert_near(got: Tensor | None, expected: Tensor, dtype: torch.dtype = torch.float16) -> None:
    assert got is not None
    assert got.dtype == dtype
    tolerance = TOLERANCE if dtype == torch.float16 else 8 * TOLERANCE
    torch.testing.assert_close(got.cpu().double(), expected, rtol=tolerance, atol=tolerance)


# -- with stand-ins ----------------------------------------------------------------------------------------------------


def test_the_stand_in_of_torch_has_its_arguments() -> None:
    real, ours = (inspect.signature(f).parameters for f in (varlen.varlen_attn, attention_stand_ins.varlen_attn))
    assert [(x.name, x.kind, x.default) for x in real.values()] == [(x.name, x.kind, x.default) for x in ours.values()]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
@pytest.mark.parametrize("window", [0, 1, 5, 13])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (3, 1)], ids=["mha", "gqa", "mqa"])
@pytest.mark.parametrize("name", NAMES)
def test_a_mixed_batch_is_as_the_reference(
    name: str, heads: tuple[int, int], window: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, [name])
    batch, scores = Batch(heads=heads, dtype=dtype, seed=window), Scores(0.11, window)
    assert_near(batch.attend(load(name), scores), batch.expected(scores), dtype)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("name", NAMES)
def test_random_batches_are_as_the_reference(name: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, [name])
    library, random = load(name), np.random.default_rng(seed)
    for _ in range(3):
        firsts = random.integers(0, 30, random.integers(1, 6))
        spans = [(int(first), int(first + random.integers(1, 25))) for first in firsts]
        spans.append((0, 64))  # so that no library refuses the step
        batch, scores = Batch(spans, seed=seed), Scores(D**-0.5, int(random.choice([0, 9])))
        assert_near(batch.attend(library, scores), batch.expected(scores))


@pytest.mark.parametrize(
    ("name", "kind"), [("flash-attn", "soft_cap"), ("flash-attn", "alibi_slopes"), ("flashinfer", "soft_cap")]
)
def test_other_scores_are_as_the_reference(name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, [name])
    settings: dict[str, Any] = {"soft_cap": 2.0, "alibi_slopes": torch.tensor([0.5, 0.25, 0.125, 0.0625])}
    batch, scores = Batch(), Scores(D**-0.5, 6, **{kind: settings[kind]})
    assert_near(batch.attend(load(name), scores), batch.expected(scores))


def test_flashinfer_plans_once_for_layers_that_score_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, ["flashinfer"])
    wrapper = attention_stand_ins.BatchPrefillWithPagedKVCacheWrapper
    monkeypatch.setattr(wrapper, "plans", 0)
    library, kinds = load("flashinfer"), [Scores(0.1), Scores(0.1, 5)]
    for steps, batch in enumerate([Batch(), Batch([(0, 9), (4, 12)], seed=1), Batch(seed=2)], start=1):
        attend = batch.step(library)
        assert attend is not None
        for scores in kinds * 3:
            assert_near(attend(batch.q, batch.cache.k, batch.cache.v, scores), batch.expected(scores))
        assert wrapper.plans == steps * len(kinds)


# -- what the own kernel has to do -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "case", "words"),
    [
        ("flash-attn", {"dtype": torch.float32}, "in float32 over a cache of float32"),
        ("flashinfer", {"dtype": torch.float32}, "in float32 over a cache of float32"),
        ("flashinfer", {"head_dim": 80}, "with heads of 80"),
        ("flashinfer", {"alibi_slopes": torch.ones(4)}, "with ALiBi"),
        ("torch.nn.attention.varlen", {"alibi_slopes": torch.ones(4)}, "with ALiBi"),
        ("torch.nn.attention.varlen", {"soft_cap": 5.0}, "with a soft cap"),
    ],
)
def test_what_a_library_cannot_do_is_left_to_the_own_kernel_and_said_once(
    name: str, case: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    install(monkeypatch, [name])
    library = load(name)
    shape = {key: value for key, value in case.items() if key in ("dtype", "head_dim")}
    batch = Batch(**shape)
    scores = Scores(0.1, **{key: value for key, value in case.items() if key not in shape})
    layout = batch.layout(batch.step(library))
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            got = attend_cached(batch.q, layout, batch.cache, scores)
            assert torch.equal(got, attend_cached(batch.q, batch.layout(None), batch.cache, scores))
    said = [record.getMessage() for record in caplog.records if "own kernel" in record.getMessage()]
    assert len(said) == 1
    assert words in said[0]


def test_the_library_computes_what_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, ["flash-attn"])
    batch, scores = Batch(), Scores(0.1)
    marked = torch.full_like(batch.q, 7.0)
    monkeypatch.setattr(attention_stand_ins, "attend_packed", lambda *_, **__: marked)
    assert attend_cached(batch.q, batch.layout(batch.step(load("flash-attn"))), batch.cache, scores) is marked


def test_an_8_bit_cache_is_left_to_the_own_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, ["flash-attn"])
    batch = Batch()
    attend = batch.step(load("flash-attn"))
    assert attend is not None
    k, v = (torch.zeros(batch.cache.k.shape, dtype=torch.int8) for _ in range(2))
    assert attend(batch.q, k, v, Scores(0.1)) is None


@pytest.mark.parametrize("name", ["flash-attn", "torch.nn.attention.varlen"])
def test_many_keys_beside_few_tokens_are_not_copied(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, [name])
    library = load(name)
    assert Batch([(0, 1), (2 * MAX_COPIED - 2, 2 * MAX_COPIED - 1)]).step(library) is not None
    assert Batch([(0, 1), (2 * MAX_COPIED - 1, 2 * MAX_COPIED)]).step(library) is None


def test_an_older_flash_attn_does_what_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, ["flash-attn"])
    import flash_attn

    monkeypatch.setattr(flash_attn, "flash_attn_varlen_func", attention_stand_ins.flash_attn_varlen_func_2_3)
    library, batch = load("flash-attn"), Batch()
    assert_near(batch.attend(library, Scores(0.1, 5)), batch.expected(Scores(0.1, 5)))
    assert batch.attend(library, Scores(0.1, soft_cap=3.0)) is None
    assert batch.attend(library, Scores(0.1, alibi_slopes=torch.ones(4))) is None


# -- the choice --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("importable", "chosen"),
    [
        (NAMES, "flash-attn 0"),
        (["flashinfer", "torch.nn.attention.varlen"], "FlashInfer 0"),
        (["torch.nn.attention.varlen"], f"torch {torch.__version__}"),
    ],
    ids=["all", "no-flash-attn", "torch"],
)
def test_the_first_that_can_be_imported_is_chosen(
    importable: list[str], chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, importable)
    assert attention_registry.first(CPU).name == chosen


def test_the_choice_is_logged_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    install(monkeypatch, ["flash-attn"])
    with caplog.at_level(logging.INFO):
        assert attention_registry.choose(torch.device("cuda"), torch.bfloat16, "auto") is not None
    assert [record.getMessage() for record in caplog.records] == [
        "--use-flash-attn: flash-attn 0 computes the attention of prompts"
    ]


@pytest.mark.parametrize(
    ("device", "dtype", "cache_dtype", "words"),
    [
        ("cpu", torch.bfloat16, "auto", "no effect on a CPU"),
        ("cuda", torch.bfloat16, "fp8", "no effect with a KV cache of fp8"),
        ("cuda", torch.float32, "auto", "no effect with a KV cache of float32"),
    ],
)
def test_where_the_flag_has_no_effect_the_log_says_so(
    device: str, dtype: torch.dtype, cache_dtype: str, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        assert attention_registry.choose(torch.device(device), dtype, cache_dtype) is None
    (record,) = caplog.records
    assert words in record.getMessage()


def test_the_flag_without_any_library_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, [])
    with pytest.raises(ValueError, match=r"--use-flash-attn needs one of these libraries, and none .*: ") as refused:
        attention_registry.choose(torch.device("cuda"), torch.float16, "auto")
    assert all(f"{name} (" in str(refused.value) for name in NAMES)


def test_versions_without_the_arguments_count_as_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, NAMES)
    import flash_attn

    monkeypatch.setattr(flash_attn, "flash_attn_varlen_func", lambda q, k, v: q)
    monkeypatch.setattr(varlen, "varlen_attn", lambda query, key, value, scale: query)
    with pytest.raises(ImportError, match=r"older than 2\.3"):
        load_flash_attn(CPU)
    with pytest.raises(ImportError, match="no enable_gqa, window_size"):
        attention_registry.LIBRARIES["torch.nn.attention.varlen"](CPU)
    assert attention_registry.first(CPU).name == load_flashinfer(CPU).name


# -- the libraries themselves ------------------------------------------------------------------------------------------


@pytest.mark.skipif(not torch.cuda.is_available(), reason="for a GPU")
@pytest.mark.parametrize("window", [0, 5])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2)], ids=["mha", "gqa"])
@pytest.mark.parametrize("name", NAMES)
def test_the_library_itself_is_as_the_reference(name: str, heads: tuple[int, int], window: int) -> None:
    if importlib.util.find_spec(MODULES.get(name, name)) is None:
        pytest.skip(f"{name} is not installed")
    device = torch.device("cuda")
    library = LibraryAttention(attention_registry.LIBRARIES[name](device))
    for seed in range(3):  # more steps than FlashInfer has wrappers
        batch, scores = Batch(heads=heads, device=device, seed=seed), Scores(D**-0.5, window)
        # a value that is not seen counts 0 times, so it has to be a number, as it is in the engine's cache
        cache = LayerCache(batch.cache.k.nan_to_num(), batch.cache.v.nan_to_num())
        torch.cuda.set_sync_debug_mode("error" if seed else "default")  # the first call may compile
        try:
            attend = batch.step(library)
            assert attend is not None
            got = attend(batch.q, cache.k, cache.v, scores)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert_near(got, batch.expected(scores))
