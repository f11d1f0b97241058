"""Images through controller and worker, to a small LLaVA with random weights: answers, errors, and who is told what."""

import importlib.util
import io
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import tiny_llava
import torch
from pictures import base64_of, file_of, picture, png_header
from PIL import Image
from serve.fleet import Fleet, Member, records_of
from transformers import AutoTokenizer

from benchmarks import load
from benchmarks.endpoints import ENDPOINTS
from benchmarks.image_requests import PARTS, image_requests
from benchmarks.servers import wait_until
from tinyserve.serve import cli, register_worker

MODEL = "llava-v1.5-tiny"
ONE, OTHER = (file_of(picture("RGB", *size)) for size in [(60, 40), (33, 70)])
PROMPT = "USER: <image>\nWhat is this? ASSISTANT:"
TILE = 4  # tokens of an image


@pytest.fixture(scope="module")
def hf_model() -> Any:
    return tiny_llava.make()


@pytest.fixture(scope="module")
def folder(hf_model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llava.save_original(hf_model, tmp_path_factory.mktemp("models") / MODEL)


@pytest.fixture(scope="module")
def temporary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the worker would put what it writes."""
    return tmp_path_factory.mktemp("temporary")


@pytest.fixture(scope="module")
def fleet(folder: Path, temporary: Path) -> Iterator[tuple[Member, Member]]:
    """A controller and a worker."""
    with Fleet() as fleet, pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(temporary))
        controller = fleet.controller()
        flags = ["--host", "127.0.0.1", "--model-path", str(folder), "--dtype", "float32", "--precision", "W16A16"]
        worker = fleet.start(
            "tinyserve.serve.model_worker",
            *flags,
            "--controller-address",
            controller.url,
            "--kv-cache-bytes",
            "4000000",
        )
        wait_until("registration", lambda: controller.post("/list_models").json()["models"] == [MODEL])
        yield controller, worker


@pytest.fixture
def worker(fleet: tuple[Member, Member]) -> Member:
    return fleet[1]


def ask(member: Member, **body: Any) -> list[dict[str, Any]]:
    """All records of a request to `member`."""
    body = {"model": MODEL, "temperature": 0, "max_new_tokens": 8, "ignore_eos": True, **body}
    return records_of(member.post("/worker_generate_stream", body, stream=True))


def expected_text(hf_model: Any, folder: Path, prompt: str, files: list[bytes], new_tokens: int = 8) -> str:
    """What transformers' model says, on tokens made as LLaVA makes them."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    first, *others = (tokenizer(piece, add_special_tokens=False)["input_ids"] for piece in prompt.split("<image>"))
    ids = list(first)
    for piece in others:
        ids += [tiny_llava.IMAGE_TOKEN] * TILE + piece
    images = [picture("RGB", 60, 40) if data is ONE else picture("RGB", 33, 70) for data in files]
    inputs = {"pixel_values": tiny_llava.processor(hf_model)(images, return_tensors="pt")["pixel_values"]}
    with torch.inference_mode():
        output = hf_model.generate(
            input_ids=torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            **(inputs if files else {}),
            do_sample=False,
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            eos_token_id=None,
        )
    return str(tokenizer.decode(output[0, len(ids) :]))


@pytest.mark.parametrize("through", [0, 1], ids=["controller", "worker"])
@pytest.mark.parametrize(
    ("prompt", "files"),
    [(PROMPT, [ONE]), ("<image>A<image>B", [OTHER, ONE]), ("USER: no image ASSISTANT:", [])],
    ids=["one", "two", "none"],
)
def test_answers_are_transformers(
    fleet: tuple[Member, Member], hf_model: Any, folder: Path, through: int, prompt: str, files: list[bytes]
) -> None:
    *_, last = ask(fleet[through], prompt=prompt, images=[base64_of(data) for data in files])
    assert last["error_code"] == 0, last
    assert last["text"] == prompt + expected_text(hf_model, folder, prompt, files)
    assert last["usage"]["prompt_tokens"] == len(prompt) - len("<image>" * len(files)) + TILE * len(files)
    assert ("timing" in last) == bool(files)
    if files:
        assert last["timing"].keys() == {"decode_s", "preprocess_s", "vision_s", "prefill_s"}
        assert last["timing"]["prefill_s"] > 0


def test_messages_go_by_llavas_template(worker: Member) -> None:
    system = (
        "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the human's questions."
    )
    url = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{base64_of(ONE)}"}}
    content = [{"type": "text", "text": "What is this?"}, url]
    (*_, by_parts), (*_, by_field), (*_, by_prompt) = (
        ask(worker, messages=[{"role": "user", "content": content}]),
        ask(worker, messages=[{"role": "user", "content": "What is this?"}], images=[base64_of(ONE)]),
        ask(worker, prompt=f"{system} {PROMPT}", images=[base64_of(ONE)], echo=False, stop="</s>"),
    )
    assert by_parts["error_code"] == 0, by_parts
    assert by_parts["text"] == by_field["text"] == by_prompt["text"] != ""
    conv = worker.post("/worker_get_conv_template").json()["conv"]
    assert (conv["name"], conv["sep_style"], conv["sep2"]) == ("llava_v1", 2, "</s>")


@pytest.mark.skipif(importlib.util.find_spec("fastchat") is None, reason="fschat is not installed")
def test_fastchats_way_of_building_the_prompt(worker: Member) -> None:
    """As its OpenAI server does it, with the template that the worker tells."""
    from fastchat.conversation import Conversation

    conv: Any = Conversation(**worker.post("/worker_get_conv_template").json()["conv"])
    conv.append_message(conv.roles[0], ("\nWhat is this?", [f"data:image/png;base64,{base64_of(ONE)}"]))
    conv.append_message(conv.roles[1], None)
    (*_, theirs) = ask(worker, prompt=conv.get_prompt(), images=conv.get_images(), stop=conv.stop_str, echo=False)
    (*_, ours) = ask(worker, messages=[{"role": "user", "content": "<image>\nWhat is this?"}], images=[base64_of(ONE)])
    assert theirs["error_code"] == 0, theirs
    assert theirs["text"] == ours["text"]


def test_a_second_turn_encodes_nothing_and_finds_the_image_in_the_cache(worker: Member) -> None:
    image = base64_of(file_of(picture("RGB", 50, 50, seed=9)))
    first = ask(worker, prompt=PROMPT * 3, images=[image] * 3, n=2)[-1]
    assert first["error_code"] == 0, first
    encoded = worker.health()["encoded_images"]
    again = ask(worker, prompt=PROMPT * 3 + "A cat.</s>USER: Sure? ASSISTANT:", images=[image] * 3)[-1]
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] >= 32
    assert (again["timing"]["vision_s"], again["timing"]["decode_s"]) == (0, 0)
    other = base64_of(file_of(picture("RGB", 50, 50, seed=10)))
    different = ask(worker, prompt=PROMPT * 3, images=[other] * 3)[-1]
    assert "prompt_tokens_details" not in different["usage"]
    assert worker.health()["encoded_images"] == encoded + 1


