"""Prompts to ids: special tokens, the beginning-of-sequence token, chat templates, end-of-sequence tokens."""

import json
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from tinyserve.engine.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def with_bos(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A tokenizer that puts <s> before every text and </s> behind it."""
    vocab = {"<s>": 0, "</s>": 1, "<unk>": 2, "hello": 3}
    rust = RustTokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    rust.pre_tokenizer = pre_tokenizers.Whitespace()
    rust.post_processor = processors.TemplateProcessing("<s> $A </s>", None, [("<s>", 0), ("</s>", 1)])
    folder = tmp_path_factory.mktemp("with-bos")
    PreTrainedTokenizerFast(
        tokenizer_object=rust, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    return Tokenizer(folder)


def test_special_tokens_in_the_text_are_recognised(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("<|im_start|>user\nhi<|im_end|>")
    assert ids[0] == 1
    assert ids[-1] == 2
    assert tokenizer.decode(ids) == "<|im_start|>user\nhi<|im_end|>"


def test_no_bos_where_the_model_expects_none(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("") == []
    assert tokenizer.encode("hello")[0] != tokenizer.bos_token_id


def test_bos_comes_first_exactly_once_and_no_eos_last(with_bos: Tokenizer) -> None:
    assert with_bos.encode("hello hello") == [0, 3, 3]
    assert with_bos.encode("<s> hello") == [0, 3]
    assert with_bos.encode("") == [0]


def test_the_text_of_a_token_keeps_its_space_and_is_never_half_a_character(tokenizer: Tokenizer) -> None:
    for text in ("hello world", "a\nb", "<|im_end|>"):
        ids = tokenizer.encode(text)
        assert "".join(map(tokenizer.token_text, ids)) == text
    halves = tokenizer.encode("\U0001f9f8")
    assert len(halves) > 1
    assert all("\ufffd" not in tokenizer.token_text(half) for half in halves)
    assert len({tokenizer.token_text(half) for half in halves}) == len(set(halves))


def test_chat_template_ends_where_the_answer_begins(tokenizer: Tokenizer) -> None:
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}])
    assert prompt.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")


def test_a_model_without_chat_template_says_so(with_bos: Tokenizer) -> None:
    with pytest.raises(ValueError, match="has no chat template"):
        with_bos.apply_chat_template([{"role": "user", "content": "Hi"}])


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [([5, 7], 9, {2, 5, 7}), (5, None, {2, 5}), (None, 9, {2, 9}), (None, None, {2})],
)
def test_end_of_sequence_tokens(
    smollm2: Path, tmp_path: Path, generation: object, config: object, expected: set[int]
) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(smollm2 / name, tmp_path / name)
    settings = json.loads((smollm2 / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**settings, "eos_token_id": config}))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": generation}))
    assert Tokenizer(tmp_path).eos_token_ids == expected


def test_a_folder_without_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"no usable tokenizer in {tmp_path}"):
        Tokenizer(tmp_path)
