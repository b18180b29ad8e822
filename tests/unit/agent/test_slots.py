"""A device falls back to what was good, tries what is new, and knows after any power cut which."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st

from hatoba_worker.agent.slots import (
    NOTHING_RUNS,
    STARTS_MOST,
    Health,
    Json,
    Release,
    Slots,
    Step,
    Wanted,
    after,
    bad_entry,
    good_entry,
    inconsistent_entry,
    next_step,
    removed_entry,
    replayed,
    snapshot,
    spoiled_entry,
    staged_entry,
    switched_entry,
    wanted_entry,
)

NAME = "reader"
FIRST, SECOND, THIRD = (Release(number, 0, f"sha256:{number}") for number in (1, 2, 3))
CRASHED = {"code": "CRASH_LOOP", "message": "It ended with exit code 1."}
BAKE = 10.0


class Device:
    """One slot, its journal, and a disk and a model server that do as they are told."""

    def __init__(self) -> None:
        self.journal: list[Json] = []
        self.slots = Slots()
        self.boot = "boot-1"
        self.health = NOTHING_RUNS
        self.bad: set[Release] = set()
        self.offline = False
        self.spoiled: set[Release] = set()
        self.ran: list[Release] = []

    def write(self, *entries: Json) -> None:
        for entry in entries:
            self.journal.append(entry)
            self.slots = after(self.slots, entry)

    def want(self, release: Release | None) -> None:
        wanted = {NAME: Wanted(release, BAKE)} if release is not None else {}
        self.write(wanted_entry(self.slots.generation + 1, wanted))

    def power_cut(self) -> None:
        """All that is not in the journal is gone."""
        self.slots, self.health = replayed(self.journal), NOTHING_RUNS
        self.boot = f"boot-{int(self.boot[5:]) + 1}"

    def step(self) -> bool:
        """Do the next step; False when there is none."""
        step, release = next_step(self.slots, NAME, self.health, self.boot)
        if step is Step.REST or (step is Step.FETCH and self.offline):
            return False
        if step is Step.RUN and self.health.release == release:
            return False
        self._do[step](self, release)
        return True

    def settle(self) -> None:
        for _ in range(50):
            if not self.step():
                return
        raise AssertionError("it never comes to rest")

    def wait(self, seconds: float = BAKE) -> None:
        """What runs and is not bad has been well for so much longer."""
        if self.health.failed is None and self.health.release is not None:
            self.health = self.health._replace(well=self.health.well + seconds)
        self.settle()

    def _fetch(self, release: Release) -> None:
        self.spoiled.discard(release)
        self.write(staged_entry(NAME, release, self.boot))

    def _verify(self, release: Release) -> None:
        if release in self.spoiled:
            self.write(spoiled_entry(NAME, release))
            if self.slots.slot(NAME).trial == release:
                self.write(bad_entry(NAME, release, {"code": "STAGING_FAILED"}))
        else:
            self.write(staged_entry(NAME, release, self.boot))

    def _switch(self, release: Release) -> None:
        self.write(switched_entry(self.slots.slot(NAME), release, self.boot))

    def _run(self, release: Release) -> None:
        slot = self.slots.slot(NAME)
        if release == slot.trial and slot.boot != self.boot:
            self.write(switched_entry(slot, release, self.boot))
        self.ran.append(release)
        self.health = Health(release, 0.0, CRASHED if release in self.bad else None)

    def _commit(self, release: Release) -> None:
        self.write(good_entry(NAME, release))

    def _back(self, release: Release) -> None:
        newer = self.slots.wanted[NAME].release != release
        self.write(bad_entry(NAME, release, None if newer else CRASHED))

    def _remove(self, release: Release | None) -> None:
        self.write(removed_entry(NAME))

    _do: dict[Step, Callable[..., None]] = {  # noqa: RUF012 - a table, never changed
        Step.FETCH: _fetch,
        Step.VERIFY: _verify,
        Step.SWITCH: _switch,
        Step.RUN: _run,
        Step.COMMIT: _commit,
        Step.BACK: _back,
        Step.REMOVE: _remove,
    }


@pytest.fixture
def device() -> Device:
    """One that runs the first release, which is good."""
    made = Device()
    made.want(FIRST)
    made.settle()
    made.wait()
    assert made.slots.slot(NAME).good == FIRST
    assert made.slots.settled
    return made


def test_what_is_good_is_not_tried_again_by_whichever_try_it_became_that() -> None:
    device = Device()
    device.want(FIRST._replace(tries=2))
    device.settle()
    device.wait()
    device.settle()
    ran = list(device.ran)
    device.want(FIRST)
    device.settle()
    device.power_cut()
    assert device.slots.settled
    assert device.ran == ran


def test_what_is_new_is_tried_and_then_good(device: Device) -> None:
    device.want(SECOND)
    device.settle()
    slot = device.slots.slot(NAME)
    assert (slot.good, slot.trial) == (FIRST, SECOND)
    assert slot.kept == {FIRST, SECOND}
    device.wait(BAKE - 1)
    assert not device.slots.settled
    device.wait(1)
    slot = device.slots.slot(NAME)
    assert (slot.good, slot.trial, list(slot.staged)) == (SECOND, None, [SECOND])
    assert device.slots.settled


def test_what_does_not_stay_healthy_is_left_for_what_was_good(device: Device) -> None:
    device.bad.add(SECOND)
    device.offline = False
    device.want(SECOND)
    device.settle()
    slot = device.slots.slot(NAME)
    assert (slot.good, slot.trial, slot.refused) == (FIRST, None, SECOND)
    assert slot.cause == CRASHED
    assert device.health.release == FIRST
    assert device.slots.settled
    # The same once more is not tried; offered anew it is.
    device.settle()
    assert device.ran == [FIRST, SECOND, FIRST]
    again = SECOND._replace(tries=1)
    device.want(again)
    device.settle()
    assert device.health.release == again


def test_a_first_release_that_fails_leaves_nothing_to_run() -> None:
    device = Device()
    device.bad.add(FIRST)
    device.want(FIRST)
    device.settle()
    assert next_step(device.slots, NAME, device.health, device.boot) == (Step.REST, None)


def test_something_newer_ends_a_trial_that_is_not_called_bad(device: Device) -> None:
    device.want(SECOND)
    device.settle()
    device.want(THIRD)
    device.settle()
    slot = device.slots.slot(NAME)
    assert (slot.good, slot.trial, slot.refused) == (FIRST, THIRD, None)


def test_a_reboot_without_a_network_runs_what_was_good(device: Device) -> None:
    device.power_cut()
    device.offline = True
    device.settle()
    assert device.health.release == FIRST


def test_a_reboot_in_the_middle_of_a_trial_checks_it_and_tries_it_again(device: Device) -> None:
    device.want(SECOND)
    device.settle()
    device.power_cut()
    device.offline = True
    device.settle()
    assert device.health.release == SECOND
    assert device.slots.slot(NAME).starts == 2


def test_a_trial_that_takes_the_power_down_again_and_again_is_no_good(device: Device) -> None:
    device.want(SECOND)
    device.settle()
    for _ in range(STARTS_MOST):
        device.power_cut()
        device.settle()
    slot = device.slots.slot(NAME)
    assert (slot.good, slot.trial, slot.refused) == (FIRST, None, SECOND)
    assert device.health.release == FIRST


def test_what_the_power_cut_spoiled_never_runs(device: Device) -> None:
    device.want(SECOND)
    device.settle()
    device.power_cut()
    device.spoiled.add(SECOND)
    device.offline = True
    device.settle()
    assert device.health.release == FIRST
    assert SECOND not in device.slots.slot(NAME).staged


def test_what_is_not_wanted_any_more_is_removed(device: Device) -> None:
    device.want(None)
    device.step()
    assert device.slots.names == []
    assert device.slots.settled


def test_an_older_set_of_wants_changes_nothing(device: Device) -> None:
    before = device.slots
    device.write(wanted_entry(before.generation, {}))
    device.write(wanted_entry(before.generation - 1, {}))
    assert device.slots == before


def test_that_nothing_works_any_more_is_said_until_it_does(device: Device) -> None:
    device.write(inconsistent_entry(NAME, CRASHED))
    assert device.slots.slot(NAME).inconsistent
    device.write(inconsistent_entry(NAME, None))
    assert not device.slots.slot(NAME).inconsistent


@pytest.mark.parametrize(
    "entry", [{}, {"kind": "good"}, {"kind": "else", "slot": "a"}, {"kind": "good", "slot": "a"}]
)
def test_what_is_no_entry_is_refused(entry: Json) -> None:
    with pytest.raises(ValueError, match="not an entry"):
        after(Slots(), entry)


@given(seed=st.integers(0, 2**32), moves=st.integers(1, 120))
@limits(max_examples=300, deadline=None)
def test_after_a_power_cut_anywhere_it_runs_something_good_or_new(seed: int, moves: int) -> None:
    """The journal is cut behind any entry; what was good then, or what is new, runs; and a
    snapshot is worth as much as all entries."""
    rng, device = random.Random(seed), Device()
    device.want(FIRST)
    device.settle()
    device.wait()
    newest = 1
    for _ in range(moves):
        match rng.randrange(8):
            case 0:
                newest += 1
                release = Release(newest, 0, f"sha256:{newest}")
                device.want(release)
                if rng.random() < 0.4:
                    device.bad.add(release)
            case 1:
                device.power_cut()
                if rng.random() < 0.3:
                    device.spoiled |= {
                        one
                        for one in device.slots.slot(NAME).staged
                        if one != device.slots.slot(NAME).good
                    }
            case 2:
                device.offline = not device.offline
            case 3:
                device.wait()
            case _:
                device.step()
        assert replayed(snapshot(device.slots)) == device.slots
    device.power_cut()
    device.offline = True
    device.settle()
    slot = device.slots.slot(NAME)
    assert device.health.release is not None
    assert device.health.release == slot.running
    assert device.health.release not in device.bad
    assert device.health.release not in device.spoiled
