"""What a device says of itself without a link: in plain words, with what to do about it."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from authority import DAY
from device_site import DeviceSite
from linked_device import LinkedDevice

from hatoba_worker import keys
from hatoba_worker.agent import disk, lock
from hatoba_worker.agent.diagnosing import Finding, Level, Place, findings
from hatoba_worker.agent.journal import Journal
from hatoba_worker.agent.main import clock_of
from hatoba_worker.agent.slots import (
    Json,
    Release,
    Slot,
    Wanted,
    bad_entry,
    good_entry,
    staged_entry,
    switched_entry,
    wanted_entry,
)
from hatoba_worker.keeper import cgroups

ADDER, SLOT = "projects/default/deployments/adder", "default.adder"
ONE, TWO = Release(1, 0, "sha256:1"), Release(2, 0, "sha256:2")
GONE = {"code": "CRASH_LOOP", "message": "It ended with exit code 1.", "passing": False}


class Bench:
    """A device's directory on the workbench."""

    def __init__(self, root: Path) -> None:
        self.site = DeviceSite(root)
        self.device = LinkedDevice(self.site, root / "device")
        self.data = self.device.data
        self._held = -1

    def run_agent(self) -> None:
        self._held = lock.hold(self.data)

    def end(self) -> None:
        if self._held >= 0:
            os.close(self._held)

    def wrote(self, **told: Any) -> None:
        """What the agent wrote last."""
        link = {"connected": False, "last_contact": 0.0, "problem": "", "up": 5, "down": 2048}
        link |= {"connections": 3, "up_left": None, "down_left": None} | told.pop("link", {})
        whole = {"pid": 17, "time": time.time(), "certain": True, "link": link, **told}
        (self.data / "status.json").write_text(json.dumps(whole))

    def journal(self, *entries: Json) -> None:
        journal = Journal(self.data / "journal")
        journal.open()
        journal.add(*entries)
        journal.close()

    def found(self, about: str) -> list[Finding]:
        clock = clock_of(self.data)
        clock.load()
        return [one for one in findings(Place(self.data, clock)) if one.about == about]

    def one(self, about: str) -> Finding:
        return self.found(about)[0]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.end()


def test_an_agent_that_does_not_run_is_said(bench: Bench) -> None:
    found = bench.one("agent")
    assert found.level is Level.BAD
    assert "hatoba agent run" in found.remedy
    bench.run_agent()
    bench.wrote(problems=["its disk is full"])
    runs, problem = bench.found("agent")
    assert (runs.level, runs.text) == (Level.GOOD, "runs as process 17")
    assert (problem.level, problem.text) == (Level.BAD, "its disk is full")


def test_a_machine_that_is_no_device_is_told_what_makes_it_one(bench: Bench) -> None:
    found = bench.one("identity")
    assert found.level is Level.BAD
    assert "hatoba agent enroll" in found.remedy


def test_an_identity_says_until_when_it_is_good(bench: Bench) -> None:
    bench.device.enroll()
    found = bench.one("identity")
    end = bench.site.begins + bench.site.life
    assert found.level is Level.GOOD
    assert "device cam-1, dials 127.0.0.1:" in found.text
    assert f"good until {end:%Y-%m-%d}" in found.text


def test_an_identity_that_has_ended_is_said(bench: Bench) -> None:
    bench.site.begins = bench.site.today - 40 * DAY
    bench.device.enroll()
    found = bench.one("identity")
    assert found.level is Level.BAD
    assert "ended on" in found.text
    assert "asks for another" in found.remedy


def test_a_certificate_that_waits_is_said(bench: Bench) -> None:
    bench.device.enroll()
    bench.site.life += DAY
    csr = keys.request_for(bench.device.identity.pending_key())
    bench.device.identity.renewed(bench.site.identity(csr).certificate)
    assert [one.level for one in bench.found("identity")] == [Level.GOOD, Level.ODD]


def test_an_identity_that_was_damaged_is_said(bench: Bench) -> None:
    bench.device.enroll()
    bench.device.identity.current().path.write_text("nothing")
    found = bench.one("identity")
    assert found.level is Level.BAD
    assert "not enrolled" in found.text


def test_a_clock_that_is_off_is_said(bench: Bench) -> None:
    assert bench.one("clock").level is Level.GOOD
    later = time.time() + 1e6
    (bench.data / "clock").write_text(repr(later))
    found = bench.one("clock")
    assert found.level is Level.ODD
    assert "the machine says" in found.text
    assert "no server has said so yet" in found.text


def test_a_servers_word_counts_while_the_agent_runs(bench: Bench) -> None:
    bench.wrote()
    assert "no server" in bench.one("clock").text
    bench.run_agent()
    assert "the server has said so" in bench.one("clock").text


