"""Exit codes of the runner: the command's own, and a few that it keeps for itself."""

from __future__ import annotations

from collections.abc import Mapping

from hatoba.v1 import runner_pb2
from hatoba_worker import exits

SETTINGS = 78
"""Its settings are wrong."""
REFUSED = 83
"""The attempt is not this runner's, or not any more."""
NOT_BROUGHT_OUT = 84
"""The command ended well, and what it made could not be brought out."""
UNREACHED = 85
"""The server was not reached in time; nothing was started."""
NOT_STARTED = 86
"""Nothing was started, and why is committed."""
ENDED = 143
"""It was asked to end, and the command had not ended otherwise: 128 and SIGTERM."""

_SIGNALLED = 128
_OWN: Mapping[exits.Kind, int] = {
    exits.OUTPUT_FAILED: NOT_BROUGHT_OUT,
    runner_pb2.EXIT_KIND_NOT_FOUND: 127,
    runner_pb2.EXIT_KIND_NOT_EXECUTABLE: 126,
    exits.STOPPED: ENDED,
    exits.PREEMPTED: ENDED,
    exits.RUN_TIMEOUT: ENDED,
    exits.DISCONNECTED: ENDED,
    exits.OUT_OF_MEMORY: _SIGNALLED + 9,
}


def of_commit(commit: runner_pb2.CommitAttemptRequest) -> int:
    """What the runner exits with when this was committed; 0 only for what ended well."""
    if commit.kind == exits.EXITED:
        return commit.exit_code
    if commit.signal:
        return _SIGNALLED + commit.signal
    return commit.exit_code or _OWN.get(commit.kind, NOT_STARTED)
