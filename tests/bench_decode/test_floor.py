"""The least time of a step, against the tables of limits worked out elsewhere (H200, fp16 cache)."""

import pytest

from benchmarks.decode.floor import Model
from benchmarks.decode.variant import Variant
from benchmarks.kernels.limits import Ceilings
from benchmarks.model_configs import MODELS

H200 = Ceilings(4.3e12, {"float16": 790e12, "bfloat16": 790e12})


@pytest.mark.parametrize(
    ("name", "batch", "context", "milliseconds"),
    [
        ("llama-2-7b", 1, 1024, 0.968),
        ("llama-2-7b", 64, 4096, 32.806),
        ("llama-3-8b", 1, 1024, 1.119),
        ("llama-3-8b", 64, 1024, 3.085),
        ("llama-3-8b", 256, 4096, 33.050),
        ("qwen2.5-7b", 1, 4096, 1.097),
        ("qwen2.5-7b", 64, 4096, 4.538),
    ],
)
def test_a_decode_step_reads_weights_and_cache(name: str, batch: int, context: int, milliseconds: float) -> None:
    seconds = Model.of(MODELS[name]).decode_s(H200, Variant(), batch, context)
    assert 1e3 * seconds == pytest.approx(milliseconds, rel=2e-3)


def test_a_large_batch_is_bound_by_its_products() -> None:
    """256 requests of Qwen2.5-7B at 1k: more than the 4.538 ms that memory takes."""
    seconds = Model.of(MODELS["qwen2.5-7b"]).decode_s(H200, Variant(), 256, 1024)
    assert 1e3 * seconds > 4.7


def test_a_cache_of_8_bits_is_half_of_it() -> None:
    model = Model.of(MODELS["llama-3-8b"])
    assert model.step_bytes(Variant(kv_cache_dtype="fp8"), 256, 4096) == pytest.approx(73.4e9, rel=1e-3)
    assert model.step_bytes(Variant(), 256, 4096) == pytest.approx(142.1e9, rel=1e-3)


def test_prefill_is_products() -> None:
    """17.7 us a token for the linear layers of Llama-3-8B; attention and lm_head come on top."""
    seconds = Model.of(MODELS["llama-3-8b"]).prefill_s(H200, 2048)
    assert 2048 * 17.6e-6 < seconds < 2048 * 18.5e-6


@pytest.mark.parametrize("text", ["W4A16", "W16A16", "W4A16,fp8", "W4A16,int8,eager", "W16A16,eager"])
def test_a_variant_is_what_it_is_called(text: str) -> None:
    assert str(Variant.parse(text)) == text


@pytest.mark.parametrize("text", ["", "W8A8", "fp8", "W4A16,fp4", "W4A16,fp8,int8"])
def test_another_variant_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="between commas"):
        Variant.parse(text)
