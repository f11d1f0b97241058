"""Stage 2: the language model learns to answer about what it sees; a LoRA and the projector train, the rest is frozen.

A batch shares one question, so that its prompts are equally long; the text before the image is the same always and
runs once for the whole batch. The loss is over the answer's tokens alone, and only those rows meet the output layer.
"""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.nn import functional
from transformers import DynamicCache

from benchmarks.demo_llava.chat import Chat
from benchmarks.demo_llava.image_encoder import SIDE, ImageEncoder
from benchmarks.demo_llava.renderings import Renderings
from benchmarks.demo_llava.training import Training

BATCH = 16
ADAPTER_RATE = 1e-3
PROJECTOR_RATE = 3e-4
WARM_UP = 30  # steps
DECAY = 0.5
INTERVAL = 50  # steps between two checkpoints
ADAPTER = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"], task_type="CAUSAL_LM")
HELD_OUT = 8  # batches
IGNORED = -100  # cross_entropy's own number for rows without a target


def with_adapter(language: Any) -> PeftModel:
    return get_peft_model(language, ADAPTER)


class Answering:
    """Runs the language model over pictures, one question and the answers."""

    def __init__(self, language: Any, chat: Chat) -> None:
        self._causal = language.base_model.model
        self._chat = chat
        self._table: Tensor = self._causal.get_input_embeddings().weight

    def logits(self, seen: Tensor, question: int, labels: Tensor) -> tuple[Tensor, Tensor]:
        """
        Args:
            seen: [B, patches, C] what takes the image's place.
            question: number of the question.
            labels: [B] which object each picture shows.

        Returns:
            logits [n, V] of every answer token of the batch, row after row, and the tokens themselves [n].
        """
        count, patches, _ = seen.shape
        after = torch.tensor(self._chat.after[question])
        answers = [torch.tensor(self._chat.answers[int(label)]) for label in labels]
        longest = max(map(len, answers))
        targets = torch.stack([functional.pad(a, (0, longest - len(a)), value=IGNORED) for a in answers])
        text = torch.cat([after.expand(count, -1), targets[:, :-1].clamp(min=0)], 1)
        inputs = torch.cat([seen.to(self._table.dtype), self._table[text]], 1)
        states = self._causal.model(inputs_embeds=inputs, past_key_values=self._before(count)).last_hidden_state
        states = states[:, patches + len(after) - 1 :]  # those that predict the answer
        rows = targets != IGNORED
        return self._causal.lm_head(states[rows]), targets[rows]

    @torch.no_grad()
    def _before(self, count: int) -> DynamicCache:
        """Keys and values of the text before the image, for `count` pictures."""
        cache: Any = DynamicCache(config=self._causal.config)
        self._causal.model(torch.tensor([self._chat.before]), past_key_values=cache)
        for layer in cache.layers:
            layer.keys, layer.values = (x.expand(count, -1, -1, -1) for x in (layer.keys, layer.values))
        return cache


def tune(
    encoder: ImageEncoder,
    language: PeftModel,
    chat: Chat,
    renderings: Renderings,
    classes: int,
    steps: int,
    folder: Path,
) -> None:
    """Trains projector and adapter in place; log and checkpoint in `folder`."""
    encoder.tower.requires_grad_(False)
    adapter = nn.ParameterList([p for p in language.parameters() if p.requires_grad])
    model = nn.ModuleDict({"projector": encoder.projector, "adapter": adapter})
    rates = ((adapter, ADAPTER_RATE), (encoder.projector, PROJECTOR_RATE))
    optimized = [{"params": list(part.parameters()), "lr": rate, "weight_decay": 0.0} for part, rate in rates]
    training = Training(folder, "tune", model, optimized, steps, WARM_UP, DECAY, INTERVAL, seed=3)
    answering = Answering(language, chat)
    for _ in training.steps():
        labels = torch.randint(classes, (BATCH,), generator=training.generator)
        question = int(torch.randint(len(chat.after), (1,), generator=training.generator))
        pictures = renderings.draw(labels, SIDE, training.generator)
        with torch.autocast("cpu", torch.bfloat16):
            logits, tokens = answering.logits(encoder(pictures), question, labels)
        if training.update(functional.cross_entropy(logits.float(), tokens)):
            training.save(answer_accuracy=held_out(encoder, answering, chat, renderings, classes))


@torch.no_grad()
def held_out(encoder: ImageEncoder, answering: Answering, chat: Chat, renderings: Renderings, classes: int) -> float:
    """Share of unseen renderings whose answer is the likeliest token by token: what greedy decoding gives."""
    generator = torch.Generator().manual_seed(4)
    right = []
    for _ in range(HELD_OUT):
        labels = torch.randint(classes, (BATCH,), generator=generator)
        question = int(torch.randint(len(chat.after), (1,), generator=generator))
        with torch.autocast("cpu", torch.bfloat16):
            seen = encoder(renderings.draw(labels, SIDE, generator))
            logits, targets = answering.logits(seen, question, labels)
        hits = (logits.argmax(1) == targets).split([len(chat.answers[int(label)]) for label in labels])
        right += [float(row.all()) for row in hits]
    return sum(right) / len(right)
