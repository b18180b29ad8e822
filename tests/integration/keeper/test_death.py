"""The keeper and its clients come and go; what is known stays true."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hatoba_worker.keeper import boot, procfs
from hatoba_worker.keeper.client import KeeperClient, KeeperGone, KeeperRefused
from hatoba_worker.keeper.ensure import KeeperStartError, ensure_keeper
from hatoba_worker.keeper.frames import FrameBuffer, Json, encode
from hatoba_worker.keeper.messages import AttemptStatus

if TYPE_CHECKING:
    from tests.integration.keeper.conftest import House, Watcher

MAIN = Path(boot.__file__).with_name("__main__.py")
BOOT = procfs.boot_id()
STUBBORN = "trap '' TERM HUP; echo $$; while :; do sleep 0.01; done"
HIDDEN = "STUBBORN='" + STUBBORN.replace("'", '"') + "' setsid setsid sh -c 'eval \"$STUBBORN\"' &"


async def only(client: KeeperClient) -> AttemptStatus:
    [status] = (await client.list()).attempts
    return status


async def run_keeper(data: Path, *arguments: str, text: str = "") -> tuple[int, str, str]:
    command = [sys.executable, "-I", "-S", str(MAIN), "--data", str(data), *arguments]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=pipe)
    out, err = await process.communicate(text.encode())
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def test_a_new_keeper_kills_what_the_dead_one_left_and_calls_it_lost(house: House) -> None:
    async with house.client() as client:
        await client.spawn_many([house.shell("a", f"{HIDDEN} sleep 60")])
        hidden = await house.pid_printed("a")
        main = (await only(client)).pid

    await house.kill()
    assert await house.alive(hidden)
    await house.start()

    async with house.client() as client:
        status = await only(client)
        assert (status.lost, status.gone, status.exit) == (True, True, None)
        assert not await house.alive(hidden)
        assert not await house.alive(main)
        await client.forget_many(["a"])


async def test_a_new_keeper_knows_the_ends_the_dead_one_saw(house: House) -> None:
    async with house.watcher() as watcher:
        await watcher.client.spawn_many([house.shell("a", "exit 7")])
        await watcher.gone("a")

    await house.kill()
    await house.start()

    async with house.client() as client:
        status = await only(client)
    assert not status.lost
    assert status.gone
    assert status.exit
    assert status.exit.exit_code == 7


async def test_a_changed_boot_id_proves_that_all_is_gone(house: House) -> None:
    async with house.client() as client:
        [_] = await client.spawn_many([house.shell("a", "exec sleep 60")])
        sleeper = (await only(client)).pid
    await house.kill()
    journal = house.data / "keeper.journal"
    journal.write_text(journal.read_text().replace(BOOT, "another-boot"))

    await house.start()

    try:
        async with house.client() as client:
            status = await only(client)
        # By its pid and tag it is the same, but of another boot: nobody's to kill.
        assert (status.lost, status.gone) == (True, True)
        assert await house.alive(sleeper)
    finally:
        os.kill(sleeper, 9)


async def test_a_torn_last_line_of_the_journal_is_left_out(house: House) -> None:
    async with house.watcher() as watcher:
        await watcher.client.spawn_many([house.shell("a", "exit 3")])
        await watcher.gone("a")
    await house.kill()
    with (house.data / "keeper.journal").open("a") as journal:
        journal.write('{"kind":"attempt","attempt":"torn","ta')

    await house.start()

    async with house.client() as client:
        assert (await only(client)).attempt == "a"


async def test_a_process_started_but_never_noted_is_found_by_its_intent(house: House) -> None:
    async with house.client() as client:
        await client.spawn_many([house.shell("a", "echo $$; exec sleep 60")])
        sleeper = await house.pid_printed("a")
    await house.kill()
    journal = house.data / "keeper.journal"
    records = [json.loads(line) for line in journal.read_text().splitlines()]
    kept = [each for each in records if each["kind"] != "attempt" or each["pid"] == 0]
    assert len(kept) < len(records)
    journal.write_text("".join(json.dumps(each) + "\n" for each in kept))

    await house.start()

    async with house.client() as client:
        assert (await only(client)).lost
    assert not await house.alive(sleeper)


async def test_a_second_keeper_is_refused(house: House) -> None:
    code, _, complaint = await run_keeper(house.data)

    assert code == boot.HELD
    assert f"held by the keeper with pid {house.pid}" in complaint
    async with house.client() as client:
        assert (await client.hello()).pid == house.pid


async def test_many_who_ensure_get_one_keeper(house: House) -> None:
    await house.kill()

    await asyncio.gather(*(asyncio.to_thread(ensure_keeper, house.data) for _ in range(4)))

    await house.start()
    async with house.client() as client:
        assert (await client.hello()).pid == house.pid


async def test_a_directory_that_cannot_be_used_is_said_to_be_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(KeeperStartError, match="file"):
        await asyncio.to_thread(ensure_keeper, tmp_path / "file" / "data")


async def test_the_ready_file_tells_who_serves(house: House) -> None:
    ready = json.loads((house.data / "keeper.json").read_text())

    async with house.client() as client:
        info = await client.hello()
    assert ready["pid"] == info.pid == house.pid
    assert ready["incarnation"] == info.incarnation
    assert ready["boot_id"] == info.boot_id == BOOT
    assert (house.data / "keeper.sock").stat().st_mode & 0o777 == 0o600


async def test_a_client_that_comes_back_sees_what_ended_meanwhile(house: House) -> None:
    async with house.client() as client:
        await client.spawn_many(
            [house.shell("a", "while [ ! -e go ]; do sleep 0.01; done; exit 4")]
        )
    (house.data / "go").write_text("")

    async with house.watcher() as watcher:
        status = await only(watcher.client)
        end = status.exit or (await watcher.exited("a")).exit
    assert end.exit_code == 4


async def test_two_clients_see_the_same(house: House, watcher: Watcher) -> None:
    async with house.watcher() as other:
        await other.client.spawn_many([house.shell("a", "exit 2")])

        assert await watcher.exited("a") == await other.exited("a")


async def test_the_end_of_the_keeper_is_told_to_all_who_wait(house: House) -> None:
    async with house.watcher() as watcher:
        await house.kill()

        await watcher.hung_up()
        with pytest.raises(KeeperGone):
            await watcher.client.hello()
    with pytest.raises(OSError, match=r"refused|No such file"):
        await KeeperClient.connect(house.data)


@pytest.fixture
async def raw(house: House) -> AsyncIterator[socket.socket]:
    """A connection for sending what no client of ours would."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    await asyncio.get_running_loop().sock_connect(sock, str(house.data / "keeper.sock"))
    yield sock
    sock.close()


