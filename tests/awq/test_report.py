"""The page of --report: complete, self-contained, and true to what was found."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import tiny_model
import torch

from awq import entry
from awq.layer_figures import QUANTILES, LayerFigures
from awq.quantize import QuantConfig
from awq.report import Report, Scores, Sizes, command_line, write_page
from awq.report_format import megabytes, percent
from awq.report_layers import by_kind, place
from awq.report_page import render

BITS = ["--w_bit", "4", "--q_group_size", "32"]
VOID = {"meta", "line", "polyline", "rect", "circle"}


class Page(HTMLParser):
    """Collects the text and the classes of a page, and fails where tags do not fit."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.text = ""
        self.classes: list[str] = []
        self._open: list[str] = []
        self.feed(source)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.classes += (dict(attrs).get("class") or "").split()
        if tag not in VOID or tag in ("circle", "rect"):
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.classes += (dict(attrs).get("class") or "").split()

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1:] != ["style"]:
            self.text += data + "\n"


def figures(layer: str, clipped_error: float = 0.01) -> LayerFigures:
    spread = tuple(float(index + 1) for index in range(len(QUANTILES)))
    return LayerFigures(layer, 0.5, 0.03, 0.02, clipped_error, 0.4, 0.001, spread, spread)


def report(items: list[LayerFigures], scores: Scores | None = None) -> Report:
    sizes = Sizes(400_000_000, 100_000_000, written=True)
    return Report("tiny <1>", QuantConfig(4, 64), scores or {}, items, sizes, "python -m awq.entry", {"torch": "2"})


def test_page_shows_what_was_found(tmp_path: Path) -> None:
    items = [
        figures(f"model.layers.{block}.mlp.{kind}", 0.01 * (block + 1)) for block in range(3) for kind in ("up", "down")
    ]
    scores = {
        "a&b.txt": {
            "perplexity": 12.5,
            "num_windows": 3,
            "window_tokens": 64,
            "perplexity_16_bit": 12.0,
            "kl_mean": 0.0321,
            "kl_p99": 0.4,
            "top1_agreement": 0.912,
        },
        "hellaswag": {"acc,none": 0.25},
    }
    path = write_page(tmp_path / "deep" / "folder", report(items, scores))
    source = path.read_text(encoding="utf-8")
    page = Page(source)
    for shown in ("tiny <1>", "100.0 MB", "12.50", "0.0321", "91 %", "a&b.txt", "hellaswag", "0.2500", "mlp.down"):
        assert shown in page.text
    assert page.text.index("model.layers.2.mlp.up") < page.text.index("model.layers.1.mlp.up")  # the worst first
    assert page.classes.count("cell") == 3 * len(items)
    assert page.classes.count("line") == 3 * 2 * 3
    assert not re.search(r"https?:|<script|<link|url\(|src=|@import", source)


def test_a_page_without_figures_and_scores_says_so() -> None:
    page = Page(render(report([])))
    assert "Not evaluated" in page.text
    assert "No figures" in page.text


def test_kinds_of_layers() -> None:
    assert place("model.layers.3.mlp.experts.15.up_proj") == (3, "mlp.experts.*.up_proj")
    assert place("transformer.h.11.attn.c_attn") == (11, "attn.c_attn")
    assert place("gpt_neox.layers.0.mlp.dense_4h_to_h") == (0, "mlp.dense_4h_to_h")
    assert place("lm_head") == (0, "lm_head")
    experts = [figures(f"model.layers.0.mlp.experts.{index}.w1", 0.1 * index) for index in (1, 3)]
    assert by_kind(experts, lambda item: item.clipped_error) == {"mlp.experts.*.w1": {0: pytest.approx(0.2)}}


def test_numbers_for_people() -> None:
    assert [percent(share) for share in (0.5, 0.0123, 0.00123, 0)] == ["50 %", "1.2 %", "0.12 %", "0 %"]
    assert megabytes(2_500_000_000) == "2.50 GB"
    assert command_line(["--eval_file", "a b.txt"]) == "python -m awq.entry --eval_file 'a b.txt'"


def test_command_line_from_search_to_page(tmp_path: Path) -> None:
    folder = tiny_model.save(tmp_path / "tiny", dtype=torch.float16)
    text = tmp_path / "text.txt"
    text.write_text(tiny_model.TEXT * 4, encoding="utf-8")
    flags = ["--model_path", str(folder), *BITS, "--report", str(tmp_path / "report")]
    search = [
        "--run_awq",
        "--dump_awq",
        str(tmp_path / "r.pt"),
        "--calib_data",
        str(text),
        "--n_samples",
        "2",
        "--seqlen",
        "32",
    ]
    evaluation = ["--eval_file", str(text), "--eval_seqlen", "64", "--kl", "--output_path", str(tmp_path / "out.json")]
    entry.main([*flags, *search, *evaluation])
    page = Page((tmp_path / "report" / "report.html").read_text(encoding="utf-8"))
    assert "weights, not written yet" in page.text
    assert f"--model_path {folder} --w_bit 4" in page.text
    assert page.classes.count("panels") == 3
    perplexity = json.loads((tmp_path / "out.json").read_text())["results"][str(text)]["perplexity"]
    assert f"{perplexity:.2f}" in page.text
    assert json.loads((tmp_path / "out.json").read_text())["command"].startswith("python -m awq.entry --model_path")

    estimate = re.search(r"([\d.]+) MB\nweights, not written yet", page.text)
    entry.main([*flags, "--load_awq", str(tmp_path / "r.pt"), "--dump_quant", str(tmp_path / "q")])
    page = Page((tmp_path / "report" / "report.html").read_text(encoding="utf-8"))
    written = re.search(r"([\d.]+) MB\nweights on disk", page.text)
    assert estimate
    assert written
    assert float(estimate[1]) == pytest.approx(float(written[1]), abs=0.1)
    assert "Not evaluated" in page.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--report", "r"], "--report needs --w_bit"),
        ([*BITS, "--report", "r"], "--report needs something to show"),
        (["--eval_file", "x", "--kl"], "--kl needs --w_bit"),
        ([*BITS, "--tasks", "hellaswag", "--kl"], "--kl needs --w_bit, and --eval_file or --tasks wikitext"),
        ([*BITS, "--dump_format", "awq-gemm", "--load_awq", "x"], "nothing to do"),
        ([*BITS, "--dump_format", "awq-gemm", "--dump_quant", "x.pt"], "--dump_format awq-gemm makes a folder"),
    ],
)
def test_flags_that_mean_nothing(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        entry.main(["--model_path", str(tmp_path), *arguments])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
