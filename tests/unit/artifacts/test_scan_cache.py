"""What an unchanged folder held is remembered, and never more than can be relied on."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from hatoba.artifacts.pack import PackedTree, pack_tree
from hatoba.artifacts.scan import Scan, Selection, scan_tree
from hatoba.artifacts.scan_cache import RACY_NS, ScanCache

OLD = 1_600_000_000_000_000_000


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "sub").mkdir(parents=True)
    for name in ("a", "b", "sub/c"):
        (root / name).write_text(f"content of {name}")
    return root


@pytest.fixture
def cache(tmp_path: Path) -> ScanCache:
    return ScanCache(tmp_path / "cache" / "scans.db")


def later(root: Path, seconds: float = 3.0) -> Scan:
    """A look at the tree as if it were made so many seconds after now."""
    scan = scan_tree(root, Selection.EVERYTHING)
    scan.began_ns = time.time_ns() + round(seconds * 1e9)
    return scan


def read_files(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are opened from now on."""
    opened: list[str] = []
    real = os.open

    def noting(path: str, *rest: int, **named: int) -> int:
        opened.append(os.path.basename(path))
        return real(path, *rest, **named)

    monkeypatch.setattr(os, "open", noting)
    return opened


def test_an_unchanged_tree_is_not_read_again(
    root: Path, cache: ScanCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = pack_tree(later(root), cache=cache)
    opened = read_files(monkeypatch)
    again = pack_tree(later(root), cache=cache)
    assert again.ref == first.ref
    assert again.manifest == first.manifest
    assert again.sources == first.sources
    assert opened == []


def test_only_what_changed_is_read(
    root: Path, cache: ScanCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack_tree(later(root), cache=cache)
    (root / "b").write_text("other")
    opened = read_files(monkeypatch)
    changed = pack_tree(later(root), cache=cache)
    assert opened == ["b"]
    assert changed.ref == pack_tree(root, Selection.EVERYTHING).ref


@pytest.mark.parametrize("change", ["same size and time", "replaced", "mode", "added", "removed"])
def test_every_change_is_seen(root: Path, cache: ScanCache, change: str) -> None:
    os.utime(root / "a", ns=(OLD, OLD))
    pack_tree(later(root), cache=cache)
    if change == "same size and time":
        (root / "a").write_text("CONTENT OF A")
        os.utime(root / "a", ns=(OLD, OLD))
    elif change == "replaced":
        (root / "new").write_text("CONTENT OF A")
        os.utime(root / "new", ns=(OLD, OLD))
        (root / "new").rename(root / "a")
    elif change == "mode":
        (root / "a").chmod(0o600)
    elif change == "added":
        (root / "sub" / "d").touch()
    else:
        (root / "a").unlink()
    assert pack_tree(later(root), cache=cache).ref == pack_tree(root, Selection.EVERYTHING).ref


@pytest.mark.parametrize("what", ["mtime", "ctime"])
def test_a_file_written_within_two_seconds_of_the_look_is_read_again(
    root: Path, cache: ScanCache, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if what == "ctime":
        os.utime(root / "b", ns=(OLD, OLD))
    fresh = (root / "b").stat()
    scan = later(root)
    scan.began_ns = max(fresh.st_mtime_ns, fresh.st_ctime_ns) + RACY_NS - 1
    pack_tree(scan, cache=cache)
    opened = read_files(monkeypatch)
    pack_tree(later(root), cache=cache)
    assert "b" in opened


def test_what_turned_out_to_be_something_else_is_forgotten(
    root: Path, cache: ScanCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack_tree(later(root), cache=cache).distrust()
    opened = read_files(monkeypatch)
    pack_tree(later(root), cache=cache)
    assert sorted(opened) == ["a", "b", "c"]


@pytest.mark.parametrize("damage", ["no database", "no directory", "a directory"])
def test_a_cache_that_cannot_be_used_is_as_none(root: Path, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "scans.db"
    if damage == "no database":
        path.write_bytes(b"no database" * 100)
    elif damage == "a directory":
        path.mkdir()
    else:
        (tmp_path / "file").touch()
        path = tmp_path / "file" / "scans.db"
    plain = pack_tree(root, Selection.EVERYTHING)
    for _ in range(2):
        packed: PackedTree = pack_tree(later(root), cache=ScanCache(path))
        assert packed.ref == plain.ref
