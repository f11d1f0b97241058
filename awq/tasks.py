"""What a model is evaluated on besides a local file: WikiText-2 perplexity and the tasks of lm-eval.

It gives texts and scores; how a window is scored is decided in evaluate.py.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from awq.calibration import read_text
from awq.errors import UserError

WIKITEXT = "wikitext"


def texts(tasks: str | None, file: Path | None) -> tuple[dict[str, str], list[str]]:
    """The texts whose perplexity is wanted, by name, and the tasks left for lm-eval.

    Args:
        tasks: the value of --tasks.
        file: the value of --eval_file.

    Raises:
        UserError: a text cannot be had.
    """
    names = [name.strip() for name in (tasks or "").split(",") if name.strip()]
    found = {} if file is None else {str(file): read_text(file, "--eval_file")}
    if WIKITEXT in names:
        found[WIKITEXT] = wikitext()
    return found, [name for name in names if name != WIKITEXT]


def wikitext() -> str:
    """The test part of WikiText-2, joined as in llm-awq.

    Raises:
        UserError: the data set cannot be had here.
    """
    try:
        from datasets import load_dataset

        rows = load_dataset("wikitext", "wikitext-2-raw-v1", split="test")
    except Exception as error:  # not installed, no network, no such set: the library raises its own types for each
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"--tasks wikitext: the data set cannot be had ({reason}); use --eval_file TEXT for a local file"
        ) from error
    return "\n\n".join(rows["text"])


def lm_eval(
    network: Any, tokenizer: Any, tasks: Sequence[str], folder: Path | None, batch_size: int, num_fewshot: int
) -> Mapping[str, Any]:
    """Scores of lm-eval's tasks by name.

    Args:
        tasks: names, or paths of YAML files that describe one task each, which need no network where their data is
            local.
        folder: holds YAML files of further tasks that are asked for by name.

    Raises:
        UserError: a file is missing, lm-eval is not installed, or does not know or cannot run a task.
    """
    missing = next((name for name in tasks if name.endswith(".yaml") and not Path(name).is_file()), None)
    if missing is not None:
        raise UserError(f"--tasks {missing}: no such file")
    names = ", ".join(tasks)
    try:
        from lm_eval import simple_evaluate
        from lm_eval.config.evaluate_config import EvaluatorConfig
        from lm_eval.models.huggingface import HFLM
    except ImportError as error:
        raise UserError(f"--tasks {names}: tasks other than wikitext need `pip install lm-eval`") from error
    model = HFLM(pretrained=network, tokenizer=tokenizer, batch_size=batch_size)
    try:
        wanted = EvaluatorConfig(tasks=list(tasks), include_path=None if folder is None else str(folder))
        manager = wanted.process_tasks()  # finds files and names as lm-eval's own command line does
        output = simple_evaluate(model=model, tasks=wanted.tasks, num_fewshot=num_fewshot, task_manager=manager)
    except Exception as error:  # unknown tasks, data that cannot be had: lm-eval raises many types
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"--tasks {names}: lm-eval failed: {reason}") from error
    return output["results"]
