"""The loader: every plug-in on its own, all or nothing, with a remedy for what is broken."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.metadata import Distribution, EntryPoint
from pathlib import Path

import pytest

from hatoba_plugins.loader import GROUP, Loaded, load

GOOD = """
from hatoba_plugins.backends.null import NullType
from hatoba_plugins.spec import hookimpl

class Type(NullType):
    name = "{name}"
    api = {api}

class Plugin:
    @hookimpl
    def hatoba_backend_types(self):
        return [{types}]

plugin = Plugin()
"""
Install = Callable[..., EntryPoint]


def plugin(name: str = "one", api: str = "1", types: str = "Type()") -> str:
    return GOOD.format(name=name, api=api, types=types)


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Puts a distribution with one plug-in in the path and gives its entry point."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(distribution: str, source: str, extras: str = "") -> EntryPoint:
        module = distribution.replace("-", "_")
        monkeypatch.delitem(sys.modules, module, raising=False)
        (tmp_path / f"{module}.py").write_text(source)
        info = tmp_path / f"{module}-2.5.dist-info"
        info.mkdir()
        metadata = f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 2.5\n{extras}"
        (info / "METADATA").write_text(metadata)
        (info / "entry_points.txt").write_text(f"[{GROUP}]\n{distribution} = {module}:plugin\n")
        (point,) = Distribution.at(info).entry_points
        return point

    return make


def only_failure(loaded: Loaded) -> tuple[str, str]:
    (failure,) = loaded.failures
    assert loaded.types == {}
    return failure.reason, failure.remedy


def test_the_built_in_types_come_through_the_same_door() -> None:
    loaded = load()
    assert loaded.failures == []
    assert {"hosts", "mock", "null"} <= loaded.types.keys()
    assert loaded.types["null"].distribution == "hatoba"
    assert loaded.types["null"].version != ""


def test_a_good_plugin_is_taken_in(install: Install) -> None:
    loaded = load([install("acme-one", plugin())])
    one = loaded.types["one"]
    assert (one.type.name, one.distribution, one.version) == ("one", "acme-one", "2.5")
    assert loaded.failures == []


@pytest.mark.parametrize(
    ("source", "reason", "remedy"),
    [
        ("import absent_module", "No module named 'absent_module'", "pip install absent_module"),
        ("import yaml.absent", "No module named 'yaml.absent'", "pip install pyyaml"),
        ("import acme_one.absent", "acme_one", "pip install --force-reinstall acme-one"),
        ("from json import absent", "cannot import name", "pip install --upgrade acme-one"),
        ("from yaml import absent", "cannot import name", "pip install --upgrade pyyaml"),
        ("1 / 0", "ZeroDivisionError: division by zero", "pip install --upgrade acme-one"),
        ("def", "SyntaxError", "pip install --upgrade acme-one"),
        ("import sys; sys.exit(3)", "SystemExit: 3", "pip install --upgrade acme-one"),
        ("plugin = object()", "no hatoba_backend_types", "pip install --upgrade acme-one"),
        (plugin(api="0"), "written for version 0", "pip install --upgrade acme-one"),
        (plugin(api="2"), "written for version 2", "pip install --upgrade hatoba"),
        (plugin(api="None"), "written for version None", "pip install --upgrade acme-one"),
        (plugin(name="No Name"), "its name is 'No Name'", "pip install --upgrade acme-one"),
        (plugin(types="Type"), "Type is a class", "pip install --upgrade acme-one"),
        (plugin(types="object()"), "is no backend type", "pip install --upgrade acme-one"),
        (plugin(types="Type(), Type()"), "registered already", "pip uninstall acme-one"),
        (plugin(types="1 / 0"), "ZeroDivisionError", "pip install --upgrade acme-one"),
        (
            plugin() + "Type.options = dict",
            "no BackendOptions",
            "pip install --upgrade acme-one",
        ),
        (plugin() + "Type.open = None", "cannot be opened", "pip install --upgrade acme-one"),
        (
            plugin().replace("def hatoba_backend_types(self)", "def hatoba_backend_types(self, x)"),
            "PluginValidationError",
            "pip install --upgrade acme-one",
        ),
        (
            plugin().replace("hatoba_backend_types", "hatoba_backend_typos"),
            "PluginValidationError",
            "pip install --upgrade acme-one",
        ),
    ],
)
def test_a_broken_plugin_is_listed_with_its_reason(
    install: Install, source: str, reason: str, remedy: str
) -> None:
    told, mends = only_failure(load([install("acme-one", source)]))
    assert reason in told
    assert mends == remedy


def test_a_missing_module_of_an_extra_names_the_extra(install: Install) -> None:
    extras = (
        "Provides-Extra: cloud\n"
        "Requires-Dist: pluggy>=1\n"
        'Requires-Dist: absent-module[all]>=2; extra == "cloud"\n'
    )
    point = install("acme-one", "import absent_module.client", extras)
    assert only_failure(load([point]))[1] == "pip install 'acme-one[cloud]'"


def test_one_broken_plugin_stops_nobody(install: Install) -> None:
    points = [
        install("acme-a", plugin("a")),
        install("acme-broken", "1 / 0"),
        install("acme-z", plugin("z")),
    ]
    loaded = load(points)
    assert list(loaded.types) == ["a", "z"]
    assert [one.name for one in loaded.failures] == ["acme-broken"]


def test_a_taken_name_leaves_nothing_of_the_second_plugin(install: Install) -> None:
    both = plugin("taken", types="Other(), Type()").replace(
        "class Plugin", "class Other(NullType):\n    name = 'other'\n\nclass Plugin"
    )
    loaded = load([install("acme-b", both), install("acme-a", plugin("taken"))])
    assert list(loaded.types) == ["taken"]
    assert loaded.types["taken"].distribution == "acme-a"
    assert "registered already by acme-a" in loaded.failures[0].reason


def test_nobody_takes_a_built_in_name(install: Install) -> None:
    ours = install("hatoba", plugin("null"))
    theirs = install("aaa-first", plugin("null"))
    assert load([theirs, ours]).types["null"].distribution == "hatoba"
