"""What can be configured, as frozen dataclasses that are validated once, when they are built.

Every layer may import this module; it imports none of them. An error names the setting, what came and what is allowed.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

Precision = Literal["W4A16", "W16A16"]
CpuCompute = Literal["int8", "exact"]
LmHeadDtype = Literal["auto", "int8"]
LoadIn = Literal["8bit", "4bit"]  # bitsandbytes' LLM.int8 and NF4
KvCacheDtype = Literal["auto", "int8", "fp8"]
DtypeName = Literal["auto", "float16", "bfloat16", "float32"]
GrammarKind = Literal["json_schema", "regex", "grammar"]  # the last one in Lark or GBNF

MAX_STOP_STRINGS = 16
MAX_STOP_CHARACTERS = 1024  # of one stop string
MAX_STOP_TOKEN_IDS = 128
MAX_LOGPROBS = 20
MAX_GRAMMAR_CHARACTERS = 1 << 16
MAX_LOGIT_BIAS = 1024  # token ids in one request's logit_bias


def _check(ok: bool, name: str, value: object, allowed: str) -> None:
    if not ok:
        raise ValueError(f"{name} must be {allowed}, got {value!r}")


def _in_range(name: str, value: float, low: float, high: float) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    _check(is_number and math.isfinite(value) and low <= value <= high, name, value, f"between {low} and {high}")


def _is_whole(name: str, value: object) -> None:
    _check(isinstance(value, int) and not isinstance(value, bool), name, value, "a whole number")


@dataclass(frozen=True)
class Grammar:
    """What the whole output must be: llguidance's dialect of each kind, see engine/structured_output.py."""

    kind: GrammarKind
    text: str
    field: str = "grammar"  # of the request, for messages

    def __post_init__(self) -> None:
        _check(self.kind in get_args(GrammarKind), "kind", self.kind, ", ".join(get_args(GrammarKind)))
        allowed = f"1 to {MAX_GRAMMAR_CHARACTERS} characters"
        _check(0 < len(self.text) <= MAX_GRAMMAR_CHARACTERS, self.field, f"{len(self.text)} characters", allowed)


