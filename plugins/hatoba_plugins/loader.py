"""Finds plug-ins and takes in their backend types, one by one: a broken one stops nobody else."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.metadata import Distribution, EntryPoint, entry_points

import pluggy

from hatoba_plugins.backend import API_VERSION, BackendType
from hatoba_plugins.spec import PROJECT, HatobaSpec
from hatoba_plugins.values import BackendOptions

GROUP = "hatoba.backends"
"""Entry points of this group name an object or module with hook implementations."""

HOME = "hatoba"
"""The distribution whose plug-ins come first, so that nobody can take a built-in name."""

_TYPE_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,46}[a-z0-9])?")
_EXTRA_OF = re.compile(r"""^\s*([A-Za-z0-9._-]+).*;.*\bextra\s*==\s*["']([^"']+)["']""")
_ELSEWHERE = {"google": "protobuf", "yaml": "pyyaml"}
"""Modules whose distribution has another name."""


@dataclass(frozen=True, slots=True)
class RegisteredType:
    """A backend type that can be opened, and the distribution that brought it."""

    type: BackendType
    distribution: str
    version: str


@dataclass(frozen=True, slots=True)
class LoadFailure:
    """A plug-in that could not be taken in: why, and the command that would mend it."""

    name: str
    reason: str
    remedy: str
    distribution: str


@dataclass(frozen=True, slots=True)
class Loaded:
    """What was found: types by name, and the failures."""

    types: dict[str, RegisteredType] = field(default_factory=dict)
    failures: list[LoadFailure] = field(default_factory=list)


class UnfitPlugin(Exception):
    """A plug-in imports well but is none that can be used; `remedy` is a command."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.remedy = remedy


def load(found: Iterable[EntryPoint] | None = None) -> Loaded:
    """Take in every plug-in that is installed, or only these. Never raises because of one."""
    points = entry_points(group=GROUP) if found is None else found
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(HatobaSpec)
    loaded = Loaded()
    for point in sorted(points, key=_precedence):
        _take_in(point, manager, loaded)
    return loaded


def _precedence(point: EntryPoint) -> tuple[bool, str, str]:
    distribution = _distribution(point)
    return (distribution != HOME, distribution, point.name)


def _distribution(point: EntryPoint) -> str:
    return point.dist.name if point.dist else ""


def _take_in(point: EntryPoint, manager: pluggy.PluginManager, loaded: Loaded) -> None:
    """All types of a plug-in, or none and a failure."""
    try:
        types = _types(point, manager, loaded)
    # A plug-in is somebody else's code: whatever it raises, sys.exit included, is its own matter.
    except (Exception, SystemExit) as error:  # noqa: BLE001
        loaded.failures.append(_failure(point, error))
        return
    version = point.dist.version if point.dist else ""
    for backend in types:
        loaded.types[backend.name] = RegisteredType(backend, _distribution(point), version)


def _types(point: EntryPoint, manager: pluggy.PluginManager, loaded: Loaded) -> list[BackendType]:
    plugin = point.load()
    others = manager.get_plugins()
    manager.register(plugin, name=f"{_distribution(point)}:{point.name}")
    try:
        manager.check_pending()
        hook = manager.subset_hook_caller("hatoba_backend_types", others)
        answers: list[list[object]] = hook()
        if not answers:
            raise UnfitPlugin("it implements no hatoba_backend_types", _replace(point))
        return _accepted([item for answer in answers for item in answer], point, loaded)
    except BaseException:
        manager.unregister(plugin)
        raise


def _accepted(items: list[object], point: EntryPoint, loaded: Loaded) -> list[BackendType]:
    accepted: dict[str, BackendType] = {}
    for item in items:
        backend = _checked(item, point)
        if backend.name in accepted or backend.name in loaded.types:
            owner = loaded.types.get(backend.name)
            by = f" by {owner.distribution}" if owner else ""
            raise UnfitPlugin(
                f"backend type {backend.name!r} is registered already{by}", _remove(point)
            )
        accepted[backend.name] = backend
    return list(accepted.values())


def _checked(item: object, point: EntryPoint) -> BackendType:
    if isinstance(item, type):
        raise UnfitPlugin(f"{item.__name__} is a class and no instance of it", _replace(point))
    name, api = getattr(item, "name", None), getattr(item, "api", None)
    options = getattr(item, "options", None)
    if not isinstance(name, str) or not _TYPE_NAME.fullmatch(name):
        raise UnfitPlugin(f"{item!r} is no backend type: its name is {name!r}", _replace(point))
    if api != API_VERSION:
        newer = isinstance(api, int) and api > API_VERSION
        raise UnfitPlugin(
            f"{name!r} is written for version {api} of the contract, and this is {API_VERSION}",
            f"pip install --upgrade {HOME if newer else _distribution(point)}",
        )
    if not (isinstance(options, type) and issubclass(options, BackendOptions)):
        raise UnfitPlugin(f"the options of {name!r} are no BackendOptions", _replace(point))
    if not callable(getattr(item, "open", None)):
        raise UnfitPlugin(f"backend type {name!r} cannot be opened", _replace(point))
    backend: BackendType = item  # type: ignore[assignment]  # just checked
    return backend


def _failure(point: EntryPoint, error: BaseException) -> LoadFailure:
    if isinstance(error, UnfitPlugin):
        reason, remedy = error.reason, error.remedy
    elif isinstance(error, ImportError):
        reason, remedy = f"{type(error).__name__}: {error}", _import_remedy(point, error)
    else:
        reason, remedy = f"{type(error).__name__}: {error}", _replace(point)
    return LoadFailure(point.name, reason, remedy, _distribution(point))


def _import_remedy(point: EntryPoint, error: ImportError) -> str:
    """What installs the module that is missing: an extra of the plug-in where one brings it."""
    module = (error.name or "").partition(".")[0]
    if module in sys.stdlib_module_names:
        return _replace(point)
    if not module or module == point.module.partition(".")[0]:
        return f"pip install --force-reinstall {_distribution(point)}"
    extra = _extra_with(module, point.dist)
    if extra:
        return f"pip install '{_distribution(point)}[{extra}]'"
    upgrade = "" if isinstance(error, ModuleNotFoundError) else "--upgrade "
    return f"pip install {upgrade}{_ELSEWHERE.get(module, module)}"


def _extra_with(module: str, distribution: Distribution | None) -> str:
    """The extra whose requirements bring a module; empty when none does."""
    wanted = _normal(_ELSEWHERE.get(module, module))
    for requirement in (distribution.requires if distribution else None) or ():
        match = _EXTRA_OF.match(requirement)
        if match and _normal(match[1]) == wanted:
            return match[2]
    return ""


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _replace(point: EntryPoint) -> str:
    return f"pip install --upgrade {_distribution(point)}"


def _remove(point: EntryPoint) -> str:
    return f"pip uninstall {_distribution(point)}"
