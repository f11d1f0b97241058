"""The messages of the control plane and what each must contain: registrations, heart beats, status, lookups.

Every `parse` takes a decoded JSON value of unknown shape and returns a checked message, or raises FieldError. Unknown
fields are ignored, since workers of other projects send some. Knows no HTTP and no table of workers.
"""

import reprlib
from dataclasses import dataclass
from typing import Any

from tinyserve.serve.address import check_worker_address

MAX_MODEL_NAMES = 256  # of one worker
MAX_MODEL_NAME_CHARACTERS = 512
MAX_QUEUE_LENGTH = 1_000_000
MAX_SPEED = 1e6


class FieldError(ValueError):
    """A field of a message is missing or wrong. `field` is its name, the text says what came and what is allowed."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field} {problem}")
        self.field = field


def _field(data: dict[str, Any], key: str, name: str) -> Any:
    if key not in data:
        raise FieldError(name, "is missing")
    return data[key]


def _shown(value: Any) -> str:
    return f"{type(value).__name__} {reprlib.repr(value)}"


def _bool(data: dict[str, Any], key: str) -> bool:
    value = _field(data, key, key)
    if not isinstance(value, bool):
        raise FieldError(key, f"must be true or false, got {_shown(value)}")
    return value


def _queue_length(data: dict[str, Any], name: str) -> int:
    value = _field(data, "queue_length", name)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_QUEUE_LENGTH:
        raise FieldError(name, f"must be an integer from 0 to {MAX_QUEUE_LENGTH}, got {_shown(value)}")
    return value


def _worker_name(data: dict[str, Any]) -> str:
    value = _field(data, "worker_name", "worker_name")
    if not isinstance(value, str):
        raise FieldError("worker_name", f"must be a string, got {_shown(value)}")
    try:
        return check_worker_address(value)
    except ValueError as error:
        raise FieldError("worker_name", str(error)) from None


def _model_name(value: Any, name: str) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= MAX_MODEL_NAME_CHARACTERS or not value.isprintable():
        allowed = f"a string of 1 to {MAX_MODEL_NAME_CHARACTERS} printable characters"
        raise FieldError(name, f"must be {allowed}, got {_shown(value)}")
    return value


@dataclass(frozen=True)
class WorkerStatus:
    """What a worker says about itself."""

    model_names: tuple[str, ...]
    speed: float  # relative to other workers of the same model; 0: takes no requests
    queue_length: int  # requests running and waiting

    @classmethod
    def parse(cls, data: Any, name: str = "worker_status") -> "WorkerStatus":
        """`name` is what error messages call the object."""
        if not isinstance(data, dict):
            raise FieldError(name, f"must be an object, got {_shown(data)}")
        names = _field(data, "model_names", f"{name}.model_names")
        if not isinstance(names, list) or len(names) > MAX_MODEL_NAMES:
            raise FieldError(f"{name}.model_names", f"must be a list of at most {MAX_MODEL_NAMES}, got {_shown(names)}")
        speed = _field(data, "speed", f"{name}.speed")
        is_number = isinstance(speed, int | float) and not isinstance(speed, bool)
        if not is_number or not 0 <= speed <= MAX_SPEED:  # also refuses NaN
            raise FieldError(f"{name}.speed", f"must be a number from 0 to {MAX_SPEED:g}, got {_shown(speed)}")
        return cls(
            model_names=tuple(_model_name(each, f"{name}.model_names") for each in names),
            speed=speed,
            queue_length=_queue_length(data, f"{name}.queue_length"),
        )


@dataclass(frozen=True)
class Registration:
    """A worker, or somebody on its behalf, announces it."""

    worker_name: str
    check_heart_beat: bool
    worker_status: WorkerStatus | None  # None: the controller asks the worker
    multimodal: bool = False  # FastChat's workers say so

    @classmethod
    def parse(cls, data: dict[str, Any]) -> "Registration":
        status = data.get("worker_status")
        return cls(
            worker_name=_worker_name(data),
            check_heart_beat=_bool(data, "check_heart_beat"),
            worker_status=WorkerStatus.parse(status) if status else None,  # {} asks as well, as it always has
            multimodal=_bool(data, "multimodal") if "multimodal" in data else False,
        )


@dataclass(frozen=True)
class HeartBeat:
    worker_name: str
    queue_length: int

    @classmethod
    def parse(cls, data: dict[str, Any]) -> "HeartBeat":
        return cls(_worker_name(data), _queue_length(data, "queue_length"))


def parse_model(data: dict[str, Any]) -> str:
    """The `model` of a lookup or of a generation request."""
    return _model_name(_field(data, "model", "model"), "model")
