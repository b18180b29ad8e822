"""What a caller may say of when, where and how often a job runs, made into its specification."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from hatoba.errors import InvalidSpec
from hatoba.units import parse_duration, parse_memory, parse_time
from hatoba.v1 import common_pb2, job_pb2

if TYPE_CHECKING:
    from google.protobuf.duration_pb2 import Duration

    from hatoba.options import SubmitOptions

T = TypeVar("T")

WORDS = re.compile(r"\s+")
RULE_HELP = (
    "write for example `on=OUT_OF_MEMORY limit=3 memory=2`, `on=75,76 fail` or "
    "`on=PREEMPTION on-demand-after=2`"
)
REQUIREMENT_HELP = (
    "write `zone=a,b` or `zone in (a,b)`, `!zone=a` or `zone!=a`, `ssd` (it is there) or `!ssd` "
    "(it is not)"
)
_AMONG = re.compile(r"^([^\s=]+)\s+in\s*\(([^()]*)\)$")
SPOT = {
    "allow": job_pb2.SPOT_ALLOW,
    "only": job_pb2.SPOT_ONLY,
    "prefer": job_pb2.SPOT_PREFER,
    "never": job_pb2.SPOT_NEVER,
}
GANG_POLICY = {"fail": job_pb2.GANG_POLICY_FAIL, "restart": job_pb2.GANG_POLICY_RESTART}
STRATEGY = {
    "spread": job_pb2.PLACEMENT_STRATEGY_SPREAD,
    "pack": job_pb2.PLACEMENT_STRATEGY_PACK,
}


def set_terms(spec: job_pb2.JobSpec, options: SubmitOptions) -> None:
    """Everything beyond the ordinary that the options say. Raises InvalidSpec."""
    spec.after_any.extend(options.get("after_any", ()))
    spec.after_end.extend(options.get("after_end", ()))
    _set_gang(spec, options)
    _set_placement(spec, options)
    _set_devices(spec, options)
    _set_times(spec, options)
    _set_leaving(spec, options)
    if "spot" in options:
        spec.spot = word_of("spot", options["spot"], SPOT)
    for text in options.get("retry_rules", ()):
        spec.retries.rules.append(parse_rule(text))


def _set_gang(spec: job_pb2.JobSpec, options: SubmitOptions) -> None:
    spec.replicas = options.get("replicas", 0)
    if "gang_policy" in options:
        spec.gang.policy = word_of("gang_policy", options["gang_policy"], GANG_POLICY)
    _set_duration(options, "gang_timeout", lambda: spec.gang.start_timeout)


def _set_placement(spec: job_pb2.JobSpec, options: SubmitOptions) -> None:
    spec.placement.require.extend(map(parse_requirement, options.get("require", ())))
    spec.placement.prefer.extend(map(parse_requirement, options.get("prefer", ())))
    spec.placement.apart_from.extend(options.get("apart_from", ()))
    spec.placement.near.extend(options.get("near", ()))
    if "strategy" in options:
        spec.placement.strategy = word_of("strategy", options["strategy"], STRATEGY)
    if options.get("apart"):
        spec.placement.apart = True
    if spec.placement == job_pb2.Placement():
        spec.ClearField("placement")


def _set_devices(spec: job_pb2.JobSpec, options: SubmitOptions) -> None:
    spec.devices.names.extend(options.get("devices", ()))
    spec.devices.selector.extend(map(parse_requirement, options.get("device_selector", ())))
    if spec.devices == job_pb2.JobDevices():
        spec.ClearField("devices")


def _set_times(spec: job_pb2.JobSpec, options: SubmitOptions) -> None:
    if "start_after" in options:
        spec.start_after.FromDatetime(_time("start_after", options["start_after"]))
    if "deadline" in options:
        spec.deadline.FromDatetime(_time("deadline", options["deadline"]))
    _set_duration(options, "max_queue_time", lambda: spec.max_queue_time)
    _set_duration(options, "stop_after", lambda: spec.disconnect.stop_after)
    _set_duration(options, "lost_after", lambda: spec.disconnect.lost_after)


def _time(name: str, told: str | dt.datetime) -> dt.datetime:
    """A time as said; one of Python's without a zone is this machine's."""
    if isinstance(told, str):
        return _read(name, parse_time, told)
    return told.astimezone(dt.UTC)


def _set_leaving(spec: job_pb2.JobSpec, options: SubmitOptions) -> None:
    if options.get("never_preempt"):
        spec.preemption.never = True
    if "max_preemptions" in options:
        spec.preemption.max = options["max_preemptions"]
    _set_duration(options, "preempt_grace", lambda: spec.preemption.grace)


def _set_duration(options: SubmitOptions, name: str, target: Callable[[], Duration]) -> None:
    if name in options:
        told = options[name]  # type: ignore[literal-required]
        seconds = _read(name, parse_duration, told) if isinstance(told, str) else told
        target().FromTimedelta(timedelta(seconds=seconds))


def _read(name: str, parse: Callable[[str], T], text: str) -> T:
    try:
        return parse(text)
    except ValueError as error:
        raise InvalidSpec(f"{name}: {error}") from None


def word_of(name: str, text: str, known: Mapping[str, Any]) -> Any:
    """What a word stands for; case does not matter. Raises InvalidSpec."""
    if text.lower() not in known:
        raise InvalidSpec(f"{name}: {text!r} is none of {', '.join(known)}")
    return known[text.lower()]


def parse_requirement(text: str) -> job_pb2.LabelRequirement:
    """`zone=a,b`, `zone in (a,b)`, `!zone=a`, `zone!=a`, `ssd` or `!ssd`, of labels. Raises
    InvalidSpec.
    """
    key, equals, values = _AMONG.sub(r"\1=\2", text.strip()).partition("=")
    negative = key.startswith("!") or bool(equals and key.endswith("!"))
    key = (key[1:] if key.startswith("!") else key.removesuffix("!" if equals else "")).strip()
    if not key or "!" in key or (equals and not values.strip()):
        raise InvalidSpec(f"{text!r} asks nothing of a label", remedy=REQUIREMENT_HELP)
    if equals:
        operator = job_pb2.LABEL_OPERATOR_NOT_IN if negative else job_pb2.LABEL_OPERATOR_IN
        return job_pb2.LabelRequirement(key=key, operator=operator, values=_listed(values))
    operator = job_pb2.LABEL_OPERATOR_NOT_EXISTS if negative else job_pb2.LABEL_OPERATOR_EXISTS
    return job_pb2.LabelRequirement(key=key, operator=operator)


def _listed(values: str) -> list[str]:
    return [value.strip() for value in values.split(",")]


def parse_rule(text: str) -> common_pb2.RetryRule:
    """A retry rule in words: `on=OUT_OF_MEMORY limit=3 memory=2`. Raises InvalidSpec."""
    rule = common_pb2.RetryRule()
    words = [word for word in WORDS.split(text.strip()) if word]
    if not words:
        raise InvalidSpec("a retry rule says nothing", remedy=RULE_HELP)
    for word in words:
        key, equals, value = word.partition("=")
        set_part = _RULE_PARTS.get((key, bool(equals)))
        if set_part is None:
            raise InvalidSpec(f"{word!r} is no part of a retry rule", remedy=RULE_HELP)
        try:
            set_part(rule, value)
        except ValueError as error:
            raise InvalidSpec(f"retry rule, {word!r}: {error}", remedy=RULE_HELP) from None
    return rule


def _on(rule: common_pb2.RetryRule, value: str) -> None:
    """Causes, origins and exit codes, by name and number."""
    for word in value.split(","):
        if word.isdigit():
            rule.exit_codes.append(int(word))
        elif (name := f"ORIGIN_{word.upper()}") in common_pb2.Origin.keys():  # noqa: SIM118
            rule.origins.append(common_pb2.Origin.Value(name))
        elif (name := f"CAUSE_CODE_{word.upper()}") in common_pb2.CauseCode.keys():  # noqa: SIM118
            rule.causes.append(common_pb2.CauseCode.Value(name))
        else:
            raise ValueError(f"{word!r} is no cause, no origin ({_origins()}) and no exit code")


def _origins() -> str:
    return ", ".join(_named(common_pb2.Origin.keys()))


def _named(names: Iterable[str]) -> Sequence[str]:
    return [name.removeprefix("ORIGIN_") for name in names][1:]


def _fail(rule: common_pb2.RetryRule, value: str) -> None:
    rule.action = common_pb2.RETRY_ACTION_FAIL


def _limit(rule: common_pb2.RetryRule, value: str) -> None:
    rule.limit = int(value)


def _memory(rule: common_pb2.RetryRule, value: str) -> None:
    rule.mutate.memory_factor = float(value.lower().removesuffix("x"))


def _memory_max(rule: common_pb2.RetryRule, value: str) -> None:
    rule.mutate.memory_max_bytes = parse_memory(value)


def _other_host(rule: common_pb2.RetryRule, value: str) -> None:
    rule.mutate.other_host = True


def _on_demand_after(rule: common_pb2.RetryRule, value: str) -> None:
    rule.mutate.on_demand_after = int(value)


# By the word, and whether it has a value.
_RULE_PARTS: Mapping[tuple[str, bool], Callable[[common_pb2.RetryRule, str], None]] = {
    ("on", True): _on,
    ("fail", False): _fail,
    ("limit", True): _limit,
    ("memory", True): _memory,
    ("memory-max", True): _memory_max,
    ("other-host", False): _other_host,
    ("on-demand-after", True): _on_demand_after,
}
