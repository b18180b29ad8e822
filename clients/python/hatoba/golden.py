"""Golden cases of a model: inputs whose answers are known. Standard library only.

They lie in `golden.jsonl` beside the model's weights, one JSON object on a line:

    {"input": {"x": 1}, "expected": {"y": 0.5}, "tolerance": {"relative": 0.01}}

What is expected is looked for in the answer: the same numbers within the tolerance, the same text,
lists of the same length, all keys of each object. What an object of the answer has besides is not
looked at: leave out of `expected` what differs from run to run.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from hatoba import handlers
from hatoba.handlers import Handler, HandlerError, Payload

FILE = "golden.jsonl"
MOST_CASES = 64
MOST_BYTES = 256 << 10
MOST_DEPTH = 64
"""So deep may lists and objects of what is expected lie in each other."""
_KEYS = ("input", "expected", "tolerance", "media_type")
_SHOWN = 80


class GoldenRefused(HandlerError):
    """Golden cases that are none, or an answer that is not the expected one."""

    kind: ClassVar[str] = "golden_refused"


@dataclass(frozen=True, slots=True)
class Tolerance:
    """A number may be off by `absolute`, or by the share `relative` of what is expected, whichever
    is more."""

    absolute: float = 0.0
    relative: float = 0.0

    def allows(self, expected: float, found: float) -> bool:
        """Whether a number is near enough; one that is not finite never is."""
        try:
            far = abs(found - expected)
            return far <= max(self.absolute, self.relative * abs(expected))
        except OverflowError:
            return False

    def __str__(self) -> str:
        parts = [
            f"{self.absolute:g}" if self.absolute else "",
            f"{self.relative:g} of it" if self.relative else "",
        ]
        return " or ".join(filter(None, parts))


ROUNDING = Tolerance(1e-6, 1e-6)
"""For numbers with a point where no tolerance is said: processors round differently."""


@dataclass(frozen=True, slots=True)
class Case:
    """One input with the answer that is expected; numbered from 1. Without a tolerance whole
    numbers have to be equal, and others within `ROUNDING`."""

    number: int
    input: Payload
    expected: Any
    tolerance: Tolerance | None = None


# -- reading --------------------------------------------------------------------------------------


def parse(data: bytes) -> tuple[Case, ...]:
    """The cases of a file; raises GoldenRefused, which names the line and what is wrong."""
    if len(data) > MOST_BYTES:
        raise GoldenRefused(f"they have {len(data):,} bytes and may have {MOST_BYTES:,}")
    cases: list[Case] = []
    for number, line in enumerate(data.splitlines(), 1):
        if not line.strip():
            continue
        if len(cases) == MOST_CASES:
            raise GoldenRefused(f"line {number}: there may be {MOST_CASES} cases")
        cases.append(_case(line, number, len(cases) + 1))
    if not cases:
        raise GoldenRefused("there is no case: each line is one, with `input` and `expected`")
    return tuple(cases)


def read(model_dir: Path, count: int) -> tuple[Case, ...]:
    """The cases beside a model, of which there have to be `count`; raises GoldenRefused."""
    if not count:
        return ()
    try:
        cases = parse((model_dir / FILE).read_bytes())
    except OSError as error:
        raise GoldenRefused(f"the golden cases cannot be read: {error}") from None
    except GoldenRefused as error:
        raise GoldenRefused(f"golden cases of the model's {FILE}: {error}") from None
    if len(cases) != count:
        raise GoldenRefused(f"{FILE} has {len(cases)} golden cases, and {count} were registered")
    return cases


def _case(line: bytes, at: int, number: int) -> Case:
    try:
        told = handlers.decode(Payload(line, handlers.JSON))
    except HandlerError as error:
        why = str(error).removeprefix("the body ").replace("line 1, ", "")
        raise GoldenRefused(f"line {at} {why}") from None
    try:
        return _made(told, number)
    except HandlerError as error:
        raise GoldenRefused(f"line {at}: {error}") from None


def _made(told: object, number: int) -> Case:
    if not isinstance(told, dict):
        raise GoldenRefused(f"an object with `input` and `expected` is needed, not {_shown(told)}")
    for key in ("input", "expected"):
        if key not in told:
            raise GoldenRefused(f"there is no {key!r}")
    if unknown := [key for key in told if key not in _KEYS]:
        raise GoldenRefused(f"{unknown[0]!r} is not known: it has {', '.join(_KEYS)}")
    _check_numbers(told["expected"], "$", MOST_DEPTH)
    return Case(number, _input(told), told["expected"], _tolerance(told.get("tolerance")))


def _check_numbers(value: object, path: str, depth: int) -> None:
    if not depth:
        raise GoldenRefused(f"expected is nested more than {MOST_DEPTH} deep")
    if isinstance(value, int | float) and not _is_finite(value):
        raise GoldenRefused(f"expected: {path} is no number that can be compared: too large")
    for key, member in _members(value):
        _check_numbers(member, path + key, depth - 1)


def _is_finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:
        return False


def _members(value: object) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        yield from ((_step(key), member) for key, member in value.items())
    elif isinstance(value, list):
        yield from ((f"[{at}]", member) for at, member in enumerate(value))


def _input(told: Mapping[str, Any]) -> Payload:
    media_type = told.get("media_type", handlers.JSON)
    if not isinstance(media_type, str) or not 1 <= len(media_type) <= 128:
        raise GoldenRefused(f"media_type is {_shown(media_type)}: write it like `image/png`")
    if handlers.is_json(media_type):
        return Payload(handlers.encode_json(told["input"]), media_type)
    try:
        return Payload(base64.b64decode(told["input"], validate=True), media_type)
    except (TypeError, ValueError, binascii.Error):
        raise GoldenRefused(f"input of {media_type} has to be its bytes in base64") from None


def _tolerance(told: object) -> Tolerance | None:
    if told is None:
        return None
    if not isinstance(told, dict):
        return Tolerance(_limit(told))
    if unknown := [key for key in told if key not in ("absolute", "relative")]:
        raise GoldenRefused(f"tolerance has no {unknown[0]!r}: it has absolute and relative")
    return Tolerance(_limit(told.get("absolute", 0)), _limit(told.get("relative", 0)))


def _limit(told: object) -> float:
    if isinstance(told, bool) or not isinstance(told, int | float):
        raise GoldenRefused(
            f"tolerance is {_shown(told)}: a number, or absolute and relative, is needed"
        )
    if not _is_finite(told) or told < 0:
        raise GoldenRefused(f"tolerance is {_shown(told)}: it has to be finite and not below 0")
    return float(told)


# -- writing --------------------------------------------------------------------------------------


def content_of(golden: object) -> bytes:
    """What is kept of cases that are given: a file (a path) as it is, or an iterable of objects
    with `input`, `expected` and perhaps `tolerance`, as lines. An input of bytes may have a
    `media_type`. Raises GoldenRefused, which names the file and the line.
    """
    where = f"{golden}: " if isinstance(golden, os.PathLike) else ""
    try:
        data = _given(golden)
        parse(data)
    except GoldenRefused as error:
        raise GoldenRefused(f"golden cases: {where}{error}") from None
    return data


def _given(golden: object) -> bytes:
    if isinstance(golden, os.PathLike):
        try:
            with open(golden, "rb") as file:
                return file.read(MOST_BYTES + 1)
        except OSError as error:
            raise GoldenRefused(f"it cannot be read: {error.strerror}") from None
    if isinstance(golden, str | bytes | Mapping) or not isinstance(golden, Iterable):
        raise GoldenRefused("a path or a list of objects with `input` and `expected` is needed")
    return b"".join(_line(each, number) for number, each in enumerate(golden, 1))


def _line(told: object, number: int) -> bytes:
    if isinstance(told, Mapping) and isinstance(told.get("input"), bytes):
        text = base64.b64encode(told["input"]).decode()
        told = {"media_type": handlers.BYTES, **told, "input": text}
    try:
        return handlers.encode_json(told) + b"\n"
    except HandlerError as error:
        raise GoldenRefused(f"line {number}: {error}") from None


def refuse_another(model: Path, content: bytes) -> None:
    """Raise GoldenRefused where a model's directory has another file at the place of its cases."""
    own = model / FILE
    if not content or not own.is_file():
        return
    # It may be of any size.
    if own.stat().st_size != len(content) or own.read_bytes() != content:
        raise GoldenRefused(f"the model has another {FILE} of its own: give {own}, or rename it")


