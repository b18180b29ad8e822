"""What is packed of a directory, and what is not."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from hatoba.artifacts.errors import TreeRefused
from hatoba.artifacts.scan import Scan, Selection, scan_tree


def fill(root: Path, *paths: str, **contents: str) -> Path:
    """Make files (and, with a slash at the end, directories) below a root."""
    for path in paths:
        place = root / path
        if path.endswith("/"):
            place.mkdir(parents=True, exist_ok=True)
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(contents.get(path, path))
    return root


def write(root: Path, path: str, text: str) -> None:
    place = root / path
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text)


def paths(scan: Scan) -> list[str]:
    return [found.path for found in scan.entries]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = tmp_path / "root"
    made.mkdir()
    return made


def test_entries_are_sorted_by_path_across_directories(root: Path) -> None:
    fill(root, "b", "a/z", "a-b", "a/b/c")
    assert paths(scan_tree(root)) == ["a-b", "a/b/c", "a/z", "b"]


def test_directories_are_listed_when_empty_or_with_a_mode_of_their_own(root: Path) -> None:
    fill(root, "plain/x", "empty/", "private/y")
    for name, mode in {"plain": 0o755, "empty": 0o755, "private": 0o700}.items():
        (root / name).chmod(mode)
    found = {one.path: one.mode for one in scan_tree(root).entries}
    assert found.keys() == {"plain/x", "empty", "private", "private/y"}
    assert found["private"] == 0o700


def test_setuid_and_sticky_bits_are_left_behind(root: Path) -> None:
    fill(root, "tool", "shared/")
    (root / "tool").chmod(0o4755)
    (root / "shared").chmod(0o1777)
    assert [one.mode for one in scan_tree(root).entries] == [0o777, 0o755]


def test_git_environments_caches_and_data_directories_are_left_out(root: Path) -> None:
    fill(root, "train.py", ".git/config", "sub/.git", ".venv/bin/python", "pkg/__pycache__/m.pyc")
    fill(root, "pkg/m.py", "env/pyvenv.cfg", "env/lib/x.py", "hatoba-data/admin.token")
    fill(root, "worker/keeper.lock", "worker/work/x", "sub/y")
    assert paths(scan_tree(root)) == ["pkg/m.py", "sub/y", "train.py"]


def test_outputs_are_packed_whatever_is_ignored(root: Path) -> None:
    write(root, ".gitignore", "*.ckpt\n")
    fill(root, "model.ckpt", "__pycache__/m.pyc")
    found = paths(scan_tree(root, Selection.EVERYTHING))
    assert found == [".gitignore", "__pycache__/m.pyc", "model.ckpt"]


def test_a_data_directory_itself_is_refused(root: Path) -> None:
    fill(root, "admin.token", "keeper.lock")
    with pytest.raises(TreeRefused, match="data directory"):
        scan_tree(root)


def test_hatobaignore_adds_to_gitignore_and_overrules_it(root: Path) -> None:
    write(root, ".gitignore", "data/\n*.log\n")
    write(root, ".hatobaignore", "!data/\nnotebooks/\n")
    fill(root, "data/x.csv", "notebooks/a.ipynb", "run.log", "train.py")
    assert paths(scan_tree(root)) == [".gitignore", ".hatobaignore", "data/x.csv", "train.py"]


def test_rules_of_the_repository_around_count_unless_they_ignore_all(root: Path) -> None:
    fill(root, ".git/", "exp/one/train.py", "exp/one/big.ckpt", "exp/one/tmp/x", "build/gen.py")
    write(root, ".gitignore", "*.ckpt\nbuild/\n")
    write(root, "exp/.gitignore", "/one/tmp\n")
    assert paths(scan_tree(root / "exp" / "one")) == ["train.py"]
    assert paths(scan_tree(root / "build")) == ["gen.py"]


def test_lines_that_git_does_not_understand_are_passed_over(root: Path) -> None:
    (root / ".gitignore").write_bytes(b"\xef\xbb\xbf*.a\r\n!\n\\\n*.b\n\xff\n")
    fill(root, "x.a", "x.b", "x.c")
    assert paths(scan_tree(root)) == [".gitignore", "x.c"]


GIT_RULES = {
    ".gitignore": "*.log\n!keep.log\n/only-top\nout*/\n**/deep/file\ndocs/*.txt\n# c\n\\#hash\n",
    "src/.gitignore": "!debug.log\n/local\n*.tmp\n!/sub/*.tmp\n",
    "src/sub/.gitignore": "*\n!.gitignore\n!wanted*\n",
    "white/.gitignore": "/*\n!/in/\n/in/*\n!/in/me\n",
}
GIT_FILES = [
    *("a.log", "keep.log", "x/keep.log", "x/a.log", "only-top", "x/only-top", "output/f"),
    *("outline", "x/out/f", "deep/file", "x/y/deep/file", "docs/a.txt", "docs/sub/a.txt"),
    *("#hash", "src/debug.log", "src/other.log", "src/local", "src/x/local", "src/a.tmp"),
    *("src/sub/b.tmp", "src/sub/wanted.tmp", "src/sub/wanted", "src/sub/no", "src/sub/d/e"),
    *("white/no", "white/in/me", "white/in/you", "white/in/deep/x", "white/.gitignore.d/x"),
]


@pytest.mark.skipif(shutil.which("git") is None, reason="compares with git, which is not here")
def test_the_same_files_are_ignored_as_by_git(root: Path) -> None:
    fill(root, *GIT_FILES)
    for path, rules in GIT_RULES.items():
        write(root, path, rules)
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"}
    subprocess.run(["git", "init", "-q", root], check=True, env=environment)
    listed = subprocess.run(
        ["git", "-C", root, "ls-files", "-z", "--others", "--exclude-standard"],
        check=True,
        capture_output=True,
        text=True,
        env=environment,
    )
    files = [found.path for found in scan_tree(root).entries if found.type == 1]
    assert files == sorted(filter(None, listed.stdout.split("\0")))


@pytest.mark.parametrize(
    ("link", "target", "kept"),
    [
        ("a", "train.py", "train.py"),
        ("pkg/up", "../train.py", "../train.py"),
        ("pkg/b", "./m.py", "m.py"),
        ("a", "{root}/pkg/m.py", "pkg/m.py"),
        ("pkg/abs", "{root}/train.py", "../train.py"),
        ("a", "pkg/../train.py", "train.py"),
        ("a", "not-there", "not-there"),
        ("a", "{root}", "."),
        ("a", "jump/../m.py", "pkg/m.py"),
    ],
)
def test_links_that_stay_inside_are_kept_and_made_relative(
    root: Path, link: str, target: str, kept: str
) -> None:
    fill(root, "train.py", "pkg/m.py", "pkg/deep/x")
    (root / "jump").symlink_to("pkg/deep")
    (root / link).symlink_to(target.format(root=root))
    found = {one.path: one.target for one in scan_tree(root).entries}
    assert found[link] == kept


@pytest.mark.parametrize(
    "target", ["/etc/passwd", "../..", "../../root-b/x", "deep/../../../x", "/", "../top/../x"]
)
def test_a_link_that_leaves_the_directory_is_refused_by_its_path(root: Path, target: str) -> None:
    fill(root, "pkg/deep/x")
    (root / "top").symlink_to(".")
    (root / "pkg" / "bad").symlink_to(target)
    with pytest.raises(TreeRefused, match="leaves the directory") as caught:
        scan_tree(root)
    assert caught.value.path == "pkg/bad"
    assert ".hatobaignore" in caught.value.remedy
    with pytest.raises(TreeRefused) as caught:
        scan_tree(root, Selection.EVERYTHING)
    assert caught.value.remedy == "remove it"


def test_links_to_directories_are_not_followed(root: Path) -> None:
    fill(root, "pkg/m.py")
    (root / "pkg" / "loop").symlink_to(".")
    (root / "same").symlink_to("pkg")
    assert paths(scan_tree(root)) == ["pkg/loop", "pkg/m.py", "same"]


def test_what_is_no_file_is_passed_over_with_a_warning(root: Path) -> None:
    fill(root, "train.py")
    os.mkfifo(root / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(root / "sock"))
        scan = scan_tree(root)
    assert paths(scan) == ["train.py"]
    assert sorted(scan.warnings) == [
        "pipe is a named pipe; it is passed over",
        "sock is a socket; it is passed over",
    ]


@pytest.mark.parametrize("name", [b"not-\xff-utf8", b"line\nfeed", b"back\\slash"])
def test_a_name_that_is_not_safe_everywhere_is_refused(root: Path, name: bytes) -> None:
    Path(os.fsdecode(os.fsencode(root) + b"/" + name)).touch()
    with pytest.raises(TreeRefused, match="its name must"):
        scan_tree(root)


def test_a_decomposed_name_is_packed_composed_with_a_warning(root: Path) -> None:
    fill(root, "e\u0301.txt")
    scan = scan_tree(root)
    assert paths(scan) == ["\u00e9.txt"]
    assert len(scan.warnings) == 1
    fill(root, "\u00e9.txt")
    with pytest.raises(TreeRefused, match="twice"):
        scan_tree(root)


def test_a_single_file_is_a_tree_of_one(root: Path) -> None:
    fill(root, "data.csv", "other")
    assert paths(scan_tree(root / "data.csv")) == ["data.csv"]


def test_a_directory_that_is_not_there_is_refused(root: Path) -> None:
    with pytest.raises(TreeRefused, match="no such directory"):
        scan_tree(root / "nowhere")


def test_a_directory_that_is_too_big_is_refused_before_it_is_read(root: Path) -> None:
    with (root / "sparse").open("wb") as file:
        file.truncate(1024**4 + 1)
    with pytest.raises(TreeRefused, match="more than 1,099,511,627,776 bytes"):
        scan_tree(root)


def test_the_size_warning_names_the_three_largest(root: Path) -> None:
    for name, size in {"data/a": 30, "data/b": 20, "model.pt": 15, "x": 2, "y": 1}.items():
        fill(root, name)
        with (root / name).open("wb") as file:
            file.truncate(size * 1_000_000)
    scan = scan_tree(root)
    warning = scan.size_warning()
    assert "68.0 MB in 5 files" in warning
    assert "data/ (50.0 MB), model.pt (15.0 MB), x (2.0 MB);" in warning
    assert ".hatobaignore" in warning
    assert scan.size_warning(above=68_000_000) == ""
