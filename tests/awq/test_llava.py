"""LLaVA's language part in 4 bits, from both layouts: calibrated on pictures, written, read again, evaluated."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_llava
import tiny_model
import torch
from pictures import picture
from transformers import LlavaForConditionalGeneration

from awq import entry
from awq.apply import QuantizedModel
from awq.capture import first_inputs
from awq.formats import open_checkpoint
from awq.lazy_network import LazyNetwork
from awq.model import open_model
from awq.quantize import QuantConfig, dequantize
from awq.results import load_results
from tinyserve.models.evaluation import logits
from tinyserve.models.image_pixels import pixels
from tinyserve.models.llava import LlavaModel
from tinyserve.models.loader import load_images, load_model

BITS = ["--w_bit", "4", "--q_group_size", "32"]
LAYOUTS = ["transformers", "original", "original, tower beside"]
IDS = torch.randint(0, 256, (1, 40), generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def model() -> Any:
    made = tiny_llava.make(text={"intermediate_size": 128})  # a multiple of 64, which llm-awq's files need
    for name, parameter in made.named_parameters():  # as wide as a trained model's, so that fp16 holds the products
        torch.nn.init.normal_(parameter, mean=float("norm" in name), std=0.1)
    return made


def save(layout: str, model: Any, folder: Path) -> Path:
    if layout == "transformers":
        return tiny_llava.save(model, folder, dtype=torch.float16)
    tower = "tower" if "beside" in layout else None
    tiny_llava.save_original(model.half(), folder, tower=tower, torch_dtype="float16")
    model.float()
    if tower is None:
        tiny_llava.processor(model).save_pretrained(folder)
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for index, size in enumerate(((37, 100), (64, 64), (300, 200))):
        picture("RGB", *size, seed=index).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(tiny_model.TEXT)
    return folder


def perplexity(folder: Path, text: Path, *arguments: object) -> float:
    out = text.with_suffix(".json")
    flags = ["--eval_file", str(text), "--eval_seqlen", "64", "--eval_windows", "4", "--output_path", str(out)]
    entry.main(["--model_path", str(folder), *map(str, arguments), *flags])
    return float(json.loads(out.read_text())["results"][str(text)]["perplexity"])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_whole_path(layout: str, model: Any, photos: Path, tmp_path: Path) -> None:
    folder, results, dump, text = (tmp_path / name for name in ("model", "r.pt", "quantized", "text.txt"))
    save(layout, model, folder)
    text.write_text(tiny_model.TEXT * 4)
    run = ["--model_path", str(folder), *BITS]
    search = ["--run_awq", "--dump_awq", str(results), "--calib_images", str(photos)]
    entry.main([*run, *search, "--n_samples", "4", "--seqlen", "48", "--q_backend", "real", "--dump_quant", str(dump)])

    config = json.loads((dump / "config.json").read_text())
    left_out = config["quantization_config"]["modules_to_not_convert"]
    projector = "multi_modal_projector" if layout == "transformers" else "mm_projector"
    towers = [] if "beside" in layout else ["vision_tower"]
    assert sorted(left_out) == sorted(["lm_head", "embed_tokens", projector, *towers])
    settings = QuantConfig(4, 32)
    source = open_model(folder)
    found = load_results(results, source.identity(), settings, source.shapes(), print)
    expected, written = QuantizedModel(source, settings, found), open_checkpoint(dump)
    assert set(written.modules()) == set(source.linears())
    for module in written.modules():
        assert torch.equal(dequantize(written.quantized(module)), dequantize(expected.quantized[module]))
    for name in written.names():
        assert torch.equal(written.tensor(name), expected.state[name]), name
        if "vision" in name or "projector" in name:
            assert torch.equal(written.tensor(name), source.checkpoint.tensor(name)), name

    whole, quantized = load_model(folder, precision="W16A16", dtype="float32"), load_model(dump, dtype="float32")
    assert isinstance(whole, LlavaModel)
    image = picture("RGB", 37, 100)
    tiles = [(pixels(image, whole.image_spec), image.size)]
    assert quantized.image_spec == whole.image_spec
    torch.testing.assert_close(quantized.encode_images(tiles)[0], whole.encode_images(tiles)[0])
    assert 0 < (logits(quantized, IDS) - logits(whole, IDS)).norm() / logits(whole, IDS).norm() < 0.3

    fake = perplexity(folder, text, *BITS, "--load_awq", results, "--q_backend", "fake")
    assert perplexity(folder, text, *BITS, "--load_quant", dump) == pytest.approx(fake, rel=5e-3)
    assert perplexity(folder, text) != fake


def test_tokens_added_to_the_vocabulary_of_which_the_configuration_says_nothing(photos: Path, tmp_path: Path) -> None:
    model = tiny_llava.make(text={"intermediate_size": 128})
    model.resize_token_embeddings(323)
    folder, dump, text = (tmp_path / name for name in ("model", "quantized", "text.txt"))
    tiny_llava.save_original(model.half(), folder, torch_dtype="float16", vocab_size=320)
    tiny_llava.processor(model).save_pretrained(folder)
    tiny_model.save_tokenizer(folder)
    text.write_text(tiny_model.TEXT * 4)
    search = ["--run_awq", "--dump_awq", str(tmp_path / "r.pt"), "--calib_images", str(photos), "--n_samples", "2"]
    write = ["--seqlen", "48", "--q_backend", "real", "--dump_quant", str(dump)]
    entry.main(["--model_path", str(folder), *BITS, *search, *write])
    assert load_model(dump).config.vocab_size == 323
    assert perplexity(folder, text, *BITS, "--load_quant", dump) == pytest.approx(perplexity(folder, text), rel=0.5)


def test_a_language_model_alone_is_converted_with_what_images_need(model: Any, tmp_path: Path) -> None:
    folder = save("original", model, tmp_path / "model")
    entry.main(["--model_path", str(folder), *BITS, "--q_backend", "real", "--dump_quant", str(tmp_path / "x.pt")])
    state = torch.load(tmp_path / "x-v2.pt", weights_only=True)
    alone = {name: tensor for name, tensor in state.items() if "vision" not in name and "mm_projector" not in name}
    assert len(alone) < len(state)
    torch.save(alone, tmp_path / "alone-v2.pt")
    source, out = tmp_path / "alone-v2.pt", tmp_path / "out"
    entry.main(["convert", str(source), str(out), "--format", "awq-gemm", "--model_path", str(folder)])
    expected = logits(load_model(folder, source, dtype="float32"), IDS)
    torch.testing.assert_close(logits(load_model(out, dtype="float32"), IDS), expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("layout", ["transformers", "original"])
def test_other_formats(layout: str, model: Any, tmp_path: Path) -> None:
    folder = save(layout, model, tmp_path / "model")
    run = ["--model_path", str(folder), *BITS, "--q_backend", "real"]
    entry.main([*run, "--dump_quant", str(tmp_path / "awq")])
    entry.main([*run, "--dump_quant", str(tmp_path / "x.pt")])
    entry.main(["convert", str(tmp_path / "awq"), str(tmp_path / "ct"), "--format", "compressed-tensors"])
    expected = logits(load_model(tmp_path / "awq", dtype="float32"), IDS)
    for loaded in (
        load_model(tmp_path / "ct", dtype="float32"),
        load_model(folder, tmp_path / "x-v2.pt", dtype="float32"),
        load_model(folder, tmp_path / "ct", dtype="float32"),
    ):
        assert isinstance(loaded, LlavaModel)
        torch.testing.assert_close(logits(loaded, IDS), expected, rtol=2e-3, atol=2e-3)
    ignored = json.loads((tmp_path / "ct" / "config.json").read_text())["quantization_config"]["ignore"]
    assert any("vision_tower" in part for part in ignored)


@torch.no_grad()
def test_blocks_see_the_image_in_its_place(model: Any, tmp_path: Path) -> None:
    folder = tiny_llava.save(model, tmp_path / "model")
    images, image = load_images(folder), picture("RGB", 100, 37)
    embeddings = images.encode_images([(pixels(image, images.image_spec), image.size)])[0]
    skeleton = open_model(folder).skeleton
    num_rows = skeleton.config.vocab_size
    text = IDS[0, :9].tolist()
    windows = torch.tensor([[*text, *range(num_rows, num_rows + len(embeddings)), *text]])
    inputs = first_inputs(LazyNetwork(folder, skeleton, torch.float32), windows, embeddings)

    reference = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    ids = windows.where(windows < num_rows, tiny_llava.IMAGE_TOKEN)
    values = tiny_llava.processor(model)(image, return_tensors="pt")["pixel_values"]
    hidden = reference(input_ids=ids, pixel_values=values, output_hidden_states=True).hidden_states
    torch.testing.assert_close(inputs.hidden, hidden[0], rtol=1e-4, atol=1e-4)


def test_pictures_for_a_text_model_or_damaged_ones_are_refused(
    model: Any, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(folder: Path, *flags: str) -> str:
        search = [*BITS, "--run_awq", "--dump_awq", str(tmp_path / "r.pt"), "--calib_images", str(photos), *flags]
        with pytest.raises(SystemExit):
            entry.main(["--model_path", str(folder), *search])
        return capsys.readouterr().err

    text_only = tiny_model.save(tmp_path / "text")
    assert "--calib_images: " in said(text_only)
    assert "give one of them" in said(text_only, "--calib_data", "text.txt")
    folder = tiny_llava.save(model, tmp_path / "model")
    (photos / "0.png").write_bytes((photos / "0.png").read_bytes()[:200])
    assert "0.png cannot be decoded" in said(folder)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    assert "is an adapter: `tinyserve merge` makes one model" in said(adapter)
