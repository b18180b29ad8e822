"""Handlers of models: found, made, and asked. Standard library only.

A handler is a class with `__init__(self, model_dir)` and `predict(self, inputs)`, and with
`predict_batch(self, inputs)` where several inputs are answered better at once. JSON comes as what
it says and everything else as bytes; what is returned may be bytes, text, `(bytes, media type)`, or
anything that JSON can carry, arrays of numpy and its like included. The same code runs in the job
that logs a model, in the job that checks one, and in its server: what one takes, the others take.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import inspect
import json
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

JSON = "application/json"
BYTES = "application/octet-stream"
TEXT = "text/plain; charset=utf-8"
_MEDIA_TYPE = re.compile(r"[!-~][ -~]{0,127}")
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*:[A-Za-z_][A-Za-z0-9_]*")
MOST_MESSAGE = 600
MOST_PROPERTIES = 64
MOST_DEPTH = 16

_trace: ContextVar[str] = ContextVar("hatoba_trace", default="")
_loading = threading.local()


class HandlerError(Exception):
    """Something about a handler that its author can mend; `kind` is a word for programs."""

    kind: ClassVar[str] = "handler_error"

    def __init__(self, message: str) -> None:
        super().__init__(message if len(message) <= MOST_MESSAGE else message[:MOST_MESSAGE] + "…")


class HandlerNotFound(HandlerError):
    """The module cannot be imported, or has no such class."""

    kind = "handler_not_found"


class HandlerFailed(HandlerError):
    """The class cannot be made, or what it returned cannot be sent."""

    kind = "handler_failed"


class ExampleRefused(HandlerError):
    """The handler did not answer the model's own example."""

    kind = "example_refused"


class BadInput(HandlerError):
    """To be raised by a handler for an input that it does not take: whoever asked is told so (400).

    Every other exception counts as the handler's own failure (500).
    """

    kind = "bad_input"


class Payload(NamedTuple):
    """Bytes with what they are."""

    data: bytes
    media_type: str


class Predicts(Protocol):
    """What a handler offers."""

    def predict(self, inputs: Any) -> Any:
        """Answer one input."""


@dataclass(frozen=True, slots=True)
class Handler:
    """A loaded handler. `predict_batch` is None where the class has none."""

    name: str
    predict: Callable[[Any], Any]
    predict_batch: Callable[[list[Any]], Sequence[Any]] | None = None

    def together(self, inputs: list[Any]) -> list[Any]:
        """Answer several at once; raises HandlerFailed when not each of them got an answer."""
        assert self.predict_batch is not None
        results = self.predict_batch(inputs)
        try:
            found = list(results)
        except TypeError as error:
            raise HandlerFailed(f"predict_batch returned no list: {error}") from None
        if len(found) != len(inputs):
            raise HandlerFailed(
                f"predict_batch gave {len(found)} answers to {len(inputs)} inputs: return one for "
                "each"
            )
        return found


@dataclass(frozen=True, slots=True)
class Checked:
    """What a handler made of an example: the signature as proto JSON, the answer, and seconds."""

    signature: dict[str, Any]
    answer: Payload
    seconds: float


def current_trace() -> str:
    """`traceparent` of the request that `predict` answers, of a batch its first; else empty."""
    return _trace.get()


@contextmanager
def traced(traceparent: str) -> Iterator[None]:
    """Let `current_trace` say this within the block."""
    token = _trace.set(traceparent)
    try:
        yield
    finally:
        _trace.reset(token)


# -- finding and making ---------------------------------------------------------------------------


def load(name: str, code: Path, model_dir: Path) -> Handler:
    """Import `MODULE:CLASS` with `code` first on `sys.path`, where it stays, and make it.

    Raises HandlerNotFound and HandlerFailed, which name module, class, cause and remedy.
    """
    if not NAME.fullmatch(name):
        raise HandlerNotFound(
            f"handler {name!r} is not MODULE:CLASS: `serve:Digits` is class Digits of serve.py"
        )
    if getattr(_loading, "name", ""):
        raise HandlerFailed(
            f"importing the handler {_loading.name!r} ran code that loads {name!r}: put training "
            'under `if __name__ == "__main__":`, or the handler into a module of its own'
        )
    _loading.name = name
    try:
        return _made(name, _class(name, code.resolve()), model_dir.resolve())
    finally:
        _loading.name = ""


