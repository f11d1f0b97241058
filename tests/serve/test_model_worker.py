"""ModelWorker as a class and its routes over HTTP, with a generator that works by the clock in place of a model."""

import asyncio
import json
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import requests
import tiny_adapter
import tiny_llama
import tiny_model
from serve.fleet import PROMPT, Fleet, Member, answer, open_stream, records_of

from benchmarks.servers import wait_until
from benchmarks.timed_generator import TimedGenerator
from tinyserve.config import EngineConfig
from tinyserve.engine.generator import EngineStats
from tinyserve.serve import model_worker
from tinyserve.serve.model_worker import ModelWorker, create_app
from tinyserve.serve.served_model import default_precision, name_of
from tinyserve.serve.worker_app import MAX_BODY_BYTES

CONTROLLER, WORKER = "http://127.0.0.1:21001/", "http://127.0.0.1:21002"
NUM_TOKENS = 6


def make_worker(**options: Any) -> ModelWorker:
    generator = TimedGenerator(num_tokens=NUM_TOKENS, interval_s=0.005)
    return ModelWorker(CONTROLLER, WORKER, "abc", True, "some/timed", generator=generator, **options)


def decode(records: Iterator[bytes]) -> list[dict[str, Any]]:
    return [json.loads(record.removesuffix(b"\0")) for record in records]


# -- the class ---------------------------------------------------------------------------------------------------------


def test_llavas_arguments_by_position() -> None:
    generator = TimedGenerator()
    worker = ModelWorker(
        CONTROLLER, WORKER, "abc", True, "some/timed", None, None, False, False, "cpu", False, generator=generator
    )
    assert worker.get_status() == {"model_names": ["timed"], "speed": 1, "queue_length": 0}
    assert (worker.controller_addr, worker.worker_id) == ("http://127.0.0.1:21001", "abc")


def test_llm_awqs_arguments_by_name() -> None:
    worker = ModelWorker(
        controller_addr=CONTROLLER,
        worker_addr=WORKER,
        worker_id="abc",
        no_register=True,
        model_type="LLaMa",
        model_path="some/llava-v1.5-7b/",
        model_name=None,
        quant_path="quantized.pt",
        precision="W4A16",
        device="cuda",
        generator=TimedGenerator(),
    )
    assert worker.get_status()["model_names"] == ["llava-v1.5-7b-4bit-AWQ"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_base": "base"}, "--model-base .*base is for an adapter .*; --model-path .*model holds neither"),
        ({"load_8bit": True, "load_4bit": True}, "--load-8bit and --load-4bit: give one of them"),
        ({"load_4bit": True, "precision": "W4A16"}, "precision must be W16A16 with --load-4bit, which .*, got 'W4A16'"),
    ],
)
def test_contradictory_ways_of_loading_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    folder = tiny_llama.save(tmp_path / "model")
    shutil.copytree(folder, tmp_path / "base")
    if "model_base" in options:
        options = {"model_base": tmp_path / options["model_base"]}
    with pytest.raises(ValueError, match=message):
        ModelWorker(CONTROLLER, WORKER, "abc", True, folder, **options)