def test_tokens_are_counted(worker: Member) -> None:
    text = len(PROMPT) - len("<image>")
    for body in ({"prompt": PROMPT}, {"prompt": PROMPT, "images": [base64_of(ONE)]}):
        assert worker.post("/count_token", body).json() == {"count": text + TILE, "error_code": 0}
    wrong = worker.post("/count_token", {"prompt": PROMPT, "images": ["?"]}).json()
    assert wrong["error_code"] == 40001
    assert "images[0] is not base64" in wrong["text"]


def test_the_controller_is_told_that_it_takes_images(fleet: tuple[Member, Member]) -> None:
    controller, worker = fleet

    def models() -> Any:
        return controller.post("/list_multimodal_models").json()["models"]

    assert models() == [MODEL]
    flags = ["--controller-address", controller.url, "--worker-name", worker.url, "--check-heart-beat"]
    assert register_worker.main(flags) == 0  # for a worker that does not say so itself
    assert models() == []
    assert register_worker.main([*flags, "--multimodal"]) == 0
    assert models() == [MODEL]


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        ({"images": ["no base64!"]}, 40001, "images[0] is not base64"),
        ({"images": [base64_of(b"plain text")]}, 40001, "images[0] is not a readable image of the formats PNG, JPEG"),
        ({"images": [base64_of(ONE[:-40])]}, 40001, "images[0] cannot be decoded, the file is damaged or truncated"),
        (
            {"images": [base64_of(png_header(10_000, 10_000))]},
            40001,
            "10000 x 10000 = 100000000 pixels; at most 64000000",
        ),
        ({"images": [base64_of(png_header(100_000, 100_000))]}, 40001, "far more than the 64000000 pixels"),
        ({"images": ["http://127.0.0.1:1/cat.png"]}, 40001, "only inline data are accepted"),
        ({"images": [base64_of(ONE)] * 33, "prompt": "<image>" * 33}, 40302, "images must be at most 32, got 33"),
        ({"images": [base64_of(ONE)] * 2}, 40001, "one <image> for each, got 2 for 1"),
        ({"images": []}, 40001, "one <image> for each, got 0 for 1"),
        ({"images": {"0": "x"}}, 40001, "images must be a list of base64 strings"),
        ({"images": [base64_of(ONE)] * 30, "prompt": "<image>" * 30 + "x" * 2000}, 40303, "120 of them for 30 images"),
    ],
)
def test_bad_input_is_told_and_disturbs_nobody(
    worker: Member, temporary: Path, body: dict[str, Any], code: int, words: str
) -> None:
    text: list[dict[str, Any]] = []
    beside = threading.Thread(target=lambda: text.extend(ask(worker, prompt="go on", max_new_tokens=60)))
    beside.start()
    records = ask(worker, **{"prompt": PROMPT, **body})
    beside.join()
    assert [record["error_code"] for record in records] == [code]
    assert words in records[0]["text"]
    assert len(records[0]["text"]) < 400
    assert text[-1]["finish_reason"] == "length"
    assert list(temporary.iterdir()) == []
    health = worker.health()
    assert (health["status"], health["encoding"], health["num_running"]) == ("ok", 0, 0)


