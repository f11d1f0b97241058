"""An engine whose prompts are attended to by another library says what it says by itself; the library is a stand-in.

In fp32, which the libraries themselves do not have, so that outputs can be compared exactly.
"""

import logging
from collections.abc import Callable
from typing import Any

import attention_stand_ins
import pytest
import tiny_llama
import torch
from attention_stand_ins import install
from llama_model import load_llama
from run_engine import run
from torch import Tensor

from tinyserve.config import SamplingParams
from tinyserve.engine.engine import Engine
from tinyserve.layers import attention_library, attention_registry, flashinfer_attention
from tinyserve.layers.attention_library import HostLayout, LibraryAttention, MayAttend
from tinyserve.models.llama import LlamaModel

MakeEngine = Callable[..., Engine]
VOCABULARY = 512
GREEDY = SamplingParams(max_new_tokens=12, temperature=0.0, ignore_eos=True)
SHARED = list(range(40, 75))
PROMPTS = [[*SHARED, *range(first, first + length)] for first, length in ((100, 3), (200, 40), (300, 11), (400, 1))]


@pytest.fixture(scope="module", params=[0, 20], ids=["", "window"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LlamaModel:
    folder = tiny_llama.save(
        tmp_path_factory.mktemp("tiny") / "small-vocabulary",
        vocab_size=VOCABULARY,
        sliding_window=request.param or None,
    )
    model = load_llama(folder, precision="W16A16", dtype="float32")
    assert {*model.config.windows} == {request.param}
    return model


@pytest.mark.parametrize("settings", [{}, {"num_speculative_tokens": 4}], ids=["", "guesses"])
@pytest.mark.parametrize("name", list(attention_registry.LIBRARIES))
def test_a_library_changes_no_text(
    name: str,
    settings: dict[str, int],
    make_engine: MakeEngine,
    model: LlamaModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install(monkeypatch, [name])
    monkeypatch.setattr(attention_library, "DTYPES", (torch.float32,))
    monkeypatch.setattr(flashinfer_attention, "HEAD_DIMS", (model.config.head_dim,))
    library = LibraryAttention(attention_registry.first(torch.device("cpu")))
    attend_rows, step = attention_stand_ins.attend_rows, library.step
    spans: set[tuple[int, int]] = set()  # queries and keys of one request
    steps: list[tuple[int, int]] = []  # tokens and requests

    def noted(q: Tensor, k: Tensor, v: Tensor, **scores: Any) -> Tensor:
        spans.add((len(q), len(k)))
        return attend_rows(q, k, v, **scores)

    def noted_step(host: HostLayout, query_starts: Tensor) -> MayAttend | None:
        assert torch.equal(query_starts, torch.from_numpy(host.query_starts))
        steps.append((int(host.query_starts[-1]), len(host.context_lens)))
        return step(host, query_starts)

    monkeypatch.setattr(attention_stand_ins, "attend_rows", noted)
    monkeypatch.setattr(library, "step", noted_step)
    monkeypatch.setattr(attention_registry, "choose", lambda *_: library)
    expected = [result.token_ids for result in run(make_engine(model=model), PROMPTS, GREEDY)]
    assert not steps
    engine = make_engine(model=model, max_batch_tokens=32, use_flash_attn=True, **settings)
    for _ in range(2):  # the second time most of each prompt is in the cache
        assert [result.token_ids for result in run(engine, PROMPTS, GREEDY)] == expected
    assert all(num_tokens > num_requests for num_tokens, num_requests in steps), "a decode step"
    assert any(queries == keys for queries, keys in spans), "no prompt from its start"
    assert any(1 < queries < keys for queries, keys in spans), "no prompt behind a prefix"
    assert any(queries == 1 for queries, _ in spans), "no prompt beside a single token"


def test_on_a_cpu_the_flag_is_said_to_have_no_effect(make_engine: MakeEngine, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        engine = make_engine(use_flash_attn=True)
        run(engine, [[1, 2, 3], [4, 5]], GREEDY)
    said = [record.getMessage() for record in caplog.records if "--use-flash-attn" in record.getMessage()]
    assert said == ["--use-flash-attn has no effect on a CPU: the own kernel computes attention"]
