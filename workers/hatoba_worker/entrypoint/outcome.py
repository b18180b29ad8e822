"""From how a runner's way ended to an exit code, and the words for it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from hatoba_worker.entrypoint import codes
from hatoba_worker.entrypoint.calls import Denied
from hatoba_worker.entrypoint.claims import Refused, Unreached
from hatoba_worker.entrypoint.main import say
from hatoba_worker.entrypoint.settings import BadSettings
from hatoba_worker.process_log import configure_log


def outcome(way: Callable[[], Coroutine[Any, Any, int]]) -> int:
    """The exit code of a whole way; what ended it before there was anything is said."""
    try:
        # What goes well is said by the job.
        configure_log(logging.WARNING)
        return asyncio.run(way())
    except BadSettings as error:
        return say(codes.SETTINGS, str(error))
    except Refused as error:
        return say(codes.REFUSED, f"this runner may not run the attempt: {error}")
    except Denied as error:
        return say(codes.SETTINGS, f"the credential does not open the claim: {error}")
    except Unreached as error:
        return say(codes.UNREACHED, f"the server was not reached: {error}; see server.advertise")
