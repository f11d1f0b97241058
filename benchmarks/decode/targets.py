"""What decoding and prefill of whole models are meant to reach on an H200, and whether a run's rows do."""

from collections.abc import Sequence

from benchmarks.decode.task import Row
from benchmarks.verdict import Verdict, at_least

QUANTIZED, PLAIN = "W4A16", "W16A16"
REFERENCE_MODEL, CONTEXT = "llama-3-8b", 1024
TOKENS_PER_S = 600.0
SHARE_AT_1 = 0.67  # 600 tokens/s of Llama-3-8B are so much of its limit, 894
SPEED_UP = 2.7
SHARE_AT_64 = 0.6
PREFILL_TOKENS, PREFILL_RATIO = 2048, 0.9


def verdicts(rows: Sequence[Row]) -> list[Verdict]:
    at_1 = [row for row in decode(rows, QUANTIZED, 1) if row["context"] == CONTEXT]
    ours = [row for row in at_1 if row["model"] == REFERENCE_MODEL]
    return [
        at_least(
            f"{REFERENCE_MODEL}, batch 1, 1k", f">= {TOKENS_PER_S:.0f} tokens/s", TOKENS_PER_S,
            [(row["tokens_per_s"], name(row)) for row in ours],
        ),
        at_least(
            "every model, batch 1, 1k", f">= {SHARE_AT_1} of the limit", SHARE_AT_1,
            [(row["of_limit"], name(row)) for row in at_1],
        ),
        at_least(
            "every model, batch 1, 1k", f">= {SPEED_UP} x our own 16 bits", SPEED_UP,
            [(speed_up(row, rows), name(row)) for row in at_1],
        ),
        at_least(
            "every model, batch 64", f">= {SHARE_AT_64} of the limit", SHARE_AT_64,
            [(row["of_limit"], name(row)) for row in decode(rows, QUANTIZED, 64)],
        ),
        at_least(
            f"prefill of {PREFILL_TOKENS} tokens", f">= {PREFILL_RATIO} x torch in 16 bits", PREFILL_RATIO,
            [(prefill_ratio(row, rows), name(row)) for row in prefills(rows, "first token", QUANTIZED)],
        ),
    ]  # fmt: skip


def name(row: Row) -> str:
    size = f"{row['batch']} x {row['context']}" if row["kind"] == "decode" else f"{row['tokens']} tokens"
    return f"{row['model']} {row['variant']} {size}"


def decode(rows: Sequence[Row], variant: str, batch: int) -> list[Row]:
    return [row for row in rows if (row["kind"], row["variant"], row.get("batch")) == ("decode", variant, batch)]


def prefills(rows: Sequence[Row], kind: str, variant: str) -> list[Row]:
    return [row for row in rows if (row["kind"], row["variant"], row.get("tokens")) == (kind, variant, PREFILL_TOKENS)]


def speed_up(row: Row, rows: Sequence[Row]) -> float | None:
    """The same step in 16 bits over this one."""
    same = [
        plain
        for plain in decode(rows, PLAIN, row["batch"])
        if (plain["model"], plain["context"]) == (row["model"], row["context"])
    ]
    return same[0]["step_ms"] / row["step_ms"] if same else None


def prefill_ratio(row: Row, rows: Sequence[Row]) -> float | None:
    """torch's time over ours."""
    same = [other for other in prefills(rows, "torch prefill", "transformers") if other["model"] == row["model"]]
    return same[0]["best_ms"] / row["best_ms"] if same else None