def _class(name: str, code: Path) -> type[Predicts]:
    module_name, _, class_name = name.partition(":")
    if str(code) not in sys.path:
        sys.path.insert(0, str(code))
    importlib.invalidate_caches()
    _refuse_double(module_name, code)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise HandlerNotFound(_not_found(name, code, error)) from error
    except (Exception, SystemExit) as error:
        raise HandlerNotFound(
            f"handler {name!r}: module {module_name!r} of {code} cannot be imported: "
            f"{last_line(error)}"
        ) from error
    found = getattr(module, class_name, None)
    if not isinstance(found, type):
        has = ", ".join(sorted(_classes(module))) or "none"
        raise HandlerNotFound(
            f"handler {name!r}: module {module_name!r} has no class {class_name!r}; its classes: "
            f"{has}"
        )
    return found


def _not_found(name: str, code: Path, error: ModuleNotFoundError) -> str:
    module_name = name.partition(":")[0]
    lacking = error.name or module_name
    if module_name == lacking or module_name.startswith(f"{lacking}."):
        path = module_name.replace(".", "/")
        return f"handler {name!r}: there is no module {lacking!r}: put {path}.py into {code}"
    return (
        f"handler {name!r}: module {module_name!r} needs {lacking!r}, which is not installed here: "
        f"{last_line(error)}; add it to the requirements"
    )


def _refuse_double(module_name: str, code: Path) -> None:
    """A module of that name from elsewhere would be taken without a word."""
    top = module_name.partition(".")[0]
    spec = importlib.machinery.PathFinder.find_spec(top, [str(code)])
    known = getattr(sys.modules.get(top), "__file__", None)
    if spec is None or not spec.origin or top not in sys.modules:
        return
    if known is None or Path(known).resolve() != Path(spec.origin).resolve():
        raise HandlerNotFound(
            f"module {top!r} is imported already, from {known or 'the interpreter'}, and not from "
            f"{spec.origin}: give the handler's module another name"
        )


def _classes(module: object) -> Iterable[str]:
    own = getattr(module, "__name__", "")
    for key, value in vars(module).items():
        if isinstance(value, type) and value.__module__ == own:
            yield key


def _made(name: str, found: type[Predicts], model_dir: Path) -> Handler:
    for method in ("predict", "predict_batch"):
        if inspect.iscoroutinefunction(getattr(found, method, None)):
            raise HandlerFailed(f"handler {name!r}: {method} is `async`; write a plain function")
    if not callable(getattr(found, "predict", None)):
        raise HandlerFailed(f"handler {name!r} has no method `predict(self, inputs)`")
    try:
        made = found(model_dir)  # type: ignore[call-arg]  # a protocol says nothing of it
    except (Exception, SystemExit) as error:
        raise HandlerFailed(
            f"handler {name!r} cannot be made with the model in {model_dir}: {last_line(error)}"
        ) from error
    batch = getattr(made, "predict_batch", None)
    return Handler(name, made.predict, batch if callable(batch) else None)


def last_line(error: BaseException) -> str:
    """The last line of a traceback, and where it was raised."""
    said = traceback.format_exception_only(error)[-1].strip()
    said = said if len(said) <= MOST_MESSAGE // 2 else said[: MOST_MESSAGE // 2] + "…"
    frames = [
        each for each in traceback.extract_tb(error.__traceback__) if each.filename[:1] != "<"
    ]
    if not frames or frames[-1].filename == __file__:
        return said
    return f"{said} ({Path(frames[-1].filename).name}, line {frames[-1].lineno})"


# -- in and out -----------------------------------------------------------------------------------


def is_json(media_type: str) -> bool:
    """Whether a media type is JSON's: `application/json` or `application/...+json`."""
    kind = media_type.partition(";")[0].strip().lower()
    return kind == JSON or kind.endswith("+json")


def decode(payload: Payload) -> Any:
    """What `predict` is given; raises BadInput for JSON that is not, naming the position."""
    if not is_json(payload.media_type):
        return bytes(payload.data)
    try:
        return _DECODER.decode(str(payload.data, "utf-8"))
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno} (character {error.pos})"
        raise BadInput(f"the body is not JSON: {error.msg} at {where}") from None
    except UnicodeDecodeError as error:
        raise BadInput(f"the body is not JSON: no UTF-8 at byte {error.start}") from None
    except RecursionError:
        raise BadInput("the body is nested too deeply") from None
    except ValueError as error:
        raise BadInput(f"the body is not JSON: {error}") from None


