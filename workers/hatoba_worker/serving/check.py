"""Whether a model can be served: its handler is imported and answers its example."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from hatoba import handlers
from hatoba.handlers import HandlerError, Payload
from hatoba_worker.serving.config import Example
from hatoba_worker.serving.files import write_atomically


def check(
    handler: str, code: Path, model: Path, example: Example | None, report: Path | None
) -> int:
    """Check a model, write what was found, and return the exit code.

    The report is `{"ok": true, "signature", "seconds"}`, or `{"ok": false, "kind", "reason"}` whose
    reason is said on stderr too.
    """
    try:
        found = _checked(handler, code, model, example)
    except HandlerError as error:
        found = {"ok": False, "kind": error.kind, "reason": str(error)}
        sys.stderr.write(f"{error}\n")
    if report is not None:
        write_atomically(report, json.dumps(found, ensure_ascii=False) + "\n")
    return 0 if found["ok"] else 1


def _checked(handler: str, code: Path, model: Path, example: Example | None) -> dict[str, Any]:
    loaded = handlers.load(handler, code, model)
    if example is None:
        return {"ok": True, "signature": {}, "seconds": 0.0}
    try:
        data = example.path.read_bytes()
    except OSError as error:
        raise handlers.ExampleRefused(f"the example cannot be read: {error}") from error
    checked = handlers.check(loaded, Payload(data, example.media_type))
    return {"ok": True, "signature": checked.signature, "seconds": round(checked.seconds, 6)}
