"""Runners' credentials: derived, scoped, never stored; and the keys they derive from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from google.protobuf.descriptor import MethodDescriptor
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from hatoba.v1 import artifact_pb2, runner_pb2
from hatoba_scheduler.auth.authenticator import Authenticator
from hatoba_scheduler.auth.files import InsecureFile
from hatoba_scheduler.auth.roles import METHOD_ACCESS, Role
from hatoba_scheduler.auth.runner_credentials import (
    PREFIX,
    SESSION_SECONDS,
    Bearer,
    Kind,
    RunnerCredentials,
)
from hatoba_scheduler.auth.runner_keys import FILE, LIFE, Key, RunnerKeys
from hatoba_scheduler.auth.runner_scopes import OPENS, RunnerGate, RunnerToken
from hatoba_scheduler.domain.records import TokenRecord
from hatoba_scheduler.errors import PermissionDenied, Reason, Unauthenticated

NOW = 1_800_000_000_000_000
DAY = 86_400_000_000
NAMES = st.from_regex(r"[a-z0-9-]{1,63}", fullmatch=True)
SERVICE = runner_pb2.DESCRIPTOR.services_by_name["RunnerService"]
KEY = Key("0a0b0c0d", 0, b"k" * 32)


class Clock:
    """Microseconds that a test sets."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> int:
        return self.now


def made(clock: Clock | None = None, *keys: Key) -> RunnerCredentials:
    return RunnerCredentials(RunnerKeys(Path("unused"), keys or (KEY,)), clock or Clock())


def reason_of(credentials: RunnerCredentials, text: str) -> Reason:
    with pytest.raises(Unauthenticated) as refusal:
        credentials.open(text)
    return refusal.value.reason


# -- credentials -----------------------------------------------------------------------------------


