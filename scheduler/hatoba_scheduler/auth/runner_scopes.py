"""What a runner's credential opens: its own attempt, and no more than its kind needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog

from hatoba.v1 import artifact_pb2
from hatoba_scheduler.auth.roles import Role
from hatoba_scheduler.auth.runner_credentials import Bearer, Kind, RunnerCredentials
from hatoba_scheduler.domain.records import TokenRecord
from hatoba_scheduler.errors import PermissionDenied, Reason

log = structlog.get_logger(__name__)

_RUNNER = "hatoba.v1.RunnerService/"
_ARTIFACTS = "hatoba.v1.ArtifactService/"
_CLAIM = f"{_RUNNER}ClaimAttempt"
_SPANS = "hatoba.v1.AdminService/PushSpans"
_READING = frozenset(
    f"{_ARTIFACTS}{name}"
    for name in ("DownloadChunks", "GetManifest", "DownloadManifest", "GetTransferUrls")
)
_WRITING = frozenset(
    f"{_ARTIFACTS}{name}"
    for name in (
        "FindMissingChunks",
        "UploadChunks",
        "CreateManifest",
        "UploadManifest",
        "ConfirmChunks",
    )
)
OPENS: dict[Kind, frozenset[str]] = {
    Kind.LAUNCH: frozenset({_CLAIM}),
    Kind.SESSION: _READING
    | _WRITING
    | {_SPANS, _CLAIM}
    | {
        f"{_RUNNER}{name}"
        for name in (
            "Heartbeat",
            "PushLogs",
            "ReportMetrics",
            "CommitCheckpoint",
            "CommitAttempt",
            "AwaitExit",
        )
    },
    Kind.REPLICA: _READING | {_SPANS},
}
"""Methods by the kind of a credential."""
Current = Callable[[str, int], bool]


@dataclass(frozen=True, slots=True)
class RunnerToken(TokenRecord):
    """The bearer of a runner's credential, as a caller. `current`: whether an attempt still is."""

    bearer: Bearer = Bearer(Kind.LAUNCH, "", 0)
    current: Current = lambda name, fence: False

    def check_method(self, method: str) -> None:
        """Raise PermissionDenied unless the credential opens this method now."""
        if method not in OPENS[self.bearer.kind]:
            kind = self.bearer.kind.name.lower()
            raise self._denied(method, f"a {kind} credential does not open it")
        files = self.bearer.kind is Kind.SESSION and method.startswith(_ARTIFACTS)
        if files and not self.current(self.bearer.name, self.bearer.number):
            raise self._denied(method, "its attempt is not current any more")

    def check_request(self, method: str, request: Any) -> None:
        """Raise PermissionDenied unless a message is about what the credential is for."""
        if method.startswith(_RUNNER) and not self._names(request):
            raise self._denied(method, f"it is not for attempt {request.attempt!r}")
        uploads = isinstance(request, artifact_pb2.GetTransferUrlsRequest) and (
            request.direction != artifact_pb2.TRANSFER_DIRECTION_DOWNLOAD
        )
        if uploads and self.bearer.kind is Kind.REPLICA:
            raise self._denied(method, "a replica only reads")

    def _names(self, request: Any) -> bool:
        bearer = self.bearer
        return bool(request.attempt == bearer.name and request.fence == bearer.number)

    def _denied(self, method: str, why: str) -> PermissionDenied:
        log.warning("runner.denied", principal=self.principal, method=method, why=why)
        return PermissionDenied(
            f"{self.principal} may not call {method}: {why}",
            reason=Reason.OUT_OF_SCOPE,
            metadata={"method": method, "bearer": self.principal},
        )


class RunnerGate:
    """Tells whose a runner's credential is."""

    def __init__(self, credentials: RunnerCredentials, current: Current) -> None:
        self._credentials = credentials
        self._current = current

    def authenticate(self, text: str) -> TokenRecord:
        """Who shows this; raises Unauthenticated."""
        bearer = self._credentials.open(text)
        who = "replica" if bearer.kind is Kind.REPLICA else "runner"
        return RunnerToken(
            id=f"{bearer.kind.value}_{bearer.name}_{bearer.number}",
            sha256="",
            principal=f"{who}:{bearer.name}",
            role=Role.RUNNER,
            create_time=0,
            expire_time=bearer.expires * 1_000_000,
            bearer=bearer,
            current=self._current,
        )
