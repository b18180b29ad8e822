"""What a device runs, and what it does next: every deployment on it has one slot.

A slot has at most two releases: the good one, which stayed healthy for its bake and is what the
device falls back to, and a trial, which was switched to and has not proven itself yet. The journal
holds entries; applied in order they give the slots, so that after a power cut the device knows
what it knew. Nothing here reads a clock: for how long something has been well is handed in.

    wanted -> staged -> switched -> good            the former good one may go
                        switched -> bad             back to the good one, without asking anybody
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, NamedTuple

STARTS_MOST = 3
"""In so many boots a trial may be begun: one that takes the power down with it is no good."""
Json = Mapping[str, Any]


class Release(NamedTuple):
    """A revision as it was offered: offered anew, it is tried anew. `digest` is of its contents."""

    revision: int
    tries: int
    digest: str


class Step(Enum):
    """What is to be done about a slot now."""

    RUN = "run"
    """Have this release running; that may be so already."""
    FETCH = "fetch"
    """Bring it in and check it, while what runs goes on."""
    SWITCH = "switch"
    """Write down that it is a trial, and run it instead."""
    VERIFY = "verify"
    """Check again what is on disk: the power failed since it was checked."""
    COMMIT = "commit"
    """Write down that it is good."""
    BACK = "back"
    """Write down that it is bad; the good one runs again."""
    REMOVE = "remove"
    """End it, and forget the slot."""
    REST = "rest"
    """Nothing is there to be run."""


class Health(NamedTuple):
    """How the release that runs is. `well` is for how many seconds it has been without a break;
    `failed` is why it never will be, as a cause's JSON."""

    release: Release | None = None
    well: float = 0.0
    failed: Json | None = None


