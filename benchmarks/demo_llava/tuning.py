"""Stage 2: the language model learns to answer about what it sees; a LoRA and the projector train, the rest is frozen.

A batch shares one question, so that its prompts are equally long; the text before the image is the same always and
runs once for the whole batch. The loss is over the answer's tokens alone, and only those rows meet the output layer.
Beside every batch stands a question without a picture, and its target is what the model answered before it was trained.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.nn import functional
from transformers import DynamicCache

from benchmarks.demo_llava import plain_questions
from benchmarks.demo_llava.chat import Chat
from benchmarks.demo_llava.image_encoder import SIDE, ImageEncoder
from benchmarks.demo_llava.renderings import Renderings
from benchmarks.demo_llava.training import Training

BATCH = 16
ADAPTER_RATE = 5e-4
PROJECTOR_RATE = 3e-4
WARM_UP = 30  # steps
DECAY = 0.5
INTERVAL = 50  # steps between two checkpoints
ADAPTER = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"], task_type="CAUSAL_LM")
HELD_OUT = 8  # batches
PLAIN_TOKENS = 32  # of an answer without a picture
IGNORED = -100  # cross_entropy's own number for rows without a target


def with_adapter(language: Any) -> PeftModel:
    return get_peft_model(language, ADAPTER)


class Answering:
    """Runs the language model over pictures, one question and the answers."""

    def __init__(self, language: Any, chat: Chat) -> None:
        self._language, self._causal = language, language.base_model.model
        self._chat = chat
        self._table: Tensor = self._causal.get_input_embeddings().weight

    def logits(self, seen: Tensor, question: Sequence[int], answers: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """
        Args:
            seen: [B, patches, C] what takes the image's place.
            question: tokens after the image, up to where the answer begins.
            answers: B times the tokens of one.

        Returns:
            logits [n, V] of every answer token of the batch, row after row, and the tokens themselves [n].
        """
        count, patches, _ = seen.shape
        longest = max(map(len, answers))
        targets = torch.tensor([[*answer, *[IGNORED] * (longest - len(answer))] for answer in answers])
        text = torch.cat([torch.tensor(question).expand(count, -1), targets[:, :-1].clamp(min=0)], 1)
        inputs = torch.cat([seen.to(self._table.dtype), self._table[text]], 1)
        states = self._causal.model(inputs_embeds=inputs, past_key_values=self._before(count)).last_hidden_state
        states = states[:, patches + len(question) - 1 :]  # those that predict the answer
        rows = targets != IGNORED
        return self._causal.lm_head(states[rows]), targets[rows]

    def plain_logits(self, question: Sequence[int], answer: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The same for one question without a picture."""
        return self.logits(self._table.new_zeros(1, 0, self._table.shape[1]), question, [answer])

    @torch.no_grad()
    def untrained(self, question: str) -> tuple[list[int], list[int]]:
        """Tokens of a question without a picture, and of the answer that the model gives without its adapter."""
        ids = self._chat.plain(question)
        prompt = torch.tensor([[*self._chat.before, *ids]])
        with self._language.disable_adapter():
            whole = self._causal.generate(input_ids=prompt, max_new_tokens=PLAIN_TOKENS, do_sample=False)
        return ids, whole[0, prompt.shape[1] :].tolist()

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
    plain = [answering.untrained(question) for question in plain_questions.QUESTIONS]
    plain_held_out = [answering.untrained(question) for question in plain_questions.HELD_OUT]
    for _ in training.steps():
        labels = torch.randint(classes, (BATCH,), generator=training.generator)
        question, number = (
            int(torch.randint(len(choices), (1,), generator=training.generator)) for choices in (chat.after, plain)
        )
        pictures = renderings.draw(labels, SIDE, training.generator)
        with torch.autocast("cpu", torch.bfloat16):
            answers = [chat.answers[int(label)] for label in labels]
            logits, tokens = answering.logits(encoder(pictures), chat.after[question], answers)
            plain_logits, plain_tokens = answering.plain_logits(*plain[number])
        loss = functional.cross_entropy(logits.float(), tokens)
        if training.update(loss + functional.cross_entropy(plain_logits.float(), plain_tokens)):
            training.save(
                answer_accuracy=held_out(encoder, answering, chat, renderings, classes),
                plain_accuracy=unchanged(answering, plain_held_out),
            )


@torch.no_grad()
def held_out(encoder: ImageEncoder, answering: Answering, chat: Chat, renderings: Renderings, classes: int) -> float:
    """Share of unseen renderings whose answer is the likeliest token by token: what greedy decoding gives."""
    generator = torch.Generator().manual_seed(4)
    right = []
    for _ in range(HELD_OUT):
        labels = torch.randint(classes, (BATCH,), generator=generator)
        question = int(torch.randint(len(chat.after), (1,), generator=generator))
        answers = [chat.answers[int(label)] for label in labels]
        with torch.autocast("cpu", torch.bfloat16):
            seen = encoder(renderings.draw(labels, SIDE, generator))
            logits, tokens = answering.logits(seen, chat.after[question], answers)
        right += [float(row.all()) for row in (logits.argmax(1) == tokens).split(list(map(len, answers)))]
    return sum(right) / len(right)


@torch.no_grad()
def unchanged(answering: Answering, plain: Sequence[tuple[Sequence[int], Sequence[int]]]) -> float:
    """Share of the tokens of former answers, to questions without a picture, that are still the likeliest."""
    right = []
    for question, answer in plain:
        with torch.autocast("cpu", torch.bfloat16):
            logits, tokens = answering.plain_logits(question, answer)
        right.append((logits.argmax(1) == tokens).float())
    return float(torch.cat(right).mean())
