"""Trains the demo's LLaVA from nothing but the installed language model and the emoji font.

    python -m benchmarks.demo_llava.train FOLDER [--tower-steps N] [--language-steps N]

Everything is seeded and kept in FOLDER: a stopped run goes on where it was. Needs the packages peft and emoji (extra
`train`) and the font fonts-noto-color-emoji.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from benchmarks.demo_llava import asset
from benchmarks.demo_llava.chat import Chat
from benchmarks.demo_llava.image_encoder import ImageEncoder
from benchmarks.demo_llava.objects import NAMES, characters
from benchmarks.demo_llava.pretraining import NameTargets, pretrain
from benchmarks.demo_llava.renderings import Renderings
from benchmarks.demo_llava.tuning import tune, with_adapter
from tinyserve.demo import smollm2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="state of the run, log and finished asset")
    parser.add_argument("--tower-steps", type=int, default=6000, help="steps of stage 1 (%(default)s)")
    parser.add_argument("--language-steps", type=int, default=200, help="steps of stage 2 (%(default)s)")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    base = smollm2.prepare()
    language: Any = LlamaForCausalLM.from_pretrained(base, dtype=torch.bfloat16, attn_implementation="eager")
    chat = Chat(AutoTokenizer.from_pretrained(base), NAMES)
    renderings = Renderings(characters())
    encoder = ImageEncoder(language.config.hidden_size)
    targets = NameTargets(chat.names, language.get_input_embeddings().weight.detach())
    pretrain(encoder, renderings, targets, len(NAMES), args.tower_steps, args.folder)
    torch.manual_seed(1)
    adapted = with_adapter(language)
    tune(encoder, adapted, chat, renderings, len(NAMES), args.language_steps, args.folder)
    asset.write(args.folder / "asset", encoder, adapted, renderings, base)


if __name__ == "__main__":
    main()
