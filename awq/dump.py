"""Where a quantized model is written and found again: the names users give, and the formats they stand for.

`X.pt` is llm-awq's v2 file, anything else a folder. Layouts are the business of awq/formats, values that of awq/apply.
"""

from pathlib import Path

from awq import formats
from awq.apply import QuantizedModel
from awq.errors import UserError
from awq.model import ModelFolder
from awq.quantize import QuantConfig
from awq.results import SearchResults


def dump_path(path: Path) -> Path:
    """The file or folder that `--dump_quant path` makes: like llm-awq, `.pt` becomes `-v2.pt` unless it ends so."""
    if path.suffix == ".pt" and not path.name.endswith("v2.pt"):
        return path.with_name(path.name.removesuffix(".pt") + "-v2.pt")
    return path


def find_dump(path: Path) -> Path:
    """The checkpoint that `--load_quant path` means: that path, or the name that a dump to it was given.

    Raises:
        UserError: neither is there.
    """
    for candidate in (path, dump_path(path)):
        if candidate.exists():
            return candidate
    also = f" (nor {dump_path(path).name})" if dump_path(path) != path else ""
    raise UserError(f"--load_quant {path}: no such file or folder{also}")


def check_dump(path: Path) -> None:
    """Refuses a place that is taken, before long work.

    Raises:
        UserError: it holds something.
    """
    formats.check_output(dump_path(path))


def write_dump(path: Path, model: ModelFolder, config: QuantConfig, results: SearchResults | None) -> Path:
    """Quantizes and writes the model; returns what was written.

    Raises:
        UserError: the place is taken, or the model cannot be stored in this format.
    """
    quantized = QuantizedModel(model, config, results)
    output = dump_path(path)
    if output.suffix == ".pt":
        formats.write_llm_awq_v2(output, quantized.state, quantized.quantized, config)
    else:
        formats.write_awq_folder(output, model.path, quantized.state, quantized.quantized, config)
    return output
