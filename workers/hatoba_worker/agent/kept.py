"""Takes away what model servers kept of their predictions, for the server to have.

A file is set aside at one look and read at the next: by then whoever was writing to it is done. It
is removed once what it says is on the disk of the device itself; what was read twice by a power cut
between is the same prediction twice.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import structlog

from hatoba.v1 import device_pb2
from hatoba_worker import tinyfiles
from hatoba_worker.agent.server_logs import Home
from hatoba_worker.executors.containers.rights import RUN
from hatoba_worker.serving.config import KEPT, MOST_BODY

log = structlog.get_logger(__name__)

MOST = 8 << 20
"""Bytes of one file that are read: it has half of that, unless somebody else wrote it."""
Hear = Callable[[float, device_pb2.DevicePrediction], None]
Json = dict[str, Any]


class KeptPredictions:
    """Of all servers. `hear` is given each with the seconds since it began. Calls block."""

    def __init__(self, hear: Hear, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._hear = hear
        self._monotonic = monotonic
        self._read: list[Path] = []

    @property
    def heard(self) -> bool:
        """Whether anything was heard since the last `durable`."""
        return bool(self._read)

    def look(self, homes: Iterable[Home]) -> None:
        """Hear what was set aside, and set aside what is new."""
        for home in homes:
            # A container may write below its directory alone.
            for directory in (home.path, home.path / RUN):
                self._take(home, directory / KEPT)

    def _take(self, home: Home, path: Path) -> None:
        aside = path.with_suffix(".taken")
        if tinyfiles.exists(str(aside)):
            self._hear_all(home, aside)
            self._read.append(aside)
        elif tinyfiles.exists(str(path)):
            with contextlib.suppress(OSError):
                os.replace(path, aside)

    def _hear_all(self, home: Home, path: Path) -> None:
        try:
            lines = tinyfiles.read_piece(str(path), 0, MOST).splitlines()
        except OSError as error:
            log.warning("kept.unreadable", deployment=home.deployment, error=str(error))
            return
        bad = 0
        for line in lines:
            try:
                told = json.loads(line)
                age = self._monotonic() - float(told["at"])
                # Of another boot nobody knows how long ago it was.
                self._hear(max(0.0, age), _prediction(home.deployment, told))
            except (ValueError, KeyError, TypeError):
                bad += 1
        if bad:
            log.warning("kept.nonsense", deployment=home.deployment, lines=bad)

    def durable(self) -> None:
        """What was heard is on the disk."""
        for path in self._read:
            with contextlib.suppress(OSError):
                tinyfiles.remove(str(path))
        self._read.clear()


def _prediction(deployment: str, told: Json) -> device_pb2.DevicePrediction:
    """One line; ValueError, KeyError and TypeError for any other."""
    made = device_pb2.DevicePrediction(
        deployment=deployment,
        revision=told["revision"],
        trace_id=told["trace_id"],
        parent_span_id=told["parent"],
        status=told["status"],
    )
    made.duration.FromNanoseconds(round(told["seconds"] * 1e9))
    if "input" in told:
        captured = made.captured
        captured.input = base64.b64decode(told["input"], validate=True)
        captured.media_type = told["media_type"][:128]
        captured.prediction = base64.b64decode(told["prediction"], validate=True)
        captured.prediction_media_type = told["prediction_media_type"][:128]
        if len(captured.input) + len(captured.prediction) > MOST_BODY:
            raise ValueError("it is too long")
    return made