@pytest.mark.parametrize("use_flash_attn", [False, True])
def test_llavas_use_flash_attn_reaches_the_engine(
    use_flash_attn: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs: list[EngineConfig] = []

    def load_generator(config: EngineConfig) -> TimedGenerator:
        configs.append(config)
        return TimedGenerator()

    monkeypatch.setattr("tinyserve.serve.worker.load_generator", load_generator)
    ModelWorker(CONTROLLER, WORKER, "abc", True, tmp_path, None, None, False, False, "cpu", use_flash_attn)
    assert [config.use_flash_attn for config in configs] == [use_flash_attn]


async def test_an_adapter_is_served_by_llavas_arguments(tmp_path: Path) -> None:
    base = tiny_model.save(tmp_path / "base")
    adapter = tiny_adapter.save(base, tmp_path / "checkpoints" / "checkpoint-20")
    worker = ModelWorker(CONTROLLER, WORKER, "abc", True, str(adapter), str(base), None, False, True, "cpu", False)
    assert worker.model_names == ["checkpoints_checkpoint-20"]
    params = {"prompt": "abc", "temperature": 0, "max_new_tokens": 3, "ignore_eos": True, "echo": False}
    records = [json.loads(record.removesuffix(b"\0")) async for record in worker.stream(params)]
    assert records[-1]["usage"]["completion_tokens"] == 3
    await worker.close()


@pytest.mark.parametrize(
    ("path", "precision", "name"),
    [
        ("liuhaotian/llava-v1.5-13b", "W16A16", "llava-v1.5-13b"),
        ("liuhaotian/llava-v1.5-7b", "W4A16", "llava-v1.5-7b-4bit-AWQ"),
        ("runs/vicuna/checkpoint-200", "W16A16", "vicuna_checkpoint-200"),
        ("runs/vicuna/checkpoint-200", "W4A16", "vicuna_checkpoint-200-4bit-AWQ"),
        ("models/smol-w4-g64-awq", "W4A16", "smol-w4-g64-awq"),
    ],
)
def test_a_model_is_named_after_its_folder(tmp_path: Any, path: str, precision: Any, name: str) -> None:
    assert name_of(tmp_path / path, precision) == name


def test_precision_is_what_the_checkpoint_holds(tmp_path: Any) -> None:
    assert default_precision(tmp_path, tmp_path / "awq.pt") == "W4A16"
    assert default_precision(tmp_path, None) == "W16A16"
    (tmp_path / "config.json").write_text('{"quantization_config": {"quant_method": "awq"}}')
    assert default_precision(tmp_path, None) == "W4A16"


def test_generate_stream_needs_no_event_loop() -> None:
    records = decode(make_worker().generate_stream({"prompt": PROMPT}))
    assert [record["text"] for record in records] == [answer(count) for count in range(1, NUM_TOKENS + 1)]
    assert [record["finish_reason"] for record in records] == [None] * (NUM_TOKENS - 1) + ["stop"]
    assert records[-1]["usage"] == {"prompt_tokens": 5, "completion_tokens": NUM_TOKENS, "total_tokens": 5 + NUM_TOKENS}


def test_generate_stream_raises_and_its_gate_reports() -> None:
    worker, params = make_worker(), {"prompt": PROMPT, "top_p": 2}
    with pytest.raises(ValueError, match="top_p must be between 0 and 1, got 2"):
        list(worker.generate_stream(params))
    (record,) = decode(worker.generate_stream_gate(params))
    assert record["error_code"] == 40302
    assert "top_p" in record["text"]


def test_an_abandoned_iterator_ends_the_request() -> None:
    worker = make_worker()
    records = worker.generate_stream_gate({"prompt": PROMPT})
    next(records)
    assert worker.generator.stats().num_running == 1
    records.close()  # type: ignore[attr-defined]
    assert worker.generator.stats().num_running == 0


def test_stream_interval_gives_fewer_records_and_the_same_text() -> None:
    records = decode(make_worker(stream_interval=4).generate_stream({"prompt": PROMPT, "echo": False}))
    assert [record["usage"]["completion_tokens"] for record in records] == [4, 6]
    assert records[-1]["text"] == answer(NUM_TOKENS, prompt="")


def test_delta_records_add_up_to_the_answer() -> None:
    records = decode(make_worker().generate_stream({"prompt": PROMPT, "stream_format": "delta"}))
    assert len(records) == NUM_TOKENS
    assert "".join(record["text"] for record in records) == answer(NUM_TOKENS, prompt="")


def test_a_conversation_goes_through_the_models_template() -> None:
    records = decode(make_worker().generate_stream({"messages": [{"role": "user", "content": "a b c"}]}))
    assert records[-1]["text"] == answer(NUM_TOKENS, prompt="")
    assert records[-1]["usage"]["prompt_tokens"] == 3


@pytest.mark.parametrize(
    ("params", "code", "words"),
    [
        ({"model": "other"}, 40301, ["'other'", "timed"]),
        ({"prompt": "x" * 200_000}, 40303, ["200000", "4096"]),
        ({"images": ["aGk="]}, 40001, ["images", "text only"]),
        ({"temperature": "hot"}, 40001, ["temperature", "hot", "a number"]),
        ({"prompt": None}, 40001, ["prompt", "neither"]),
    ],
)
def test_a_wrong_request_is_one_record_that_says_why(params: dict[str, Any], code: int, words: list[str]) -> None:
    (record,) = decode(make_worker().generate_stream_gate({"prompt": PROMPT, **params}))
    assert record["error_code"] == code
    assert all(word in record["text"] for word in words)


async def test_a_permit_is_free_again_after_every_kind_of_end() -> None:
    worker = make_worker(limit_model_concurrency=1)
    async with aclosing(worker.serve({"prompt": PROMPT})) as records:
        async for _ in records:
            assert worker.get_queue_length() == 1
    async with aclosing(worker.serve({"prompt": PROMPT, "top_k": -5})) as records:
        assert b"top_k" in await anext(records)
    assert worker.get_queue_length() == 0
    async with aclosing(worker.serve({"prompt": PROMPT})) as records:
        await anext(records)
        waiting = asyncio.create_task(anext(worker.serve({"prompt": PROMPT})))
        await asyncio.sleep(0.01)
        assert worker.get_queue_length() == 2
        waiting.cancel()
        await asyncio.wait([waiting])
        assert worker.get_queue_length() == 1
    assert worker.get_queue_length() == 0
    assert worker.generator.stats().num_running == 0


class DyingGenerator(TimedGenerator):
    """Fails for good when told to, as an engine does whose thread has died."""

    is_dead = False

    def stats(self) -> EngineStats:
        if self.is_dead:
            raise RuntimeError("the engine has failed: out of luck")
        return super().stats()


async def test_a_worker_whose_engine_died_ends_itself() -> None:
    generator = DyingGenerator()
    worker = ModelWorker(CONTROLLER, WORKER, "abc", True, "some/timed", generator=generator)
    app, asked_to_end = create_app(worker), asyncio.Event()
    previous = signal.signal(signal.SIGTERM, lambda *_: asked_to_end.set())
    try:
        async with app.router.lifespan_context(app):
            generator.is_dead = True
            await asyncio.wait_for(asked_to_end.wait(), 10)
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert worker.failure == "the engine has failed: out of luck"


# -- the routes --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def worker() -> Iterator[Member]:
    with Fleet() as fleet:
        yield fleet.timed_worker(None, "--tokens", "40", "--interval", "0.02", "--limit-model-concurrency", "2")


def health(worker: Member) -> dict[str, Any]:
    return requests.get(worker.url + "/health", timeout=10).json()


def test_stream_over_http(worker: Member) -> None:
    records = records_of(open_stream(worker, max_new_tokens=3))
    assert [record["text"] for record in records] == [answer(1), answer(2), answer(3)]
    assert [record["error_code"] for record in records] == [0, 0, 0]
    assert records[-1]["finish_reason"] == "length"


def test_worker_generate_gives_the_last_record_as_json(worker: Member) -> None:
    body = {"prompt": PROMPT, "max_new_tokens": 3, "echo": False, "stream_format": "delta"}
    response = worker.post("/worker_generate", body)
    assert response.headers["content-type"] == "application/json"
    assert (response.json()["text"], response.json()["finish_reason"]) == (answer(3, prompt=""), "length")
    assert worker.post("/worker_generate", {"prompt": 5}).json()["error_code"] == 40001


def test_the_small_routes(worker: Member) -> None:
    assert worker.status() == {"model_names": ["timed"], "speed": 1, "queue_length": 0}
    assert worker.post("/count_token", {"model": "timed", "prompt": "a b c"}).json() == {"count": 3, "error_code": 0}
    assert worker.post("/count_token", {"prompt": "x" * 200_000}).json()["error_code"] == 40303
    assert worker.post("/count_token", {"prompt": 5}).status_code == 422
    assert worker.post("/model_details", {"model": "timed"}).json() == {"context_length": 4096}
    assert worker.post("/worker_get_conv_template", {"model": "timed"}).json()["conv"]["name"] == "timed"
    assert health(worker)["status"] == "ok"


@pytest.mark.parametrize("route", ["/worker_generate_stream", "/worker_generate", "/count_token"])
@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"prompt": "a', 400),
        (b"", 400),
        (b"\xff\xfe", 400),
        (b"[" * 100_000, 400),
        (b"[1]", 422),
        (b'"text"', 422),
        (b'{"prompt": "' + b"x" * MAX_BODY_BYTES + b'"}', 413),
    ],
    ids=["cut off", "empty", "not utf-8", "deep", "list", "string", "too long"],
)
def test_a_malformed_body_is_a_4xx_with_a_reason(worker: Member, route: str, body: bytes, status: int) -> None:
    try:
        response = requests.post(worker.url + route, data=body, timeout=30)
    except requests.ConnectionError:
        assert status == 413  # the server may close while a body that is too long is still being sent
        return
    assert response.status_code == status
    assert "body" in response.json()["detail"]
    assert response.json()["error_code"] == 40001


