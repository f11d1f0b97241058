"""Questions about pictures: where the time until the first token goes, as the worker itself measures it.

Each repetition sends the same picture under another digest (a number behind the end of the file, which no decoder
reads), so that nothing of it is known; then another question about it, so that all of it is.
"""

import base64
import random
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.load import Client, Job, Served, random_prompt
from benchmarks.scenarios import checked

QUESTION_WORDS = 16
PARTS = ("decode_s", "preprocess_s", "vision_s", "prefill_s")


async def image_requests(
    client: Client, random_: random.Random, files: Sequence[Path], repeats: int = 3
) -> list[dict[str, Any]]:
    """One row for each file: medians of new pictures and of known ones, and every raw figure."""
    rows = []
    for path in files:
        cold: list[Served] = []
        warm: list[Served] = []
        for _ in range(repeats):
            data = path.read_bytes() + random_.randbytes(8)
            image = base64.b64encode(data).decode("ascii")
            for seen in (cold, warm):
                prompt = f"<image>\n{random_prompt(QUESTION_WORDS, random_)}"
                seen.append(checked(await client.run(Job(prompt, 4, (image,)))))
        rows.append(
            {
                "file": path.name,
                "bytes": path.stat().st_size,
                "prompt_tokens": cold[0].prompt_tokens,
                "cached_tokens": [served.cached_tokens for served in warm],
                "new": _medians(cold),
                "known": _medians(warm),
                "raw": {"new": [_parts(served) for served in cold], "known": [_parts(served) for served in warm]},
            }
        )
    return rows


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """A line for each file and kind, in ms."""
    print(f"\n{'TTFT of a picture, ms':<28}{'all':>9}{'decode':>9}{'pixels':>9}{'vision':>9}{'prefill':>9}{'other':>9}")
    for row in rows:
        for kind in ("new", "known"):
            parts = row[kind]
            values = "".join(f"{1e3 * parts[name]:9.1f}" for name in ("ttft_s", *PARTS, "other_s"))
            print(f"{row['file'][:20] + ', ' + kind:<28}{values}")


def _parts(served: Served) -> dict[str, float]:
    """What the worker measured; "other" is the way there and back, JSON, base64, tokenizing and waiting."""
    assert served.timing is not None, "the worker has told no timing"
    parts = {name: float(served.timing[name]) for name in PARTS}
    return {"ttft_s": served.ttft, **parts, "other_s": served.ttft - sum(parts.values())}


def _medians(all_served: Sequence[Served]) -> dict[str, float]:
    each = [_parts(served) for served in all_served]
    return {name: statistics.median(parts[name] for parts in each) for name in each[0]}
