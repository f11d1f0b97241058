"""A prompt with `<image>` in it: text and images in turn become one row of token ids.

The convention is LLaVA's (tokenizer_image_token): the text is cut at `<image>`, every piece is tokenized on its own and
the beginning-of-sequence token stays once. Each image becomes as many placeholders as it has embeddings, so that
whoever counts tokens counts right. It knows sizes of images, not their pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tinyserve.engine.generator import VALIDATION, RequestError
from tinyserve.engine.image_file import ImageFile
from tinyserve.engine.tokenizer import Tokenizer
from tinyserve.models.image_spec import ImageSpec

MARK = "<image>"
FASTCHAT_MARK = "$$<image>$$"  # what FastChat's servers write in its place
AROUND = ("<im_start>", "<im_end>")  # what LLaVA puts around an image where mm_use_im_start_end says so
PLACEHOLDER = -200  # LLaVA's IMAGE_TOKEN_INDEX: no vocabulary has it, so nothing can take it for text


@dataclass(frozen=True)
class ImagePrompt:
    token_ids: list[int]
    starts: tuple[int, ...]  # where the placeholders of each image begin

    @property
    def text_ids(self) -> list[int]:
        return [token_id for token_id in self.token_ids if token_id >= 0] if self.starts else self.token_ids


def check_tokens(tokenizer: Tokenizer, spec: ImageSpec | None) -> None:
    """Raises ValueError where a model wants tokens around its images that the tokenizer cuts into pieces."""
    if spec is not None and spec.start_end:
        unknown = [token for token in AROUND if len(tokenizer.encode(token, adds_bos=False)) != 1]
        if unknown:
            raise ValueError(
                f"config.json: mm_use_im_start_end needs {' and '.join(AROUND)} among the tokenizer's tokens, but it "
                f"has no {' and no '.join(unknown)}"
            )


def tokenize(prompt: str, images: Sequence[ImageFile], tokenizer: Tokenizer, spec: ImageSpec | None) -> ImagePrompt:
    """
    Args:
        prompt: one `<image>` for each of `images`.
        spec: how many tokens an image becomes; None: the model takes text only, and `<image>` is text.

    Raises:
        RequestError: the images do not fit the prompt, or the model.
    """
    if spec is None:
        if images:
            raise RequestError(VALIDATION, f"images: this model reads text only, got {len(images)} of them")
        return ImagePrompt(tokenizer.encode(prompt), ())
    prompt = prompt.replace(FASTCHAT_MARK, MARK)
    if spec.start_end:
        prompt = prompt.replace(MARK, MARK.join(AROUND))
    first, *others = prompt.split(MARK)
    if len(others) != len(images):
        raise RequestError(
            VALIDATION, f"images: the prompt must have one {MARK} for each, got {len(images)} for {len(others)} {MARK}"
        )
    token_ids, starts = tokenizer.encode(first), []
    for image, text in zip(images, others, strict=True):
        starts.append(len(token_ids))
        token_ids += [PLACEHOLDER] * spec.num_tokens(image.width, image.height)
        token_ids += tokenizer.encode(text, adds_bos=False)
    return ImagePrompt(token_ids, tuple(starts))
