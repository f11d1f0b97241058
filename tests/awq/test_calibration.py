"""Where calibration tokens come from, and what is said when a source cannot give any."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_model
import torch

from awq import calibration
from awq.errors import UserError
from awq.model import load_tokenizer
from awq.network import load_network


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.save(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    return load_tokenizer(folder)


def test_text_file_becomes_windows_of_its_tokens(tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text(tiny_model.TEXT * 20, encoding="utf-8")
    ids = tokenizer((tiny_model.TEXT * 20).strip())["input_ids"]
    found = calibration.from_source(str(path), tokenizer, 5, 100, 1)
    assert found.shape == (5, 100)
    windows = [ids[start : start + 100] for start in range(0, len(ids), 100)]
    assert all(row in windows for row in found.tolist())
    assert torch.equal(found, calibration.from_source(str(path), tokenizer, 5, 100, 1))
    assert not torch.equal(found, calibration.from_source(str(path), tokenizer, 5, 100, 2))
    assert len(calibration.from_source(str(path), tokenizer, 9999, 100, 1)) == len(ids) // 100


def test_jsonl_records_are_documents(tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join([json.dumps({"text": "abcdef"}), "", json.dumps("ghijkl")]), encoding="utf-8")
    found = calibration.from_source(str(path), tokenizer, 1, 12, 0)
    assert tokenizer.decode(found[0]) in ("abcdefghijkl", "ghijklabcdef")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("short.txt", b"too short", r"short\.txt has 9 tokens, less than one window of --seqlen 64"),
        ("empty.txt", b"  \n", r"empty\.txt holds no text"),
        ("latin.txt", b"caf\xe9" * 50, r"latin\.txt is not UTF-8 text \(byte 3\)"),
        ("bad.jsonl", b'{"text": "a"}\n{', r"bad\.jsonl, line 2 is not JSON"),
        ("other.jsonl", b'{"words": "a"}', r"other\.jsonl, line 1 has no text"),
    ],
)
def test_unusable_files_are_named(tokenizer: Any, tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        calibration.from_source(str(tmp_path / name), tokenizer, 4, 64, 0)


@pytest.mark.parametrize("name", ["missing.txt", "missing.jsonl", "missing.parquet"])
def test_missing_files_are_named(tokenizer: Any, name: str) -> None:
    with pytest.raises(UserError, match=rf"{name}: no such file"):
        calibration.from_source(name, tokenizer, 4, 64, 0)


def test_a_data_set_that_cannot_be_had_is_said(tokenizer: Any) -> None:
    with pytest.raises(UserError, match="--calib_data no-such/set"):
        calibration.from_source("no-such/set", tokenizer, 4, 64, 0)


def test_self_written_text_follows_the_seed(folder: Path, tokenizer: Any) -> None:
    network = load_network(folder, torch.float32)
    found = calibration.self_written(network, tokenizer, 3, 40, 7)
    assert found.shape == (3, 40)
    assert torch.equal(found, calibration.self_written(network, tokenizer, 3, 40, 7))
    assert not torch.equal(found, calibration.self_written(network, tokenizer, 3, 40, 8))
    assert tokenizer.eos_token_id not in found.flatten().tolist()
    assert found[0, 0] == tokenizer.bos_token_id
    longer = calibration.self_written(network, tokenizer, 2, calibration.TEXT_TOKENS + 20, 7)
    assert longer.shape == (2, calibration.TEXT_TOKENS + 20)