def test_a_client_that_leaves_ends_its_request_running_or_waiting(worker: Member) -> None:
    running = [open_stream(worker) for _ in range(2)]
    pieces = [response.iter_content(chunk_size=None) for response in running]
    assert all(next(each) for each in pieces)
    with pytest.raises(requests.RequestException, match="timed out"):  # waits for one of the two permits, and gives up
        requests.post(worker.url + "/worker_generate_stream", json={"prompt": PROMPT}, timeout=0.1)
    wait_until("the waiting one is forgotten", lambda: worker.status()["queue_length"] == 2, 5)
    generated = health(worker)["generated_tokens"]
    for response in running:
        response.close()
    wait_until("all permits are free", lambda: worker.status()["queue_length"] == 0, 5)
    assert health(worker)["num_running"] == 0
    assert health(worker)["generated_tokens"] - generated < 2 * 40


def test_requests_beyond_the_limit_wait_and_are_all_served(worker: Member) -> None:
    streams = [open_stream(worker, max_new_tokens=3) for _ in range(5)]
    assert [records_of(stream)[-1]["text"] for stream in streams] == [answer(3)] * 5
    assert worker.status()["queue_length"] == 0


def test_sigterm_lets_streams_end_and_refuses_new_ones() -> None:
    with Fleet() as fleet:
        worker = fleet.timed_worker(None, "--tokens", "20", "--interval", "0.05")
        stream = open_stream(worker)
        worker.server.process.terminate()
        wait_until("refused", lambda: refuses(worker), 5)
        assert records_of(stream)[-1]["text"] == answer(20)
        assert worker.server.process.wait(10) == 0


