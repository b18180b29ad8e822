"""An attempt is gone when no process of it is left, however it hid."""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING

import pytest

from hatoba_worker.keeper.messages import Exited, Stray

if TYPE_CHECKING:
    from tests.integration.keeper.conftest import House, Watcher

STUBBORN = "trap '' TERM HUP; echo $$; while :; do sleep 0.01; done"
# setsid forks when its caller leads a group: two forks, and a session of its own.
HIDDEN = "STUBBORN='" + STUBBORN.replace("'", '"') + "' setsid setsid sh -c 'eval \"$STUBBORN\"' &"


async def test_a_double_forked_session_that_ignores_sigterm_is_killed(
    house: House, watcher: Watcher
) -> None:
    await watcher.client.spawn_many([house.shell("a", f"{HIDDEN} sleep 60")])
    hidden = await house.pid_printed("a")

    await watcher.client.stop("a", grace=0.05)

    end = await watcher.exited("a")
    assert end.exit.signal == signal.SIGTERM
    assert end.exit.reason == "stop"
    await watcher.gone("a")
    assert not await house.alive(hidden)


async def test_what_the_main_process_leaves_is_ended_after_a_grace(
    house: House, watcher: Watcher
) -> None:
    script = f"{HIDDEN} while [ ! -s $HOUSE/a.out ]; do sleep 0.01; done; exit 5"
    await watcher.client.spawn_many([house.shell("a", script, linger_grace=0.05)])

    end = await watcher.exited("a")

    assert end.exit.exit_code == 5
    assert not end.gone
    await watcher.gone("a")
    assert not await house.alive(await house.pid_printed("a"))


async def test_what_the_main_process_leaves_may_end_by_itself(
    house: House, watcher: Watcher
) -> None:
    polite = "trap 'echo bye; exit' TERM; echo ready; while :; do sleep 0.01; done"
    script = f'setsid /bin/sh -c "{polite}" & while [ ! -s $HOUSE/a.out ]; do sleep 0.01; done'
    await watcher.client.spawn_many([house.shell("a", script, linger_grace=60)])

    await watcher.exited("a")

    await watcher.gone("a")
    assert house.out("a") == "ready\nbye\n"


ENV_CLEARED = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        if "untagged" in sys.argv:
            import resource
            resource.setrlimit(resource.RLIMIT_RTTIME, (-1, -1))
        script = "echo $$; trap '' TERM; while :; do sleep 0.01; done"
        os.execve("/bin/sh", ["sh", "-c", script], {})
    os._exit(0)
os.wait()
while not os.path.getsize(os.environ["HOUSE"] + "/a.out"):
    time.sleep(0.005)
"""


async def test_a_grandchild_with_a_cleared_environment_is_still_known(
    house: House, watcher: Watcher
) -> None:
    spawn = house.spawn("a", sys.executable, "-c", ENV_CLEARED, linger_grace=0.05)
    await watcher.client.spawn_many([spawn])

    end = await watcher.exited("a")

    assert end.exit.exit_code == 0
    assert not end.gone
    await watcher.gone("a")
    assert not await house.alive(await house.pid_printed("a"))
    assert not [event for event in watcher.seen if isinstance(event, Stray)]


async def test_an_orphan_that_shows_no_mark_at_all_is_killed_and_reported(
    house: House, watcher: Watcher
) -> None:
    spawn = house.spawn("a", sys.executable, "-c", ENV_CLEARED, "untagged")
    await watcher.client.spawn_many([spawn])

    stray = await watcher.stray()

    assert "sleep 0.01" in stray.command
    # Whose it was nobody can tell, so nobody is called gone before it is.
    assert not (await watcher.exited("a")).gone
    await watcher.gone("a")
    assert not await house.alive(stray.pid)


# A child without the tag, told apart by the one thing it keeps; the main process waits for `go`.
UNTAGGED = """
import os, resource, sys, time
keeps = sys.argv[1]
if os.fork() == 0:
    if keeps != "session":
        os.setsid()
    resource.setrlimit(resource.RLIMIT_RTTIME, (-1, -1))
    env = dict(os.environ) if keeps == "mark" else {}
    script = "echo $$; trap '' TERM HUP; while :; do sleep 0.01; done"
    os.execve("/bin/sh", ["sh", "-c", script], env)
