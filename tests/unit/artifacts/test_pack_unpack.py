"""Trees survive packing and unpacking; what is wrong never leaves the target's directory."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hatoba.artifacts.errors import BadManifest, DigestMismatch, TreeChanged, UnpackFailed
from hatoba.artifacts.manifest import CHUNK_BYTES, MIB, validate_manifest
from hatoba.artifacts.pack import PackedTree, pack_tree
from hatoba.artifacts.scan import Found, Selection, scan_tree
from hatoba.artifacts.unpack import Piece, Unpacking
from hatoba.errors import HatobaError
from hatoba.v1.artifact_pb2 import ENTRY_TYPE_FILE, ENTRY_TYPE_SYMLINK, Manifest

Node = bytes | dict[str, "Node"]
Snapshot = dict[str, tuple[str, int, bytes | str]]

NAMES = st.text("ab.-é波 ", min_size=1, max_size=6).filter(lambda name: name not in (".", ".."))
MODES = st.sampled_from([0o644, 0o755, 0o600, 0o400, 0o777])
TREES = st.recursive(
    st.dictionaries(NAMES, st.tuples(st.binary(max_size=40), MODES), max_size=4),
    lambda inner: st.dictionaries(
        NAMES, st.one_of(st.tuples(st.binary(max_size=40), MODES), inner), max_size=4
    ),
    max_leaves=20,
)


def build(root: Path, tree: dict[str, object]) -> None:
    root.mkdir(exist_ok=True)
    for name, node in tree.items():
        place = root / name
        if isinstance(node, dict):
            build(place, node)
        else:
            assert isinstance(node, tuple)
            place.write_bytes(node[0])
            place.chmod(node[1])


def snapshot(root: Path) -> Snapshot:
    """Every entry below a root: kind, mode, and content or target."""
    found: Snapshot = {}
    for place in root.rglob("*"):
        status = place.lstat()
        path = str(place.relative_to(root))
        if stat.S_ISLNK(status.st_mode):
            found[path] = ("link", 0, os.readlink(place))
        elif stat.S_ISDIR(status.st_mode):
            found[path] = ("directory", status.st_mode & 0o7777, b"")
        else:
            found[path] = ("file", status.st_mode & 0o7777, place.read_bytes())
    return found


def content(packed: PackedTree, unpacking: Unpacking, piece_bytes: int = MIB) -> Iterator[Piece]:
    """The pieces that a server would send."""
    for position, chunk in enumerate(unpacking.wanted):
        path, start, size = packed.sources[chunk.sha256]
        with open(path, "rb") as file:
            file.seek(start)
            data = file.read(size)
        for offset in range(0, size, piece_bytes):
            part = data[offset : offset + piece_bytes]
            yield Piece(position, part, offset + len(part) == size)


def unpack(packed: PackedTree, target: Path, piece_bytes: int = MIB) -> None:
    wanted = Unpacking(packed.manifest, target)
    unpack_pieces(packed.manifest, list(content(packed, wanted, piece_bytes)), target)


def unpack_pieces(manifest: Manifest, pieces: list[Piece], target: Path) -> None:
    unpacking = Unpacking(manifest, target)
    try:
        unpacking.begin()
        unpacking.write(pieces)
        unpacking.finish()
    finally:
        unpacking.discard()


@given(TREES)
@settings(max_examples=60, deadline=None)
def test_a_tree_survives_the_round_trip(tree: dict[str, object]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        source, target = Path(directory, "source"), Path(directory, "target")
        build(source, tree)
        packed = pack_tree(source, Selection.EVERYTHING)
        assert validate_manifest(packed.manifest) == []
        unpack(packed, target, piece_bytes=7)
        assert snapshot(target) == snapshot(source)
        assert pack_tree(target, Selection.EVERYTHING).ref == packed.ref
        assert sorted(os.listdir(directory)) == ["source", "target"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    made = tmp_path / "source"
    build(made, {"a": (b"alpha", 0o644), "pkg": {"b": (b"beta", 0o600), "same": (b"alpha", 0o755)}})
    (made / "pkg" / "link").symlink_to("../a")
    return made


def test_links_and_directory_modes_survive(source: Path, tmp_path: Path) -> None:
    build(source, {"locked": {"in": {"x": (b"x", 0o444)}}, "void": {}})
    (source / "locked" / "in").chmod(0o555)
    (source / "locked").chmod(0o511)
    packed = pack_tree(source)
    unpack(packed, tmp_path / "target")
    assert snapshot(tmp_path / "target") == snapshot(source)


def test_big_files_are_cut_every_8_mib_and_equal_chunks_are_sent_once(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    block = os.urandom(64 * 1024) * 128
    (source / "big").write_bytes(block + block + b"tail")
    (source / "copy").write_bytes(block)
    packed = pack_tree(source)
    big = packed.manifest.entries[0]
    assert [chunk.size for chunk in big.chunks] == [CHUNK_BYTES, CHUNK_BYTES, 4]
    assert len(packed.sources) == 2
    assert packed.ref.total_bytes == 3 * CHUNK_BYTES + 4
    unpack(packed, tmp_path / "target")
    assert snapshot(tmp_path / "target") == snapshot(source)


def test_the_digest_depends_on_names_modes_and_content_only(source: Path, tmp_path: Path) -> None:
    first = pack_tree(source).ref.digest
    os.utime(source / "a", (1, 1))
    assert pack_tree(source).ref.digest == first
    (source / "a").chmod(0o600)
    assert pack_tree(source).ref.digest != first


def test_a_growing_file_is_packed_as_it_was_and_a_vanished_one_is_told(source: Path) -> None:
    scan = scan_tree(source)
    with (source / "a").open("ab") as file:
        file.write(b"!")
    assert pack_tree(scan).ref.total_bytes == len(b"alpha!betaalpha")
    (source / "a").unlink()
    with pytest.raises(TreeChanged, match=r"^a changed"):
        pack_tree(scan)


@pytest.mark.parametrize("replacement", ["pipe", "link"])
def test_what_took_a_files_place_is_not_read(source: Path, replacement: str) -> None:
    scan = scan_tree(source)
    (source / "a").unlink()
    if replacement == "pipe":
        os.mkfifo(source / "a")
    else:
        (source / "a").symlink_to("/etc/passwd")
    with pytest.raises(HatobaError, match=r"^a(:| changed)"):
        pack_tree(scan)


def test_packing_never_holds_a_file_whole(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(40 * MIB)
    seen: list[int] = []
    tracemalloc.start()
    try:
        pack_tree(tmp_path, hashed=seen.append)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sum(seen) == 40 * MIB
    assert peak < 12 * MIB


# -- unpacking what somebody else wrote -------------------------------------------------------


def one_file(path: str, data: bytes) -> Manifest:
    made = Manifest()
    entry = made.entries.add(path=path, type=ENTRY_TYPE_FILE, mode=0o644, size=len(data))
    entry.chunks.add(sha256=hashlib.sha256(data).digest(), size=len(data))
    return made


def test_a_manifest_that_breaks_a_rule_is_not_begun(tmp_path: Path) -> None:
    with pytest.raises(BadManifest, match=r"entries\[0\]\.path"):
        Unpacking(one_file("../evil", b"x"), tmp_path / "target")


def test_a_tree_over_the_limit_is_not_begun(tmp_path: Path) -> None:
    with pytest.raises(BadManifest, match="at most 9 bytes"):
        Unpacking(one_file("big", b"0123456789"), tmp_path / "target", max_total_bytes=9)


@pytest.mark.parametrize(
    "pieces",
    [
        [Piece(0, b"ALPHA", True)],
        [Piece(0, b"alph", True)],
        [Piece(0, b"alpha!", True)],
        [Piece(0, b"alp", False), Piece(0, b"haha", True)],
        [Piece(1, b"alpha", True)],
        [Piece(-1, b"alpha", True)],
        [Piece(0, b"alpha", True), Piece(1, b"more", True)],
        [Piece(0, b"alpha", False)],
        [],
    ],
)
def test_content_that_does_not_fit_leaves_nothing_behind(
    tmp_path: Path, pieces: list[Piece]
) -> None:
    with pytest.raises(DigestMismatch):
        unpack_pieces(one_file("dir/a", b"alpha"), pieces, tmp_path / "target")
    assert list(tmp_path.iterdir()) == []


def test_a_target_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "mine").write_text("mine")
    unpacking = Unpacking(one_file("mine", b"theirs"), tmp_path / "target")
    with pytest.raises(UnpackFailed, match="not empty"):
        unpacking.begin()
    unpacking.discard()
    assert snapshot(tmp_path) == {
        "target": ("directory", 0o755, b""),
        "target/mine": ("file", 0o644, b"mine"),
    }


def test_an_empty_target_is_taken(tmp_path: Path, source: Path) -> None:
    (tmp_path / "target").mkdir(mode=0o700)
    unpack(pack_tree(source), tmp_path / "target")
    assert snapshot(tmp_path / "target") == snapshot(source)


@pytest.mark.parametrize("swapped", ["dir", "dir/a"])
def test_a_link_put_in_the_way_is_not_followed(tmp_path: Path, swapped: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "a").write_text("safe")
    work = tmp_path / "work"
    unpacking = Unpacking(one_file("dir/a", b"evil!"), work / "target")
    unpacking.begin()
    partial = next(work.iterdir())
    (partial / "dir" / "a").unlink()
    if swapped == "dir":
        (partial / "dir").rmdir()
    (partial / swapped).symlink_to(outside if swapped == "dir" else outside / "a")
    # A new look at the directory, as if its descriptor had been let go in between.
    unpacking._tree._open.clear()
    with pytest.raises(UnpackFailed):
        unpacking.write([Piece(0, b"evil!", True)])
    unpacking.discard()
    assert (outside / "a").read_text() == "safe"


def test_a_full_disk_is_told_with_the_path(tmp_path: Path, source: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UnpackFailed) as caught:
        unpack(pack_tree(source), tmp_path / "file" / "target")
    assert caught.value.path == str(tmp_path / "file" / "target")


def test_many_directories_need_few_descriptors(tmp_path: Path) -> None:
    made = Manifest()
    for number in range(300):
        path = f"{number % 7}/{number:03}/f"
        entry = one_file(path, b"x").entries[0]
        made.entries.append(entry)
    made.entries.sort(key=lambda entry: entry.path)
    before = len(os.listdir("/proc/self/fd"))
    unpacking = Unpacking(made, tmp_path / "target")
    unpacking.begin()
    unpacking.write([Piece(0, b"x", True)])
    assert len(os.listdir("/proc/self/fd")) - before <= 40
    unpacking.finish()
    assert len(os.listdir("/proc/self/fd")) == before
    assert len(list((tmp_path / "target").glob("*/*/f"))) == 300


def test_a_link_among_files_points_where_it_did(tmp_path: Path, source: Path) -> None:
    packed = pack_tree(source)
    targets = [
        entry.target for entry in packed.manifest.entries if entry.type == ENTRY_TYPE_SYMLINK
    ]
    assert targets == ["../a"]
    found = Found("pkg/link", str(source / "pkg/link"), ENTRY_TYPE_SYMLINK, 0o777, 0, "../a")
    assert found in scan_tree(source).entries
