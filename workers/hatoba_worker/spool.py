"""Reading what jobs say of themselves: one JSON object a line, appended to a file by any process.

A line is `{"t", "metrics": {key: value}, "step"}`, `{"t", "progress": {"done", "total",
"message"}}`, `{"t", "checkpoint": {"step", "dir", "metrics"}}` or `{"t", "model": {"number",
...}}`, which `hatoba.logged_models` writes. What does not fit is counted and left out: it was
written by somebody's program.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from google.protobuf import json_format
from google.protobuf.timestamp_pb2 import Timestamp

from hatoba.golden import MOST_CASES
from hatoba.v1 import job_pb2, runner_pb2
from hatoba_worker import tinyfiles
from hatoba_worker.attempts import Checkpoint, Logged

FILE = "spool.jsonl"
MOST_LINE = 64 * 1024
PIECE = 2 * MOST_LINE
MOST_SAMPLES = 500
_STEP = range(-(1 << 63), 1 << 63)
_MOST_PAIRS = 256
_LATEST = 253_402_300_799
_MODEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,46}[a-z0-9])?")
_HANDLER = re.compile(r"([A-Za-z_][A-Za-z0-9_.]*:[A-Za-z_][A-Za-z0-9_]*)?")
_DIRECTORY = re.compile(r"step-[0-9]{1,19}")
_NAMES = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class Malformed(ValueError):
    """A line that is none of the four kinds."""


@dataclass(slots=True)
class Lines:
    """What a part of a spool said, and the offset up to which it was read."""

    end: int
    samples: list[runner_pb2.MetricSample] = field(default_factory=list)
    progress: job_pb2.Progress | None = None
    checkpoint: Checkpoint | None = None
    models: list[Logged] = field(default_factory=list)
    malformed: int = 0


def read(path: str, start: int, end: int | None = None) -> Lines:
    """Read whole lines from offset `start` on, as many as make one report.

    With `end`, exactly up to there. At the end of the file the same offset comes back.
    """
    length = PIECE if end is None else min(PIECE, end - start)
    try:
        data = tinyfiles.read_piece(path, start, length)
    except OSError:
        return Lines(start)
    return parse(data, start)


def parse(data: bytes, start: int) -> Lines:
    """Take apart the bytes at offset `start`; an unfinished last line is left for later."""
    found = Lines(start)
    position = 0
    while len(found.samples) < MOST_SAMPLES:
        newline = data.find(b"\n", position)
        if newline < 0:
            break
        try:
            _take(data[position:newline], found)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            found.malformed += 1
        position = newline + 1
    if position == 0 and len(data) > MOST_LINE:
        # No line of ours is so long: step over it, piece by piece.
        found.malformed += 1
        position = len(data)
    found.end = start + position
    return found


def _take(line: bytes, found: Lines) -> None:
    body = json.loads(line)
    when = _time(body["t"])
    if "metrics" in body:
        step = _step(body.get("step", 0))
        # All or nothing, so that a line is either counted or kept.
        found.samples += [
            runner_pb2.MetricSample(key=_key(key), step=step, value=value, time=when)
            for key, value in _values(body["metrics"]).items()
        ]
    elif "progress" in body:
        found.progress = _progress(body["progress"], when)
    elif "model" in body:
        found.models.append(_logged(body["model"]))
    else:
        found.checkpoint = _checkpoint(body["checkpoint"])


def _progress(body: Mapping[str, object], when: Timestamp) -> job_pb2.Progress:
    return job_pb2.Progress(
        done=_value(body["done"]),
        total=_value(body.get("total", 0)),
        message=str(body.get("message", ""))[:1024],
        time=when,
    )


def _checkpoint(body: Mapping[str, object]) -> Checkpoint:
    directory = body["dir"]
    if not isinstance(directory, str) or not _DIRECTORY.fullmatch(directory):
        raise Malformed("dir")
    return Checkpoint(
        _step(body["step"]), directory, _values(body.get("metrics") or {}, _MOST_PAIRS)
    )


def _logged(body: Mapping[str, Any]) -> Logged:
    """A model, in the words of the contract; raises Malformed for what the server would refuse."""
    number = body["number"]
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise Malformed("number")
    model = runner_pb2.LoggedModel(
        model=_matching(body["model"], _MODEL),
        metrics=_values(body["metrics"], _MOST_PAIRS),
        description=_text(body["description"], 4096),
        parent=_text(body["parent"], 256),
        labels=_labels(body["labels"]),
    )
    _fill_serving(model, body)
    return Logged(number, model, body["own_code"] is True)


def _fill_serving(model: runner_pb2.LoggedModel, body: Mapping[str, Any]) -> None:
    serving = model.serving
    serving.handler = _matching(body["handler"], _HANDLER)
    serving.example.media_type = _text(body["example"], 128)
    serving.max_batch = _step(body["max_batch"])
    serving.batch_wait_ms = _value(body["batch_wait_ms"])
    if not 0 <= serving.max_batch <= 4096 or not 0 <= serving.batch_wait_ms <= 10_000:
        raise Malformed("max_batch")
    # A job's own Hatoba may be older than golden cases.
    golden = _step(body.get("golden", 0))
    if not 0 <= golden <= MOST_CASES:
        raise Malformed("golden")
    serving.golden = golden
    if not serving.example.media_type:
        serving.ClearField("example")
    try:
        json_format.ParseDict(body["signature"], model.signature)
    except json_format.ParseError as error:
        raise Malformed("signature") from error
    _text(model.signature.input_type, 128)
    _text(model.signature.output_type, 128)


def _labels(body: object) -> dict[str, str]:
    if not isinstance(body, dict) or len(body) > 64:
        raise Malformed("labels")
    return {_text(key, 63): _text(value, 256) for key, value in body.items()}


def _matching(value: object, pattern: re.Pattern[str]) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise Malformed("name")
    return value


def _text(value: object, most: int) -> str:
    if not isinstance(value, str) or len(value) > most:
        raise Malformed("text")
    return value


def _values(body: object, most: int = MOST_SAMPLES) -> dict[str, float]:
    if not isinstance(body, dict) or len(body) > most:
        raise Malformed("metrics")
    return {_key(key): _value(value) for key, value in body.items()}


def _key(key: object) -> str:
    if not isinstance(key, str) or not 1 <= len(key) <= 128:
        raise Malformed("key")
    return key


def _value(value: object) -> float:
    if isinstance(value, str):
        return _NAMES[value]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Malformed("value")
    return float(value)


def _step(step: object) -> int:
    if isinstance(step, bool) or not isinstance(step, int) or step not in _STEP:
        raise Malformed("step")
    return step


def _time(value: object) -> Timestamp:
    seconds = _value(value)
    if not 0 <= seconds <= _LATEST:
        raise Malformed("t")
    whole = int(seconds)
    return Timestamp(seconds=whole, nanos=int((seconds - whole) * 1e9))
