"""Every end is told as it was."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from hatoba_worker.keeper.messages import Exited, Limits, Spawned, SpawnFailed

if TYPE_CHECKING:
    from tests.integration.keeper.conftest import House, Watcher


async def test_exit_codes_and_signals_are_told_apart(house: House, watcher: Watcher) -> None:
    await watcher.client.spawn_many(
        [
            house.shell("zero", "exit 0"),
            house.shell("seven", "exit 7"),
            house.shell("aborted", "kill -ABRT $$"),
            house.shell("killed", "kill -KILL $$"),
        ]
    )

    ends = {name: (await watcher.exited(name)).exit for name in ("zero", "seven")}
    assert {name: (end.exit_code, end.signal) for name, end in ends.items()} == {
        "zero": (0, None),
        "seven": (7, None),
    }
    assert (await watcher.exited("aborted")).exit.signal == signal.SIGABRT
    killed = (await watcher.exited("killed")).exit
    assert (killed.exit_code, killed.signal) == (None, signal.SIGKILL)
    assert (killed.reason, killed.oom) == ("exited", False)


async def test_an_end_tells_times_and_usage(house: House, watcher: Watcher) -> None:
    script = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done"
    [reply] = await watcher.client.spawn_many([house.shell("a", script)])

    end = await watcher.exited("a")

    assert isinstance(reply, Spawned)
    assert end.started_at == reply.started_at
    assert end.exit.ended_at > end.started_at
    assert end.exit.usage.utime > 0
    assert end.exit.usage.maxrss > 0
    assert end.gone


async def test_what_cannot_start_says_why(house: House, watcher: Watcher) -> None:
    plain = house.data / "plain"
    plain.write_text("no program")
    orphan = house.data / "orphan"
    orphan.write_text("#!/no/such/interpreter\n")
    orphan.chmod(0o755)

    replies = await watcher.client.spawn_many(
        [
            house.spawn("a", "no-such-program"),
            house.spawn("b", "/no/such/program"),
            house.spawn("c", str(plain)),
            house.spawn("d", str(orphan)),
            house.spawn("e", "/bin/true", cwd="/no/such/directory"),
            house.spawn("f"),
            house.spawn("g", "/bin/echo", "nul\0byte"),
        ]
    )

    kinds = [reply.kind for reply in replies if isinstance(reply, SpawnFailed)]
    assert kinds == [
        "not_found",
        "not_found",
        "not_executable",
        "not_found",
        "cwd_missing",
        "other",
        "other",
    ]
    d = replies[3]
    assert isinstance(d, SpawnFailed)
    assert "interpreter" in d.message
    inventory = await watcher.client.list()
    assert all(each.failed and each.gone for each in inventory.attempts)


async def test_the_process_gets_what_it_was_promised(house: House, watcher: Watcher) -> None:
    # The hard limit follows the soft one within the spawn; its reply comes after both.
    later = "while [ ! -e go ]; do sleep 0.01; done; ulimit -Hn"
    script = f"echo $HATOBA_ATTEMPT; pwd; ulimit -n; ulimit -c; cat; ls /proc/self/fd; {later}"
    limits = Limits(nofile=123, core=0)
    await watcher.client.spawn_many([house.spawn("a", "/bin/sh", "-c", script, limits=limits)])
    (house.data / "go").write_text("")

    await watcher.exited("a")

    mark, directory, soft, core, *handles, hard = house.out("a").split()
    assert mark == "a"
    assert directory == str(house.data)
    assert (soft, hard, core) == ("123", "123", "0")
    # The fourth is that of the listing itself.
    assert handles == ["0", "1", "2", "3"]
    assert (house.data / "a.out").stat().st_mode & 0o777 == 0o600


async def test_a_process_leads_a_session_and_has_no_ignored_signals(
    house: House, watcher: Watcher
) -> None:
    script = "grep SigIgn /proc/self/status; cut -d' ' -f1,6 /proc/$$/stat"
    await watcher.client.spawn_many([house.shell("a", script)])

    await watcher.exited("a")

    [_, ignored, pid, session] = house.out("a").split()
    # Signals from 32 on are the C library's own: nobody can give them back.
    assert int(ignored, 16) & 0x7FFF_FFFF == 0
    assert pid == session


async def test_logs_are_appended_to(house: House, watcher: Watcher) -> None:
    (house.data / "a.out").write_text("before\n")

    await watcher.client.spawn_many([house.shell("a", "echo after")])

    await watcher.exited("a")
    assert house.out("a") == "before\nafter\n"


async def test_three_hundred_at_once_all_end_well(house: House, watcher: Watcher) -> None:
    names = [f"n{number}" for number in range(300)]

    await watcher.client.spawn_many([house.spawn(name, "/bin/true") for name in names])

    ends = [await watcher.exited(name) for name in names]
    assert {(end.exit.exit_code, end.exit.signal, end.gone) for end in ends} == {(0, None, True)}
    assert sum(isinstance(event, Exited) for event in watcher.seen) == 300


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
async def test_stop_sends_the_signal_that_was_asked(
    house: House, watcher: Watcher, number: int
) -> None:
    trap = "trap 'exit 3' TERM; trap 'exit 4' USR1; echo ready; while :; do sleep 0.01; done"
    await watcher.client.spawn_many([house.shell("a", trap)])
    await house.printed("a", "ready")

    assert await watcher.client.stop("a", grace=10, signal=number) == "stopping"

    end = (await watcher.exited("a")).exit
    assert end.exit_code == {signal.SIGTERM: 3, signal.SIGUSR1: 4}[signal.Signals(number)]
    assert end.reason == "stop"


async def test_a_sample_adds_up_the_tree(house: House, watcher: Watcher) -> None:
    await watcher.client.spawn_many([house.shell("a", "sleep 60 & sleep 60 & echo ready; wait")])
    await house.printed("a", "ready")

    [sample] = await watcher.client.sample()

    assert sample.attempt == "a"
    assert len(sample.pids) == 3
    assert sample.rss_bytes > 0
    assert sample.cpu_seconds >= 0
    assert await watcher.client.sample(["unknown"]) == []
