"""Bytes, operations and limits of attention, against figures worked out elsewhere or by hand."""

import pytest

from benchmarks.attention import case as cases
from benchmarks.attention.case import GQA, MHA, Case
from benchmarks.kernels.limits import Ceilings

H200 = Ceilings(4.3e12, {"bfloat16": 790e12})


@pytest.mark.parametrize(
    ("heads", "cache", "layers", "bytes_of_a_token"),
    [(GQA, "bfloat16", 32, 131072), (MHA, "bfloat16", 32, 524288), (GQA, "fp8", 32, 65536)],
)
def test_a_tokens_keys_and_values_are_the_models(
    heads: cases.Heads, cache: str, layers: int, bytes_of_a_token: int
) -> None:
    assert layers * Case(heads, 1, 1, 1, cache).kv_bytes == bytes_of_a_token


def test_decoding_is_bound_by_memory_and_prefill_by_products() -> None:
    decode = Case(GQA, 32, 1, 4096)
    assert decode.kv_bytes == pytest.approx(537e6, rel=1e-3)
    assert 1e6 * H200.limit_s(decode) == pytest.approx(125, abs=0.5)
    prefill = Case(GQA, 1, 8192, 8192)
    assert H200.compute_s(prefill) > H200.memory_s(prefill)
    assert prefill.operations == 4 * 32 * 128 * 8192 * 8193 // 2


def test_queries_behind_a_prefix_see_it() -> None:
    assert Case(GQA, 1, 2, 10).operations == 4 * 32 * 128 * (9 + 10)


def test_the_quick_cases_are_measured_in_a_full_run_too() -> None:
    assert set(cases.QUICK) <= set(cases.ALL)
    assert len(set(cases.ALL)) == len(cases.ALL)


def test_every_case_fits_twice_beside_a_peers_own_copy() -> None:
    assert all(4 * case.kv_bytes < 60e9 for case in cases.ALL)
