"""Workers, servers and keepers die in the middle; jobs do not notice, and nothing runs twice."""

from __future__ import annotations

import sys
from pathlib import Path

from waiting import until
from worker_house import House

from hatoba.v1 import runner_pb2

EXITED = runner_pb2.EXIT_KIND_EXITED
LOST = runner_pb2.EXIT_KIND_LOST

LINES = b"".join(b"line %d\n" % number for number in range(20_000))


def numbered(gate: Path) -> str:
    """Prints half of the lines, waits for a file, prints the rest, and ends with code 5."""
    return f"""
import pathlib, sys, time
for number in range(20000):
    print("line", number)
    if number == 10000:
        sys.stdout.flush()
        while not pathlib.Path({str(gate)!r}).exists():
            time.sleep(0.005)
sys.exit(5)
"""


async def test_a_worker_killed_in_mid_run_changes_nothing(house: House) -> None:
    gate = house.data / "gate"
    house.run("a-1", sys.executable, "-c", numbered(gate))
    await house.logged("a-1", b"line 9000\n")
    await house.restart_worker()
    held = house.heard.all("held", "a-1")[-1]
    assert (held.claimed, held.started, held.fence) == (True, True, 1)
    gate.touch()
    commit = await house.commit("a-1")
    assert (commit.kind, commit.exit_code) == (EXITED, 5)
    await house.forgotten("a-1")
    assert house.server.log("a-1") == LINES
    assert len(house.heard.all("claim", "a-1")) == 1


async def test_what_ended_while_no_worker_ran_is_committed_by_the_next(house: House) -> None:
    gate = house.data / "gate"
    house.run("a-1", sys.executable, "-c", numbered(gate))
    await house.logged("a-1", b"line 9000\n")
    await house.kill_worker()
    gate.touch()
    size = len(LINES)
    await until(lambda: (house.home("a-1") / "stdout.log").stat().st_size == size)
    await house.start_worker()
    commit = await house.commit("a-1")
    assert (commit.kind, commit.exit_code) == (EXITED, 5)
    assert dict(commit.log_sizes) == {"stdout": size}
    await house.forgotten("a-1")
    assert house.server.log("a-1") == LINES


async def test_a_server_killed_in_mid_run_changes_nothing(house: House) -> None:
    gate = house.data / "gate"
    house.run("a-1", sys.executable, "-c", numbered(gate))
    await house.logged("a-1", b"line 9000\n")
    await house.server.stop()
    gate.touch()
    size = len(LINES)
    await until(lambda: (house.home("a-1") / "stdout.log").stat().st_size == size)
    await house.server.start()
    commit = await house.commit("a-1")
    assert (commit.kind, commit.exit_code) == (EXITED, 5)
    await house.forgotten("a-1")
    assert house.server.log("a-1") == LINES


async def test_an_unanswered_claim_is_made_again_with_the_same_nonce(house: House) -> None:
    house.server.silent.add("claim")
    house.shell("a-1", "true")
    first = await house.heard.wait("claim", "a-1")
    house.server.silent.clear()
    await house.restart_worker()
    second = await house.heard.wait("claim", "a-1", count=2)
    assert first.nonce == second.nonce
    assert (await house.commit("a-1")).exit_code == 0


async def test_an_unanswered_commit_is_made_again_and_the_command_is_not(house: House) -> None:
    house.server.silent.add("commit")
    house.shell("a-1", f"echo once >> {house.data}/ran")
    first = await house.commit("a-1")
    house.server.silent.clear()
    await house.restart_worker()
    second = await house.heard.wait("commit", "a-1", count=2)
    assert (first.kind, first.nonce, first.end_time) == (
        second.kind,
        second.nonce,
        second.end_time,
    )
    await house.forgotten("a-1")
    assert (house.data / "ran").read_text() == "once\n"
    await house.keeper_has()


async def test_a_stop_is_told_apart_after_the_workers_death_too(house: House) -> None:
    house.shell(
        "a-1",
        "trap 'while ! test -e ../../../gate; do sleep 0.01; done; exit 0' TERM; "
        "echo up; sleep 60 & wait",
    )
    await house.logged("a-1", b"up\n")
    house.server.tell_stop("a-1", grace=30)
    await until(lambda: (house.home("a-1") / "stop").exists())
    await house.restart_worker()
    (house.data / "gate").touch()
    assert (await house.commit("a-1")).kind == runner_pb2.EXIT_KIND_STOPPED


async def test_a_keeper_killed_means_lost_and_everything_gone(house: House) -> None:
    house.shell("a-1", "setsid sh -c 'trap \"\" TERM; echo $$; sleep 60; sleep 60' & exec sleep 60")
    await house.logged("a-1", b"\n")
    pid = int(house.server.log("a-1"))
    keepers = {hello.keeper for hello in house.heard.all("hello")}
    await house.kill_keeper()
    commit = await house.commit("a-1")
    assert commit.kind == LOST
    assert commit.gone
    assert not await house.alive(pid)
    await house.heard.until(lambda: house.heard.all("hello")[-1].keeper not in keepers)
    house.shell("a-2", "exit 4")
    assert (await house.commit("a-2")).exit_code == 4


async def test_processes_that_no_journal_speaks_of_are_ended_before_the_inventory(
    house: House,
) -> None:
    house.shell("a-1", "echo $$; sleep 60")
    await house.logged("a-1", b"\n")
    pid = int(house.server.log("a-1"))
    await house.kill_worker()
    (house.data / "worker.journal").unlink()
    await house.start_worker()
    assert not await house.alive(pid)
    assert house.heard.all("held", "a-1") == []
    await house.forgotten("a-1")
    await house.keeper_has()


async def test_after_a_new_start_of_the_machine_nothing_is_started_again(house: House) -> None:
    house.server.silent.add("claim")
    house.shell("a-1", f"touch {house.data}/ran")
    await house.heard.wait("claim", "a-1")
    await house.kill_worker()
    journal = house.data / "worker.journal"
    first, *rest = journal.read_text().splitlines(keepends=True)
    journal.write_text('{"k":"worker","boot":"another"}\n' + "".join(rest))
    assert '"boot"' in first
    house.server.silent.clear()
    await house.start_worker()
    commit = await house.commit("a-1")
    assert (commit.kind, commit.gone) == (LOST, True)
    await house.forgotten("a-1")
    assert len(house.heard.all("claim", "a-1")) == 1
    assert not (house.data / "ran").exists()


async def test_a_second_worker_on_one_directory_is_refused(house: House) -> None:
    assert await house.second_worker() == 75


async def test_a_worker_that_is_told_to_end_leaves_its_jobs_alone(house: House) -> None:
    house.shell("a-1", "echo $$; sleep 60")
    await house.logged("a-1", b"\n")
    pid = int(house.server.log("a-1"))
    assert await house.stop_worker() == 0
    assert await house.alive(pid)
    await house.start_worker()
    assert house.heard.all("held", "a-1")[-1].started


async def test_a_full_disk_below_its_log_ends_no_worker(house: House) -> None:
    await house.kill_worker()
    log = house.data / "worker.log"
    log.unlink()
    log.symlink_to("/dev/full")
    await house.start_worker()
    house.shell("a-1", "exit 3")
    assert (await house.commit("a-1")).exit_code == 3