@pytest.mark.parametrize(
    ("problem", "remedy"),
    [
        ("the server's certificate was good until 2020-01-01", "this machine's date"),
        ("[SSL] certificate verify failed: self-signed", "another server answers"),
        ("the server closed the connection without a word", "where it has ended"),
        ("the server says UNAUTHENTICATED: who?", "hatoba agent enroll"),
        ("the server says PERMISSION_DENIED: revoked", "was revoked"),
        ("the server says ABORTED: another stream", "a copy"),
        ("[Errno -2] Name or service not known", "DNS"),
        ("[Errno 111] Connect call failed ('127.0.0.1', 1)", "is the network up"),
        ("something else", "tries again by itself"),
    ],
)
def test_why_there_is_no_link_comes_with_a_way_out(bench: Bench, problem: str, remedy: str) -> None:
    bench.run_agent()
    bench.wrote(link={"problem": problem, "last_contact": 1_795_000_000.0})
    found, carried = bench.found("link")
    assert found.level is Level.BAD
    assert problem in found.text
    assert "heard last on 2026-11-18" in found.text
    assert remedy in found.remedy
    assert carried.text == "5 B up, 2 KiB down in 3 connections since the agent began"


def test_without_an_agent_there_is_no_link_whatever_was_written(bench: Bench) -> None:
    bench.wrote(link={"connected": True, "connections": 1})
    found, carried = bench.found("link")
    assert (found.level, found.remedy) == (Level.BAD, "")
    assert found.text == "not connected, never heard: no agent runs"
    assert "in 1 connection since" in carried.text


def test_a_link_that_is_there_is_said_with_what_it_may_carry(bench: Bench) -> None:
    bench.run_agent()
    bench.wrote(link={"connected": True, "last_contact": 1_795_000_000.0, "up_left": 1024})
    found, carried = bench.found("link")
    assert (found.level, found.text[:9]) == (Level.GOOD, "connected")
    assert carried.text.endswith("today it may carry 1 KiB up more")


def test_a_journal_is_read_and_left_as_it_is(bench: Bench) -> None:
    assert bench.one("journal").level is Level.ODD
    bench.journal(wanted_entry(4, {}))
    assert bench.one("journal").text == "1 entry, generation 4"
    path = bench.data / "journal"
    with path.open("ab") as file:
        file.write(b"0000 torn")
    size = path.stat().st_size
    found = bench.one("journal")
    assert found.level is Level.BAD
    assert "its journal was damaged: 9 bytes cannot be read" in found.text
    assert path.stat().st_size == size


def test_models_are_said_one_by_one(bench: Bench) -> None:
    assert bench.one("journal").level is Level.ODD
    bench.journal(wanted_entry(1, {SLOT: Wanted(ONE)}), staged_entry(SLOT, ONE, "boot"))
    assert "is being fetched; nothing runs" in bench.one("models").text
    bench.journal(switched_entry(Slot(SLOT), ONE, "boot"))
    assert "is tried, for the first time; it does not answer now" in bench.one("models").text
    again = Slot(SLOT, trial=ONE, starts=1, boot="boot")
    bench.journal(switched_entry(again, ONE, "another"))
    assert "for the second start of the machine" in bench.one("models").text
    bench.journal(good_entry(SLOT, ONE))
    assert bench.one("models").level is Level.BAD
    bench.wrote(report={"slots": [{"deployment": ADDER, "address": "127.0.0.1:9"}]})
    found = bench.one("models")
    assert found.level is Level.GOOD
    assert found.text == f"{ADDER} revision 1 is good, and answers at 127.0.0.1:9"
    bench.journal(wanted_entry(2, {SLOT: Wanted(TWO)}), bad_entry(SLOT, TWO, GONE))
    found = bench.one("models")
    assert found.level is Level.BAD
    assert "revision 2 was given up: It ended with exit code 1." in found.text
    assert "`hatoba deployments retry " in found.remedy
    assert "revision 1 before it answers at 127.0.0.1:9" in found.text
    bench.journal(wanted_entry(3, {}))
    assert "is wanted no more" in bench.one("models").text


def test_a_device_of_which_nothing_is_wanted_says_so(bench: Bench) -> None:
    bench.journal(wanted_entry(1, {}))
    assert bench.one("models").text == "none is wanted"


def test_a_disk_that_is_full_is_said(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    (bench.data / "trees").mkdir()
    (bench.data / "trees" / "model").write_bytes(b"x" * 100_000)
    assert "100 KiB trees" in bench.one("disk").text
    monkeypatch.setattr(disk, "free_bytes", lambda _: 1_000)
    found = bench.one("disk")
    assert found.level is Level.BAD
    assert "nothing new can be brought in" in found.remedy


@pytest.mark.parametrize(("enforced", "level"), [(True, Level.GOOD), (False, Level.ODD)])
def test_limits_that_nobody_enforces_are_said(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, enforced: bool, level: Level
) -> None:
    monkeypatch.setattr(cgroups, "may_limit", lambda: enforced)
    assert bench.one("memory").level is level


def test_an_engine_that_does_not_answer_is_said(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "docker.sock"
    monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
    assert bench.one("engine").level is Level.GOOD
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        found = bench.one("engine")
        assert found.level is Level.BAD
        assert "usermod" in found.remedy
        listening.listen()
        assert "answers; it was given 0 images" in bench.one("engine").text
