"""All that the keeper remembers, and its journal."""

from __future__ import annotations

from collections.abc import Iterator

from hatoba_worker.keeper.attempts import Attempt, restored
from hatoba_worker.keeper.frames import Json
from hatoba_worker.keeper.journal import Journal

# A late spawn comes within minutes of the stop or forget that made it stale; 20,000 of them are
# about 3 MB.
MOST_TOMBSTONES = 20_000


class Book:
    """Attempts, tombstones and supervised processes; every change goes to the journal too."""

    def __init__(self, journal: Journal, boot: str) -> None:
        self._journal = journal
        self._boot = boot
        self._serial = 0
        self._changed: dict[str, Attempt] = {}
        self.attempts: dict[str, Attempt] = {}
        self.tombstones: dict[str, None] = {}
        self.supervised: dict[str, Json] = {}

    def load(self) -> list[Attempt]:
        """Read what an earlier keeper left; return its attempts that may still have processes.

        Those whose exit it never saw are lost. After a reboot all are gone.
        """
        boot = self._replay()
        for attempt in self.attempts.values():
            if attempt.gone:
                continue
            attempt.lost = attempt.exit is None
            attempt.gone = boot != self._boot
        if boot != self._boot:
            for config in self.supervised.values():
                config["pid"] = 0
        self.compact()
        return [attempt for attempt in self.attempts.values() if not attempt.gone]

    def note(self, attempt: Attempt) -> None:
        """Remember the attempt as it is at the next `save`."""
        self._enter(attempt)
        self._changed[attempt.name] = attempt

    def intend(self, attempt: Attempt) -> None:
        """Write that the attempt is about to start; raises OSError when that is not on disk.

        If this keeper dies before it can say more, the tag is what its processes are found by.
        """
        self._journal.add(attempt.record())
        self._journal.flush()

    def bury(self, name: str) -> None:
        """Drop an attempt, or one never seen, and refuse its late spawn from now on."""
        self.attempts.pop(name, None)
        self._changed.pop(name, None)
        self.tombstones[name] = None
        self._journal.add({"kind": "tombstone", "attempt": name})
        if len(self.tombstones) > MOST_TOMBSTONES:
            del self.tombstones[next(iter(self.tombstones))]

    def supervise(self, config: Json) -> None:
        """Remember a supervised process as it is now."""
        self.supervised[config["name"]] = config
        self._journal.add({"kind": "supervised", **config})

    def unsupervise(self, name: str) -> None:
        """Forget a supervised process."""
        self.supervised.pop(name, None)
        self._journal.add({"kind": "unsupervised", "name": name})

    def save(self) -> None:
        """Write what is new; raises OSError when the disk is full, and keeps it for later."""
        for attempt in self._changed.values():
            self._journal.add(attempt.record())
        self._changed.clear()
        self._journal.flush()
        if self._journal.large:
            self.compact()

    def compact(self) -> None:
        """Write the journal anew, without what is past; raises OSError."""
        self._journal.rewrite(self._records())

    def _enter(self, attempt: Attempt) -> None:
        if attempt.serial == 0:
            self._serial += 1
            attempt.serial = self._serial
        self.attempts[attempt.name] = attempt

    def _records(self) -> Iterator[Json]:
        yield {"kind": "keeper", "boot": self._boot}
        for attempt in self.attempts.values():
            yield attempt.record()
        for name in self.tombstones:
            yield {"kind": "tombstone", "attempt": name}
        for config in self.supervised.values():
            yield {"kind": "supervised", **config}

    def _replay(self) -> str:
        boot = ""
        for record in self._journal.read():
            match record.get("kind"):
                case "keeper":
                    boot = record["boot"]
                case "attempt":
                    self._enter(restored(record))
                case "tombstone":
                    self.attempts.pop(record["attempt"], None)
                    self.tombstones[record["attempt"]] = None
                case "supervised":
                    self.supervised[record["name"]] = {
                        key: value for key, value in record.items() if key != "kind"
                    }
                case "unsupervised":
                    self.supervised.pop(record["name"], None)
        return boot