@dataclass(frozen=True)
class SamplingParams:
    """How the tokens of one request are chosen.

    `temperature` below 1e-3 or `top_k` 1 means greedy. `stop` strings end the text before themselves; `stop_token_ids`
    end it like the end-of-sequence token. None of these ends it before `min_tokens` tokens: the tokens are not drawn,
    the strings do not count. A request with a `seed` gives the same text whatever runs beside it.
    """

    max_new_tokens: int = 256
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1  # -1: all
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()  # token id, and what is added to its logit
    logprobs: int | None = None  # alternatives to report with each token; None: not even the token's own
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    grammar: Grammar | None = None  # decides where the text ends, unless one of `stop` or max_new_tokens cuts it

    def __post_init__(self) -> None:
        _in_range("max_new_tokens", self.max_new_tokens, 1, 1 << 20)
        for name in ("max_new_tokens", "min_tokens", "top_k", "logprobs", "seed"):
            if (value := getattr(self, name)) is not None:
                _is_whole(name, value)
        allowed = f"between 0 and max_new_tokens, which is {self.max_new_tokens}"
        _check(0 <= self.min_tokens <= self.max_new_tokens, "min_tokens", self.min_tokens, allowed)
        _in_range("temperature", self.temperature, 0.0, 100.0)
        _in_range("top_p", self.top_p, 0, 1)
        _check(self.top_k in (-1, 0) or 1 <= self.top_k <= 1 << 20, "top_k", self.top_k, "-1 (all) or at least 1")
        _in_range("min_p", self.min_p, 0.0, 1.0)
        _in_range("repetition_penalty", self.repetition_penalty, 0.01, 100.0)
        _in_range("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _in_range("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        count = len(self.logit_bias)
        _check(count <= MAX_LOGIT_BIAS, "logit_bias", f"{count} token ids", f"at most {MAX_LOGIT_BIAS} token ids")
        for token_id, bias in self.logit_bias:
            _in_range(f"logit_bias[{token_id}]", bias, -100.0, 100.0)
        if self.logprobs is not None:
            _in_range("logprobs", self.logprobs, 0, MAX_LOGPROBS)
        if self.seed is not None:
            _in_range("seed", self.seed, 0, 2**63 - 1)
        _check(len(self.stop) <= MAX_STOP_STRINGS, "stop", f"{len(self.stop)} strings", f"at most {MAX_STOP_STRINGS}")
        for text in self.stop:
            _check(0 < len(text) <= MAX_STOP_CHARACTERS, "stop", text[:40], f"1 to {MAX_STOP_CHARACTERS} characters")
        _check(
            len(self.stop_token_ids) <= MAX_STOP_TOKEN_IDS,
            "stop_token_ids",
            f"{len(self.stop_token_ids)} ids",
            f"at most {MAX_STOP_TOKEN_IDS}",
        )

    @property
    def greedy(self) -> bool:
        return self.temperature < 1e-3 or self.top_k == 1 or self.top_p < 1e-8


@dataclass(frozen=True)
class EngineConfig:
    """One engine: which checkpoint, in which precision, with how much memory for the KV cache."""

    model_path: Path
    quant_path: Path | None = None  # W4A16 linear layers from here; None: from model_path itself
    precision: Precision = "W4A16"
    model_base: Path | None = None  # the 16-bit model that model_path, an adapter or a projector, belongs to
    load_in: LoadIn | None = None  # 16-bit linear layers are quantized by bitsandbytes at load
    dtype: DtypeName = "auto"  # of activations; auto: the checkpoint's
    device: str = "auto"  # auto: cuda where there is one, else cpu
    packed_cache: Path | bool = (
        False  # where a CPU's packed weights stay for the next start; True: beside the checkpoint
    )
    cpu_compute: CpuCompute = "int8"  # with 4-bit weights: activations and output layer in 8 bits, or as they are
    block_size: int = 32  # tokens in one block of the KV cache
    kv_cache_dtype: KvCacheDtype = (
        "auto"  # auto: that of the activations; int8, on a GPU also fp8 (e4m3): half of it, rounded
    )
    kv_cache_bytes: int | None = None  # None: a share of the free memory, see engine/kv_cache.py
    max_num_requests: int = 64  # running at once
    max_batch_tokens: int | None = None  # of one step; None: by device, see engine/engine.py
    max_slowdown: float = 2.0  # of a decode step by prompts beside it; above 1, infinity: no limit. See engine/pace.py
    min_step_ms: float = 20.0  # that a step with prompts in it may take, however short a decode step is
    num_speculative_tokens: int = 0  # guessed by looking back in the text and checked together; 0: off
    overlap: bool | None = None  # a step is launched before the tokens of the one before are taken; None: on a GPU
    enforce_eager: bool = False  # no step is recorded: no CUDA graphs, no tapes on a CPU; see engine/recording.py
    use_flash_attn: bool = False  # on a GPU: prompts' attention by a library, see layers/attention_registry.py
    prefix_cache: bool = True  # requests that begin alike share keys and values
    image_memory_bytes: int = 512 << 20  # of what images have become: those of running requests, and the latest others
    max_context: int | None = None  # None: the model's
    seed: int = 0
    lm_head_dtype: LmHeadDtype = "auto"  # int8: an output layer of 16 bits is rounded to 8; auto: as cpu_compute says

    def __post_init__(self) -> None:
        _check(self.lm_head_dtype in get_args(LmHeadDtype), "lm_head_dtype", self.lm_head_dtype, "auto or int8")
        _check(self.precision in get_args(Precision), "precision", self.precision, "W4A16 or W16A16")
        if self.load_in is not None:
            _check(self.load_in in get_args(LoadIn), "load_in", self.load_in, "8bit or 4bit")
            _check(
                self.precision == "W16A16",
                "precision",
                self.precision,
                f"W16A16 with --load-{self.load_in}, which quantizes 16-bit weights",
            )
        _check(self.dtype in get_args(DtypeName), "dtype", self.dtype, ", ".join(get_args(DtypeName)))
        _check(self.cpu_compute in get_args(CpuCompute), "cpu_compute", self.cpu_compute, "int8 or exact")
        _check(
            self.kv_cache_dtype in get_args(KvCacheDtype), "kv_cache_dtype", self.kv_cache_dtype, "auto, int8 or fp8"
        )
        _check(self.block_size in (8, 16, 32, 64, 128), "block_size", self.block_size, "8, 16, 32, 64 or 128")
        _in_range("max_num_requests", self.max_num_requests, 1, 4096)
        _in_range("num_speculative_tokens", self.num_speculative_tokens, 0, 16)
        _check(self.max_slowdown > 1.0, "max_slowdown", self.max_slowdown, "above 1")
        _in_range("min_step_ms", self.min_step_ms, 0.0, 60000.0)
        if self.max_batch_tokens is not None:
            _in_range("max_batch_tokens", self.max_batch_tokens, 16, 1 << 20)
        if self.max_context is not None:
            _in_range("max_context", self.max_context, 1, 1 << 24)
        _in_range("image_memory_bytes", self.image_memory_bytes, 0, 1 << 50)
        if self.kv_cache_bytes is not None:
            _in_range("kv_cache_bytes", self.kv_cache_bytes, 1 << 16, 1 << 50)
