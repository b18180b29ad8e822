"""How pip's settings reach uv, which does not read them."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path

import environment
import pytest


def pip_that_lists(tmp_path: Path, listing: str) -> list[str]:
    """A pip whose `config list` prints `listing`."""
    script = tmp_path / "pip.py"
    script.write_text(f"print({listing!r})")
    return [sys.executable, str(script)]


def test_what_pip_was_told_uv_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in environment.PIP_TO_UV.values():
        monkeypatch.delenv(name, raising=False)
    listing = "global.index-url='mirror'\n:env:.find-links='\\n/a\\n/b'\nglobal.timeout='9'"
    pip = pip_that_lists(tmp_path, listing)
    assert environment.pip_settings(pip) == {"UV_DEFAULT_INDEX": "mirror", "UV_FIND_LINKS": "/a /b"}


def test_what_uv_was_told_itself_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_DEFAULT_INDEX", "own")
    assert environment.pip_settings(pip_that_lists(tmp_path, "global.index-url='mirror'")) == {}


class Recorded:
    """Stages that only write down that they were done."""

    def __init__(self, directory: Path) -> None:
        self.done: list[str] = []
        self.environment = environment.Environment(directory, "dev")
        directory.mkdir()

    def ensure(self, **inputs: str) -> list[str]:
        """What is done for these inputs, by stage in order."""
        self.done.clear()
        stages = [
            environment.Stage(name, text.encode(), partial(self.done.append, name))
            for name, text in inputs.items()
        ]
        environment.ensure(self.environment, stages)
        return self.done.copy()


def test_a_warm_environment_is_left_alone(tmp_path: Path) -> None:
    recorded = Recorded(tmp_path / "venv")
    assert recorded.ensure(interpreter="3.11", lock="a==1", project="p") == [
        "interpreter",
        "lock",
        "project",
    ]
    assert recorded.ensure(interpreter="3.11", lock="a==1", project="p") == []


def test_a_changed_stage_is_done_again_with_all_after_it(tmp_path: Path) -> None:
    recorded = Recorded(tmp_path / "venv")
    recorded.ensure(interpreter="3.11", lock="a==1", project="p")
    assert recorded.ensure(interpreter="3.11", lock="a==2", project="p") == ["lock", "project"]
    assert recorded.ensure(interpreter="3.11", lock="a==2", project="q") == ["project"]


def test_a_failed_stage_is_tried_again(tmp_path: Path) -> None:
    def fail() -> None:
        raise subprocess.CalledProcessError(1, ["uv"])

    recorded = Recorded(tmp_path / "venv")
    recorded.ensure(lock="a==1")
    with pytest.raises(subprocess.CalledProcessError):
        environment.ensure(recorded.environment, [environment.Stage("lock", b"a==2", fail)])
    assert recorded.ensure(lock="a==1") == ["lock"]


def test_a_tools_setting_is_no_reason_to_install_again() -> None:
    assert b"hatoba.backends" in environment.packaging()
    assert b"root_packages" not in environment.packaging()
