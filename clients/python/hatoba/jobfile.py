"""Job files: YAML or JSON documents, one job each, read by the types of the contract's fields.

Because the field's type decides, `python: 3.10` is the text 3.10 and `name: on` the text on. Every
error has its line and column, and so do the fields that a server refuses later.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml

from hatoba.errors import HatobaError, InvalidRequest, InvalidSpec
from hatoba.options import Parcel, default_interpreter, name_for, read_requirements
from hatoba.plain import enum_prefix
from hatoba.units import NUMBER, parse_duration, parse_memory, parse_time
from hatoba.v1 import job_pb2

if TYPE_CHECKING:
    from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
    from google.protobuf.message import Message

T = TypeVar("T")

MAX_FILE_BYTES = 4 * 1024 * 1024
MAX_DEPTH = 64
# Aliases may name a node many times over; what they unfold to is bounded.
MAX_NODES = 20_000
MAX_PROBLEMS = 20
INTEGER = re.compile(r"^[+-]?[0-9]+$")
SERVERS_KEY = re.compile(r"\['(.*?)'\]")
PREFIX = re.compile(r"^(?:items\[\d+\]\.)?(?:spec\.?)?")
NULLS = {"", "~", "null", "Null", "NULL"}
BOOLEAN_TAG = "tag:yaml.org,2002:bool"
MAP_TAG = "tag:yaml.org,2002:map"
LIST_TAG = "tag:yaml.org,2002:seq"
TAGS = "tag:yaml.org,2002:"
SCALAR_TAGS = {
    TAGS + kind for kind in ("str", "int", "float", "bool", "null", "timestamp", "value")
}
KNOWN_TAGS = {*SCALAR_TAGS, MAP_TAG, LIST_TAG}
Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True, order=True)
class Place:
    """A place in a file, from 1."""

    line: int
    column: int

    @classmethod
    def of(cls, mark: Any) -> Place:
        """The place of a mark of the YAML parser, which counts from 0."""
        return cls(mark.line + 1, mark.column + 1)


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: where, in which field, and what."""

    place: Place
    path: str
    message: str


class JobFileError(InvalidSpec):
    """A job file that cannot be understood; `problems` has every place."""

    def __init__(self, source: str, problems: list[Problem]) -> None:
        self.problems = problems[:MAX_PROBLEMS]
        super().__init__("\n".join(_problem_line(source, problem) for problem in self.problems))


@dataclass
class JobDocument:
    """One job of a file, and where each of its fields stands in it."""

    source: str
    parcel: Parcel
    places: dict[str, Place] = field(default_factory=dict)

    def explain(self, error: HatobaError) -> HatobaError:
        """A server's refusal with line and column of the fields that it names."""
        if not isinstance(error, InvalidRequest) or not error.violations:
            return error
        problems = [
            Problem(self._place(_own_path(found.field)), found.field, found.description)
            for found in error.violations
        ]
        return JobFileError(self.source, problems)

    def _place(self, path: str) -> Place:
        while path and path not in self.places:
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        return self.places.get(path, Place(1, 1))


