"""Checks that every backend needs: what a specification asks for against what an instance can."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

from google.protobuf import struct_pb2

from hatoba.v1 import job_pb2
from hatoba_plugins.errors import Unsupported
from hatoba_plugins.values import Capabilities, GroupKind, LaunchGroup, Problem


class _Ability(NamedTuple):
    """A field that asks for an optional ability."""

    field: str
    capability: str
    asked: Callable[[job_pb2.JobSpec], bool]
    remedy: str


_ABILITIES = (
    _Ability("resources.gpus", "gpus", lambda s: s.resources.gpus > 0, "ask for no GPUs"),
    _Ability(
        "resources.memory_bytes",
        "memory_limit",
        lambda s: s.resources.memory_bytes > 0,
        "leave the memory limit out",
    ),
    _Ability("environment.image", "images", lambda s: bool(s.environment.image), "use no image"),
    _Ability(
        "environment.requirements",
        "requirements",
        lambda s: bool(s.environment.requirements),
        "use no requirements",
    ),
    _Ability(
        "environment.caller_interpreter",
        "caller_interpreter",
        lambda s: bool(s.environment.caller_interpreter),
        "name an interpreter or requirements instead",
    ),
    _Ability("secrets", "secrets", lambda s: bool(s.secrets), "use no secrets"),
    _Ability("code", "inputs", lambda s: s.HasField("code"), "send no working directory"),
    _Ability("inputs", "inputs", lambda s: bool(s.inputs), "use no inputs"),
    _Ability("replicas", "gangs", lambda s: s.replicas > 1, "use one replica, or an array"),
)


def lacking(spec: job_pb2.JobSpec, capabilities: Capabilities, image: str = "") -> list[Problem]:
    """One problem for each thing that is asked for and that the instance has not.

    With the `image` of jobs that name none nobody has to have the caller's interpreter: clients
    name it wherever nothing else is asked for.
    """
    if image and not spec.environment.image:
        spec = _in_image(spec, image)
    return [
        Problem(
            ability.field,
            f"this backend has no {ability.capability}; {ability.remedy}, or use another backend",
        )
        for ability in _absent(capabilities)
        if ability.asked(spec)
    ]


@functools.lru_cache(maxsize=64)
def _absent(capabilities: Capabilities) -> tuple[_Ability, ...]:
    """Abilities that an instance has not: submits ask by the thousand, answers never change."""
    return tuple(a for a in _ABILITIES if not getattr(capabilities, a.capability))


def _in_image(spec: job_pb2.JobSpec, image: str) -> job_pb2.JobSpec:
    made = job_pb2.JobSpec()
    made.CopyFrom(spec)
    made.environment.image = image
    made.environment.ClearField("caller_interpreter")
    return made


def own_options(spec: job_pb2.JobSpec, key: str) -> dict[str, object]:
    """`backend_options.KEY` of a specification: numbers, texts, booleans; what else is None.

    Empty where there is none. ValueError when it is no mapping.
    """
    fields = spec.backend_options.fields
    if key not in fields:
        return {}
    if fields[key].WhichOneof("kind") != "struct_value":
        raise ValueError("must be a mapping")
    return {name: _scalar(value) for name, value in fields[key].struct_value.fields.items()}


def _scalar(value: struct_pb2.Value) -> object:
    kind = value.WhichOneof("kind") or "null_value"
    return getattr(value, kind) if kind in ("number_value", "string_value", "bool_value") else None


def require_kind(group: LaunchGroup, capabilities: Capabilities) -> None:
    """Raise Unsupported when the instance cannot launch this kind of group."""
    if group.kind is GroupKind.GANG and not capabilities.gangs:
        raise Unsupported("gangs")
    if group.kind is GroupKind.ARRAY and not capabilities.native_arrays:
        raise Unsupported("native_arrays")


def out_of_range(options: dict[str, object], name: str, least: float, most: float) -> list[Problem]:
    """A problem when a number among the options lies outside of its bounds."""
    value = options.get(name)
    if not isinstance(value, int | float) or least <= value <= most:
        return []
    return [Problem(name, f"{value} is not between {least:g} and {most:g}")]
