"""Decides on which tokens the search looks at the model: a local file, a data set, or text the model writes itself.

Gives windows of equal length, the same for the same seed. It knows nothing of scales or blocks.
"""

import hashlib
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from awq.errors import UserError
from awq.progress import track

# Beginnings of the self-written texts. Different genres, so that the channels that matter to each are seen.
OPENINGS = (
    "",
    "The history of",
    "Once upon a time",
    "In this chapter",
    "The most important",
    "He looked at her and said",
    "According to the",
    "def main():\n",
    "Dear Sir,",
    "1. ",
    "What is the",
    "The city of",
    "A recent study",
    "When I was young",
    "To solve this problem",
    "She had always",
)
TEXT_TOKENS = 128  # of one self-written text
TEXT_FIELDS = ("text", "content")  # of a JSON record or a data set's row, in this order
PILE = "mit-han-lab/pile-val-backup"  # llm-awq's calibration set, which it calls pileval


def windows(tokens: Tensor, seqlen: int) -> Tensor:
    """Cuts tokens [n] into [n // seqlen, seqlen]; the rest is dropped."""
    return tokens[: len(tokens) // seqlen * seqlen].view(-1, seqlen)


def from_source(source: str, tokenizer: Any, num_samples: int, seqlen: int, seed: int) -> Tensor:
    """Windows [at most num_samples, seqlen] of a source's tokens, its documents strung together as in llm-awq.

    Where there are more windows than asked for, `seed` chooses which.

    Args:
        source: a .txt, .jsonl or .parquet file, or the name of a data set.

    Raises:
        UserError: the source cannot be had, or its text is empty or shorter than one window.
    """
    documents = list(read_documents(source))
    random.Random(seed).shuffle(documents)
    ids: list[int] = []
    for document in documents:
        ids.extend(tokenizer(document.strip(), add_special_tokens=False, verbose=False)["input_ids"])
        if len(ids) >= num_samples * seqlen and len(documents) > 1:
            break
    if not ids:
        raise UserError(f"--calib_data {source} holds no text")
    cut = windows(torch.tensor(ids), seqlen)
    if len(cut) == 0:
        raise UserError(
            f"--calib_data {source} has {len(ids)} tokens, less than one window of --seqlen {seqlen}: "
            f"give more text or a smaller --seqlen"
        )
    chosen = random.Random(seed).sample(range(len(cut)), min(num_samples, len(cut)))
    return cut[sorted(chosen)]


def read_text(path: Path, flag: str) -> str:
    """A UTF-8 text file.

    Raises:
        UserError: not there, not UTF-8, or empty; names the flag.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{flag} {path}: no such file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{flag} {path} is not UTF-8 text (byte {error.start})") from error
    if not text.strip():
        raise UserError(f"{flag} {path} holds no text")
    return text


def read_documents(source: str) -> Iterator[str]:
    """The documents of a local file, or of a data set by name.

    Raises:
        UserError: the source cannot be had, or a record has no text.
    """
    path = Path(source)
    if path.suffix == ".parquet":
        return _rows(_dataset("parquet", {"data_files": str(_existing(path)), "split": "train"}, source), source)
    if path.suffix in (".jsonl", ".json"):
        return _json_lines(read_text(path, "--calib_data"), source)
    if path.suffix == ".txt" or path.exists():
        return iter([read_text(path, "--calib_data")])
    name = PILE if source == "pileval" else source
    return _rows(_dataset(name, {"split": "validation" if name == PILE else "train"}, source), source)


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise UserError(f"--calib_data {path}: no such file")
    return path


def _json_lines(text: str, source: str) -> Iterator[str]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise UserError(f"--calib_data {source}, line {number} is not JSON: {error}") from error
        yield _text_of(record, f"{source}, line {number}")


def _text_of(record: Any, where: str) -> str:
    if isinstance(record, str):
        return record
    if isinstance(record, dict):
        for field in TEXT_FIELDS:
            if isinstance(record.get(field), str):
                return str(record[field])
    raise UserError(
        f"--calib_data {where} has no text: a string, or an object with {' or '.join(TEXT_FIELDS)}, is needed"
    )


def _dataset(name: str, options: dict[str, Any], source: str) -> Any:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise UserError(
            f"--calib_data {source} is no local .txt or .jsonl file, and data sets need `pip install datasets`"
        ) from error
    try:
        return load_dataset(name, **options)
    except Exception as error:  # the library raises its own types for every kind of failure
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"--calib_data {source} cannot be had: {reason}") from error


def _rows(rows: Any, source: str) -> Iterator[str]:
    return (_text_of(row, f"{source}, row {number}") for number, row in enumerate(rows))


def digest(*parts: Tensor | None) -> str:
    """Tells two calibration texts apart, with their images if any; what a model writes follows from model and seed."""
    known = [part.cpu().float().numpy().tobytes() for part in parts if part is not None]
    return hashlib.sha256(b"".join(known)).hexdigest() if known else "self-written"


@torch.inference_mode()
def self_written(network: nn.Module, tokenizer: Any, num_samples: int, seqlen: int, seed: int) -> Tensor:
    """Windows [num_samples, seqlen] of texts that the model writes itself, sampled at temperature 1.

    The model's own text has the statistics it was trained on, needs no data set, and is the same for the same seed
    (on the same machine). The texts go on from OPENINGS and are strung together; end-of-text is not sampled. They are
    short, because the time goes with the number of steps: all texts grow by one token in each.
    """
    device = next(network.parameters()).device
    length = min(seqlen, TEXT_TOKENS)
    generator = torch.Generator(device).manual_seed(seed)
    openings = [torch.tensor(_opening_ids(tokenizer, opening)[:length]) for opening in OPENINGS]
    count = -(-num_samples * seqlen // length)
    texts = torch.empty(count, length, dtype=torch.long, device=device)
    forced = torch.full((count, length), -1, device=device)  # tokens of the opening; -1: sampled
    for index in range(count):
        opening = openings[index % len(openings)]
        forced[index, : len(opening)] = opening.to(device)
    banned = sorted({int(i) for i in (tokenizer.eos_token_id, tokenizer.pad_token_id) if i is not None})
    texts[:, 0] = forced[:, 0]
    cache = None
    for position in track(range(1, length), "calibration: the model writes, token"):
        output = network(input_ids=texts[:, position - 1 : position], past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        logits = output.logits[:, -1].float()
        logits[:, banned] = -torch.inf
        sampled = torch.multinomial(torch.softmax(logits, -1), 1, generator=generator).squeeze(1)
        texts[:, position] = torch.where(forced[:, position] >= 0, forced[:, position], sampled)
    return windows(texts.flatten(), seqlen)[:num_samples].cpu()


def _opening_ids(tokenizer: Any, opening: str) -> list[int]:
    """At least one token: what the model starts texts with, then the opening."""
    start = next((i for i in (tokenizer.bos_token_id, tokenizer.eos_token_id) if i is not None), 0)
    ids = tokenizer(opening, add_special_tokens=False)["input_ids"] if opening else []
    return [int(start), *ids]
