"""Checks messages against the rules in the contract, and words what is wrong for people.

The rules are compiled once per message type and kept; `warm` does that before the first call.
A check of a typical submit costs about 12 microseconds.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import protovalidate
from google.protobuf.message import Message

from hatoba_scheduler.errors import FieldViolation, InvalidArgument, shown

_validator = protovalidate.Validator()

# What people read instead of a regular expression: (what must hold, what to do).
PATTERN_WORDS: dict[str, tuple[str, str]] = {
    "^[a-z0-9]([a-z0-9-]{0,46}[a-z0-9])?$": (
        "must be 1 to 48 lower-case letters, digits and dashes, with no dash at either end",
        "choose a name such as `digits-2`",
    ),
    "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$": (
        "must be 1 to 63 lower-case letters, digits and dashes, with no dash at either end",
        "choose a name such as `node-7`",
    ),
    "^[a-z]([a-z0-9._-]{0,46}[a-z0-9])?$": (
        "must be 1 to 48 lower-case letters, digits, `.`, `_` or `-`, beginning with a letter",
        "choose a name such as `license`",
    ),
    "^[A-Za-z0-9][A-Za-z0-9._@-]{0,127}$": (
        "must be 1 to 128 letters, digits, `.`, `_`, `@` or `-`, beginning with a letter or digit",
        "choose a name such as `ann@lab`",
    ),
    "^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$": (
        "must be 1 to 128 letters, digits, `.`, `_` or `-`, beginning with a letter or digit",
        "choose a name such as `train.v2`",
    ),
    "^[A-Za-z_][A-Za-z0-9_]{0,127}$": (
        "must be an environment variable's name: letters, digits and `_`, no digit first",
        "choose a name such as `DATA_DIR`",
    ),
    "^[A-Za-z_][A-Za-z0-9_.-]{0,127}$": (
        "must be 1 to 128 letters, digits, `_`, `.` or `-`, beginning with a letter or `_`",
        "choose a name such as `lr` or `optimizer.lr`",
    ),
    "^[a-zA-Z0-9]([a-zA-Z0-9._/-]{0,61}[a-zA-Z0-9])?$": (
        "must be 1 to 63 letters, digits, `.`, `_`, `/` or `-`, with a letter or digit at each end",
        "choose a key such as `team` or `lab.org/team`",
    ),
    "^[^=\\s]{1,63}=.{0,256}$": (
        "must be KEY=VALUE: a label of jobs and what it is",
        "write for example `team=vision`",
    ),
    "^[!-~]{1,128}$": (
        "must be 1 to 128 printable ASCII characters without spaces",
        "send a UUID",
    ),
    "^sha256:[0-9a-f]{64}$": (
        "must be `sha256:` and 64 lower-case hex digits",
        "send the digest that CreateManifest returned",
    ),
    "^([0-9a-f]{40}([0-9a-f]{24})?)?$": (
        "must be empty or a whole git commit: 40 or 64 lower-case hex digits",
        "send what `git rev-parse HEAD` prints",
    ),
    "^([A-Za-z_][A-Za-z0-9_.]*:[A-Za-z_][A-Za-z0-9_]*)?$": (
        "must be empty or MODULE:CLASS",
        "write for example `serve:Digits`",
    ),
    "^[A-Za-z0-9._+-]{1,64}$": (
        "must be letters, digits and ._+- only, at most 64",
        "send the terminal's type, for example `xterm-256color`",
    ),
    "^[a-z0-9_]{1,32}$": (
        "must be 1 to 32 lower-case letters, digits or `_`",
        "send an architecture as images name it, for example `arm64`",
    ),
    "^[a-z0-9.]{0,32}$": (
        "must be at most 32 lower-case letters, digits or `.`",
        "send a variant as images name it, for example `v7`, or none",
    ),
    "^([a-z0-9_]{1,32}(/[a-z0-9.]{1,32})?)?$": (
        "must be empty or ARCHITECTURE[/VARIANT]",
        "write for example `arm64`, `arm` or `arm/v7`",
    ),
    "^[0-9a-f]{32}$": ("must be 32 lower-case hex digits", "send a W3C trace id"),
    "^[0-9a-f]{16}$": ("must be 16 lower-case hex digits", "send a W3C span id"),
    "^([0-9a-f]{16})?$": ("must be empty or 16 lower-case hex digits", "send a W3C span id"),
}

# By the last part of the rule's id; ranges say in their description what to send.
REMEDIES: dict[str, str] = {
    "required": "set it",
    "unique": "name each once",
    "finite": "send a finite number",
    "defined_only": "use one of the values that the contract names",
    "not_in": "use another value",
    "in": "use one of these",
    "min_items": "give more",
    "max_items": "send fewer, or split the call",
    "max_pairs": "send fewer",
    "min_len": "give a value",
    "max_len": "shorten it",
    "max_bytes": "shorten it",
    "len": "send exactly that length",
}
RANGE_REMEDY = "send a value in that range"

# Fields whose values may be secrets, or are too big to help; only their size is shown.
_HIDDEN = frozenset({"env", "data", "requirements", "params", "backend_options"})


def check(message: Message) -> None:
    """Raise InvalidArgument naming every field of the message that breaks a rule."""
    found = _validator.collect_violations(message)
    if found:
        raise InvalidArgument.of([_worded(violation) for violation in found])


def violations(message: Message, prefix: str = "") -> list[FieldViolation]:
    """Every broken rule of one message; `prefix` goes before each path (`items[3].spec`)."""
    return [_worded(found, prefix) for found in _validator.collect_violations(message)]


def warm(types: Iterable[type[Message]]) -> None:
    """Compile the rules of these messages now (1 to 10 ms each) and not in their first call."""
    for message_type in types:
        _validator.collect_violations(message_type())


def _worded(violation: protovalidate.Violation, prefix: str = "") -> FieldViolation:
    proto = violation.proto
    elements = list(proto.field.elements) if proto.field is not None else []
    path = ".".join(filter(None, [prefix, *map(_element, elements)]))
    description, remedy = _words(proto.rule_id or "", proto.message or "", violation.rule_value)
    value = _value(violation, [str(element.field_name) for element in elements])
    if proto.for_key:
        path, description = f"{path} (key)", f"the key {description}"
    return FieldViolation(path, description, proto.rule_id or "", value, remedy)


def _words(rule: str, message: str, rule_value: object) -> tuple[str, str]:
    if rule.endswith(".pattern"):
        known = PATTERN_WORDS.get(str(rule_value))
        return known or (f"must match `{rule_value}`", "use only these characters")
    return message or f"breaks the rule {rule}", REMEDIES.get(rule.rsplit(".", 1)[-1], RANGE_REMEDY)


def _element(element: Any) -> str:
    subscript = element.subscript
    if subscript is None:
        return str(element.field_name)
    if subscript.field == "string_key":
        return f"{element.field_name}[{shown(subscript.value)}]"
    return f"{element.field_name}[{subscript.value}]"


def _value(violation: protovalidate.Violation, names: list[str]) -> str:
    value = violation.field_value
    if value is None or isinstance(value, Message):
        return ""
    if isinstance(value, bytes) or (_HIDDEN.intersection(names) and not violation.proto.for_key):
        return f"{len(value)} bytes" if isinstance(value, str | bytes) else ""
    if isinstance(value, str | int | float):
        return shown(value)
    return f"{len(value)} of them" if hasattr(value, "__len__") else ""
