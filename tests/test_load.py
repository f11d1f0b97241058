"""The load generator of the benchmarks: what it counts on real streams, and its arithmetic."""

import random

import pytest
from serve.fleet import Fleet

from benchmarks import load
from benchmarks.endpoints import NullByteRecords, ServerSentEvents, StreamError
from benchmarks.load import Job, Served


async def test_streams_of_a_real_worker_are_counted_in_both_loops() -> None:
    with Fleet() as fleet:
        worker = fleet.timed_worker(None, "--tokens", "5", "--interval", "0.01")
        jobs = [Job(load.random_prompt(length, random.Random(0)), 5) for length in (3, 4, 5)]
        async with load.client(worker.url, NullByteRecords("timed")) as client:
            closed = await load.closed_loop(client, jobs, 2)
            opened = await load.open_loop(client, jobs, 200.0, random.Random(0))
            wrong = await client.run(Job("a", 0))
    for all_served in (closed, opened):
        assert sorted(served.prompt_tokens or 0 for served in all_served) == [3, 4, 5]
        for served in all_served:
            assert served.error is None
            assert served.num_tokens == 5
            assert served.ttft >= 0.01
            assert served.total == pytest.approx(served.ttft + sum(served.itls))
    assert wrong.error is not None


def test_openai_events_are_read_and_errors_raised() -> None:
    endpoint = ServerSentEvents("m")
    event = endpoint.parse(b'data: {"choices": [{"text": "a"}]}')
    assert event is not None
    assert event.has_text
    usage = b'{"prompt_tokens": 7, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 4}}'
    last = endpoint.parse(b'data: {"choices": [], "usage": ' + usage + b"}")
    assert last is not None
    assert (last.has_text, last.prompt_tokens, last.completion_tokens, last.cached_tokens) == (False, 7, 3, 4)
    assert endpoint.parse(b"data: [DONE]") is None
    assert endpoint.parse(b": ping") is None
    with pytest.raises(StreamError, match="too long"):
        endpoint.parse(b'data: {"error": {"message": "too long"}}')


def test_goodput_counts_what_kept_both_limits() -> None:
    quick = Served(0.0, [1.0, 1.1, 1.2], num_tokens=3)
    late = Served(0.0, [3.0, 3.1], num_tokens=2)
    slow = Served(0.0, [1.0, 2.0, 4.0], num_tokens=3)
    row = load.summary([quick, late, slow, Served(0.0, error="gone")], max_ttft_s=2.0, max_tpot_s=0.5)
    assert (row["requests"], row["errors"], row["first_error"], row["seconds"]) == (3, 1, "gone", 4.0)
    assert row["goodput_requests_per_s"] == 0.25
    assert row["output_tokens_per_s"] == 2.0
    assert row["ttft_s"] == {"p50": 1.0, "p90": 3.0, "p99": 3.0}


def test_percentiles_are_of_the_nearest_rank() -> None:
    values = list(range(100))
    assert [load.percentile(values, percent) for percent in (0, 50, 99, 100)] == [0, 50, 99, 99]
