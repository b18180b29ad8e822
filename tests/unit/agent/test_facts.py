"""What a machine is: in the words of images, with the mark of its directory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hatoba_worker.agent import disk, facts
from hatoba_worker.agent.names import resource_name, slot_name
from hatoba_worker.keeper import cgroups


@pytest.mark.parametrize(
    ("machine", "bits", "architecture", "variant"),
    [
        ("x86_64", 64, "amd64", ""),
        ("aarch64", 64, "arm64", ""),
        ("armv7l", 32, "arm", "v7"),
        ("armv6l", 32, "arm", "v6"),
        ("armv8l", 32, "arm", "v7"),
        ("aarch64", 32, "arm", "v7"),
        ("x86_64", 32, "386", ""),
        ("riscv64", 64, "riscv64", ""),
        ("Power Macintosh", 32, "power_macintosh", ""),
    ],
)
def test_a_platform_is_what_programs_are_made_for(
    machine: str, bits: int, architecture: str, variant: str
) -> None:
    found = facts.platform_of(machine, bits)
    assert (found.architecture, found.variant) == (architecture, variant)


def test_the_mark_of_a_directory_is_made_once_and_again_when_it_was_damaged(tmp_path: Path) -> None:
    first = facts.installation(tmp_path)
    assert facts.installation(tmp_path) == first
    (tmp_path / "installation").write_bytes(b"\xff\0")
    second = facts.installation(tmp_path)
    assert second != first
    assert facts.installation(tmp_path) == second


def test_a_machine_says_what_it_has(tmp_path: Path) -> None:
    found = facts.capacity(tmp_path, images=True)
    assert found.cpus == os.cpu_count()
    assert found.memory_bytes > 1 << 20
    assert found.disk_bytes == pytest.approx(disk.free_bytes(tmp_path), rel=0.5)
    assert found.limits_memory is cgroups.may_limit()
    assert found.images


def seat(root: Path, cgroup: str, mounts: str) -> None:
    about = root / "proc" / "self"
    about.mkdir(parents=True)
    (about / "cgroup").write_text(cgroup)
    (about / "mountinfo").write_text(mounts)


def test_limits_are_enforced_where_a_group_can_be_made_v2(tmp_path: Path) -> None:
    home = tmp_path / "groups" / "agent"
    home.mkdir(parents=True)
    (home / "cgroup.procs").touch()
    mounts = f"30 20 0:26 / {tmp_path}/groups rw - cgroup2 cgroup2 rw\n"
    seat(tmp_path, "0::/agent\n", mounts)
    controllers = home / "cgroup.controllers"
    controllers.write_text("cpu io memory pids\n")
    assert cgroups.may_limit(tmp_path)
    # A Raspberry Pi as it comes.
    controllers.write_text("cpu io pids\n")
    assert not cgroups.may_limit(tmp_path)


def test_limits_are_enforced_where_a_group_can_be_made_v1(tmp_path: Path) -> None:
    home = tmp_path / "groups" / "agent"
    home.mkdir(parents=True)
    (home / "cgroup.procs").touch()
    mounts = f"30 20 0:26 / {tmp_path}/groups rw - cgroup cgroup rw,memory\n"
    seat(tmp_path, "9:memory:/agent\n", mounts)
    assert cgroups.may_limit(tmp_path)
    (tmp_path / "proc" / "self" / "cgroup").write_text("8:pids:/agent\n")
    assert not cgroups.may_limit(tmp_path)


def test_a_kernel_without_groups_enforces_nothing(tmp_path: Path) -> None:
    assert not cgroups.may_limit(tmp_path)


def test_slots_are_named_after_deployments_and_back() -> None:
    assert slot_name("projects/default/deployments/adder") == "default.adder"
    assert resource_name("default.adder") == "projects/default/deployments/adder"


@pytest.mark.parametrize(
    "name", ["adder", "projects/a/deployments/", "projects/../deployments/b", "projects/a/b/c"]
)
def test_what_names_no_deployment_has_no_slot(name: str) -> None:
    with pytest.raises(ValueError, match="not the name"):
        slot_name(name)
    with pytest.raises(ValueError, match="not the name"):
        resource_name(name)
