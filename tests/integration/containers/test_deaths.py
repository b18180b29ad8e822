"""Workers die in the middle; containers do not notice, nothing runs twice, and no byte is lost."""

from __future__ import annotations

from pathlib import Path

from container_house import ContainerHouse
from waiting import until

from hatoba.v1 import runner_pb2
from hatoba_worker.main import end_all

LINES = b"".join(b"line %d\n" % number for number in range(20_000))
NUMBERED = """
echo started >> /marks/starts
seq 0 9999 | sed 's/^/line /'
while [ ! -e /marks/gate ]; do sleep 0.02; done
seq 10000 19999 | sed 's/^/line /'
exit 5
"""


async def marks(house: ContainerHouse) -> Path:
    """A directory that containers may write to."""
    place = house.data.parent / "marks"
    place.mkdir(mode=0o777)
    place.chmod(0o777)
    await house.stop_worker()
    house.settings |= {"mounts": [f"{place}:/marks"]}
    await house.start_worker()
    return place


async def test_a_worker_killed_in_mid_run_changes_nothing(house: ContainerHouse) -> None:
    place = await marks(house)
    house.contained(house.a, NUMBERED)
    await house.logged(house.a, b"line 9000\n")
    await house.restart_worker()
    held = house.heard.all("held", house.a)[-1]
    assert held.fence == 1
    (place / "gate").touch()
    commit = await house.commit(house.a)
    assert (commit.kind, commit.exit_code) == (runner_pb2.EXIT_KIND_EXITED, 5)
    await house.forgotten(house.a)
    assert house.server.log(house.a) == LINES
    assert (place / "starts").read_text() == "started\n"
    assert len(house.heard.all("claim", house.a)) == 1
    await house.nothing_left()


async def test_what_ended_while_no_worker_ran_is_committed_by_the_next(
    house: ContainerHouse,
) -> None:
    place = await marks(house)
    house.contained(house.a, NUMBERED)
    await house.logged(house.a, b"line 9000\n")
    await house.kill_worker()
    (place / "gate").touch()
    await until(lambda: "Exited" in house.engine.docker("ps", "-a", "--filter", f"name={house.a}"))
    await house.start_worker()
    commit = await house.commit(house.a)
    assert (commit.kind, commit.exit_code) == (runner_pb2.EXIT_KIND_EXITED, 5)
    assert dict(commit.log_sizes)["stdout"] == len(LINES)
    await house.forgotten(house.a)
    assert house.server.log(house.a) == LINES
    assert commit.usage.image.startswith("sha256:")


async def test_a_keeper_that_dies_takes_no_container_along(house: ContainerHouse) -> None:
    place = await marks(house)
    house.contained(house.a, NUMBERED)
    await house.logged(house.a, b"line 9000\n")
    await house.kill_keeper()
    (place / "gate").touch()
    commit = await house.commit(house.a)
    assert (commit.kind, commit.exit_code) == (runner_pb2.EXIT_KIND_EXITED, 5)
    await house.forgotten(house.a)
    assert house.server.log(house.a) == LINES


async def test_a_container_of_no_journal_is_removed(house: ContainerHouse) -> None:
    house.contained(house.a, "echo up; exec sleep 1000")
    await house.logged(house.a, b"up\n")
    await house.kill_worker()
    (house.data / "worker.journal").unlink()
    await house.start_worker()
    await house.nothing_left()


async def test_who_ends_everything_ends_containers_too(house: ContainerHouse) -> None:
    house.contained(house.a, "echo up; exec sleep 1000")
    await house.logged(house.a, b"up\n")
    await house.stop_worker()
    await end_all(house.data, 0.5)
    state = (await house.inspect(house.a))["State"]
    assert state["Running"] is False
    await house.start_worker()
    commit = await house.commit(house.a)
    assert commit.kind == runner_pb2.EXIT_KIND_STOPPED
    await house.nothing_left()


async def test_many_at_once_and_none_is_left(house: ContainerHouse) -> None:
    names = [f"{house.a}-{number}" for number in range(12)]
    for name in names:
        house.contained(name, f"echo {name}")
    for name in names:
        assert (await house.commit(name)).exit_code == 0
        await house.forgotten(name)
        assert house.server.log(name) == f"{name}\n".encode()
    await house.nothing_left()
