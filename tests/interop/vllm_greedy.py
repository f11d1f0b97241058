"""Greedy tokens of vLLM for one checkpoint. Runs inside vLLM's own environment, so it imports nothing of ours.

    python vllm_greedy.py MODEL PROMPTS.json OUT.json TOKENS

PROMPTS.json holds lists of token ids; OUT.json gets the ids that vLLM adds to each.
"""

import json
import sys
from pathlib import Path


def main() -> None:
    from vllm import LLM, SamplingParams
    from vllm.inputs import TokensPrompt

    model, prompts, out, tokens = sys.argv[1:]
    llm = LLM(model=model, max_model_len=256, max_num_seqs=4, enforce_eager=True, seed=0)
    sampling = SamplingParams(temperature=0, max_tokens=int(tokens), ignore_eos=True)
    asked = [TokensPrompt(prompt_token_ids=ids) for ids in json.loads(Path(prompts).read_text())]
    answers = [list(answer.outputs[0].token_ids) for answer in llm.generate(asked, sampling)]
    Path(out).write_text(json.dumps(answers))


if __name__ == "__main__":
    main()