def read_job_file(path: Path) -> list[JobDocument]:
    """The jobs of a file; raises JobFileError, or InvalidSpec when it cannot be read."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise InvalidSpec(
                f"{path} is over {MAX_FILE_BYTES} bytes", remedy="split it into several files"
            )
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InvalidSpec(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InvalidSpec(f"{path} is not text in UTF-8: byte {error.start} is wrong") from None
    return read_jobs(text, source=str(path), directory=path.parent)


def read_jobs(text: str, *, source: str, directory: Path) -> list[JobDocument]:
    """The jobs of a text; directories in it are relative to `directory`. Raises JobFileError."""
    if text.lstrip()[:1] in {"{", "["}:
        # JSON may indent with tabs, YAML may not; inside JSON's strings there are none.
        text = text.replace("\t", " ")
    documents = [_read_document(node, source, directory) for node in _compose(text, source)]
    if not documents:
        raise JobFileError(source, [Problem(Place(1, 1), "", "there is no job in it")])
    return documents


def read_overrides(said: Sequence[str], base: job_pb2.JobSpec) -> tuple[job_pb2.JobSpec, list[str]]:
    """`resources.memory=8Gi` and the like over a job's specification: it, changed, and the names of
    the top-level fields that were.

    Raises JobFileError, with what was said as its source.
    """
    spec = job_pb2.JobSpec()
    spec.CopyFrom(base)
    fields: dict[str, None] = {}
    for text in said:
        path, equals, value = text.partition("=")
        parts = path.split(".")
        if not equals or not all(parts):
            problem = Problem(Place(1, 1), "", "write FIELD=VALUE, for example queue=night")
            raise JobFileError(text, [problem])
        (node, *_) = [*_compose(value, text), _empty()]
        _clear(spec, parts)
        for part in reversed(parts):
            mark = node.start_mark
            key = yaml.ScalarNode(TAGS + "str", part, mark, mark)
            node = yaml.MappingNode(MAP_TAG, [(key, node)], mark, mark)
        reader = _Reader(Path())
        reader.message(node, spec, "")
        if reader.problems:
            raise JobFileError(text, reader.problems)
        fields[parts[0]] = None
    return spec, list(fields)


def _empty() -> Any:
    """What is said by `FIELD=`: an empty text."""
    (node,) = yaml.compose_all("''", Loader=Loader)
    return node


def _clear(spec: job_pb2.JobSpec, parts: Sequence[str]) -> None:
    """A list or mapping that is said anew replaces what was there."""
    target: Message = spec
    for part in parts[:-1]:
        found = target.DESCRIPTOR.fields_by_name.get(part)
        if found is None or found.message_type is None or found.is_repeated:
            return
        target = getattr(target, part)
    if parts[-1] in target.DESCRIPTOR.fields_by_name:
        target.ClearField(parts[-1])


def _compose(text: str, source: str) -> Iterator[yaml.Node]:
    """The documents as nodes; empty ones are passed over."""
    try:
        _check_depth(text)
        for node in yaml.compose_all(text, Loader=Loader):
            if not _is_null(node):
                yield node
    except yaml.MarkedYAMLError as error:
        raise JobFileError(source, [_syntax_problem(text, error)]) from None
    except _TooDeep as error:
        reason = f"it is nested more than {MAX_DEPTH} deep"
        raise JobFileError(source, [Problem(error.place, "", reason)]) from None
    except yaml.YAMLError as error:
        reason = f"not YAML: {str(error).splitlines()[0]}"
        raise JobFileError(source, [Problem(Place(1, 1), "", reason)]) from None


class _TooDeep(Exception):
    """Collections in collections in collections."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        self.place = place