NOTHING_RUNS = Health()


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the server wants of a slot; `removed`: that nothing is left."""

    release: Release
    bake: float = 60.0


@dataclass(frozen=True, slots=True)
class Slot:
    """What is known of one deployment on this device."""

    name: str
    good: Release | None = None
    trial: Release | None = None
    starts: int = 0
    """In how many boots the trial was begun."""
    boot: str = ""
    """The boot in which it was begun last."""
    staged: Mapping[Release, str] = field(default_factory=dict)
    """What is on disk, whole, and in which boot that was checked last."""
    refused: Release | None = None
    """What was tried and did not stay healthy, or cannot be here."""
    cause: Json | None = None
    """Why."""
    inconsistent: bool = False
    """The good one did not come up again either after a trial that failed."""

    @property
    def running(self) -> Release | None:
        """What is to be running."""
        return self.trial or self.good

    @property
    def kept(self) -> frozenset[Release]:
        """What no collection may take."""
        return frozenset(one for one in (self.good, self.trial) if one is not None)


@dataclass(frozen=True, slots=True)
class Slots:
    """All slots, and the generation of what is wanted of them."""

    generation: int = 0
    wanted: Mapping[str, Wanted] = field(default_factory=dict)
    slots: Mapping[str, Slot] = field(default_factory=dict)

    def slot(self, name: str) -> Slot:
        """A slot, as it is or empty."""
        return self.slots.get(name) or Slot(name)

    @property
    def names(self) -> list[str]:
        """All that is wanted or there."""
        return sorted({*self.wanted, *self.slots})

    @property
    def settled(self) -> bool:
        """Everything is as it is wanted, or was tried and is told to be bad."""
        return all(self._settled(name) for name in self.names)

    def _settled(self, name: str) -> bool:
        slot, wanted = self.slots.get(name), self.wanted.get(name)
        if wanted is None or slot is None:
            return slot is None and wanted is None
        return slot.trial is None and wanted.release in (slot.good, slot.refused)


def next_step(slots: Slots, name: str, health: Health, boot: str) -> tuple[Step, Release | None]:
    """What to do about a slot, and of which release."""
    slot, wanted = slots.slot(name), slots.wanted.get(name)
    if wanted is None:
        return Step.REMOVE, None
    if slot.trial is not None:
        return _of_trial(slot, slot.trial, wanted, health, boot)
    if wanted.release in (slot.good, slot.refused):
        return _of_good(slot)
    if wanted.release not in slot.staged:
        # What runs, runs on meanwhile: the link may be away for weeks.
        idle = slot.good in slot.staged and health.release != slot.good
        return (Step.RUN, slot.good) if idle else (Step.FETCH, wanted.release)
    checked = slot.staged[wanted.release] == boot
    return (Step.SWITCH if checked else Step.VERIFY), wanted.release


def _of_trial(
    slot: Slot, trial: Release, wanted: Wanted, health: Health, boot: str
) -> tuple[Step, Release | None]:
    if trial != wanted.release:
        # Something newer came: this one is given up where it stands, and is not called bad.
        return Step.BACK, trial
    if health.release == trial and health.failed is not None:
        return Step.BACK, trial
    if slot.starts >= STARTS_MOST and slot.boot != boot:
        return Step.BACK, trial
    if slot.staged.get(trial) != boot:
        return Step.VERIFY, trial
    if health.release == trial and health.well >= wanted.bake:
        return Step.COMMIT, trial
    return Step.RUN, trial


def _of_good(slot: Slot) -> tuple[Step, Release | None]:
    if slot.good is None:
        return Step.REST, None
    return (Step.RUN if slot.good in slot.staged else Step.FETCH), slot.good


# -- entries --------------------------------------------------------------------------------------


def wanted_entry(generation: int, wanted: Mapping[str, Wanted]) -> Json:
    """The server wants this set."""
    return {
        "kind": "wanted",
        "generation": generation,
        "wanted": {
            name: {"release": list(one.release), "bake": one.bake} for name, one in wanted.items()
        },
    }


def staged_entry(name: str, release: Release, boot: str) -> Json:
    """It is on disk, whole and checked."""
    return {"kind": "staged", "slot": name, "release": list(release), "boot": boot}


def spoiled_entry(name: str, release: Release) -> Json:
    """What is on disk of it is not what was fetched."""
    return {"kind": "spoiled", "slot": name, "release": list(release)}


def switched_entry(slot: Slot, release: Release, boot: str) -> Json:
    """It is the trial from now on, or is begun again in another boot."""
    again = slot.trial == release
    starts = slot.starts + (slot.boot != boot) if again else 1
    return _switched(slot.name, release, boot, starts)


def _switched(name: str, release: Release, boot: str, starts: int) -> Json:
    told = {"slot": name, "release": list(release), "boot": boot, "starts": starts}
    return {"kind": "switched", **told}


def good_entry(name: str, release: Release) -> Json:
    """It stayed healthy for its bake."""
    return {"kind": "good", "slot": name, "release": list(release)}


def bad_entry(name: str, release: Release, cause: Json | None) -> Json:
    """It did not, and why; without a cause something newer took its place."""
    return {"kind": "bad", "slot": name, "release": list(release), "cause": cause}


def inconsistent_entry(name: str, cause: Json | None) -> Json:
    """The good one does not stay healthy either after a trial that failed; None: it does again."""
    return {"kind": "inconsistent", "slot": name, "cause": cause}


def removed_entry(name: str) -> Json:
    """Nothing of it is left."""
    return {"kind": "removed", "slot": name}


def after(slots: Slots, entry: Json) -> Slots:
    """The slots once an entry was written. Raises ValueError for one that is none."""
    try:
        if entry["kind"] == "wanted":
            return _want(slots, entry)
        name = str(entry["slot"])
        if entry["kind"] == "removed":
            kept = {each: slot for each, slot in slots.slots.items() if each != name}
            return replace(slots, slots=kept)
        slot = _CHANGES[entry["kind"]](slots.slot(name), entry)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"not an entry of this journal: {entry!r}") from error
    return replace(slots, slots={**slots.slots, name: slot})


def replayed(entries: Iterable[Json], slots: Slots | None = None) -> Slots:
    """What a journal's entries give."""
    found = slots or Slots()
    for entry in entries:
        found = after(found, entry)
    return found