@pytest.mark.parametrize(
    "garbage",
    [b"\xff\xff\xff\xff", b"\0\0\0\x02[]", b"\0\0\0\x03{x}", b"GET / HTTP/1.1\r\n\r\n"],
    ids=["too large", "no object", "no json", "http"],
)
async def test_garbage_ends_its_connection_and_no_other(
    house: House, watcher: Watcher, raw: socket.socket, garbage: bytes
) -> None:
    loop = asyncio.get_running_loop()

    await loop.sock_sendall(raw, garbage)

    assert await loop.sock_recv(raw, 100) == b""
    assert (await watcher.client.hello()).pid == house.pid


async def test_a_reply_comes_before_the_events_it_began(house: House, raw: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    spawns = [house.spawn(f"n{number}", "/bin/true").command() for number in range(100)]

    await loop.sock_sendall(raw, encode({"id": 1, "commands": [{"op": "watch"}, *spawns]}))

    buffer, frames = FrameBuffer(), list[Json]()
    while sum(len(frame.get("events", ())) for frame in frames) < 100:
        frames += buffer.feed(await loop.sock_recv(raw, 1 << 16))
    assert len(frames[0]["replies"]) == 101
    assert all("events" in frame for frame in frames[1:])


async def test_a_malformed_command_is_answered_and_changes_nothing(house: House) -> None:
    commands = [
        {"op": "dance"},
        {"op": "spawn", "attempt": "a"},
        {"op": "spawn", "attempt": "b", "argv": ["true"], "env": 1, "cwd": "/", "stdout": "x"},
        {"op": "stop", "attempt": "a", "grace": "long"},
        {"op": "stop", "attempt": "a", "grace": float("nan")},
        {"op": "stop", "attempt": "a", "grace": -1},
        {"op": "kill", "attempt": ""},
        {"op": "kill", "attempt": "x" * 301},
        {"op": "kill", "attempt": ["a"]},
        "nonsense",
        {"op": "list"},
    ]

    code, out, _ = await run_keeper(house.data, "--ask", text=json.dumps(commands))

    assert code == 0
    *refused, inventory = json.loads(out)
    assert [each["error"] for each in refused] == ["bad_request"] * 10
    assert inventory["attempts"] == []


async def test_shutdown_is_refused_while_an_attempt_lives(house: House, watcher: Watcher) -> None:
    await watcher.client.spawn_many([house.shell("a", "sleep 60")])

    with pytest.raises(KeeperRefused) as refused:
        await watcher.client.shutdown(stop_attempts=False)

    assert refused.value.code == "busy"
    await watcher.client.shutdown(stop_attempts=True, grace=5)
    assert (await watcher.exited("a")).exit.reason == "stop"
    await watcher.hung_up()
    assert not (house.data / "keeper.json").exists()


async def test_sigterm_ends_all_and_loses_nothing(house: House) -> None:
    async with house.watcher() as watcher:
        await watcher.client.spawn_many([house.shell("a", "sleep 60")])
        os.kill(house.pid, 15)
        assert (await watcher.exited("a")).exit.signal == 15
        await watcher.hung_up()

    await house.start()

    async with house.client() as client:
        status = await only(client)
    assert (status.lost, status.gone, status.ending) == (False, True, "stop")