def test_sigterm_cuts_streams_that_take_too_long_with_a_record_that_says_so() -> None:
    with Fleet() as fleet:
        worker = fleet.timed_worker(None, "--tokens", "4000", "--interval", "0.05", "--shutdown-timeout", "1")
        stream = open_stream(worker, max_new_tokens=4000)
        start = time.monotonic()
        worker.server.process.terminate()
        last = records_of(stream)[-1]
        assert (last["error_code"], last["text"]) == (50001, "the worker is shutting down")
        assert worker.server.process.wait(10) == 0
        assert time.monotonic() - start < 10


def refuses(worker: Member) -> bool:
    try:
        requests.get(worker.url + "/health", timeout=1)
    except requests.ConnectionError:
        return True
    return False


# -- the command line --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--model-path", "/no/such/folder"], ["--model-path", "/no/such/folder"]),
        (["--model-path", ".", "--controller-address", "localhost"], ["--controller-address", "http(s)://host"]),
        (["--model-path", ".", "--worker", "http://h:1/path"], ["--worker-address", "without a path"]),
        (["--model-path", ".", "--limit-model-concurrency", "0"], ["--limit-model-concurrency", "at least 1", "0"]),
        (["--model-path", ".", "--port", "70000"], ["--port", "between 0 and 65535", "70000"]),
        (["--model-path", ".", "--host", "no.such.host.invalid"], ["--host", "no.such.host.invalid"]),
        (["--model-path", ".", "--max-num-requests", "0"], ["max_num_requests", "between 1 and 4096"]),
        (["--model-path", ".", "--load-4bit", "--load-8bit"], ["--load-4bit", "--load-8bit", "give one"]),
    ],
)
def test_a_wrong_flag_is_one_line_and_exit_code_1(
    flags: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert model_worker.main(["--port", "0", "--no-register", *flags]) == 1
    error = capsys.readouterr().err.strip()
    assert "\n" not in error
    assert all(word in error for word in words), error


@pytest.mark.parametrize(
    ("flags", "settings"),
    [
        ([], {"use_flash_attn": False, "enforce_eager": False}),
        (["--use-flash-attn"], {"use_flash_attn": True}),
        (["--enforce-eager"], {"enforce_eager": True}),
    ],
)
def test_what_flags_say_reaches_the_engine(
    flags: list[str], settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    configs: list[EngineConfig] = []

    def load_generator(config: EngineConfig) -> TimedGenerator:
        configs.append(config)
        raise ValueError("no model here")

    monkeypatch.setattr(model_worker, "load_generator", load_generator)
    assert model_worker.main(["--port", "0", "--no-register", "--model-path", ".", *flags]) == 1
    assert "no model here" in capsys.readouterr().err
    (config,) = configs
    assert {name: getattr(config, name) for name in settings} == settings


def test_a_port_in_use_is_named_before_the_model_is_loaded(worker: Member, capsys: pytest.CaptureFixture[str]) -> None:
    port = worker.url.rsplit(":", 1)[1]
    flags = ["--host", "127.0.0.1", "--port", port, "--model-path", "/no/such/folder"]
    assert model_worker.main(flags) == 1
    assert f"port {port} of 127.0.0.1 is in use; choose another with --port" in capsys.readouterr().err


def truncate(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])


def scramble(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\xff" * 1000)


def rename_architecture(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["NoSuchLM"], "model_type": "no_such"}))