# -- comparing ------------------------------------------------------------------------------------


def check(handler: Handler, cases: tuple[Case, ...]) -> None:
    """Have all cases answered, each alone, and together where `predict_batch` does that.

    Raises GoldenRefused, which names the first case that is not answered as expected.
    """
    for case in cases:
        compare(case, _answered(handler, case))
    if cases and handler.predict_batch is not None:
        for case, answer in zip(cases, _together(handler, cases), strict=True):
            compare(case, answer)


def _answered(handler: Handler, case: Case) -> Payload:
    try:
        return handlers.encode(handler.predict(handlers.decode(case.input)))
    except HandlerError as error:
        raise GoldenRefused(f"golden case {case.number} was not answered: {error}") from error
    except (Exception, SystemExit) as error:
        line = handlers.last_line(error)
        raise GoldenRefused(f"golden case {case.number} was not answered: {line}") from error


def _together(handler: Handler, cases: tuple[Case, ...]) -> list[Payload]:
    try:
        answers = handler.together([handlers.decode(case.input) for case in cases])
        return [handlers.encode(answer) for answer in answers]
    except HandlerError as error:
        raise GoldenRefused(f"golden cases were not answered together: {error}") from error
    except (Exception, SystemExit) as error:
        line = handlers.last_line(error)
        raise GoldenRefused(f"golden cases were not answered together: {line}") from error


