"""llm-awq's .pt files against decoders that follow what its kernels do with the bits.

v2, as the GEMV kernel reads it: one row of qweight holds four rows of the weight, 64 in features of each after the
other, 32 bytes long. Each little-endian 32-bit word of these holds, from the lowest nibble, in features 0, 8, 16, 24,
1, 9, 17 and 25 after an even start.
"""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_checkpoint import TinyModel, assert_same, encode_v1, random_quantized
from torch import Tensor

from awq.formats import llm_awq, open_checkpoint, write_llm_awq_v2
from awq.formats.checkpoint import CheckpointError
from awq.quantize import QuantConfig

MakeModel = Callable[..., TinyModel]


def decode_v2_codes(qweight: Tensor) -> list[list[int]]:
    """int16 [N/4, K] -> [N][K], word by word."""
    num_rows, k = qweight.shape
    codes = [[-1] * k for _ in range(4 * num_rows)]
    for row in range(num_rows):
        words = np.frombuffer(qweight[row].contiguous().numpy().tobytes(), dtype="<u4").tolist()
        for position, word in enumerate(words):
            block, rest = divmod(position, 32)  # 64 in features of four rows are 128 bytes
            row_in_four, rest = divmod(rest, 8)
            half, pair = divmod(rest, 4)
            start = 64 * block + 32 * half + 2 * pair
            for nibble, offset in enumerate([0, 8, 16, 24, 1, 9, 17, 25]):
                codes[4 * row + row_in_four][start + offset] = (word >> (4 * nibble)) & 0xF
    return codes


