"""What is said about a picture: the questions, the answer, and both as the tokens that the language model is given.

The prompt is the tokenizer's own chat template with one user turn; the image's place splits it into two pieces that
are tokenized apart, as LLaVA does. Knows nothing of pictures.
"""

from collections.abc import Sequence
from typing import Any

QUESTIONS = (
    "What is this?",
    "What is in this picture?",
    "What does the picture show?",
    "What do you see?",
    "What can you see in this image?",
    "Which emoji is this?",
    "Name the object.",
    "Please name what you see.",
    "Tell me what this picture shows.",
    "Describe the image.",
)
ANSWER = "This picture shows: {}."
IMAGE = "<image>"


class Chat:
    """Prompts and answers as token ids of one tokenizer."""

    def __init__(self, tokenizer: Any, names: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        before, _ = self._pieces(QUESTIONS[0])
        self.before = self._ids(before)  # the same for every question
        self.after = [self._ids(self._pieces(question)[1]) for question in QUESTIONS]
        self.answers = [self._ids(ANSWER.format(name) + tokenizer.eos_token) for name in names]
        self.names = [self._ids(f" {name}") for name in names]  # as they stand within the answer

    def prompt(self, question: str) -> str:
        """The text with IMAGE where the image's tokens go, ready for the answer."""
        turn = [{"role": "user", "content": f"{IMAGE}\n{question}"}]
        return str(self._tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))

    def plain(self, question: str) -> list[int]:
        """What follows `before` when there is no picture: a question and the answer's beginning."""
        after = self._pieces(question)[1]
        return self._ids(after.removeprefix("\n"))

    def _pieces(self, question: str) -> tuple[str, str]:
        before, after = self.prompt(question).split(IMAGE)
        return before, after

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False).input_ids)
