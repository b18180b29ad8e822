"""The words for where jobs, tasks and attempts stand.

Numbers equal those of `hatoba.v1`; a unit test holds the two together, since this package may
not import the stubs.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final


class JobState(IntEnum):
    """Where a job or task stands; from SUCCEEDED on nothing follows."""

    QUEUED = 1
    HELD = 2
    BLOCKED = 3
    LAUNCHING = 4
    WAITING = 5
    STARTING = 6
    RUNNING = 7
    STOPPING = 8
    SUCCEEDED = 9
    FAILED = 10
    CANCELLED = 11
    TIMED_OUT = 12
    UPSTREAM_FAILED = 13

    terminal: bool
    """True when nothing can follow."""
    pending: bool
    """True while no attempt is under way."""

    def __init__(self, number: int) -> None:
        self.terminal = number >= 9
        self.pending = number <= 3


class AttemptState(IntEnum):
    """Where one placement stands; from SUCCEEDED on nothing follows."""

    LAUNCHING = 1
    WAITING = 2
    STARTING = 3
    RUNNING = 4
    STOPPING = 5
    SUCCEEDED = 6
    FAILED = 7
    CANCELLED = 8
    TIMED_OUT = 9
    PREEMPTED = 10
    LOST = 11
    REFUSED = 12

    terminal: bool
    """True when nothing can follow."""

    def __init__(self, number: int) -> None:
        self.terminal = number >= 6


class Desired(IntEnum):
    """What the owner wants; CANCELLED is never taken back."""

    RUN = 1
    CANCELLED = 2


class Release(IntEnum):
    """Whether an attempt still holds what was reserved for it."""

    HELD = 1
    RELEASING = 2
    RELEASED = 3


class Origin(IntEnum):
    """Whom an ending is laid to; retry budgets are kept per origin."""

    USER = 1
    INFRASTRUCTURE = 2
    CAPACITY = 3
    PREEMPTION = 4
    POLICY = 5
    UNKNOWN = 6


class CauseCode(IntEnum):
    """Why something ended or waits: a closed set."""

    EXIT_CODE = 1
    SIGNAL = 2
    OUT_OF_MEMORY = 3
    COMMAND_NOT_FOUND = 4
    COMMAND_NOT_EXECUTABLE = 5
    RUN_TIMEOUT = 6
    ENVIRONMENT_FAILED = 7
    STAGING_FAILED = 8
    OUTPUT_FAILED = 9
    CANCELLED = 10
    UPSTREAM_FAILED = 11
    HOST_LOST = 12
    LOST = 13
    REFUSED_INVALID = 14
    REFUSED_DENIED = 15
    BACKEND_FAILED = 16
    NO_CAPACITY = 17
    THROTTLED = 18
    CONFLICT = 19
    PREEMPTED = 20
    SPOT_RECLAIMED = 21
    SIBLING_FAILED = 22
    DECLARED_GONE = 23
    SECRET_MISSING = 24
    NOT_COMMITTED = 25
    INPUT_CHANGED = 26
    MODEL_REFUSED = 27
    NOT_READY = 28
    PREDICTIONS_FAIL = 29
    CRASH_LOOP = 30
    DEVICE_FAULT = 31
    DEADLINE = 32
    QUEUE_TIMEOUT = 33
    GANG_FAILED = 34
    GANG_TIMEOUT = 35
    DISCONNECTED = 36
    DRAINED = 37
    IMAGE_MISSING = 38
    IMAGE_DENIED = 39
    IMAGE_ARCHITECTURE = 40
    IMAGE_UNREACHABLE = 41


class RetryAction(IntEnum):
    """What a retry rule has done about an ending."""

    RETRY = 1
    FAIL = 2


class GangPolicy(IntEnum):
    """What one failed member does to its gang."""

    FAIL = 1
    RESTART = 2


class Spot(IntEnum):
    """Whether capacity will do that its provider may take back."""

    ALLOW = 1
    ONLY = 2
    PREFER = 3
    NEVER = 4


class Strategy(IntEnum):
    """Which of the places that fit is taken: the emptiest, or the fullest."""

    SPREAD = 1
    PACK = 2


class Operator(IntEnum):
    """How a host's label is compared."""

    IN = 1
    NOT_IN = 2
    EXISTS = 3
    NOT_EXISTS = 4


class WaitReason(IntEnum):
    """Why something does not run now; NONE: it does not wait. Most fundamental first."""

    NONE = 0
    HELD = 1
    BLOCKED = 2
    START_AFTER = 3
    BACKING_OFF = 4
    RELEASING = 5
    NEVER_FITS = 6
    QUEUE_CORDONED = 7
    BACKEND_UNAVAILABLE = 8
    QUOTA = 9
    MAX_PARALLEL = 10
    BEHIND = 11
    FAIR_SHARE = 12
    NO_ROOM = 13
    RESERVED = 14
    PREEMPTING = 15
    GANG_INCOMPLETE = 16
    THROTTLED = 17
    NEXT = 18
    DEVICE_AWAY = 19


STATE_COUNT: Final = max(JobState) + 1
