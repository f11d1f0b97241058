"""Stage 1: the tower learns to tell the objects apart, and the projector to say them in the language model's words.

Every patch's projected embedding is drawn to the input embedding of one token of the object's name (patch j to token
j mod n), so that the language model later sees near-words where the image stands. A class head on the mean patch gives
the early gradient and is thrown away. Reads nothing but the language model's embedding table and the names' tokens.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.demo_llava.image_encoder import PATCH, SIDE, ImageEncoder
from benchmarks.demo_llava.renderings import Renderings
from benchmarks.demo_llava.training import Training, groups

BATCH = 64
PEAK_RATE = 1e-3
WEIGHT_DECAY = 0.05
WARM_UP = 200  # steps
DECAY = 0.4  # of all steps
EASY_STEPS = 1500  # until pictures are as hard as they will be
INTERVAL = 250  # steps between two checkpoints
LABEL_SMOOTHING = 0.1
MARGIN = 10.0  # logit of a name's token over an average other one, where the embedding is exactly that token's
PULL = 0.5  # weight of the squared distance to the token's embedding, over the table's variance
HELD_OUT = 10  # batches


class NameTargets:
    """What each patch should become, and how far an embedding is from it."""

    def __init__(self, names: Sequence[Sequence[int]], table: Tensor) -> None:
        """
        Args:
            names: token ids of every object's name.
            table: [V, C] the language model's input embeddings.
        """
        patches = (SIDE // PATCH) ** 2
        used = sorted({token for name in names for token in name})
        place = {token: row for row, token in enumerate(used)}
        self._words = table[torch.tensor(used)].float()  # [n, C]
        self._rows = torch.tensor([[place[name[j % len(name)]] for j in range(patches)] for name in names])
        self._norms = self._words.square().sum(1)
        self._variance = self._norms.mean() / self._words.shape[1]
        self._sharpness = MARGIN / (2 * self._norms.mean())

    def loss(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """embeddings [B, patches, C], labels [B]: cross-entropy over the names' tokens, and the distance."""
        rows = self._rows[labels]
        # softmax of minus the squared distance; the part that all words share cancels
        logits = self._sharpness * (2 * embeddings @ self._words.to(embeddings.dtype).T - self._norms)
        cross_entropy = functional.cross_entropy(logits.flatten(0, 1).float(), rows.flatten())
        distance = (embeddings.float() - self._words[rows]).square().mean() / self._variance
        return cross_entropy + PULL * distance

    def right(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """[B]: the share of patches that are nearest to their own word."""
        distances = self._norms - 2 * embeddings.float() @ self._words.T
        return (distances.argmin(-1) == self._rows[labels]).float().mean(1)


def pretrain(
    encoder: ImageEncoder, renderings: Renderings, targets: NameTargets, classes: int, steps: int, folder: Path
) -> None:
    """Trains `encoder` in place; log and checkpoint in `folder`."""
    head = nn.Linear(encoder.tower.config.hidden_size, classes)
    model = nn.ModuleDict({"encoder": encoder, "head": head}).train()
    training = Training(
        folder, "pretrain", model, groups(model, PEAK_RATE, WEIGHT_DECAY), steps, WARM_UP, DECAY, INTERVAL, seed=1
    )
    for step in training.steps():
        labels = torch.randint(classes, (BATCH,), generator=training.generator)
        pictures = renderings.draw(labels, SIDE, training.generator, min(step / EASY_STEPS, 1.0))
        with torch.autocast("cpu", torch.bfloat16):
            features = encoder.features(pictures)
            class_logits = head(features.mean(1))
            alignment = targets.loss(encoder.projector(features), labels)
        loss = alignment + functional.cross_entropy(class_logits.float(), labels, label_smoothing=LABEL_SMOOTHING)
        if training.update(loss):
            by_class, by_words = held_out(encoder, head, renderings, targets, classes)
            training.save(class_accuracy=by_class, word_accuracy=by_words)


@torch.no_grad()
def held_out(
    encoder: ImageEncoder, head: nn.Linear, renderings: Renderings, targets: NameTargets, classes: int
) -> tuple[float, float]:
    """On unseen renderings: accuracy of the class head, and the share of patches that say the right word."""
    generator = torch.Generator().manual_seed(2)
    by_class, by_words = [], []
    for _ in range(HELD_OUT):
        labels = torch.randint(classes, (BATCH,), generator=generator)
        with torch.autocast("cpu", torch.bfloat16):
            features = encoder.features(renderings.draw(labels, SIDE, generator))
            by_class.append((head(features.mean(1)).argmax(1) == labels).float().mean())
            by_words.append(targets.right(encoder.projector(features), labels).mean())
    return float(torch.stack(by_class).mean()), float(torch.stack(by_words).mean())
