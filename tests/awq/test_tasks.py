"""Tasks of lm-eval from local files; without lm-eval only what is said then."""

import json
from pathlib import Path

import pytest
import tiny_model

from awq import entry

TASK = """
task: opposites
dataset_path: json
dataset_kwargs:
  data_files: {data}
test_split: train
output_type: multiple_choice
doc_to_text: "The opposite of {{{{word}}}} is"
doc_to_choice: ["up", "down"]
doc_to_target: answer
metric_list:
  - metric: acc
"""


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """A YAML file with two questions beside it."""
    data = tmp_path / "questions.jsonl"
    rows = [{"word": "down", "answer": 0}, {"word": "up", "answer": 1}]
    data.write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "tasks").mkdir()
    path = tmp_path / "tasks" / "opposites.yaml"
    path.write_text(TASK.format(data=data))
    return path


def test_local_task_files(task: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="an extra: pip install tinyserve[eval]")
    folder = tiny_model.save(tmp_path / "tiny")
    out = tmp_path / "out.json"
    for tasks in ([str(task)], ["opposites", "--include_path", str(task.parent)]):
        flags = ["--w_bit", "4", "--q_group_size", "32", "--output_path", str(out)]
        entry.main(["--model_path", str(folder), *flags, "--tasks", *tasks])
        assert 0 <= json.loads(out.read_text())["results"]["opposites"]["acc,none"] <= 1


def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny_model.save(tmp_path / "tiny")
    with pytest.raises(SystemExit):
        entry.main(["--model_path", str(folder), "--tasks", str(tmp_path / "none.yaml")])
    assert "none.yaml: no such file" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        entry.main(["--model_path", str(folder), "--tasks", "no_such_task"])
    message = capsys.readouterr().err
    assert "need `pip install lm-eval`" in message or "no_such_task: lm-eval failed" in message
    with pytest.raises(SystemExit):
        entry.main(["--model_path", str(folder), "--eval_file", "x", "--include_path", str(tmp_path)])
    assert "--include_path needs --tasks" in capsys.readouterr().err
