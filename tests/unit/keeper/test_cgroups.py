"""Where a memory group would be made, on systems this machine is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from hatoba_worker.keeper.cgroups import SMALLEST_LIMIT, GroupsV1, GroupsV2, MemoryGroup, find

V1 = "35 31 0:32 / {root}/memory rw - cgroup cgroup rw,memory\n"
V2 = "41 31 0:38 / {root}/unified rw - cgroup2 cgroup2 rw\n"


def system(root: Path, mountinfo: str, own: str) -> None:
    about = root / "proc/self"
    about.mkdir(parents=True)
    (about / "mountinfo").write_text(mountinfo.format(root=root))
    (about / "cgroup").write_text(own)


def control_group(path: Path, **files: str) -> Path:
    path.mkdir(parents=True)
    (path / "cgroup.procs").write_text("")
    for name, text in files.items():
        (path / name.replace("__", ".")).write_text(text)
    return path


def test_v1_groups_stand_below_our_own(tmp_path: Path) -> None:
    system(tmp_path, V1, "4:memory:/box/ours\n0::/\n")
    control_group(tmp_path / "memory")
    home = control_group(tmp_path / "memory/box/ours")

    groups = find("key", tmp_path)

    assert isinstance(groups, GroupsV1)
    assert groups.new("a").path == home / "hatoba-key/a"
    groups.leave()
    assert (home / "cgroup.procs").read_text() == "0"
    groups.close()
    assert not (home / "hatoba-key").exists()


def test_in_a_container_that_shows_only_its_part_the_mount_is_home(tmp_path: Path) -> None:
    system(tmp_path, V1.replace(" / ", " /docker/1 "), "4:memory:/docker/1\n")
    control_group(tmp_path / "memory")

    groups = find("key", tmp_path)

    assert groups
    assert groups.new("a").path == tmp_path / "memory/hatoba-key/a"


def test_v2_needs_the_memory_controller(tmp_path: Path) -> None:
    system(tmp_path, V2, "0::/\n")
    control_group(tmp_path / "unified", cgroup__controllers="cpu pids")

    assert find("key", tmp_path) is None


def test_v2_shares_memory_out_only_after_the_keeper_stepped_into_a_leaf(tmp_path: Path) -> None:
    # A real kernel makes the files of a new group by itself.
    system(tmp_path, V2, "0::/unit\n")
    home = control_group(
        tmp_path / "unified/unit", cgroup__controllers="cpu memory", cgroup__subtree_control=""
    )
    base = control_group(home / "hatoba-key", cgroup__subtree_control="")
    leaf = control_group(base / "keeper")

    groups = find("key", tmp_path)

    assert isinstance(groups, GroupsV2)
    assert (leaf / "cgroup.procs").read_text() == "0"
    assert (home / "cgroup.subtree_control").read_text() == "+memory"
    assert (base / "cgroup.subtree_control").read_text() == "+memory"
    assert groups.new("a").path == base / "a"


def test_v2_that_does_not_let_us_is_left_as_it_was(tmp_path: Path) -> None:
    system(tmp_path, V2, "0::/\n")
    home = control_group(tmp_path / "unified", cgroup__controllers="memory")

    assert find("key", tmp_path) is None
    assert (home / "cgroup.procs").read_text() == "0"


def test_no_groups_at_all(tmp_path: Path) -> None:
    system(tmp_path, "23 1 0:1 / / rw - ext4 /dev/vda rw\n", "0::/\n")

    assert find("key", tmp_path) is None


@pytest.mark.parametrize(
    ("version", "name", "text"),
    [
        (1, "memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"),
        (2, "memory.events", "low 0\nhigh 0\nmax 9\noom 3\noom_kill 2\n"),
    ],
)
def test_oom_kills_are_counted(tmp_path: Path, version: int, name: str, text: str) -> None:
    group = MemoryGroup(tmp_path, version)
    assert group.oom_kills() == 0

    (tmp_path / name).write_text(text)

    assert group.oom_kills() == 2


def test_a_limit_never_endangers_the_keeper_that_steps_in(tmp_path: Path) -> None:
    assert MemoryGroup(tmp_path, 1).settings(4096)["memory.limit_in_bytes"] == SMALLEST_LIMIT
    assert MemoryGroup(tmp_path, 2).settings(4096)["memory.max"] == SMALLEST_LIMIT
    assert MemoryGroup(tmp_path, 2).settings(1 << 30)["memory.max"] == 1 << 30
