"""Whether a model can be served: its handler is imported, answers its example, and its golden cases
as expected."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hatoba import golden, handlers
from hatoba.handlers import Handler, HandlerError, Payload
from hatoba_worker.serving.config import Example
from hatoba_worker.serving.files import write_atomically


@dataclass(frozen=True, slots=True)
class Asked:
    """What a model has to answer: its example, and so many golden cases that lie beside it."""

    example: Example | None = None
    golden: int = 0


def check(handler: str, code: Path, model: Path, asked: Asked, report: Path | None) -> int:
    """Check a model, write what was found, and return the exit code.

    The report is `{"ok": true, "signature", "seconds"}`, or `{"ok": false, "kind", "reason"}` whose
    reason is said on stderr too.
    """
    try:
        found = _checked(handler, code, model, asked)
    except HandlerError as error:
        found = {"ok": False, "kind": error.kind, "reason": str(error)}
        sys.stderr.write(f"{error}\n")
    if report is not None:
        write_atomically(report, json.dumps(found, ensure_ascii=False) + "\n")
    return 0 if found["ok"] else 1


def _checked(handler: str, code: Path, model: Path, asked: Asked) -> dict[str, Any]:
    loaded = handlers.load(handler, code, model)
    found = _example_of(loaded, asked.example)
    golden.check(loaded, golden.read(model, asked.golden))
    return found


def _example_of(loaded: Handler, example: Example | None) -> dict[str, Any]:
    if example is None:
        return {"ok": True, "signature": {}, "seconds": 0.0}
    try:
        data = example.path.read_bytes()
    except OSError as error:
        raise handlers.ExampleRefused(f"the example cannot be read: {error}") from error
    checked = handlers.check(loaded, Payload(data, example.media_type))
    return {"ok": True, "signature": checked.signature, "seconds": round(checked.seconds, 6)}
