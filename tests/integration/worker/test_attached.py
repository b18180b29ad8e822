"""Commands beside a process of a host, and connections to its ports: a real keeper and worker."""

from __future__ import annotations

import sys

from server_process import runs
from waiting import until
from worker_house import House

from hatoba.v1 import job_pb2, runner_pb2

SERVES = """
import socket
server = socket.create_server(("127.0.0.1", 0))
print("port", server.getsockname()[1], flush=True)
while True:
    peer, _ = server.accept()
    got = b""
    while data := peer.recv(1000):
        got += data
    peer.sendall(got[::-1])
    peer.close()
"""


def command(*argv: str) -> job_pb2.ExecStart:
    return job_pb2.ExecStart(command=argv)


def terminal(*argv: str) -> job_pb2.ExecStart:
    size = job_pb2.TerminalSize(rows=30, columns=101)
    return job_pb2.ExecStart(command=argv, terminal=True, size=size, term="vt100")


async def test_a_command_has_the_attempts_directory_environment_and_handles(house: House) -> None:
    house.secret("token", "canary-8121")
    house.shell("a", "touch here; exec sleep 1000", secrets=[{"name": "token"}])
    await until(lambda: (house.home("a") / "work/here").exists())
    script = "ls; echo $TOKEN $HATOBA_ATTEMPT; echo oops >&2; cat; exit 7"
    session = house.server.attach("a", exec=command("sh", "-c", script))
    session.say(b"said\n" * 50_000)
    session.end_input()
    ended = await session.end()
    assert (ended.exit_code, ended.signal) == (7, 0)
    assert session.out.startswith(b"here\ncanary-8121 a\n")
    assert session.out.count(b"said\n") == 50_000
    assert session.error == b"oops\n"
    assert not list(house.home("a").glob("attach-*"))


async def test_a_terminal_is_the_controlling_one_and_has_a_size(house: House) -> None:
    house.shell("a", "exec sleep 1000")
    await house.heard.wait("started", "a")
    session = house.server.attach("a", exec=terminal("sh"))
    session.say(b"stty size; echo $TERM; tty\n")
    await session.told(b"30 101\r\nvt100\r\n/dev/pts/")
    session.resize(41, 99)
    session.say(b"sh -c 'stty size; echo in-$((1+1)); sleep 1000'; echo not-\\here\n")
    await session.told(b"41 99\r\nin-2")
    session.say(b"\x03")
    session.say(b"echo after-$?\n")
    await session.told(b"after-130")
    assert b"not-here" not in session.out
    session.end_input()
    assert (await session.end()).exit_code == 0


async def test_it_ends_with_its_attempt(house: House) -> None:
    house.shell("a", "exec sleep 1000")
    await house.heard.wait("started", "a")
    session = house.server.attach("a", exec=command("sh", "-c", "echo $$; sleep 1000"))
    await session.told(b"\n")
    pid = int(session.out)
    house.server.tell_stop("a", 0.0)
    commit = await house.commit("a")
    assert (await session.end()).signal
    assert not await house.alive(pid)
    assert commit.gone or await house.heard.wait("gone", "a")


async def test_who_leaves_hangs_up(house: House) -> None:
    house.shell("a", "exec sleep 1000")
    await house.heard.wait("started", "a")
    session = house.server.attach("a", exec=command("sh", "-c", "echo $$; sleep 1000"))
    await session.told(b"\n")
    pid = int(session.out)
    session.leave()
    await until(lambda: not runs(pid))
    assert not house.heard.all("commit", "a")


async def test_what_cannot_be_begun_says_why(house: House) -> None:
    house.shell("a", "exec sleep 1000")
    await house.heard.wait("started", "a")
    missing = house.server.attach("a", exec=command("no-such-program"))
    assert (await missing.end()).exit_code == 127
    assert b"no-such-program: No such file" in missing.error
    text = house.server.attach("a", exec=command("/etc/passwd"))
    assert (await text.end()).exit_code == 126
    assert b"/etc/passwd: Permission denied" in text.error
    nobody = house.server.attach("b", exec=command("true"))
    assert "does not run" in await nobody.refusal()


async def test_a_port_of_its_own_and_no_other(house: House) -> None:
    house.run("a", sys.executable, "-c", SERVES)
    await house.logged("a", b"\n")
    port = int(house.server.log("a").split()[1])
    session = house.server.attach("a", port=port)
    session.say(b"abc")
    session.say(b"def")
    session.end_input()
    await session.told(b"fedcba")
    other = house.server.attach("a", port=house.server.port)
    assert "nothing of it listens" in await other.refusal()
    session.leave()


async def test_the_keepers_death_ends_it_and_is_told(house: House) -> None:
    house.shell("a", "exec sleep 1000")
    await house.heard.wait("started", "a")
    session = house.server.attach("a", exec=command("sh", "-c", "echo up; exec sleep 1000"))
    await session.told(b"up\n")
    await house.kill_keeper()
    assert (await session.end()).signal == 9
    assert (await house.commit("a")).kind == runner_pb2.EXIT_KIND_LOST
