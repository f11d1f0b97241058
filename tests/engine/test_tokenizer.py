"""Prompts to ids: special tokens, the beginning-of-sequence token, chat templates, end-of-sequence tokens."""

import json
import shutil
from pathlib import Path

import pytest

from tinyserve.engine.tokenizer import Tokenizer


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


IN_PARTS = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] + ' ' }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


@pytest.mark.parametrize("file", ["chat_template.jinja", "chat_template.json"])
def test_templates_of_image_models_want_parts_and_may_stand_in_a_file_of_their_own(
    smollm2: Path, tmp_path: Path, file: str
) -> None:
    shutil.copy(smollm2 / "tokenizer.json", tmp_path / "tokenizer.json")
    text = IN_PARTS if file.endswith("jinja") else json.dumps({"chat_template": IN_PARTS})
    (tmp_path / file).write_text(text)
    messages = [{"role": "user", "content": "<image>\nWhat is this?"}]
    assert Tokenizer(tmp_path).apply_chat_template(messages) == "USER: <image>\nWhat is this? ASSISTANT:"


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
