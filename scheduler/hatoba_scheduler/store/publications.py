"""The part of the store that knows which jobs publish their outputs, and what became of that.

A row is made with its job, in the submit's transaction (`Submission.publishes`): a server that is
killed between a job's end and the publishing finds it again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol


class Publication(NamedTuple):
    """What became of a job's outputs. `published` is a dataset version's resource name, or why
    they became none; `summary` what its tasks' summaries add up to. Either may be empty.
    """

    published: str
    summary: str


class PublicationStore(Protocol):
    """See the module."""

    async def due(self) -> list[str]:
        """Uids of all jobs that publish and are not settled, ended or not."""
        ...

    async def settle(self, job_uid: str, publication: Publication) -> None:
        """What became of it. Durable when it returns; what was settled before stays."""
        ...

    async def settled(self, job_uids: Sequence[str]) -> dict[str, Publication]:
        """Those of the jobs that publish and are settled."""
        ...