def test_leaving_while_the_image_is_on_its_way(worker: Member) -> None:
    large = base64_of(file_of(Image.linear_gradient("L").resize((2000, 2000)), "PNG", compress_level=0))
    body = {"model": MODEL, "prompt": PROMPT, "images": [large], "max_new_tokens": 1000, "ignore_eos": True}
    # requests' name for a timeout depends on whether the headers have come by then
    with pytest.raises((requests.Timeout, requests.ConnectionError)):
        requests.post(worker.url + "/worker_generate_stream", json=body, timeout=(5, 0.01)).close()
    wait_until("idle", lambda: worker.status()["queue_length"] == 0 == worker.health()["encoding"])
    health = worker.health()
    assert health["free_blocks"] == health["total_blocks"]


def test_the_terminal_chat_shows_pictures(
    worker: Member, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "one.png").write_bytes(ONE)
    (tmp_path / "other.png").write_bytes(OTHER)
    address = ["--worker-address", worker.url, "--temperature", "0", "--max-new-tokens", "8"]
    both = ["--image", str(tmp_path / "one.png"), "--image", str(tmp_path / "other.png")]
    before = worker.health()["requests"]
    assert cli.main([*address, *both, "--message", "Which?"]) == 0
    images = [base64_of(ONE), base64_of(OTHER)]
    expected = ask(worker, messages=[{"role": "user", "content": "Which?"}], images=images, ignore_eos=False)
    assert capsys.readouterr().out == expected[-1]["text"] + "\n"
    lines = [f"/image {tmp_path}/one.png", "What?", f"/image {tmp_path}/none.png", "And?", "/image", "/exit"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    assert cli.main(address) == 0
    output = capsys.readouterr()
    assert cli.HELP in output.out
    assert "none.png cannot be read as a picture" in output.err
    assert "error 4" not in output.err
    assert worker.health()["requests"] == before + 4


def test_the_terminal_chat_shows_a_video(worker: Member, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frames = [picture("RGB", 40, 30, seed=seed) for seed in range(12)]
    frames[0].save(tmp_path / "video.gif", save_all=True, append_images=frames[1:], duration=50)
    before = worker.health()["encoded_images"]
    flags = ["--worker-address", worker.url, "--max-new-tokens", "4", "--message", "What happens?"]
    assert cli.main([*flags, "--video", str(tmp_path / "video.gif")]) == 0
    assert worker.health()["encoded_images"] == before + 8
    assert cli.main([*flags, "--video", str(tmp_path / "video.gif"), "--frames", "3"]) == 0
    assert worker.health()["encoded_images"] <= before + 8 + 3
    assert cli.main([*flags, "--video", str(tmp_path / "video.gif"), "--frames", "0"]) == 1
    assert "--frames must be at least 1" in capsys.readouterr().err


async def test_the_benchmark_tells_where_the_time_goes(worker: Member, tmp_path: Path) -> None:
    (tmp_path / "one.png").write_bytes(ONE)
    async with load.client(worker.url, ENDPOINTS["tinyserve"](MODEL)) as client:
        (row,) = await image_requests(client, random.Random(0), [tmp_path / "one.png"], repeats=2)
    new, known = row["new"], row["known"]
    assert min(new[part] for part in PARTS) > 0
    assert known["vision_s"] == known["decode_s"] == known["preprocess_s"] == 0
    assert all(parts["other_s"] > 0 for parts in (*row["raw"]["new"], *row["raw"]["known"]))
