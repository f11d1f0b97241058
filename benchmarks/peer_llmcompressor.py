"""AWQ of one model by llm-compressor, for bench_quantize.py: run by a Python that has it (`pip install llmcompressor`).

    PYTHON benchmarks/peer_llmcompressor.py MODEL TOKENS.json OUT GROUP_SIZE

TOKENS.json holds the calibration windows as lists of token ids. `duo_scaling="both"` searches the larger of its grids.
"""

import json
import sys

import torch
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import QuantizationModifier
from llmcompressor.modifiers.transform.awq import AWQModifier
from transformers import AutoModelForCausalLM, AutoTokenizer


def main(model: str, tokens: str, out: str, group_size: int) -> None:
    with open(tokens, encoding="utf-8") as file:
        windows: list[list[int]] = json.load(file)
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    if not torch.accelerator.is_available():
        # version 0.14 pins the calibration inputs on every machine, which raises where there is nothing to pin them for
        setattr(torch.Tensor, "pin_memory", lambda tensor, *_: tensor)  # noqa: B010
    data = Dataset.from_dict({"input_ids": windows, "attention_mask": [[1] * len(window) for window in windows]})
    weights = {"num_bits": 4, "type": "int", "symmetric": False, "strategy": "group", "group_size": group_size}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    oneshot(
        model=network,
        dataset=data,
        recipe=[
            AWQModifier(duo_scaling="both"),
            QuantizationModifier(config_groups=groups, ignore=["lm_head"]),
        ],
        max_seq_length=len(windows[0]),
        num_calibration_samples=len(windows),
        tokenizer=AutoTokenizer.from_pretrained(model),
    )
    network.half().save_pretrained(out, save_compressed=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
