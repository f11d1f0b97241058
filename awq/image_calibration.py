"""Decides on which pictures the search looks at a model that reads images, and what is said about them.

Gives windows as calibration.py does, in which some tokens stand for rows of image embeddings. It knows no vision tower:
who makes embeddings of a picture is handed in.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from awq.calibration import read_text, windows
from awq.errors import UserError
from awq.formats.json_file import read_json
from awq.progress import say, track

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif")
CAPTIONS = "captions.json"
PLACEHOLDER = "<image>"
QUESTIONS = (
    "Describe this picture.",
    "What is shown in the image?",
    "What objects are there, and where are they?",
    "Which colors do you see?",
    "How many things are in this picture?",
    "Is there any text in the image? If so, what does it say?",
    "What is happening here?",
    "What is in the background?",
)
PLAIN = f"USER: {PLACEHOLDER}\n{{question}} ASSISTANT: {{answer}}\n"  # LLaVA's own form, without its system message

Embed = Callable[[Path], Tensor]  # from a picture's file to what its tokens are [P, C]


@dataclass(frozen=True)
class Picture:
    path: Path
    caption: str  # empty where nobody wrote one


def read_pictures(folder: Path) -> list[Picture]:
    """The pictures of a folder in the order of their names, each with its caption.

    A caption stands in `X.txt` beside `X.png`, or under the picture's name in captions.json.

    Raises:
        UserError: there is no such folder or no picture in it, or a caption is no text.
    """
    if not folder.is_dir():
        raise UserError(f"--calib_images {folder}: no such folder")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise UserError(f"--calib_images {folder} holds no picture ({', '.join(SUFFIXES)})")
    listed = read_json(folder / CAPTIONS) if (folder / CAPTIONS).is_file() else {}
    names = {path.name for path in paths}
    for name, caption in listed.items():
        if name not in names or not isinstance(caption, str):
            raise UserError(f"{folder / CAPTIONS}: {name!r} must be a picture beside it with a text, got {caption!r}")
    return [Picture(path, listed.get(path.name) or _text_beside(path)) for path in paths]


def _text_beside(path: Path) -> str:
    text = path.with_suffix(".txt")
    return read_text(text, "--calib_images").strip() if text.is_file() else ""


def image_windows(
    pictures: list[Picture], tokenizer: Any, embed: Embed, num_rows: int, num_samples: int, seqlen: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Windows [at most num_samples, seqlen] of pictures, questions and captions, strung together as texts are.

    Args:
        num_rows: of the model's embedding: an id from there on stands for a row of the image embeddings.

    Returns:
        The windows int64, and the image embeddings [P, C] of all pictures that were used.

    Raises:
        UserError: all pictures together are shorter than one window.
    """
    order = list(pictures)
    random.Random(seed).shuffle(order)
    ids: list[int] = []
    embeddings: list[Tensor] = []
    questions = cycle(QUESTIONS)
    form = _form(tokenizer)
    for picture in track(order, "calibration: picture"):
        before, after = form(next(questions), picture.caption)
        embeddings.append(embed(picture.path))
        first = num_rows + sum(map(len, embeddings[:-1]))
        ids += [*_ids(tokenizer, before), *range(first, first + len(embeddings[-1])), *_ids(tokenizer, after)]
        if len(ids) >= num_samples * seqlen:
            break
    cut = windows(torch.tensor(ids), seqlen)[:num_samples]
    if len(cut) == 0:
        raise UserError(
            f"--calib_images: {len(pictures)} pictures are {len(ids)} tokens, less than one window of "
            f"--seqlen {seqlen}: give more pictures or a smaller --seqlen"
        )
    return cut, torch.cat(embeddings)


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _form(tokenizer: Any) -> Callable[[str, str], tuple[str, str]]:
    """From question and answer to the text before and after the picture: by the model's chat template if it can."""

    def templated(question: str, answer: str) -> str:
        turns = [{"role": "user", "content": f"{PLACEHOLDER}\n{question}"}, {"role": "assistant", "content": answer}]
        return str(tokenizer.apply_chat_template(turns, tokenize=False))

    def plain(question: str, answer: str) -> str:
        return PLAIN.format(question=question, answer=answer)

    chosen = templated if tokenizer.chat_template and _is_whole(templated) else plain
    if chosen is plain:
        say("calibration: the tokenizer has no chat template for a picture in a text; asking in LLaVA's own form")

    def parts(question: str, answer: str) -> tuple[str, str]:
        before, _, after = chosen(question, answer).partition(PLACEHOLDER)
        return before, after

    return parts


def _is_whole(templated: Callable[[str, str], str]) -> bool:
    """Whether a template keeps placeholder, question and answer; those for lists of parts lose them, or raise."""
    try:
        text = templated("Why?", "So.")
    except Exception:  # a template is a program that raises what it likes
        return False
    return text.count(PLACEHOLDER) == 1 and "Why?" in text and "So." in text