def compare(case: Case, answer: Payload) -> None:
    """Raise GoldenRefused, which names case, place in the answer, what was expected and what came,
    unless an answer is the expected one."""
    if wrong := _difference(case.expected, _value(case, answer), "$", case.tolerance):
        raise GoldenRefused(f"golden case {case.number} is answered wrongly: {wrong}")


def _value(case: Case, answer: Payload) -> Any:
    try:
        if handlers.is_json(answer.media_type):
            return handlers.decode(answer)
        if answer.media_type.startswith("text/"):
            return str(answer.data, "utf-8")
    except (HandlerError, UnicodeDecodeError) as error:
        raise GoldenRefused(f"golden case {case.number}: the answer: {error}") from None
    raise GoldenRefused(
        f"golden case {case.number} is answered with {answer.media_type}: only JSON and text can "
        "be compared"
    )


def _difference(expected: Any, found: Any, path: str, tolerance: Tolerance | None) -> str:
    """The first place that differs, in words; empty when none does."""
    if isinstance(expected, dict) and isinstance(found, dict):
        for key in expected:
            if key not in found:
                return f"{path}{_step(key)} is not there, expected {_shown(expected[key])}"
        pairs = [(_step(key), each, found[key]) for key, each in expected.items()]
    elif isinstance(expected, list) and isinstance(found, list):
        if len(expected) != len(found):
            return f"{path} has {len(found)} members, expected {len(expected)}"
        both = enumerate(zip(expected, found, strict=True))
        pairs = [(f"[{at}]", each, other) for at, (each, other) in both]
    else:
        return _differs(expected, found, path, tolerance)
    steps = (_difference(each, other, path + at, tolerance) for at, each, other in pairs)
    return next(filter(None, steps), "")


def _differs(expected: Any, found: Any, path: str, tolerance: Tolerance | None) -> str:
    within = ""
    if _is_number(expected) and _is_number(found):
        whole = isinstance(expected, int) and isinstance(found, int)
        limit = tolerance or (Tolerance() if whole else ROUNDING)
        if limit.allows(expected, found):
            return ""
        within = f" within {limit}" if str(limit) else ""
    elif type(expected) is type(found) and expected == found:
        return ""
    return f"{path} is {_shown(found)}, expected {_shown(expected)}{within}"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _step(key: str) -> str:
    """How a key stands in a path."""
    return f".{key}" if key.isidentifier() else f"[{_shown(key)}]"


def _shown(value: object) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        text = type(value).__name__
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
