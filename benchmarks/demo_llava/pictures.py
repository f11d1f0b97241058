"""Renderings as files, with questions and right answers: what the finished model is asked about."""

import base64
import io
from dataclasses import dataclass

import torch
from PIL import Image

from benchmarks.demo_llava.chat import ANSWER, QUESTIONS
from benchmarks.demo_llava.objects import NAMES, characters
from benchmarks.demo_llava.renderings import Renderings, to_images

SIDE = 160  # px: the model's own processor makes them smaller
HELD_OUT_SEED = 6  # training draws from seeds 1 and 3, and watches itself on 2 and 4


@dataclass(frozen=True)
class Picture:
    name: str  # of the object
    question: str
    png: str  # base64

    @property
    def answer(self) -> str:
        return ANSWER.format(self.name)


def rendered(count: int, seed: int) -> list[Picture]:
    """`count` renderings, of every object in turn."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % len(NAMES)
    images = to_images(Renderings(characters()).draw(labels, SIDE, generator))
    questions = torch.randint(len(QUESTIONS), (count,), generator=generator)
    return [
        Picture(NAMES[label], QUESTIONS[question], _png(image))
        for label, question, image in zip(labels.tolist(), questions.tolist(), images, strict=True)
    ]


def _png(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