def _check_depth(text: str) -> None:
    """Refuse what is nested too deeply before it is composed: libyaml's composer ends the
    process.
    """
    depth = 0
    for event in yaml.parse(text, Loader=Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            raise _TooDeep(Place.of(event.start_mark))


def _syntax_problem(text: str, error: yaml.MarkedYAMLError) -> Problem:
    mark = error.problem_mark or error.context_mark
    place = Place.of(mark) if mark is not None else Place(1, 1)
    lines = text.splitlines()
    line = lines[place.line - 1] if place.line <= len(lines) else ""
    indentation = line[: len(line) - len(line.lstrip())]
    if "\t" in indentation:
        tab = Place(place.line, indentation.index("\t") + 1)
        return Problem(tab, "", "there is a tab: indent with spaces")
    return Problem(place, "", f"not YAML: {error.problem or error.context}")


def _read_document(node: yaml.Node, source: str, directory: Path) -> JobDocument:
    reader = _Reader(directory)
    spec = job_pb2.JobSpec()
    reader.message(node, spec, "")
    if not spec.command and not reader.problems:
        how = "is empty" if "command" in reader.places else "is missing"
        reader.problem(node, "command", f"{how}: a job names the program to run")
    inputs = reader.named_inputs(node, spec)
    if reader.problems:
        raise JobFileError(source, sorted(reader.problems, key=lambda problem: problem.place))
    spec.name = spec.name or name_for(spec.command)
    default_interpreter(spec)
    return JobDocument(source, Parcel(spec, reader.code, inputs), reader.places)


class _Reader:
    """Reads nodes into messages, gathering every problem."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.problems: list[Problem] = []
        self.places: dict[str, Place] = {}
        self.code: Path | None = None
        self.input_paths: dict[str, Path] = {}
        self._nodes = 0
        self._depth = 0

    def problem(self, node: yaml.Node, path: str, message: str) -> None:
        """Note what is wrong at a node."""
        self.problems.append(Problem(Place.of(node.start_mark), path, message))

    def named_inputs(self, node: yaml.Node, spec: job_pb2.JobSpec) -> dict[str, Path]:
        """The directories to pack, by the names of the inputs that they are given for."""
        found: dict[str, Path] = {}
        for position, entry in enumerate(spec.inputs):
            directory = self.input_paths.get(f"inputs[{position}].path")
            if not entry.name:
                self.problem(node, f"inputs[{position}]", "has no name")
            elif directory is not None:
                found[entry.name] = directory
        return found

    def message(self, node: yaml.Node, target: Message, path: str) -> None:
        """Read a mapping into a message."""
        kind = target.DESCRIPTOR
        known = dict[str, Any](kind.fields_by_name)
        extra = EXTRA_KEYS.get(kind.name, {})
        taken: dict[str, str] = {}
        for key, value in self._entries(node, path or "a job"):
            name = extra[key.value].field if key.value in extra else key.value
            if name not in known:
                self._unknown(key, path, [*known, *extra])
            elif name in taken:
                self.problem(
                    key, _join(path, key.value), f"says the same as {taken[name]!r} before it"
                )
            else:
                taken[name] = key.value
                self._member(key.value, value, target, known[name], _join(path, key.value))

    def _member(
        self, key: str, node: yaml.Node, target: Message, found: FieldDescriptor, path: str
    ) -> None:
        self.places[path] = Place.of(node.start_mark)
        extra = EXTRA_KEYS.get(target.DESCRIPTOR.name, {}).get(key)
        if extra is not None and (extra.field != key or isinstance(node, yaml.ScalarNode)):
            extra.read(self, node, target, path)
        elif found.message_type is not None and found.message_type.GetOptions().map_entry:
            self._map(node, target, found, path)
        elif found.is_repeated:
            self._list(node, target, found, path)
        else:
            self._single(node, target, found, path)

    def _entries(self, node: yaml.Node, what: str) -> Iterator[tuple[yaml.ScalarNode, yaml.Node]]:
        """Keys and values of a mapping; what is no mapping, and doubled keys, are problems."""
        if not isinstance(node, yaml.MappingNode) or node.tag != MAP_TAG:
            self.problem(node, "", f"{what} is a mapping of names to values, not {_kind(node)}")
            return
        first: dict[str, Place] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self.problem(key, "", f"a key is a name, not {_kind(key)}")
            elif key.value in first:
                again = (
                    f"the key {key.value!r} is there twice, first on line {first[key.value].line}"
                )
                self.problem(key, "", again)
            else:
                first[key.value] = Place.of(key.start_mark)
                if self._within(value):
                    yield key, value

    def _within(self, node: yaml.Node) -> bool:
        """Whether the file is still within its bounds."""
        self._nodes += 1
        if self._nodes == MAX_NODES:
            self.problem(node, "", f"it unfolds to more than {MAX_NODES} values")
        return self._nodes < MAX_NODES

    def _unknown(self, key: yaml.ScalarNode, path: str, known: list[str]) -> None:
        if key.value == "<<":
            self.problem(key, path, "merge keys (<<) are not read: write the values out")
            return
        near = difflib.get_close_matches(key.value, known, n=1)
        hint = (
            f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(sorted(set(known)))}"
        )
        self.problem(key, path, f"there is no {key.value!r} here; {hint}")

    def _map(self, node: yaml.Node, target: Message, found: FieldDescriptor, path: str) -> None:
        assert found.message_type is not None
        inner = found.message_type.fields_by_name["value"]
        values = getattr(target, found.name)
        for key, value in self._entries(node, path):
            own = f'{path}["{key.value}"]'
            self.places[own] = Place.of(value.start_mark)
            if inner.message_type is not None:
                self._value(value, values[key.value], own)
            elif (read := self._read(value, inner, own)) is not None:
                values[key.value] = read

    def _list(self, node: yaml.Node, target: Message, found: FieldDescriptor, path: str) -> None:
        if not isinstance(node, yaml.SequenceNode) or node.tag != LIST_TAG:
            hint = f": write [{', '.join(node.value.split())}]" if _is_text(node) else ""
            self.problem(node, path, f"is a list, not {_kind(node)}{hint}")
            return
        values = getattr(target, found.name)
        for position, item in enumerate(node.value):
            own = f"{path}[{position}]"
            self.places[own] = Place.of(item.start_mark)
            if not self._within(item):
                return
            if found.message_type is not None:
                self.message(item, values.add(), own)
            elif (read := self._read(item, found, own)) is not None:
                values.append(read)

    def _single(self, node: yaml.Node, target: Message, found: FieldDescriptor, path: str) -> None:
        kind = found.message_type
        if kind is None:
            self._scalar(node, target, found, path)
        elif kind.full_name == "google.protobuf.Duration":
            seconds = self._parsed(node, path, parse_duration)
            if seconds is not None:
                getattr(target, found.name).FromTimedelta(timedelta(seconds=seconds))
        elif kind.full_name == "google.protobuf.Timestamp":
            time = self._parsed(node, path, parse_time)
            if time is not None:
                getattr(target, found.name).FromDatetime(time)
        elif kind.full_name == "google.protobuf.Struct":
            self._struct(node, getattr(target, found.name), path)
        else:
            getattr(target, found.name).SetInParent()
            self.message(node, getattr(target, found.name), path)

    def _scalar(self, node: yaml.Node, target: Message, found: FieldDescriptor, path: str) -> None:
        value = self._read(node, found, path)
        if value is not None:
            setattr(target, found.name, value)

    def _read(self, node: yaml.Node, found: FieldDescriptor, path: str) -> Any:
        """What a scalar says, by its field's type; None, with the problem noted, when it cannot."""
        parse = _one_of(found.enum_type) if found.enum_type else SCALARS[found.cpp_type]
        return self._parsed(node, path, parse)

    def _text(self, node: yaml.Node, path: str) -> str | None:
        """What a scalar says, as it is written; None, with the problem noted, for anything else."""
        if not isinstance(node, yaml.ScalarNode) or node.tag not in SCALAR_TAGS:
            self.problem(node, path, f"is one value, not {_kind(node)}")
            return None
        if _is_null(node):
            self.problem(
                node, path, "has no value: leave the line out, or write '' for an empty text"
            )
            return None
        return str(node.value)

    def _parsed(self, node: yaml.Node, path: str, parse: Callable[[str], T]) -> T | None:
        text = self._text(node, path)
        if text is None:
            return None
        try:
            return parse(text)
        except ValueError as error:
            self.problem(node, path, str(error))
            return None

    def _value(self, node: yaml.Node, target: Any, path: str) -> None:
        """Read a parameter, which is a number, a text or a boolean."""
        found = self._plain(node, path) if isinstance(node, yaml.ScalarNode) else node
        if isinstance(found, bool):
            target.bool_value = found
        elif isinstance(found, int | float):
            target.number_value = found
        elif isinstance(found, str):
            target.string_value = found
        else:
            self.problem(node, path, f"is a number, a text or a boolean, not {_kind(node)}")

    def _struct(self, node: yaml.Node, target: Any, path: str) -> None:
        found = self._plain(node, path)
        if isinstance(found, dict):
            target.update(found)
        else:
            self.problem(node, path, f"is a mapping of names to values, not {_kind(node)}")

    def _plain(self, node: yaml.Node, path: str) -> Any:
        """A node as plain data, typed as YAML 1.2 does."""
        if isinstance(node, yaml.ScalarNode):
            return self._plain_scalar(node, path)
        if self._depth >= MAX_DEPTH or not self._within(node):
            self.problem(node, path, f"is nested more than {MAX_DEPTH} deep")
            return None
        self._depth += 1
        try:
            if isinstance(node, yaml.SequenceNode):
                return [self._plain(item, f"{path}[{n}]") for n, item in enumerate(node.value)]
            return {
                k.value: self._plain(v, _join(path, k.value)) for k, v in self._entries(node, path)
            }
        finally:
            self._depth -= 1

    def _plain_scalar(self, node: yaml.ScalarNode, path: str) -> float | bool | str | None:
        text = node.value
        if node.style in {"'", '"', "|", ">"}:
            return str(text)
        if text in NULLS:
            return None
        if node.tag == BOOLEAN_TAG and text.lower() not in {"true", "false"}:
            self.problem(node, path, f"{text!r} may mean two things: write true, false or '{text}'")
            return str(text)
        if text.lower() in {"true", "false"}:
            return bool(text.lower() == "true")
        return _number_or_text(text)


@dataclass(frozen=True)
class _Extra:
    """A key that people may write where the contract has another one, or another type."""

    field: str
    read: Callable[[_Reader, yaml.Node, Any, str], None]


def _read_memory(reader: _Reader, node: yaml.Node, target: Any, path: str) -> None:
    amount = reader._parsed(node, path, parse_memory)
    if amount is not None and amount < 2**63:
        target.memory_bytes = int(amount)


def _read_most_memory(reader: _Reader, node: yaml.Node, target: Any, path: str) -> None:
    amount = reader._parsed(node, path, parse_memory)
    if amount is not None and amount < 2**63:
        target.memory_max_bytes = int(amount)


def _read_code(reader: _Reader, node: yaml.Node, target: Any, path: str) -> None:
    text = reader._text(node, path)
    if text is not None:
        reader.code = reader.directory / text


def _read_input_path(reader: _Reader, node: yaml.Node, target: Any, path: str) -> None:
    text = reader._text(node, path)
    if text is not None:
        # Its name may stand on a later line.
        reader.input_paths[path] = reader.directory / text


def _read_requirements_file(reader: _Reader, node: yaml.Node, target: Any, path: str) -> None:
    text = reader._text(node, path)
    if text is None:
        return
    try:
        target.requirements = read_requirements(reader.directory / text)
    except InvalidSpec as error:
        reader.problem(node, path, error.message)


EXTRA_KEYS: Mapping[str, Mapping[str, _Extra]] = {
    "Resources": {
        "memory": _Extra("memory_bytes", _read_memory),
        "memory_bytes": _Extra("memory_bytes", _read_memory),
    },
    "RetryMutation": {
        "memory_max": _Extra("memory_max_bytes", _read_most_memory),
        "memory_max_bytes": _Extra("memory_max_bytes", _read_most_memory),
    },
    "JobSpec": {"code": _Extra("code", _read_code)},
    "Input": {"path": _Extra("manifest", _read_input_path)},
    "Environment": {"requirements_file": _Extra("requirements", _read_requirements_file)},
}


def _integer(low: int, high: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not INTEGER.match(text):
            raise ValueError(f"{text!r} is not a whole number")
        if not low <= int(text) <= high:
            raise ValueError(f"{text} is not between {low} and {high}")
        return int(text)

    return read


def _float(text: str) -> float:
    if not NUMBER.match(text) or not math.isfinite(float(text)):
        raise ValueError(f"{text!r} is not a finite number")
    return float(text)


def _boolean(text: str) -> bool:
    if text not in {"true", "false"}:
        raise ValueError(f"{text!r} is neither true nor false")
    return text == "true"


def _one_of(kind: EnumDescriptor) -> Callable[[str], int]:
    """Reads a value of an enum, with or without its prefix, in any case."""
    prefix = enum_prefix(kind)
    known = {value.name.removeprefix(prefix): value.number for value in kind.values[1:]}

    def read(text: str) -> int:
        word = text.upper().removeprefix(prefix)
        if word not in known:
            raise ValueError(f"{text!r} is none of {', '.join(known)}")
        return known[word]

    return read


# By FieldDescriptor.CPPTYPE_*: int32, int64, double, bool, string.
SCALARS: dict[int, Callable[[str], Any]] = {
    1: _integer(-(2**31), 2**31 - 1),
    2: _integer(-(2**63), 2**63 - 1),
    5: _float,
    7: _boolean,
    9: str,
}


def _number_or_text(text: str) -> float | str:
    if not NUMBER.match(text) or not math.isfinite(float(text)):
        return text
    return int(text) if INTEGER.match(text) else float(text)


def _own_path(path: str) -> str:
    """A server's path as it is written here: without `spec.`, keys in double quotes."""
    return SERVERS_KEY.sub(r'["\1"]', PREFIX.sub("", path))


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and not node.style and node.value in NULLS


def _is_text(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and not _is_null(node)


def _kind(node: yaml.Node) -> str:
    if node.tag not in KNOWN_TAGS:
        return f"something tagged {node.tag}"
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    return "nothing" if _is_null(node) else f"{node.value[:40]!r}"


def _problem_line(source: str, problem: Problem) -> str:
    about = f"{problem.path}: " if problem.path else ""
    return f"{source}:{problem.place.line}:{problem.place.column}: {about}{problem.message}"
