"""What must outlive the worker: the order that the host keeps to, and how each replica stands."""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import structlog

from hatoba.v1 import worker_pb2
from hatoba_worker import tinyfiles

log = structlog.get_logger(__name__)

NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_STATE = "state.json"


@dataclass(frozen=True, slots=True)
class Ordered:
    """Order `number`: the replicas to keep, and those that drain, by name."""

    number: int = 0
    kept: Mapping[str, worker_pb2.ReplicaSpec] = field(default_factory=dict)
    leaving: Mapping[str, worker_pb2.ReplicaSpec] = field(default_factory=dict)

    def following(self, order: worker_pb2.ReplicaOrder) -> Ordered:
        """What a newer order makes of this: what is known stays as it came."""
        kept: dict[str, worker_pb2.ReplicaSpec] = {}
        for spec in order.replicas:
            known = self.kept.get(spec.name)
            if known is not None:
                kept[spec.name] = known
            elif NAME.fullmatch(spec.name) and spec.serving.handler:
                kept[spec.name] = spec
            else:
                log.warning("replica.refused", replica=spec.name, reason="no name or no handler")
        gone = {name: spec for name, spec in self.kept.items() if name not in kept}
        return Ordered(order.order, kept, {**self.leaving, **gone})

    def without(self, name: str) -> Ordered:
        """Nothing is left of one that drained."""
        leaving = {each: spec for each, spec in self.leaving.items() if each != name}
        return Ordered(self.number, self.kept, leaving)

    def save(self, path: Path) -> None:
        """Put it on disk, also for after a power loss; blocks. Raises OSError."""
        body = {
            "order": self.number,
            "kept": _encoded(self.kept.values()),
            "leaving": _encoded(self.leaving.values()),
        }
        fresh = path.with_suffix(".new")
        with fresh.open("w", encoding="utf-8") as file:
            json.dump(body, file)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)

    @classmethod
    def load(cls, path: Path) -> Ordered:
        """What is on disk; blocks."""
        try:
            body = json.loads(path.read_text(encoding="utf-8"))
            return cls(int(body["order"]), _decoded(body["kept"]), _decoded(body["leaving"]))
        except FileNotFoundError:
            return cls()
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.error("replicas.unreadable", path=str(path), error=str(error))
            return cls()


def _encoded(specs: Iterable[worker_pb2.ReplicaSpec]) -> list[str]:
    return [base64.b64encode(spec.SerializeToString()).decode() for spec in specs]


def _decoded(texts: Iterable[str]) -> dict[str, worker_pb2.ReplicaSpec]:
    specs = [worker_pb2.ReplicaSpec.FromString(base64.b64decode(text)) for text in texts]
    return {spec.name: spec for spec in specs}


@dataclass(slots=True)
class Standing:
    """How a replica stands, in its directory.

    `run` is the number of its newest process, `ends` how often it ended in a row, `ready_since`
    Unix seconds, 0 while it is not ready, `secure` whether it answers TLS alone.
    """

    run: int = 0
    restarts: int = 0
    ends: int = 0
    address: str = ""
    ready_since: float = 0.0
    staged: bool = False
    secure: bool = False

    def save(self, home: str) -> None:
        """Write it; raises OSError. Need not outlive the machine, whose processes it is about."""
        tinyfiles.swap(f"{home}/{_STATE}", json.dumps(asdict(self)).encode())

    @classmethod
    def load(cls, home: str) -> Standing:
        """What is in the directory, if anything; blocks."""
        try:
            with open(f"{home}/{_STATE}", encoding="utf-8") as file:
                return cls(**json.load(file))
        except (OSError, ValueError, TypeError):
            return cls()
