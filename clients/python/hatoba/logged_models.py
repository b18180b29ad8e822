"""What `current_job().log_model` does: check a model in the job's own process, and lay it aside.

Standard library only. A logged model lies in `HATOBA_DIR/models/N`: its files in `files`, golden
cases among them, code of its own in `code`, its example in `example`. The line of the spool that
names N comes last; the worker brings all of it out when the job has ended well.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import stat
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hatoba import golden, handlers
from hatoba.handlers import Checked, ExampleRefused, Payload

DIRECTORY = "models"
FILES = "files"
CODE = "code"
EXAMPLE = "example"
MOST_MODELS = 16
MOST_EXAMPLE_BYTES = 256 << 10
# All of a job's models are told of in one message, which may have 4 MiB.
MOST_EXAMPLES_BYTES = 2 << 20
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,46}[a-z0-9])?")
_LABEL = re.compile(r"[a-zA-Z0-9]([a-zA-Z0-9._/-]{0,61}[a-zA-Z0-9])?")
_MOST_TEXT = {"description": 4096, "parent": 256}
_MOST_METRICS = 256
_MOST_LABELS = 64
_IGNORED = ("__pycache__", ".git", ".venv", ".hatoba")


@dataclass(frozen=True, slots=True)
class LoggedModel:
    """What a job says of a model that it made; see `JobContext.log_model`."""

    name: str
    path: Path
    handler: str = ""
    example: Any = None
    golden: Any = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    description: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    parent: str = ""
    code: Path | None = None
    max_batch: int = 0
    batch_wait_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Examined:
    """A model that may be logged: its example and golden cases as they are sent, how many of
    these, and what was made of the example."""

    example: Payload | None = None
    checked: Checked | None = None
    golden: bytes = b""
    cases: int = 0


def examine(model: LoggedModel) -> Examined:
    """Import the handler, make it, have it answer example and golden cases.

    Raises ValueError, HandlerError.
    """
    _validate(model)
    if not model.handler:
        return Examined()
    with _path_kept(), _as_directory(model.path) as directory:
        loaded = handlers.load(model.handler, model.code or Path.cwd(), directory)
        if model.example is None:
            return Examined()
        example = handlers.payload_of(model.example)
        size = len(example.data)
        if size > MOST_EXAMPLE_BYTES:
            raise ExampleRefused(
                f"the example of model {model.name!r} has {size:,} bytes and may have "
                f"{MOST_EXAMPLE_BYTES:,}: give a smaller one"
            )
        checked = handlers.check(loaded, example)
        if model.golden is None:
            return Examined(example, checked)
        content = golden.content_of(model.golden)
        golden.refuse_another(directory, content)
        cases = golden.parse(content)
        golden.check(loaded, cases)
        return Examined(example, checked, content, len(cases))


def keep(model: LoggedModel, examined: Examined, directory: Path) -> int:
    """Copy a model into `models/N` below `directory`; returns that number.

    A copy, which shares its blocks where the file system can: what the job saves over the original
    later must not become part of this version. Raises OSError, and leaves nothing then.
    """
    number, place = _place(directory / DIRECTORY)
    try:
        _copy(model.path, place / FILES)
        if model.code is not None:
            _copy(model.code, place / CODE, _IGNORED)
        if examined.golden and not (place / FILES / golden.FILE).exists():
            (place / FILES / golden.FILE).write_bytes(examined.golden)
        if examined.example is not None:
            (place / EXAMPLE).write_bytes(examined.example.data)
        _validate_examples(place.parent)
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise
    return number


def record(model: LoggedModel, examined: Examined) -> dict[str, Any]:
    """What the spool says of a model; its number is 10 until it has one, which is no longer."""
    return {
        "number": 10,
        "model": model.name,
        "handler": model.handler,
        "own_code": model.code is not None,
        "example": examined.example.media_type if examined.example else "",
        "golden": examined.cases,
        "signature": examined.checked.signature if examined.checked else {},
        "metrics": {str(key): float(value) for key, value in model.metrics.items()},
        "description": model.description,
        "labels": dict(model.labels),
        "parent": model.parent,
        "max_batch": model.max_batch,
        "batch_wait_ms": model.batch_wait_ms,
    }


# -- what is given --------------------------------------------------------------------------------


def _validate(model: LoggedModel) -> None:
    if not _NAME.fullmatch(model.name):
        raise ValueError(
            f"{model.name!r} is no name of a model: up to 48 lower-case letters, digits and "
            "hyphens, for example `digits`"
        )
    if not model.handler and model.example is not None:
        raise ValueError("an example needs a handler that answers it: handler='MODULE:CLASS'")
    if model.golden is not None and model.example is None:
        raise ValueError("golden cases need an example too, which tells what goes in and out")
    _validate_path(model.path, "model")
    if model.code is not None and not model.code.is_dir():
        raise ValueError(f"code: there is no directory {model.code}")
    for key, most in _MOST_TEXT.items():
        if len(getattr(model, key)) > most:
            raise ValueError(f"{key} has {len(getattr(model, key))} characters and may have {most}")
    _validate_pairs(model)
    if not 0 <= model.max_batch <= 4096 or not 0 <= model.batch_wait_ms <= 10_000:
        raise ValueError("max_batch goes up to 4096, batch_wait_ms up to 10000")


def _validate_path(path: Path, what: str) -> None:
    if not path.exists():
        raise ValueError(f"{what}: there is nothing at {path}")
    if path.is_dir() and not any(path.iterdir()):
        raise ValueError(f"{what}: the directory {path} is empty")


def _validate_pairs(model: LoggedModel) -> None:
    if len(model.metrics) > _MOST_METRICS or len(model.labels) > _MOST_LABELS:
        raise ValueError(f"a model has at most {_MOST_METRICS} metrics and {_MOST_LABELS} labels")
    for key, number in model.metrics.items():
        if not 1 <= len(key) <= 128 or not math.isfinite(float(number)):
            raise ValueError(f"metric {key!r} is {number!r}: a name and a finite number are needed")
    for key, value in model.labels.items():
        if not _LABEL.fullmatch(key) or len(value) > 256:
            raise ValueError(f"label {key!r}={value!r} cannot be kept: see the names of job labels")


def _validate_examples(models: Path) -> None:
    total = sum(path.stat().st_size for path in models.glob(f"*/{EXAMPLE}"))
    if total > MOST_EXAMPLES_BYTES:
        raise ExampleRefused(
            f"the examples of this job's models have {total:,} bytes together and may have "
            f"{MOST_EXAMPLES_BYTES:,}: give smaller ones"
        )


# -- files ----------------------------------------------------------------------------------------


@contextmanager
def _path_kept() -> Iterator[None]:
    """The job's own `sys.path` afterwards."""
    before = list(sys.path)
    try:
        yield
    finally:
        sys.path[:] = before


