"""How FlashAttention-3 is called: by a stand-in with the schema of vLLM's library, computed by torch."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from small_attention import GROUPED
from torch import Tensor

from benchmarks.attention import comparison
from benchmarks.attention.case import Case
from benchmarks.attention.peers import fa3
from benchmarks.attention.peers.fa3 import FlashAttention3
from benchmarks.attention.reference import attend
from benchmarks.kernels.peers.folder import PeerFolder
from benchmarks.kernels.peers.peer import Unavailable
from benchmarks.kernels.timing import LoopTimer

FORWARD = """fwd(Tensor q, Tensor k, Tensor v, Tensor? k_new, Tensor? v_new, Tensor? q_v, Tensor? out,
    Tensor? cu_seqlens_q, Tensor? cu_seqlens_k, Tensor? cu_seqlens_k_new, Tensor? seqused_q, Tensor? seqused_k,
    int? max_seqlen_q, int? max_seqlen_k, Tensor? page_table, Tensor? kv_batch_idx, Tensor? leftpad_k,
    Tensor? rotary_cos, Tensor? rotary_sin, Tensor? seqlens_rotary, Tensor? q_descale, Tensor? k_descale,
    Tensor? v_descale, float softmax_scale, bool is_causal, int window_size_left, int window_size_right, float softcap,
    bool is_rotary_interleaved, Tensor? scheduler_metadata, int num_splits, bool? pack_gqa, int sm_margin,
    Tensor? s_aux, int cp_world_size, int cp_rank, Tensor? cp_tot_seqused_k) -> Tensor[]"""
PLAN = """get_scheduler_metadata(int batch_size, int max_seqlen_q, int max_seqlen_k, int num_heads, int num_heads_k,
    int headdim, int headdim_v, ScalarType qkv_dtype, Tensor seqused_k, Tensor? cu_seqlens_q, Tensor? cu_seqlens_k,
    Tensor? cu_seqlens_k_new, Tensor? seqused_q, Tensor? leftpad_k, int? page_size, int max_seqlen_k_new,
    bool is_causal, int window_size_left, int window_size_right, bool has_softcap, int num_splits, bool? pack_gqa,
    int sm_margin) -> Tensor"""


def forward(*values: object) -> list[Tensor]:
    given = dict(zip([argument.split()[-1] for argument in FORWARD[4:].split(")")[0].split(",")], values, strict=True))
    assert given["is_causal"] is True
    q, k, v, table = (given[name] for name in ("q", "k", "v", "page_table"))
    starts, used = given["cu_seqlens_q"], given["seqused_k"]
    assert all(isinstance(each, Tensor) for each in (q, k, v, table, starts, used))
    assert (given["scheduler_metadata"] is not None) == (given["max_seqlen_q"] == 1)
    parts = []
    for request, length in enumerate(used.tolist()):  # type: ignore[attr-defined]
        queries = q[starts[request] : starts[request + 1]].float()  # type: ignore[index]
        pages = table[request].long()  # type: ignore[index]
        keys, values_ = (part[pages].flatten(0, 1)[:length].float() for part in (k, v))  # type: ignore[index]
        positions = torch.arange(length - len(queries), length)
        scale = given["softmax_scale"]
        assert isinstance(scale, float)
        parts.append(attend(queries, keys.transpose(0, 1), values_.transpose(0, 1), positions, scale))
    out = given["out"]
    assert isinstance(out, Tensor)
    return [out.copy_(torch.cat(parts))]


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with torch.library._scoped_library("_vllm_fa3_C", "FRAGMENT") as ops:
        ops.define(FORWARD)
        ops.define(PLAN)
        ops.impl("fwd", forward, "CPU")
        ops.impl("get_scheduler_metadata", lambda *_: torch.zeros(1), "CPU")
        monkeypatch.setattr(torch.ops, "load_library", lambda path: None)
        yield


@pytest.fixture
def peer(library: None, tmp_path: Path) -> FlashAttention3:
    (tmp_path / "vllm_fa3.so").touch()
    return FlashAttention3(PeerFolder(tmp_path))


@pytest.mark.parametrize(
    "case",
    [Case(GROUPED, 3, 1, 70), Case(GROUPED, 2, 40, 40), Case(GROUPED, 2, 13, 50), Case(GROUPED, 2, 1, 45, "fp8")],
    ids=str,
)
def test_it_is_asked_for_the_same_attention(peer: FlashAttention3, case: Case, few_copies: None) -> None:
    result = comparison.compare(case, {"fa3": peer}, LoopTimer(), budget_s=0.0)
    assert result.failed == {}
    assert 0 < result.measured["fa3"].error < (0.1 if case.cache == "fp8" else 1e-2)


def test_it_says_what_it_does_not_do(peer: FlashAttention3, few_copies: None) -> None:
    result = comparison.compare(Case(GROUPED, 2, 1, 45, "int8"), {"fa3": peer}, LoopTimer(), budget_s=0.0)
    assert result.failed == {"fa3": "has no cache of int8"}


def test_another_version_of_the_library_is_no_crash(library: None) -> None:
    with pytest.raises(Unavailable, match="has no argument softmax_factor"):
        fa3.call(fa3.op("fwd"), softmax_factor=1.0)
