"""What a request asks of the sampler, as it leaves the whole engine."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from run_engine import run
from transformers import LlamaForCausalLM

from tinyserve.config import SamplingParams
from tinyserve.engine.engine import Engine
from tinyserve.engine.generator import RequestError
from tinyserve.engine.tokenizer import Tokenizer

MakeEngine = Callable[..., Engine]
PROMPTS = [[11], list(range(1000, 1017)), list(range(40, 73))]
GREEDY = SamplingParams(max_new_tokens=12, temperature=0.0, ignore_eos=True)


def greedy(**params: object) -> SamplingParams:
    return SamplingParams(**({"max_new_tokens": 12, "temperature": 0.0, "ignore_eos": True} | params))  # type: ignore[arg-type]


def test_log_probabilities_are_those_of_transformers(
    make_engine: MakeEngine, tiny_folder: Path, tokenizer: Tokenizer
) -> None:
    results = run(make_engine(), PROMPTS, [greedy(logprobs=20), greedy(), greedy(logprobs=0)])
    assert results[1].logprobs == []
    model = LlamaForCausalLM.from_pretrained(tiny_folder)
    for prompt, result, number in ((PROMPTS[0], results[0], 20), (PROMPTS[2], results[2], 0)):
        assert len(result.logprobs) == len(result.token_ids) == 12
        with torch.inference_mode():
            logits = model(torch.tensor([[*prompt, *result.token_ids]])).logits[0, len(prompt) - 1 : -1]
        expected = logits.double().log_softmax(-1)
        for row, token_id, one in zip(expected, result.token_ids, result.logprobs, strict=True):
            assert one.token == tokenizer.token_text(token_id)
            assert one.logprob == pytest.approx(float(row[token_id]), abs=2e-3)
            top = row.topk(number)
            assert [logprob for _, logprob in one.top] == pytest.approx(top.values.tolist(), abs=2e-3)
            assert [text for text, _ in one.top] == [tokenizer.token_text(each) for each in top.indices.tolist()]


def test_a_bias_chooses_the_token(make_engine: MakeEngine) -> None:
    biased, free = run(make_engine(), [PROMPTS[0]] * 2, [greedy(logit_bias=((777, 100.0),)), GREEDY])
    assert set(biased.token_ids) == {777}
    assert 777 not in free.token_ids


def test_a_penalty_forbids_what_a_bias_repeats(make_engine: MakeEngine) -> None:
    params = greedy(max_new_tokens=60, frequency_penalty=2.0, logit_bias=((777, 100.0),))
    result = run(make_engine(), [PROMPTS[0]], params)[0]
    assert 40 < result.token_ids.count(777) < 60


def test_no_end_comes_before_min_tokens(make_engine: MakeEngine) -> None:
    engine = make_engine()
    free = run(engine, [PROMPTS[1]], GREEDY)[0]
    stop_token, stop_text = free.token_ids[2], free.text[4:7]
    early = run(engine, [PROMPTS[1]], greedy(stop_token_ids=(stop_token,)))[0]
    assert len(early.token_ids) <= 3
    late = run(engine, [PROMPTS[1]], greedy(stop_token_ids=(stop_token,), min_tokens=8))[0]
    assert stop_token not in late.token_ids[:8]
    assert len(late.token_ids) >= 8
    assert len(run(engine, [PROMPTS[1]], greedy(stop=(stop_text,)))[0].token_ids) < 8
    assert len(run(engine, [PROMPTS[1]], greedy(stop=(stop_text,), min_tokens=8))[0].token_ids) >= 8


def test_the_end_of_sequence_waits_for_min_tokens_too(make_engine: MakeEngine, tokenizer: Tokenizer) -> None:
    (eos,) = list(tokenizer.eos_token_ids)[:1]
    wants_to_end = SamplingParams(max_new_tokens=12, temperature=0.0, logit_bias=((eos, 100.0),))
    longer = SamplingParams(max_new_tokens=12, temperature=0.0, logit_bias=((eos, 100.0),), min_tokens=5)
    first, second = run(make_engine(), [PROMPTS[0]] * 2, [wants_to_end, longer])
    assert (first.token_ids, first.text, first.finish_reason) == ([eos], "", "stop")
    assert (len(second.token_ids), second.token_ids[-1], second.finish_reason) == (6, eos, "stop")


def test_a_bias_for_a_token_that_the_model_does_not_know_is_refused(make_engine: MakeEngine) -> None:
    with pytest.raises(RequestError, match=r"logit_bias: token ids must be in 0..49151, got 49152") as caught:
        make_engine().prepare(PROMPTS[0], SamplingParams(logit_bias=((49152, 1.0),)))
    assert caught.value.code == 40302


def test_a_prompt_of_special_tokens_alone_is_served(make_engine: MakeEngine) -> None:
    engine = make_engine()
    special, plain = run(engine, ["<|im_start|><|im_end|>", PROMPTS[0]], GREEDY)
    assert special.last is not None
    assert (special.last.num_prompt_tokens, len(special.token_ids), special.finish_reason) == (2, 12, "length")
    assert plain.token_ids == run(engine, [PROMPTS[0]], GREEDY)[0].token_ids