@contextmanager
def _as_directory(path: Path) -> Iterator[Path]:
    """What a handler is given as `model_dir`: a model of one file lies in a directory alone."""
    if path.is_dir():
        yield path
        return
    import tempfile

    with tempfile.TemporaryDirectory(prefix="hatoba-model-") as made:
        directory = Path(made)
        (directory / path.name).symlink_to(path.resolve())
        yield directory


def _place(models: Path) -> tuple[int, Path]:
    """The next free number, also for several processes at a time."""
    models.mkdir(parents=True, exist_ok=True)
    for number in range(1, MOST_MODELS + 1):
        place = models / str(number)
        try:
            place.mkdir(mode=0o700)
        except FileExistsError:
            continue
        return number, place
    raise ValueError(f"a job logs at most {MOST_MODELS} models: log the best ones at its end")


def _copy(source: Path, target: Path, ignored: Sequence[str] = ()) -> None:
    """Everything below `source`, or that one file; links are followed."""
    if target.resolve().is_relative_to(source.resolve()):
        raise ValueError(f"{source} holds the job's own directory: name the model's files alone")
    if source.is_dir():
        ignore = shutil.ignore_patterns(*ignored)
        shutil.copytree(source, target, copy_function=_copy_file, ignore=ignore)
        return
    target.mkdir()
    _copy_file(str(source), str(target / source.name))


def _copy_file(source: str, target: str) -> None:
    mode = os.stat(source).st_mode
    if not stat.S_ISREG(mode):
        raise OSError(f"{source} is no file, and cannot be part of a model")
    with open(source, "rb") as reader, open(target, "xb") as writer:
        if not _shared(reader.fileno(), writer.fileno()):
            shutil.copyfileobj(reader, writer, 1 << 20)
        os.fchmod(writer.fileno(), stat.S_IMODE(mode) | stat.S_IRUSR)


def _shared(reader: int, writer: int) -> bool:
    """Let the kernel copy, which costs nothing where the file system shares blocks."""
    try:
        while os.copy_file_range(reader, writer, 1 << 30):
            pass
    except OSError:
        os.ftruncate(writer, 0)
        os.lseek(reader, 0, os.SEEK_SET)
        os.lseek(writer, 0, os.SEEK_SET)
        return False
    return True
