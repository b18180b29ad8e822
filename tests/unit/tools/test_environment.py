"""How pip's settings reach uv, which does not read them."""

from __future__ import annotations

import sys
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


def test_the_stamp_follows_the_lock_and_the_place(tmp_path: Path) -> None:
    lock = tmp_path / "lock.txt"
    lock.write_text("a==1")
    first = environment.fingerprint(tmp_path / "venv", lock, project=False)
    assert environment.fingerprint(tmp_path / "venv", lock, project=False) == first
    assert environment.fingerprint(tmp_path / "moved", lock, project=False) != first
    lock.write_text("a==2")
    assert environment.fingerprint(tmp_path / "venv", lock, project=False) != first
