"""A loop that is silent ends the process; systemd hears how it is."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from hatoba_worker.agent.watchdog import EXIT_CODE, SILENT_MOST, Watchdog, notify


class Yard:
    """A watchdog whose time is a test's, and what it did."""

    def __init__(self, environ: dict[str, str]) -> None:
        self.now = 0.0
        self.ended: list[int] = []
        self.watchdog = Watchdog(environ, lambda: self.now, self.ended.append)


@pytest.fixture
def yard() -> Yard:
    return Yard({})


def test_a_loop_that_is_silent_for_too_long_ends_the_process(yard: Yard) -> None:
    link, other = yard.watchdog.beat("link"), yard.watchdog.beat("other")
    link()
    other()
    yard.now += SILENT_MOST
    other()
    yard.watchdog.look()
    assert yard.ended == []
    yard.now += 1.0
    yard.watchdog.look()
    assert yard.ended == [EXIT_CODE]


def test_a_loop_that_rests_or_never_began_is_not_waited_for(yard: Yard) -> None:
    yard.watchdog.beat("to come")
    link = yard.watchdog.beat("link")
    link()
    link.rest()
    yard.now += 10 * SILENT_MOST
    yard.watchdog.look()
    assert yard.ended == []
    link()
    yard.now += SILENT_MOST + 1.0
    yard.watchdog.look()
    assert yard.ended == [EXIT_CODE]


def test_a_loop_that_began_anew_is_the_same_one(yard: Yard) -> None:
    yard.watchdog.beat("link")()
    yard.now += SILENT_MOST + 1.0
    yard.watchdog.beat("link")()
    yard.watchdog.look()
    assert yard.ended == []


def test_loops_that_are_over_are_not_waited_for(yard: Yard) -> None:
    yard.watchdog.beat("link")()
    yard.watchdog.rest_all()
    yard.now += 10 * SILENT_MOST
    yard.watchdog.look()
    assert yard.ended == []


def test_what_goes_on_without_a_link_is_looked_at_when_that_is_over(yard: Yard) -> None:
    yard.watchdog.inner_beat("slot default.adder")()
    yard.watchdog.rest_all()
    yard.now += SILENT_MOST + 1.0
    yard.watchdog.look()
    assert yard.ended == [EXIT_CODE]


def test_systemd_is_told_while_all_is_well(tmp_path: Path) -> None:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind(str(path))
        ear.settimeout(5.0)
        yard = Yard({"NOTIFY_SOCKET": str(path)})
        yard.watchdog.beat("link")()
        yard.watchdog.look()
        assert ear.recv(100) == b"WATCHDOG=1"
        yard.now += SILENT_MOST + 1.0
        yard.watchdog.look()
        ear.setblocking(False)
        with pytest.raises(BlockingIOError):
            ear.recv(100)


def test_systemd_listens_in_the_abstract_too() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind("")
        ear.settimeout(5.0)
        name = ear.getsockname().replace(b"\0", b"@", 1).decode()
        notify("READY=1", {"NOTIFY_SOCKET": name})
        assert ear.recv(100) == b"READY=1"


@pytest.mark.parametrize("address", ["", "/no/such/socket", "vsock:2:1"])
def test_nobody_has_to_listen(address: str) -> None:
    notify("READY=1", {"NOTIFY_SOCKET": address})
