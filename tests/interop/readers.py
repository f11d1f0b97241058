"""Checkpoints as others read them. Runs inside an environment of its own and imports nothing of ours.

    python readers.py vllm MODEL PROMPTS.json OUT.json TOKENS          vLLM's greedy tokens
    python readers.py transformers MODEL PROMPTS.json OUT.json TOKENS  transformers' greedy tokens
    python readers.py decompress MODEL OUT.safetensors                 what the compressed-tensors package decodes;
                                                                       packed again it has to be what was stored

PROMPTS.json holds lists of token ids; OUT.json gets the ids that follow each.
"""

import json
import sys
from pathlib import Path
from typing import Any


def vllm(model: str, prompts: list[list[int]], tokens: int) -> list[list[int]]:
    from vllm import LLM, SamplingParams
    from vllm.inputs import TokensPrompt

    llm = LLM(model=model, max_model_len=256, max_num_seqs=4, enforce_eager=True, seed=0)
    sampling = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
    answers = llm.generate([TokensPrompt(prompt_token_ids=ids) for ids in prompts], sampling)
    return [list(answer.outputs[0].token_ids) for answer in answers]


def transformers(model: str, prompts: list[list[int]], tokens: int) -> list[list[int]]:
    import torch
    from transformers import AutoModelForCausalLM

    network: Any = AutoModelForCausalLM.from_pretrained(model, dtype="auto")
    network.generation_config.eos_token_id = None  # goes on after it, and may choose it
    answers = []
    with torch.inference_mode():
        for ids in prompts:
            whole = network.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=tokens)
            answers.append(whole[0, len(ids) :].tolist())
    return answers


def decompress(model: str, out: str) -> None:
    import torch
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig
    from safetensors.torch import load_file, save_file

    described = json.loads(Path(model, "config.json").read_text())["quantization_config"]
    config = QuantizationConfig.model_validate(described)
    scheme = config.config_groups["group_0"]
    compressor = BaseCompressor.get_value_from_registry(config.format)
    modules: dict[str, dict[str, Any]] = {}
    for name, tensor in load_file(Path(model, "model.safetensors")).items():
        module, _, suffix = name.rpartition(".")
        modules.setdefault(module, {})[suffix] = tensor
    packed = {module: tensors for module, tensors in modules.items() if "weight_packed" in tensors}
    weights = {}
    for module, stored in packed.items():
        decoded = compressor.decompress(stored, scheme)
        again = compressor.compress(decoded, scheme)
        for suffix, tensor in stored.items():
            assert torch.equal(again[suffix], tensor), f"{module}.{suffix} packed again is another"
        weights[module] = decoded["weight"]
    save_file(weights, out)


def main() -> None:
    what, model, *rest = sys.argv[1:]
    if what == "decompress":
        decompress(model, rest[0])
        return
    prompts, out, tokens = rest
    answers = {"vllm": vllm, "transformers": transformers}[what](
        model, json.loads(Path(prompts).read_text()), int(tokens)
    )
    Path(out).write_text(json.dumps(answers))


if __name__ == "__main__":
    main()
