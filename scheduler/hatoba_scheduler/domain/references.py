"""One syntax for everything that has a name: `digits:7`, `digits@production`, `datasets/faces:3`,
`jobs/digits-42/outputs`, and full resource names (`projects/P/models/digits/versions/7`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from hatoba_scheduler.domain.naming import DEFAULT_PROJECT

KINDS = ("models", "datasets", "code", "jobs", "deployments", "predictions")
"""Collections, as they stand in front of a name."""
VERSIONED = frozenset({"models", "datasets", "code"})

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,46}[a-z0-9])?")
_LONG_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,62}[a-z0-9])?")
_VERSION = re.compile(r"[1-9][0-9]{0,8}")
_FORMS = {
    "models": "NAME:NUMBER, NAME@ALIAS or NAME",
    "datasets": "NAME:NUMBER or NAME",
    "code": "NAME:NUMBER or NAME",
    "jobs": "NAME-NUMBER",
    "deployments": "NAME",
    "predictions": "a trace id of 32 hex digits",
}


@dataclass(frozen=True, slots=True)
class Reference:
    """What somebody named. `version` 0 and an empty `alias` mean the newest; `part` is what stands
    behind a job's name, for example `outputs`."""

    kind: str
    project: str
    name: str
    version: int = 0
    alias: str = ""
    part: str = ""

    @property
    def parent(self) -> str:
        """Resource name without a version."""
        return f"projects/{self.project}/{self.kind}/{self.name}"

    @property
    def resource(self) -> str:
        """Resource name, with the version where one is said."""
        return f"{self.parent}/versions/{self.version}" if self.version else self.parent

    @property
    def short(self) -> str:
        """As people write it where the kind is clear: `digits:7`."""
        if self.alias:
            return f"{self.name}@{self.alias}"
        return f"{self.name}:{self.version}" if self.version else self.name


class BadReference(ValueError):
    """A text that names nothing; the message says what it must look like."""


def parse(text: str, kind: str = "", project: str = DEFAULT_PROJECT) -> Reference:
    """Read a reference. `kind` is what a bare name is taken for, and the only kind that is accepted
    then; empty accepts any kind and takes a bare name for a model's. Raises BadReference.
    """
    project, rest = _project_of(text, project)
    found, slash, tail = rest.partition("/")
    if not slash or found not in KINDS:
        found, tail = kind or "models", rest
    if kind and found != kind:
        raise BadReference(f"{text!r} names one of {found}, and one of {kind} is wanted here")
    if not _NAME.fullmatch(project):
        raise BadReference(f"{text!r}: {project!r} is not the name of a project")
    return _read(found, project, tail, text)


def version_name(kind: str, project: str, name: str, version: int) -> str:
    """Resource name of one version."""
    return f"projects/{project}/{kind}/{name}/versions/{version}"


def short(resource: str) -> str:
    """`projects/P/models/digits/versions/7` as `digits:7`; anything else by its last part."""
    parts = resource.split("/")
    if len(parts) == 6 and parts[4] == "versions":
        return f"{parts[3]}:{parts[5]}"
    return parts[-1]


def _project_of(text: str, project: str) -> tuple[str, str]:
    if not text.startswith("projects/"):
        return project or DEFAULT_PROJECT, text
    _, named, *rest = text.split("/", 2)
    return named, rest[0] if rest else ""


def _read(kind: str, project: str, tail: str, text: str) -> Reference:
    name, _, part = tail.partition("/")
    version, alias = 0, ""
    if kind in VERSIONED:
        name, version, alias, part = _version_of(name, part, text)
    pattern = _NAME if kind in VERSIONED else _LONG_NAME
    good = pattern.fullmatch(name) and (not alias or kind == "models")
    if not good or (part and kind != "jobs"):
        raise BadReference(f"{text!r} is none of {kind}; it must be {_FORMS[kind]}")
    return Reference(kind, project, name, version, alias, part)


def _version_of(name: str, part: str, text: str) -> tuple[str, int, str, str]:
    alias = ""
    if part.startswith("versions/"):
        number, part = part.removeprefix("versions/"), ""
    elif "@" in name:
        name, _, alias = name.partition("@")
        if not _NAME.fullmatch(alias):
            raise BadReference(f"{text!r}: {alias!r} is not the name of an alias")
        return name, 0, alias, part
    else:
        name, colon, number = name.partition(":")
        if not colon:
            return name, 0, "", part
    if not _VERSION.fullmatch(number):
        raise BadReference(f"{text!r}: {number!r} is not the number of a version; they begin at 1")
    return name, int(number), "", part
