"""Commands in a real container, and connections to its ports."""

from __future__ import annotations

from container_house import ContainerHouse
from waiting import eventually

from hatoba.v1 import job_pb2

SERVES = """
mkdir /tmp/www && echo from-inside > /tmp/www/index.html
httpd -f -p 8099 -h /tmp/www & echo up; wait
"""


async def test_a_command_in_a_container_and_a_port_of_it(house: ContainerHouse) -> None:
    house.secret("token", "canary-8122")
    house.contained(house.a, SERVES, secrets=[{"name": "token"}])
    await house.logged(house.a, b"up\n")
    script = "echo $TOKEN; pwd; grep CapEff /proc/self/status; echo oops >&2; cat; exit 7"
    session = house.server.attach(house.a, exec=job_pb2.ExecStart(command=["sh", "-c", script]))
    session.say(b"said\n" * 20_000)
    session.end_input()
    assert (await session.end()).exit_code == 7
    assert session.out.startswith(b"canary-8122\n/hatoba/")
    assert b"CapEff:\t0000000000000000\n" in session.out
    assert session.out.count(b"said\n") == 20_000
    assert session.error == b"oops\n"
    port = house.server.attach(house.a, port=8099)
    port.say(b"GET / HTTP/1.0\r\n\r\n")
    await port.told(b"from-inside")
    port.leave()
    closed = house.server.attach(house.a, port=8098)
    assert "nothing answers on port 8098" in await closed.refusal()
    missing = house.server.attach(house.a, exec=job_pb2.ExecStart(command=["no-such-program"]))
    assert (await missing.end()).exit_code in (126, 127)


async def test_a_terminal_in_a_container_is_hung_up_and_ends_with_it(house: ContainerHouse) -> None:
    house.contained(house.a, "echo up; exec sleep 1000")
    await house.logged(house.a, b"up\n")
    size = job_pb2.TerminalSize(rows=30, columns=101)
    start = job_pb2.ExecStart(command=["sh"], terminal=True, size=size, term="vt100")
    session = house.server.attach(house.a, exec=start)
    session.say(b"stty size; echo $TERM; tty\n")
    await session.told(b"30 101\r\nvt100\r\n/dev/pts/")
    session.leave()

    async def alone() -> bool:
        return "PID" in (top := await house.docker("top", house.a)) and "sh" not in top.split()

    await eventually(alone)
    again = house.server.attach(house.a, exec=job_pb2.ExecStart(command=["sleep", "1000"]))
    await again.begun()
    house.server.tell_stop(house.a, 0)
    ended = await again.end()
    assert ended.exit_code or ended.signal
    await house.commit(house.a)