@given(NAMES, st.integers(0, 2**62))
def test_a_credential_says_whose_it_is_and_is_the_same_each_time(name: str, number: int) -> None:
    one = made()
    assert one.launch(name, number, NOW) == made().launch(name, number, NOW)
    assert one.open(one.launch(name, number, NOW)) == Bearer(Kind.LAUNCH, name, number)
    assert one.open(one.replica(name, number, NOW)) == Bearer(Kind.REPLICA, name, number)
    session, expires = one.session(name, number)
    assert one.open(session) == Bearer(Kind.SESSION, name, number, expires // 1_000_000)


@given(st.data())
def test_no_other_text_is_a_credential(data: st.DataObject) -> None:
    credentials = made()
    good = credentials.launch("a-1", 1, NOW)
    at = data.draw(st.integers(0, len(good) - 1))
    other = data.draw(st.sampled_from("abcdef0123456789_-lsr"))
    changed = good[:at] + other + good[at + 1 :]
    if changed != good:
        assert reason_of(credentials, changed) in (Reason.TOKEN_UNKNOWN, Reason.TOKEN_MALFORMED)


def test_one_kind_is_never_taken_for_another() -> None:
    credentials = made()
    good = credentials.launch("a-1", 1, NOW)
    for kind in "sr":
        assert reason_of(credentials, good.replace("hr_l", f"hr_{kind}")) is Reason.TOKEN_UNKNOWN
    assert reason_of(credentials, "hr_") is Reason.TOKEN_MALFORMED
    assert reason_of(made(None, Key("0a0b0c0d", 0, b"x" * 32)), good) is Reason.TOKEN_UNKNOWN


def test_a_session_ends_and_is_renewed_at_half_its_life() -> None:
    clock = Clock()
    credentials = made(clock)
    text, expires = credentials.session("a-1", 1)
    assert expires - NOW == SESSION_SECONDS * 1_000_000
    bearer = credentials.open(text)
    assert not credentials.ages(bearer)
    clock.now = NOW + DAY // 2 + 1_000_000
    assert credentials.ages(credentials.open(text))
    clock.now = expires
    assert reason_of(credentials, text) is Reason.TOKEN_EXPIRED
    launch = credentials.open(credentials.launch("a-1", 1, NOW))
    assert not credentials.ages(launch)


# -- scopes ----------------------------------------------------------------------------------------


def caller(text: str, *, current: bool = True) -> RunnerToken:
    token = RunnerGate(made(), lambda name, fence: current).authenticate(text)
    assert isinstance(token, RunnerToken)
    return token


def full(method: MethodDescriptor) -> str:
    return f"hatoba.v1.RunnerService/{method.name}"


def test_a_launch_credential_opens_the_claim_alone() -> None:
    token = caller(made().launch("a-1", 1, NOW))
    opened = [name[1:] for name in METHOD_ACCESS if opens(token, name[1:])]
    assert opened == ["hatoba.v1.RunnerService/ClaimAttempt"]
    assert token.role == Role.RUNNER


def opens(token: RunnerToken, method: str) -> bool:
    try:
        token.check_method(method)
    except PermissionDenied:
        return False
    return True


def test_a_replicas_credential_reads_and_does_nothing_else() -> None:
    token = caller(made().replica("d" * 32, 3, NOW))
    opened = {name[1:] for name in METHOD_ACCESS if opens(token, name[1:])}
    assert opened == OPENS[Kind.REPLICA]
    assert not any("Upload" in name or "Create" in name or "Runner" in name for name in opened)
    method = "hatoba.v1.ArtifactService/GetTransferUrls"
    down, up = artifact_pb2.TRANSFER_DIRECTION_DOWNLOAD, artifact_pb2.TRANSFER_DIRECTION_UPLOAD
    token.check_request(method, artifact_pb2.GetTransferUrlsRequest(direction=down))
    with pytest.raises(PermissionDenied):
        token.check_request(method, artifact_pb2.GetTransferUrlsRequest(direction=up))


@pytest.mark.parametrize("method", list(SERVICE.methods), ids=lambda method: method.name)
def test_every_call_of_a_runner_is_about_its_own_attempt(method: MethodDescriptor) -> None:
    token = caller(made().session("a-1", 7)[0])
    request = getattr(runner_pb2, method.input_type.name)
    token.check_request(full(method), request(attempt="a-1", fence=7))
    for name, fence in (("a-2", 7), ("a-1", 8), ("", 0)):
        with pytest.raises(PermissionDenied) as refusal, capture_logs() as logs:
            token.check_request(full(method), request(attempt=name, fence=fence))
        assert refusal.value.reason is Reason.OUT_OF_SCOPE
        assert logs[0]["principal"] == "runner:a-1"


def test_files_are_open_as_long_as_the_attempt_is_current() -> None:
    text = made().session("a-1", 7)[0]
    upload = "hatoba.v1.ArtifactService/UploadChunks"
    commit = "hatoba.v1.RunnerService/CommitAttempt"
    assert [opens(caller(text), one) for one in (upload, commit)] == [True, True]
    over = caller(text, current=False)
    assert [opens(over, one) for one in (upload, commit)] == [False, True]


async def test_a_session_is_refused_once_its_time_is_over_like_any_token() -> None:
    clock = Clock()
    credentials = made(clock)
    authenticator = Authenticator(NoTokens(), clock)
    authenticator.accept(PREFIX, RunnerGate(credentials, lambda *_: True).authenticate)
    record = authenticator.authenticate(f"Bearer {credentials.session('a-1', 7)[0]}")
    assert authenticator.seconds_left(record) == SESSION_SECONDS
    clock.now += SESSION_SECONDS * 1_000_000
    with pytest.raises(Unauthenticated):
        authenticator.verify(record)


class NoTokens:
    async def tokens(self) -> list[TokenRecord]:
        return []

    async def put_token(self, token: TokenRecord) -> None:
        raise AssertionError("runners' credentials are stored nowhere")


# -- keys ------------------------------------------------------------------------------------------


def test_the_first_key_is_made_and_read_again(tmp_path: Path) -> None:
    keys = RunnerKeys.open(tmp_path, NOW)
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600
    again = RunnerKeys.open(tmp_path, NOW + DAY)
    assert again.newest == keys.newest
    assert keys.newest.secret.hex() not in repr(keys.newest)


def test_what_began_under_a_key_stays_with_it(tmp_path: Path) -> None:
    keys = RunnerKeys.open(tmp_path, NOW)
    clock = Clock()
    before = RunnerCredentials(keys, clock).launch("a-1", 1, NOW + DAY)
    assert not keys.rotate(NOW + LIFE, NOW)
    clock.now = NOW + LIFE + 1
    assert keys.rotate(clock.now, oldest_needed=NOW + DAY)
    after = RunnerCredentials(RunnerKeys.open(tmp_path, clock.now), clock)
    assert after.launch("a-1", 1, NOW + DAY) == before
    assert after.open(before).name == "a-1"
    assert after.launch("a-2", 1, clock.now).split("_")[2] != before.split("_")[2]
    assert after.open(after.session("a-1", 1)[0]).name == "a-1"


def test_a_key_goes_when_nothing_of_its_time_is_left(tmp_path: Path) -> None:
    keys = RunnerKeys.open(tmp_path, NOW)
    old = RunnerCredentials(keys, Clock()).launch("a-1", 1, NOW)
    turned = NOW + LIFE + 1
    assert keys.rotate(turned, oldest_needed=NOW)
    assert not keys.rotate(turned + DAY, oldest_needed=turned - 1)
    assert keys.rotate(turned + DAY, oldest_needed=turned)
    assert reason_of(RunnerCredentials(keys, Clock()), old) is Reason.TOKEN_UNKNOWN
    assert len(json.loads((tmp_path / FILE).read_text())) == 1


@pytest.mark.parametrize("text", [b"", b"[]", b"{}", b'[{"id": 1}]', b"\xff"])
def test_a_damaged_key_file_is_never_replaced_silently(tmp_path: Path, text: bytes) -> None:
    (tmp_path / FILE).write_bytes(text)
    (tmp_path / FILE).chmod(0o600)
    with pytest.raises(InsecureFile):
        RunnerKeys.open(tmp_path, NOW)
    assert (tmp_path / FILE).read_bytes() == text


def test_keys_that_others_may_read_are_refused(tmp_path: Path) -> None:
    RunnerKeys.open(tmp_path, NOW)
    (tmp_path / FILE).chmod(0o640)
    with pytest.raises(InsecureFile, match="chmod"):
        RunnerKeys.open(tmp_path, NOW)
