"""The model server, and what checks a model or runs it over many items.

It runs in the model's own environment: standard library, `hatoba.handlers` and h11, nothing else.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hatoba_worker.serving.config import Config


def foreground(config: Config) -> int:
    """Serve a model for people at a terminal, exactly as a deployment does; returns the exit code.

    Says on stderr where it listens. Ends on Ctrl-C.
    """
    from hatoba_worker.serving.server import serve

    def say(host: str, port: int) -> None:
        model = config.model or config.handler
        sys.stderr.write(f"{model} listens on http://{host}:{port}/predict; Ctrl-C ends it\n")

    return serve(config, say)
