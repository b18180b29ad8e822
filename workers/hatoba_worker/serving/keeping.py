"""What a model server keeps of its predictions where no router stands before it: lines of a file,
which whoever runs it takes away now and then.
"""

from __future__ import annotations

import base64
import json
import os
import re
import time
from pathlib import Path
from random import Random
from typing import Any

from hatoba.handlers import Payload
from hatoba_worker.serving.answering import Outcome, Question
from hatoba_worker.serving.config import MOST_BODY, Keep

MOST_FILE = 4 << 20
"""Bytes of the file at which nothing more is kept until it is taken away."""
_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]([0-9a-f])")
_SAMPLED = frozenset("13579bdf")
Json = dict[str, Any]


class Keeping:
    """Of one server."""

    def __init__(self, keep: Keep, rng: Random) -> None:
        self._path = keep.path
        self._rate = keep.rate
        self._revision = keep.revision
        self._rng = rng

    def note(self, question: Question, outcome: Outcome, seconds: float) -> str:
        """Keep a prediction whose caller has it traced, or that is drawn; its trace id. Empty:
        neither, or there is no room.
        """
        parent = _TRACEPARENT.fullmatch(question.trace)
        traced = parent is not None and parent[3] in _SAMPLED
        drawn = self._draws(question.payload, outcome)
        if not (traced or drawn):
            return ""
        trace_id = parent[1] if parent else f"{self._rng.getrandbits(128) or 1:032x}"
        line: Json = {
            "at": time.monotonic() - seconds,
            "seconds": seconds,
            "status": outcome.status,
            "revision": self._revision,
            "trace_id": trace_id,
            "parent": parent[2] if parent else "",
        }
        if drawn:
            line |= _bodies(question.payload, outcome.payload)
        return trace_id if _append(self._path, line) else ""

    def _draws(self, asked: Payload, outcome: Outcome) -> bool:
        if self._rate <= 0 or not 200 <= outcome.status < 300:
            return False
        if len(asked.data) + len(outcome.payload.data) > MOST_BODY:
            return False
        return self._rate >= 1 or self._rng.random() < self._rate


def _bodies(asked: Payload, answered: Payload) -> Json:
    return {
        "input": base64.b64encode(asked.data).decode(),
        "media_type": asked.media_type,
        "prediction": base64.b64encode(answered.data).decode(),
        "prediction_media_type": answered.media_type,
    }


def _append(path: Path, line: Json) -> bool:
    """Add a line, in one piece: whoever takes the file away takes whole lines. A full disk ends
    nothing.
    """
    data = json.dumps(line).encode() + b"\n"
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            return os.fstat(handle).st_size < MOST_FILE and os.write(handle, data) == len(data)
        finally:
            os.close(handle)
    except OSError:
        return False