def in_doubt(slots: Slots) -> Slots:
    """The same where entries are missing: what runs is not ended because nothing says any more that
    it is wanted, until the server says it anew.
    """
    runs = {name: slot.running for name, slot in slots.slots.items()}
    kept = {name: Wanted(one) for name, one in runs.items() if one is not None}
    return replace(slots, wanted={**kept, **slots.wanted})


def snapshot(slots: Slots) -> list[Json]:
    """The fewest entries that give these slots."""
    is_any = slots.wanted or slots.generation
    entries = [wanted_entry(slots.generation, slots.wanted)] if is_any else []
    for name, slot in slots.slots.items():
        if slot.good is not None:
            entries.append(good_entry(name, slot.good))
        if slot.refused is not None:
            entries.append(bad_entry(name, slot.refused, slot.cause))
        entries += [staged_entry(name, *one) for one in sorted(slot.staged.items())]
        if slot.trial is not None:
            entries.append(_switched(name, slot.trial, slot.boot, slot.starts))
        if slot.inconsistent:
            entries.append(inconsistent_entry(name, slot.cause))
    return entries


def _want(slots: Slots, entry: Json) -> Slots:
    generation = int(entry["generation"])
    # What is kept in doubt is of none.
    if slots.generation and generation <= slots.generation:
        return slots
    wanted = {
        str(name): Wanted(_known(slots.slot(name), _release(told)), float(told["bake"]))
        for name, told in entry["wanted"].items()
    }
    return replace(slots, generation=generation, wanted=wanted)


def _known(slot: Slot, release: Release) -> Release:
    """What is good is not tried again, by whichever try it became that."""
    good = slot.good
    if good is not None and good._replace(tries=release.tries) == release:
        return good
    return release


def _stage(slot: Slot, entry: Json) -> Slot:
    return replace(slot, staged={**slot.staged, _release(entry): str(entry["boot"])})


def _spoil(slot: Slot, entry: Json) -> Slot:
    return replace(slot, staged=_without(slot, _release(entry)))


def _without(slot: Slot, release: Release) -> Mapping[Release, str]:
    return {one: boot for one, boot in slot.staged.items() if one != release}


def _switch(slot: Slot, entry: Json) -> Slot:
    release, boot = _release(entry), str(entry["boot"])
    return replace(slot, trial=release, starts=int(entry["starts"]), boot=boot)


def _commit(slot: Slot, entry: Json) -> Slot:
    release = _release(entry)
    staged = {one: boot for one, boot in slot.staged.items() if one == release}
    return replace(
        slot,
        good=release,
        trial=None,
        starts=0,
        boot="",
        staged=staged,
        refused=None,
        cause=None,
        inconsistent=False,
    )


def _back(slot: Slot, entry: Json) -> Slot:
    release, cause = _release(entry), entry["cause"]
    before = slot.refused, slot.cause
    refused, why = (release, cause) if cause is not None else before
    trial = None if slot.trial == release else slot.trial
    return replace(
        slot,
        trial=trial,
        starts=0 if trial is None else slot.starts,
        boot="" if trial is None else slot.boot,
        staged=_without(slot, release),
        refused=refused,
        cause=why,
    )


def _break(slot: Slot, entry: Json) -> Slot:
    cause = entry["cause"]
    return replace(slot, inconsistent=cause is not None, cause=cause or slot.cause)


_CHANGES = {
    "staged": _stage,
    "spoiled": _spoil,
    "switched": _switch,
    "good": _commit,
    "bad": _back,
    "inconsistent": _break,
}


def _release(entry: Json) -> Release:
    revision, tries, digest = entry["release"]
    return Release(int(revision), int(tries), str(digest))
