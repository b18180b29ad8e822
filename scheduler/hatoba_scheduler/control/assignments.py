"""What a runner elsewhere is answered beside its claim: what there is to run, and who it is now."""

from __future__ import annotations

from hatoba.v1 import runner_pb2
from hatoba_plugins.runner import launch_message
from hatoba_scheduler.auth.runner_credentials import RunnerCredentials
from hatoba_scheduler.auth.runner_scopes import RunnerToken
from hatoba_scheduler.control.launches import launch_request
from hatoba_scheduler.control.ledger import Ledger
from hatoba_scheduler.control.runners import GRANTED, SUPERSEDED, WAIT
from hatoba_scheduler.control.specs import SpecCache
from hatoba_scheduler.convert import set_time


class Assignments:
    """Completes the desk's answers."""

    def __init__(
        self, ledger: Ledger, specs: SpecCache, cluster_id: str, credentials: RunnerCredentials
    ) -> None:
        self._ledger = ledger
        self._specs = specs
        self._cluster_id = cluster_id
        self._credentials = credentials

    async def complete(
        self, request: runner_pb2.ClaimAttemptRequest, reply: runner_pb2.ClaimAttemptResponse
    ) -> None:
        """Add the assignment to an answer to a claim, where it is wanted and due."""
        if not request.want_assignment or reply.verdict not in (GRANTED, WAIT):
            return
        where = self._ledger.find_attempt(request.attempt)
        rows = self._ledger.rows(where[0]) if where else None
        specs = await self._specs.get([where[0]]) if where else {}
        if where is None or rows is None or where[0] not in specs:
            # It ended while it was being answered.
            reply.verdict = SUPERSEDED
            return
        attempt = rows.attempts[where[1]]
        wanted = launch_request(rows.job, attempt, specs[where[0]], self._cluster_id)
        reply.assignment.Pack(launch_message(wanted), deterministic=True)

    def identify(self, caller: RunnerToken, reply: runner_pb2.ClaimAttemptResponse) -> None:
        """Add the session's credential to a granted claim."""
        if reply.verdict == GRANTED:
            self._give(caller, reply)

    def renew(self, caller: RunnerToken, reply: runner_pb2.HeartbeatResponse) -> None:
        """Add a newer one to a heartbeat's answer, once half of the shown one's life is over."""
        if self._credentials.ages(caller.bearer):
            self._give(caller, reply)

    def _give(
        self,
        caller: RunnerToken,
        reply: runner_pb2.ClaimAttemptResponse | runner_pb2.HeartbeatResponse,
    ) -> None:
        bearer = caller.bearer
        reply.credential, expires = self._credentials.session(bearer.name, bearer.number)
        set_time(reply.credential_expire_time, expires)
