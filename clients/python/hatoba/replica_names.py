"""Who answers at an address: model servers say the name of their replica in each reply.

Addresses are given to others as soon as they are free. A replica's external name is
`r-{uid}-{revision}-{8 hex digits}`; what does not begin like one says nothing.
"""

from __future__ import annotations

import re

HEADER = "hatoba-replica"
"""The header of replies."""
_REVISION = re.compile(r"r-[0-9a-f]{32}-[1-9][0-9]{0,9}(?![0-9])")


def revision_prefix(uid: str, revision: int) -> str:
    """What the names of a revision's replicas begin with."""
    return f"r-{uid}-{revision}"


def task_name(prefix: str, task: str) -> str:
    """The name of the replica that began as a task of ECS, by its ARN: it shows the task's first
    digits. Without an ARN the prefix alone."""
    digits = task.rsplit("/", 1)[-1].replace("-", "")[:8]
    return f"{prefix}-{digits}" if digits else prefix


def may_be(said: str, name: str) -> bool:
    """Whether who says `said` may be the replica of this name: it says no other."""
    return not _prefix(said) or f"{name}-".startswith(f"{said}-")


def may_serve_for(said: str, name: str) -> bool:
    """Whether who says `said` may be of the revision of this replica, and so serve the same."""
    ours, theirs = _prefix(name), _prefix(said)
    return not ours or not theirs or ours == theirs


def _prefix(name: str) -> str:
    found = _REVISION.match(name)
    return found[0] if found else ""