def encode(result: Any) -> Payload:
    """What is sent for what `predict` returned; raises HandlerFailed for what cannot be."""
    match result:
        case bytes() | bytearray() | memoryview():
            return Payload(bytes(result), BYTES)
        case str():
            return Payload(result.encode(errors="replace"), TEXT)
        case (bytes() as data, str() as media_type):
            if not _MEDIA_TYPE.fullmatch(media_type):
                raise HandlerFailed(f"{media_type!r} is no media type: write it like `image/png`")
            return Payload(data, media_type)
    try:
        return Payload(_ENCODER.encode(result).encode(), JSON)
    except (TypeError, ValueError, RecursionError) as error:
        raise HandlerFailed(
            f"the handler returned {type(result).__name__}, which JSON cannot carry: {error}; "
            "return numbers, text, lists, dicts, arrays, or bytes"
        ) from None


def encode_json(value: Any) -> bytes:
    """Any value as JSON, arrays of numpy and its like included; raises ExampleRefused."""
    try:
        return _ENCODER.encode(value).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ExampleRefused(f"JSON cannot carry {type(value).__name__}: {error}") from None


def payload_of(example: Any) -> Payload:
    """An example as it would come over the wire: bytes, `(bytes, media type)`, or JSON.

    Raises ExampleRefused for what JSON cannot carry.
    """
    if isinstance(example, str):
        return Payload(json.dumps(example).encode(), JSON)
    try:
        return encode(example)
    except HandlerFailed as error:
        raise ExampleRefused(f"the example cannot be sent to a server: {error}") from None


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _listed(value: Any) -> Any:
    """Arrays and scalars of numpy, torch, pandas and others, known by what they can do."""
    tolist = getattr(value, "tolist", None)
    if not callable(tolist):
        raise TypeError(f"there is a {type(value).__name__} in it")
    return tolist()


_DECODER = json.JSONDecoder(parse_constant=_no_number)
_ENCODER = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_listed
)


# -- the example ----------------------------------------------------------------------------------


def check(handler: Handler, example: Payload) -> Checked:
    """Have the example answered, by `predict_batch` too; raises ExampleRefused."""
    began = time.perf_counter()
    try:
        inputs = decode(example)
        answer = encode(handler.predict(inputs))
        seconds = time.perf_counter() - began
        if handler.predict_batch is not None:
            encode(handler.together([decode(example)])[0])
    except HandlerError as error:
        raise ExampleRefused(f"handler {handler.name!r} on its example: {error}") from error
    except (Exception, SystemExit) as error:
        raise ExampleRefused(
            f"handler {handler.name!r} did not answer its example: {last_line(error)}"
        ) from error
    return Checked(_signature(example, answer), answer, seconds)


def _signature(example: Payload, answer: Payload) -> dict[str, Any]:
    found: dict[str, Any] = {"input_type": example.media_type, "output_type": answer.media_type}
    for key, payload in (("input", example), ("output", answer)):
        if is_json(payload.media_type):
            found[key] = schema(decode(payload))
    return found


def schema(value: Any, depth: int = MOST_DEPTH) -> dict[str, Any]:
    """A small JSON schema of what was seen; `shape` is that of regular nested lists."""
    if isinstance(value, list):
        return _list_schema(value, depth)
    if isinstance(value, dict):
        return _object_schema(value, depth)
    return {"type": _TYPES[type(value)]}


_TYPES: Mapping[type, str] = {
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "string",
    type(None): "null",
}


def _object_schema(value: dict[str, Any], depth: int) -> dict[str, Any]:
    if depth == 0 or len(value) > MOST_PROPERTIES:
        return {"type": "object"}
    properties = {key: schema(each, depth - 1) for key, each in value.items()}
    return {"type": "object", "properties": properties, "required": sorted(value)}


def _list_schema(value: list[Any], depth: int) -> dict[str, Any]:
    found: dict[str, Any] = {"type": "array"}
    shape = _shape(value)
    if len(shape) > 1:
        found["shape"] = shape
    if value and depth:
        found["items"] = _merged([schema(each, depth - 1) for each in value])
    found["minItems"] = found["maxItems"] = len(value)
    return found


def _merged(schemas: list[dict[str, Any]]) -> dict[str, Any]:
    """One schema for all members: the same one, a number, or any of their types."""
    if all(each == schemas[0] for each in schemas):
        return {key: each for key, each in schemas[0].items() if key != "shape"}
    types = sorted({each["type"] for each in schemas})
    if types == ["integer", "number"]:
        return {"type": "number"}
    return {"type": types[0] if len(types) == 1 else types}


def _shape(value: Any) -> list[int]:
    if not isinstance(value, list):
        return []
    inner = [_shape(each) for each in value]
    if inner and all(each == inner[0] for each in inner):
        return [len(value), *inner[0]]
    return [len(value)]
