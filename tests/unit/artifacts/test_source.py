"""Where code came from, as git tells it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from hatoba.artifacts.source import git_source

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")

Git = Callable[..., str]


@pytest.fixture
def git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Git:
    for kind in ("GLOBAL", "SYSTEM"):
        monkeypatch.setenv(f"GIT_CONFIG_{kind}", os.devnull)
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "Ann")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "ann@lab.example")

    def run(*arguments: str) -> str:
        command = ["git", "-C", str(tmp_path), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    run("init", "-q")
    return run


def test_commit_dirt_and_remote_without_its_password(git: Git, tmp_path: Path) -> None:
    assert git_source(tmp_path) == {"dirty": "false"}
    (tmp_path / "train.py").write_text("1")
    git("add", ".")
    git("commit", "-qm", "first")
    git("remote", "add", "origin", "https://ann:s3cret@git.example/lab/code.git")
    expected = {
        "commit": git("rev-parse", "HEAD"),
        "remote": "https://git.example/lab/code.git",
        "dirty": "false",
    }
    assert git_source(tmp_path) == expected
    (tmp_path / "new.py").write_text("2")
    assert git_source(tmp_path) == expected | {"dirty": "true"}


def test_a_remote_by_ssh_and_by_another_name(git: Git, tmp_path: Path) -> None:
    git("remote", "add", "upstream", "git@git.example:lab/code.git")
    assert git_source(tmp_path)["remote"] == "git@git.example:lab/code.git"


def test_a_repository_cannot_make_us_run_its_programs(git: Git, tmp_path: Path) -> None:
    script = tmp_path / "evil.sh"
    script.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    script.chmod(0o755)
    git("config", "core.fsmonitor", str(script))
    assert git_source(tmp_path)["dirty"] == "true"
    assert not (tmp_path / "ran").exists()


def test_nothing_is_said_outside_of_a_repository_or_without_git(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert git_source(tmp_path) == {}
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_source(tmp_path) == {}
