"""Pictures, captions and questions become windows in which some ids stand for image embeddings."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_model
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer

from awq.errors import UserError
from awq.image_calibration import QUESTIONS, image_windows, read_pictures

NUM_ROWS = 1000
TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</>{% endfor %}"
PARTS_ONLY = "{% for m in messages %}{% for part in m['content'] %}{{ part['text'] }}{% endfor %}{% endfor %}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """a.png with a caption beside it, b.JPG with one in captions.json, c.png without."""
    for index, name in enumerate(("a.png", "b.JPG", "c.png")):
        Image.new("RGB", (8, 8), (index, 0, 0)).save(tmp_path / name, "PNG")
    (tmp_path / "a.txt").write_text(" A red square. \n")
    (tmp_path / "captions.json").write_text(json.dumps({"b.JPG": "A blue circle."}))
    (tmp_path / "notes.md").write_text("no picture")
    return tmp_path


@pytest.fixture
def tokenizer(tmp_path: Path) -> Any:
    tiny_model.save_tokenizer(tmp_path / "tokenizer")
    return AutoTokenizer.from_pretrained(tmp_path / "tokenizer")


def embed(path: Path) -> Tensor:
    """Four rows that tell which picture they are of."""
    return torch.full((4, 3), float(ord(path.name[0])))


def text_and_images(windows: Tensor, images: Tensor, tokenizer: Any) -> str:
    """The windows as one text, in which each row of an image is a letter: the first one of its file's name."""
    letters = [chr(int(value)) for value in images[:, 0]]
    ids = windows.flatten().tolist()
    return "".join(letters[i - NUM_ROWS] if i >= NUM_ROWS else tokenizer.decode([i]) for i in ids)


def test_captions_are_read_from_both_places(folder: Path) -> None:
    found = [(picture.path.name, picture.caption) for picture in read_pictures(folder)]
    assert found == [("a.png", "A red square."), ("b.JPG", "A blue circle."), ("c.png", "")]


def test_windows_string_pictures_and_texts_together(folder: Path, tokenizer: Any) -> None:
    windows, images = image_windows(read_pictures(folder), tokenizer, embed, NUM_ROWS, 1000, 1, seed=0)
    assert images.shape == (12, 3)
    text = text_and_images(windows, images, tokenizer)
    for name, answer in (("a", "A red square."), ("b", "A blue circle."), ("c", "")):
        assert any(f"USER: {name * 4}\n{question} ASSISTANT: {answer}\n" in text for question in QUESTIONS)
    windows, _ = image_windows(read_pictures(folder), tokenizer, embed, NUM_ROWS, 100, 8, seed=0)
    assert windows.shape[1] == 8
    again, _ = image_windows(read_pictures(folder), tokenizer, embed, NUM_ROWS, 100, 8, seed=0)
    assert torch.equal(windows, again)
    _, other = image_windows(read_pictures(folder), tokenizer, embed, NUM_ROWS, 100, 8, seed=1)
    assert not torch.equal(images, other)


def test_no_more_pictures_than_are_needed_are_embedded(folder: Path, tokenizer: Any) -> None:
    windows, images = image_windows(read_pictures(folder), tokenizer, embed, NUM_ROWS, 2, 16, seed=0)
    assert windows.shape == (2, 16)
    assert len(images) == 4


@pytest.mark.parametrize(("template", "before"), [(TEMPLATE, "<user>"), (PARTS_ONLY, "USER: "), (None, "USER: ")])
def test_the_models_own_template_is_used_where_it_keeps_the_text(
    folder: Path, tokenizer: Any, template: str | None, before: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer.chat_template = template
    windows, images = image_windows(read_pictures(folder), tokenizer, embed, NUM_ROWS, 100, 8, seed=0)
    assert f"{before}aaaa\n" in text_and_images(windows, images, tokenizer)
    assert ("LLaVA's own form" in capsys.readouterr().err) == (template is not TEMPLATE)


def test_mistakes_are_named(folder: Path, tokenizer: Any) -> None:
    with pytest.raises(UserError, match=r"--calib_images .*nowhere: no such folder"):
        read_pictures(folder / "nowhere")
    with pytest.raises(UserError, match=r"--calib_images .*tokenizer holds no picture"):
        read_pictures(folder / "tokenizer")
    with pytest.raises(UserError, match=r"3 pictures are [0-9]+ tokens, less than one window of --seqlen 4096"):
        image_windows(read_pictures(folder), tokenizer, embed, NUM_ROWS, 1, 4096, seed=0)
    for content in ({"d.png": "Not there."}, {"a.png": 3}):
        (folder / "captions.json").write_text(json.dumps(content))
        name = next(iter(content))
        with pytest.raises(UserError, match=f"'{name}' must be a picture beside it with a text"):
            read_pictures(folder)