def decode_v2_weight(stored: dict[str, Tensor], group: int) -> list[list[float]]:
    """code * scale + scaled_zero, as TinyChat's kernels compute it, in float64."""
    codes = decode_v2_codes(stored["qweight"])
    scales, scaled_zeros = stored["scales"].double().tolist(), stored["scaled_zeros"].double().tolist()
    return [
        [code * scales[k // group][n] + scaled_zeros[k // group][n] for k, code in enumerate(row)]
        for n, row in enumerate(codes)
    ]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("n", "k", "group_size", "rows"),
    [(4, 64, 32, 32), (8, 576, 64, 16), (12, 128, 32, 32), (16, 1152, 128, 16), (8, 1536, 64, 32), (4, 192, -1, 8)],
)
def test_v2_encoding_is_the_described_one(n: int, k: int, group_size: int, rows: int, dtype: torch.dtype) -> None:
    """`rows` of scales: 8 * zw, from the padding rule (1, 2 or 4 words of eight for groups of 128, 64, 32)."""
    weight = random_quantized(n, k, QuantConfig(4, group_size), dtype)
    stored = llm_awq.encode_v2(weight)
    groups = k // weight.group
    assert stored["qweight"].dtype == torch.int16
    assert stored["qweight"].shape == (n // 4, k)
    assert decode_v2_codes(stored["qweight"]) == weight.codes.tolist()
    for name in ("scales", "scaled_zeros"):
        assert stored[name].shape == (rows, n)
        assert stored[name].dtype == dtype
        assert not stored[name][groups:].any()
    assert torch.equal(stored["scales"][:groups], weight.scales.t())
    exact = (weight.codes.double() - weight.zeros.repeat_interleave(weight.group, 1)) * weight.scales.repeat_interleave(
        weight.group, 1
    )
    # scaled_zeros of up to 15 * 0.1 are rounded to the dtype.
    tolerance = 1.5 * torch.finfo(dtype).eps
    decoded = torch.tensor(decode_v2_weight(stored, weight.group), dtype=torch.float64)
    torch.testing.assert_close(decoded, exact, rtol=0, atol=tolerance)
    assert_same(llm_awq.V2.decode(stored, weight.config), weight)


@pytest.mark.parametrize("group_size", [32, 64, 128, -1])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_v2_file_read_back(make_model: MakeModel, tmp_path: Path, group_size: int, dtype: torch.dtype) -> None:
    model = make_model(QuantConfig(4, group_size), dtype)
    write_llm_awq_v2(tmp_path / "model-v2.pt", model.state, model.quantized, model.config)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model-v2.pt", "source"]
    content = torch.load(tmp_path / "model-v2.pt", weights_only=True)
    for name, weight in model.quantized.items():
        assert decode_v2_codes(content[f"{name}.qweight"]) == weight.codes.tolist()
    checkpoint = open_checkpoint(model.folder, tmp_path / "model-v2.pt")
    assert checkpoint.quant == model.config
    assert checkpoint.config["hidden_size"] == 64
    for name, weight in model.quantized.items():
        assert_same(checkpoint.quantized(name), weight)
    assert sorted(checkpoint.names()) == sorted(model.state)
    for name, tensor in model.state.items():
        assert torch.equal(checkpoint.tensor(name), tensor)


@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_v1_file_is_read(make_model: MakeModel, tmp_path: Path, group_size: int) -> None:
    model = make_model(QuantConfig(4, group_size))
    state = dict(model.state)
    for name, weight in model.quantized.items():
        state |= {f"{name}.{suffix}": tensor for suffix, tensor in encode_v1(weight).items()}
    torch.save(state, tmp_path / "v1.pt", _use_new_zipfile_serialization=False)  # as old as the layout
    checkpoint = open_checkpoint(model.folder, tmp_path / "v1.pt")
    assert checkpoint.quant == model.config
    for name, weight in model.quantized.items():
        assert_same(checkpoint.quantized(name), weight)


def test_tied_matrix_takes_no_space(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model(tied=True)
    large = torch.randn(4096, 64)
    state = {**model.state, "model.embed_tokens.weight": large, "lm_head.weight": large}  # cast to fp16 one by one
    write_llm_awq_v2(tmp_path / "tied.pt", state, model.quantized, model.config)
    checkpoint = open_checkpoint(model.folder, tmp_path / "tied.pt")
    assert torch.equal(checkpoint.tensor("lm_head.weight"), large.half())
    assert (tmp_path / "tied.pt").stat().st_size < 1.5 * large.numel() * 2


def test_views_do_not_bring_their_whole_memory(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    state = {**model.state, "model.norm.weight": torch.ones(1 << 20, dtype=torch.float16)[:64]}
    write_llm_awq_v2(tmp_path / "view.pt", state, model.quantized, model.config)
    assert (tmp_path / "view.pt").stat().st_size < 200_000


@pytest.mark.parametrize(("n", "k"), [(6, 64), (8, 96)])
def test_refuses_layers_it_cannot_store(tmp_path: Path, n: int, k: int) -> None:
    config = QuantConfig(4, 32)
    message = f"lin: {n} out and {k} in features; the format needs multiples of 4 and 64"
    with pytest.raises(ValueError, match=message):
        write_llm_awq_v2(tmp_path / "out.pt", {}, {"lin": random_quantized(n, k, config)}, config)
    assert list(tmp_path.iterdir()) == []


def test_refuses_to_replace_an_output(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    (tmp_path / "out.pt").write_text("precious")
    with pytest.raises(ValueError, match=r"out\.pt already exists"):
        write_llm_awq_v2(tmp_path / "out.pt", model.state, model.quantized, model.config)
    assert (tmp_path / "out.pt").read_text() == "precious"
    write_llm_awq_v2(tmp_path / "out.pt", model.state, model.quantized, model.config, overwrite=True)
    assert open_checkpoint(model.folder, tmp_path / "out.pt").modules()
    with pytest.raises(ValueError, match="source is a folder; name a file"):
        write_llm_awq_v2(model.folder, model.state, model.quantized, model.config, overwrite=True)


class RunsCode:
    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return (Path.touch, (Path("executed"),))  # type: ignore[return-value]


def test_never_runs_code_from_a_file(make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = make_model()
    torch.save({"weight": RunsCode()}, tmp_path / "zip.pt")
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(RunsCode(), protocol=2))
    for name in ("zip.pt", "raw.pt"):
        with pytest.raises(CheckpointError, match=f"{name}: not a complete file of tensors only"):
            open_checkpoint(model.folder, tmp_path / name)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"scale": [], "clip": []}, "holds search results, not weights; awq.entry --load_awq applies them"),
        ([torch.zeros(1)], "must hold a state dict, got list"),
        ({}, "must hold a state dict"),
        ({"a.qweight": 3}, "entry 'a.qweight' must be a tensor, got int"),
        ({"a.weight": torch.zeros(2)}, "no tensor ends in .qweight, so nothing in it is quantized"),
        ({"a.qweight": torch.zeros(1, 64, dtype=torch.int16)}, "a.qweight is there, but a.scales is missing"),
        (
            {"a.qweight": torch.zeros(1, 64, dtype=torch.int16), "a.scales": torch.zeros(32, 4)},
            "a.scales has 0 groups, which do not divide 64",
        ),
        (
            {"a.qweight": torch.zeros(64, dtype=torch.int16), "a.scales": torch.ones(32, 4)},
            "a.qweight must be a matrix, got shape \\[64\\]",
        ),
    ],
)
def test_refuses_other_pt_files(make_model: MakeModel, tmp_path: Path, content: object, message: str) -> None:
    model = make_model()
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(model.folder, tmp_path / "other.pt")


def test_refuses_damaged_files(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    write_llm_awq_v2(tmp_path / "good.pt", model.state, model.quantized, model.config)
    data = (tmp_path / "good.pt").read_bytes()
    damaged = tmp_path / "damaged.pt"
    for content in (b"", b"\0" * 100, data[: len(data) // 2], data[:-10], b"PK\x03\x04" + data[:20], b"version https"):
        damaged.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"damaged\.pt: not a complete file"):
            open_checkpoint(model.folder, damaged)


@pytest.mark.parametrize(
    ("row", "value", "message"),
    [
        (0, 0.05, "scaled_zeros must be -zero \\* scale with zeros from 0 to 15"),  # a negative zero
        (0, -20.0, "scaled_zeros must be -zero"),  # a zero above 15
        (1, float("nan"), "scaled_zeros must be -zero"),
        (3, 1.0, "rows past the 2 groups must be 0; the file has another group size"),
    ],
)
def test_refuses_values_the_layout_cannot_hold(
    make_model: MakeModel, tmp_path: Path, row: int, value: float, message: str
) -> None:
    model = make_model(QuantConfig(4, 64))
    write_llm_awq_v2(tmp_path / "good.pt", model.state, model.quantized, model.config)
    content = torch.load(tmp_path / "good.pt", weights_only=True)
    name = "model.layers.0.self_attn.q_proj"  # 128 in features: 2 groups in 16 rows
    content[f"{name}.scaled_zeros"][row] = value
    torch.save(content, tmp_path / "bad.pt")
    checkpoint = open_checkpoint(model.folder, tmp_path / "bad.pt")
    with pytest.raises(CheckpointError, match=f"bad.pt: {name}: {message}"):
        checkpoint.quantized(name)
