"""Text and images in turn become token ids as LLaVA's tokenizer_image_token makes them."""

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pictures import file_of, picture
from seeing import SPEC
from tiny_model import save_tokenizer
from transformers import AutoTokenizer

from tinyserve.engine.generator import RequestError
from tinyserve.engine.image_file import ImageFile
from tinyserve.engine.image_prompt import PLACEHOLDER, ImagePrompt, check_tokens, tokenize
from tinyserve.engine.preparation import Preparation
from tinyserve.engine.tokenizer import Tokenizer

WIDE, TALL = (ImageFile.read(file_of(picture("RGB", *size))) for size in [(90, 20), (20, 31)])
NUM_WIDE, NUM_TALL = SPEC.num_tokens(90, 20), SPEC.num_tokens(20, 31)

needs_llava = pytest.mark.skipif(importlib.util.find_spec("llava") is None, reason="llava-torch is not installed")


def test_bos_stays_once_and_every_image_has_its_tokens(with_bos: Tokenizer) -> None:
    tokenized = tokenize("hello <image> hello hello<image>", [WIDE, TALL], with_bos, SPEC)
    assert tokenized.token_ids == [0, 3] + [PLACEHOLDER] * NUM_WIDE + [3, 3] + [PLACEHOLDER] * NUM_TALL
    assert tokenized.starts == (2, 4 + NUM_WIDE)
    assert tokenized.text_ids == [0, 3, 3, 3]


def test_an_image_may_come_first(with_bos: Tokenizer) -> None:
    assert tokenize("<image>", [TALL], with_bos, SPEC).token_ids == [0] + [PLACEHOLDER] * NUM_TALL


@needs_llava
@pytest.mark.parametrize("prompt", ["hello", "<image>", "hello <image>\nhello", "<image><image> hello <image>hello"])
@pytest.mark.parametrize("which", ["with_bos", "tokenizer", "bytes_tokenizer"])
def test_the_pieces_are_llavas(which: str, prompt: str, request: pytest.FixtureRequest) -> None:
    from llava.mm_utils import tokenizer_image_token

    tokenizer: Tokenizer = request.getfixturevalue(which)

    def theirs(text: str) -> Any:
        """LLaVA's tokenizers put no end behind a text."""
        ids = tokenizer._hf(text).input_ids
        return type("Ids", (), {"input_ids": ids[:-1] if which == "with_bos" else ids})

    theirs.bos_token_id = tokenizer.bos_token_id  # type: ignore[attr-defined]
    expected = tokenizer_image_token(prompt, theirs, image_token_index=PLACEHOLDER)
    images = [TALL] * prompt.count("<image>")
    ours = tokenize(prompt, images, tokenizer, replace(SPEC, aspect_ratio="square", tile_tokens=1))
    assert ours.token_ids == expected


@pytest.mark.parametrize(("prompt", "number"), [("none", 1), ("<image>", 0), ("<image> <image>", 1), ("<image>", 2)])
def test_one_mark_for_each_image(with_bos: Tokenizer, prompt: str, number: int) -> None:
    with pytest.raises(
        RequestError, match=rf"one <image> for each, got {number} for {prompt.count('<image>')}"
    ) as error:
        tokenize(prompt, [TALL] * number, with_bos, SPEC)
    assert error.value.code == 40001


def test_a_text_model_takes_the_mark_for_text_and_refuses_images(tokenizer: Tokenizer) -> None:
    assert tokenize("<image>", [], tokenizer, None) == ImagePrompt(tokenizer.encode("<image>"), ())
    with pytest.raises(RequestError, match="reads text only, got 2"):
        tokenize("<image><image>", [TALL, TALL], tokenizer, None)


def test_start_and_end_marks_where_the_checkpoint_wants_them(bytes_tokenizer: Tokenizer) -> None:
    around = tokenize("A<image>B", [TALL], bytes_tokenizer, replace(SPEC, start_end=True))
    assert around == tokenize("A<im_start><image><im_end>B", [TALL], bytes_tokenizer, SPEC)


def test_marks_that_the_tokenizer_lacks_are_refused(bytes_tokenizer: Tokenizer, tmp_path: Path) -> None:
    marked = replace(SPEC, start_end=True)
    check_tokens(bytes_tokenizer, SPEC)
    check_tokens(bytes_tokenizer, None)
    with pytest.raises(ValueError, match=r"mm_use_im_start_end .* it has no <im_start> and no <im_end>"):
        check_tokens(bytes_tokenizer, marked)
    save_tokenizer(tmp_path)
    fast = AutoTokenizer.from_pretrained(tmp_path)
    fast.add_tokens(["<im_start>"], special_tokens=True)
    fast.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="it has no <im_end>"):
        Preparation(Tokenizer(tmp_path), 300, 100, 0, marked)
    fast.add_tokens(["<im_end>"], special_tokens=True)
    fast.save_pretrained(tmp_path)
    Preparation(Tokenizer(tmp_path), 300, 100, 0, marked)


def test_fastchats_mark(with_bos: Tokenizer) -> None:
    assert tokenize("$$<image>$$hello", [TALL], with_bos, SPEC) == tokenize("<image>hello", [TALL], with_bos, SPEC)
