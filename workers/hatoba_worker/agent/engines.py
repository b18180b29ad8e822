"""The device's container engine: where it is, and which images it was given."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from hatoba_worker.agent import disk
from hatoba_worker.agent.registry import Reference
from hatoba_worker.executors.containers import choosing

REPOSITORY = "hatoba.device"
"""Where images are called by us in an engine, followed by whose they are."""
_CLIENT = "aiodocker"
_DAMAGED = (OSError, ValueError, KeyError, TypeError)


class Layer(NamedTuple):
    """One as its registry has it, and as it is unpacked; the first is empty where nobody knows."""

    digest: str
    unpacked: str


@dataclass(frozen=True, slots=True)
class Known:
    """An image that the engine took: its id there, and what it is made of."""

    reference: str
    id: str
    layers: tuple[Layer, ...]

    @classmethod
    def read(cls, file: Path) -> Known | None:
        """What a file says; None: nothing that can be read. Blocks."""
        with contextlib.suppress(*_DAMAGED):
            told: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            layers = tuple(Layer(str(one), str(unpacked)) for one, unpacked in told["layers"])
            return cls(str(told["reference"]), str(told["id"]), layers)
        return None


class ImageBook:
    """Which images the engine has, each in a file of its own, by which it is found without a
    registry. `key` tells this device's from those of others on its engine. All calls block.
    """

    def __init__(self, root: Path, key: str) -> None:
        self.key = key
        self._root = root

    def prepare(self) -> None:
        """Make what is needed."""
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)

    def has_any(self) -> bool:
        """Whether the engine was given anything."""
        return any(self._files())

    def tag(self, reference: str) -> str:
        """What an image is called by us in the engine. Raises Unusable."""
        return f"{REPOSITORY}/{self.key}:{_hex(reference)}"

    def known(self, reference: str) -> Known | None:
        """What is known of an image; None: the engine was not given it. Raises Unusable."""
        found = Known.read(self._file(reference))
        return found if found is not None and found.reference == reference else None

    def all(self) -> list[Known]:
        """Everything."""
        return [known for file in self._files() if (known := Known.read(file)) is not None]

    def keep(self, known: Known) -> None:
        """From now on the engine has this one. Raises OSError."""
        disk.replace(self._file(known.reference), json.dumps(asdict(known)).encode())

    def forget(self, reference: str) -> None:
        """The engine has it no more. Raises OSError."""
        self._file(reference).unlink(missing_ok=True)

    def _file(self, reference: str) -> Path:
        return self._root / f"{_hex(reference)}.json"

    def _files(self) -> Iterator[Path]:
        return self._root.glob("*.json")


@dataclass(frozen=True, slots=True)
class DeviceEngine:
    """Where it listens; empty: there is to be none. `told`: the device's owner says that there is
    one, so that it is waited for.
    """

    socket: str
    told: bool
    book: ImageBook

    @classmethod
    def of(cls, data: Path, told: str, environ: Mapping[str, str]) -> DeviceEngine:
        """By the settings of the device with this data directory, else where clients look."""
        book = ImageBook(data / "images", choosing.key_of("device", data))
        named = bool(told) and told != choosing.NONE
        return cls(choosing.socket_of(told, environ), named, book)

    def lacks(self) -> str:
        """Why no container can run here, as far as can be seen; empty: they can. An engine that
        took an image is waited for, as one is of which its owner told. Blocks.
        """
        there = self.told or os.path.exists(self.socket) or self.book.has_any()
        if not self.socket or not there:
            return "this device has no container engine"
        if importlib.util.find_spec(_CLIENT) is None:
            return "this device's agent speaks to no container engine: pip install 'hatoba[docker]'"
        return ""


def _hex(reference: str) -> str:
    """The digest of a reference, as names may have it."""
    return Reference.parse(reference).digest.removeprefix("sha256:")