while not os.path.exists(os.environ["HOUSE"] + "/go"):
    time.sleep(0.005)
"""


@pytest.mark.parametrize("keeps", ["mark", "session", "place in the tree"])
async def test_a_child_without_the_tag_is_told_apart_by_what_it_keeps(
    house: House, watcher: Watcher, keeps: str
) -> None:
    spawn = house.spawn("a", sys.executable, "-c", UNTAGGED, keeps, linger_grace=0.05)
    await watcher.client.spawn_many([spawn])
    child = await house.pid_printed("a")
    if keeps == "place in the tree":
        await watcher.client.sample(["a"])

    (house.data / "go").write_text("")

    assert not (await watcher.exited("a")).gone
    await watcher.gone("a")
    assert not await house.alive(child)
    assert not [event for event in watcher.seen if isinstance(event, Stray)]


FORKING = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
print("ready", flush=True)
while True:
    # Each lives on in its child: there is always another pid, and never more than a few.
    if os.fork():
        os._exit(0)
    os.setsid()
"""


async def test_a_process_that_forks_for_ever_is_caught(house: House, watcher: Watcher) -> None:
    # The main process ends at its first fork; what is left never has the same pid for long.
    spawn = house.spawn("a", sys.executable, "-c", FORKING, linger_grace=60)
    await watcher.client.spawn_many([spawn])
    await watcher.exited("a")

    await watcher.client.stop("a", grace=0)

    await watcher.gone("a")
    assert await house.left() == []


async def test_kill_ends_all_at_once(house: House, watcher: Watcher) -> None:
    await watcher.client.spawn_many([house.shell("a", f"{HIDDEN} {STUBBORN}")])
    await house.printed("a", "\n")

    assert await watcher.client.kill("a") == "stopping"

    end = await watcher.exited("a")
    assert end.exit.signal == signal.SIGKILL
    assert end.exit.reason == "killed_by_us"
    await watcher.gone("a")
    assert await house.left() == []


async def test_a_stopped_process_hears_the_stop(house: House, watcher: Watcher) -> None:
    script = "trap 'exit 9' TERM; echo ready; kill -STOP $$; while :; do sleep 0.01; done"
    await watcher.client.spawn_many([house.shell("a", script)])
    await house.printed("a", "ready")

    await watcher.client.stop("a", grace=60)

    assert (await watcher.exited("a")).exit.exit_code == 9


async def test_a_daemon_of_a_running_attempt_is_left_alone(house: House, watcher: Watcher) -> None:
    await watcher.client.spawn_many(
        [house.shell("a", f"{HIDDEN} sleep 60"), house.shell("b", "exit 0")]
    )
    daemon = await house.pid_printed("a")

    # The end of b makes the keeper look at its adopted children.
    assert (await watcher.exited("b")).gone
    await watcher.client.spawn_many([house.shell("c", "exit 0")])
    assert (await watcher.exited("c")).gone

    assert await house.alive(daemon)
    assert not any(isinstance(event, Exited) and event.attempt == "a" for event in watcher.seen)
    [sample] = await watcher.client.sample(["a"])
    assert daemon in sample.pids


async def test_the_second_stop_does_not_signal_again_but_may_shorten_the_grace(
    house: House, watcher: Watcher
) -> None:
    script = "trap 'echo term' TERM; echo ready; while :; do sleep 0.01; done"
    await watcher.client.spawn_many([house.shell("a", script)])
    await house.printed("a", "ready")
    await watcher.client.stop("a", grace=60)
    await house.printed("a", "term")

    await watcher.client.stop("a", grace=0.05)

    assert (await watcher.exited("a")).exit.signal == signal.SIGKILL
    assert house.out("a") == "ready\nterm\n"
