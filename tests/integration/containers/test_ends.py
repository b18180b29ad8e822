"""How containers end, each as it is: what the engine says first, exit codes last."""

from __future__ import annotations

from typing import Any

import pytest
from container_house import ContainerHouse

from hatoba.v1 import runner_pb2

MIB = 1 << 20


def kind(commit: Any) -> str:
    """`OUT_OF_MEMORY` and the like."""
    return runner_pb2.ExitKind.Name(commit.kind).removeprefix("EXIT_KIND_")


async def test_a_command_runs_and_its_outputs_come_out(house: ContainerHouse) -> None:
    house.contained(house.a, "echo hi; echo err >&2; echo made > $HATOBA_OUTPUTS/file; exit 3")
    commit = await house.commit(house.a)
    assert (kind(commit), commit.exit_code, commit.gone) == ("EXITED", 3, True)
    assert commit.outputs.files == 1
    assert list(commit.last_log_lines) == ["err"]
    assert commit.usage.image.startswith("sha256:")
    await house.forgotten(house.a)
    assert house.server.log(house.a) == b"hi\n"
    assert house.server.log(house.a, "stderr") == b"err\n"
    assert b" is sha256:" in house.server.log(house.a, "build")
    await house.nothing_left()


async def test_a_shell_of_its_own_may_end_with_127(house: ContainerHouse) -> None:
    house.contained(house.a, "no-such-program")
    commit = await house.commit(house.a)
    assert (kind(commit), commit.exit_code) == ("EXITED", 127)


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["/no/such"], "NOT_FOUND"),
        (["no-such"], "NOT_FOUND"),
        (["/etc"], "NOT_EXECUTABLE"),
    ],
)
async def test_a_command_that_cannot_be_started_is_told_apart(
    house: ContainerHouse, command: list[str], expected: str
) -> None:
    house.run(house.a, *command, environment={"image": house.image})
    commit = await house.commit(house.a)
    assert (kind(commit), commit.exit_code, commit.gone) == (expected, 0, True)
    await house.forgotten(house.a)
    await house.nothing_left()


async def test_over_its_memory(house: ContainerHouse) -> None:
    grow = "x=1; while :; do x=$x$x; done"
    house.contained(house.a, grow, resources={"memory_bytes": 16 * MIB})
    commit = await house.commit(house.a)
    assert kind(commit) == "OUT_OF_MEMORY"
    assert "16 MiB are allowed" in commit.message
    assert commit.usage.memory_limit_by == "cgroup"


async def test_a_part_killed_for_memory_counts_also_when_the_rest_ends_well(
    house: ContainerHouse,
) -> None:
    script = "(x=1; while :; do x=$x$x; done); exit 0"
    house.contained(house.a, script, resources={"memory_bytes": 16 * MIB})
    assert kind(await house.commit(house.a)) == "OUT_OF_MEMORY"


async def test_a_signal_of_its_own(house: ContainerHouse) -> None:
    house.contained(house.a, "sh -c 'kill -SEGV $$'; exit $?")
    commit = await house.commit(house.a)
    assert (kind(commit), commit.signal) == ("SIGNALED", 11)


async def test_a_stop_within_the_grace(house: ContainerHouse) -> None:
    house.contained(house.a, "trap 'echo bye; exit 9' TERM; echo up; while :; do sleep 0.1; done")
    await house.logged(house.a, b"up\n")
    house.server.tell_stop(house.a, 20)
    commit = await house.commit(house.a)
    assert kind(commit) == "STOPPED"
    await house.forgotten(house.a)
    assert house.server.log(house.a) == b"up\nbye\n"


async def test_a_stop_that_has_to_kill(house: ContainerHouse) -> None:
    house.contained(house.a, "trap '' TERM; echo up; while :; do sleep 0.1; done")
    await house.logged(house.a, b"up\n")
    house.server.tell_stop(house.a, 0.2)
    commit = await house.commit(house.a)
    assert (kind(commit), commit.signal) == ("STOPPED", 9)
    await house.nothing_left()


async def test_an_operator_who_ends_it_by_the_engine_is_not_its_own_fault(
    house: ContainerHouse,
) -> None:
    house.contained(house.a, "echo up; exec sleep 1000")
    await house.logged(house.a, b"up\n")
    await house.docker("kill", house.a)
    commit = await house.commit(house.a)
    assert (kind(commit), commit.gone) == ("LOST", True)


async def test_one_that_is_removed_behind_us_is_lost(house: ContainerHouse) -> None:
    house.contained(house.a, "echo up; exec sleep 1000")
    await house.logged(house.a, b"up\n")
    await house.docker("rm", "-f", house.a)
    assert kind(await house.commit(house.a)) == "LOST"


async def test_an_image_that_is_nowhere(house: ContainerHouse) -> None:
    house.contained(house.a, "exit 0", environment={"image": "127.0.0.1:1/no/such:1"})
    commit = await house.commit(house.a)
    assert kind(commit) == "IMAGE_UNREACHABLE"
    assert "127.0.0.1:1/no/such:1" in commit.message


async def test_a_reference_that_is_none(house: ContainerHouse) -> None:
    house.contained(house.a, "exit 0", environment={"image": "Not A Reference"})
    commit = await house.commit(house.a)
    assert kind(commit) == "IMAGE_MISSING"
    assert "no reference of an image" in commit.message


async def test_what_others_named_so_is_not_touched(house: ContainerHouse) -> None:
    name = f"theirs-{house.data.parent.name.replace('_', '-')[-30:]}"
    await house.docker("create", "--name", name, house.image, "sleep", "1")
    try:
        house.contained(name, "exit 0")
        commit = await house.commit(name)
        assert kind(commit) == "STAGING_FAILED"
        assert "not ours" in commit.message
        assert (await house.inspect(name))["Config"]["Cmd"] == ["sleep", "1"]
    finally:
        await house.docker("rm", "-f", name)