def break_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def drop_config(folder: Path) -> None:
    (folder / "config.json").unlink()


@pytest.mark.parametrize(
    ("damage", "flags", "words"),
    [
        (truncate, [], ["model.safetensors"]),
        (scramble, [], ["model.safetensors"]),
        (rename_architecture, [], ["NoSuchLM"]),
        (break_config, [], ["config.json"]),
        (drop_config, [], ["config.json"]),
        (None, ["--precision", "W4A16"], ["W4A16"]),
        (None, ["--quant-path", "/no/such/awq.pt"], ["/no/such/awq.pt"]),
        (None, ["--kv-cache-bytes", "1"], ["kv_cache_bytes", "between 65536"]),
    ],
)
def test_a_checkpoint_that_cannot_be_loaded_is_one_line_and_exit_code_1(
    damage: Callable[[Path], None] | None,
    flags: list[str],
    words: list[str],
    smollm2: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tiny_llama.save(tmp_path / "tiny", tokenizer=smollm2, vocab_size=49152)
    if damage is not None:
        damage(folder)
    code = model_worker.main(["--port", "0", "--no-register", "--device", "cpu", "--model-path", str(folder), *flags])
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert code == 1
    assert error.startswith("tinyserve worker: error: ")
    assert all(word.lower() in error.lower() for word in words), error


def test_an_unknown_choice_is_argparses_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        model_worker.main(["--model-path", ".", "--precision", "W8A8"])
    assert caught.value.code == 2
    assert "--precision" in capsys.readouterr().err


def test_both_spellings_of_every_alias() -> None:
    parse = model_worker.parser().parse_args
    for controller, worker in (("--controller", "--worker"), ("--controller-address", "--worker-address")):
        args = parse(["--model-path", "m", controller, "http://c:1", worker, "http://w:2"])
        assert (args.controller_address, args.worker_address) == ("http://c:1", "http://w:2")
    defaults = parse(["--model-path", "m"])
    assert (defaults.host, defaults.port, defaults.controller_address) == ("localhost", 21002, "http://localhost:21001")
    assert defaults.max_num_requests == EngineConfig.max_num_requests
