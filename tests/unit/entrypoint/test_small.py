"""Keys, codes, the claim, and the other small parts of the runner."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import cast

import pytest
from blockbuster import BlockBuster
from google.protobuf import any_pb2

from hatoba.runs import run_mark
from hatoba.v1 import runner_pb2, worker_pb2
from hatoba_worker import exits
from hatoba_worker.attempts import Attempt
from hatoba_worker.entrypoint import codes, pod_files
from hatoba_worker.entrypoint.calls import Calls, Denied
from hatoba_worker.entrypoint.claims import (
    GRANTED,
    WAIT,
    Claiming,
    Meeting,
    Refused,
    Unreached,
    assignment_of,
)
from hatoba_worker.entrypoint.keys import Keys
from hatoba_worker.entrypoint.platform import run_of
from hatoba_worker.entrypoint.settings import settings_of
from hatoba_worker.entrypoint.tee import Tee
from hatoba_worker.entrypoint.ways import code_of, grace_of, unless
from hatoba_worker.failures import Away

Commit = runner_pb2.CommitAttemptRequest


@pytest.mark.parametrize(
    ("commit", "code"),
    [
        (Commit(kind=exits.EXITED), 0),
        (Commit(kind=exits.EXITED, exit_code=7), 7),
        (Commit(kind=exits.SIGNALED, signal=11), 139),
        (Commit(kind=exits.OUT_OF_MEMORY), 137),
        (Commit(kind=exits.OUT_OF_MEMORY, exit_code=1), 1),
        (Commit(kind=exits.STOPPED), 143),
        (Commit(kind=exits.PREEMPTED, signal=9), 137),
        (Commit(kind=exits.OUTPUT_FAILED), 84),
        (Commit(kind=exits.STAGING_FAILED), 86),
        (Commit(kind=runner_pb2.EXIT_KIND_SECRET_MISSING), 86),
        (Commit(kind=runner_pb2.EXIT_KIND_NOT_FOUND), 127),
    ],
)
def test_the_code_of_a_commit(commit: Commit, code: int) -> None:
    assert codes.of_commit(commit) == code


@pytest.mark.parametrize(
    ("exit_code", "accepted", "code"),
    [(0, True, 0), (0, None, 84), (0, False, 83), (83, True, 83), (83, None, 84), (3, None, 3)],
)
def test_a_good_end_is_one_only_when_it_is_committed(
    exit_code: int, accepted: bool | None, code: int
) -> None:
    attempt = Attempt(worker_pb2.LaunchAttempt(attempt="a-1"), "n", "/h", 0)
    attempt.outcome = Commit(kind=exits.EXITED, exit_code=exit_code).SerializeToString()
    assert code_of(attempt, accepted) == code


def test_the_grace_leaves_time_to_bring_out() -> None:
    attempt = Attempt(worker_pb2.LaunchAttempt(attempt="a-1"), "n", "/h", 0)
    assert grace_of(attempt, 30.0) == 21.0
    assert grace_of(attempt, 600.0) == 580.0
    attempt.launch.stop_grace.FromSeconds(5)
    assert grace_of(attempt, 30.0) == 5.0
    assert grace_of(attempt, 2.0) == pytest.approx(1.4)


def test_a_nonce_is_kept_for_its_own_attempt_and_tells_its_run(tmp_path: Path) -> None:
    keys = Keys(tmp_path / "new", "a-1", 1)
    assert not keys.load()
    keys.make("pod-uid")
    keys.renew("hr_session")
    assert keys.nonce.startswith(f"{run_mark('pod-uid')}-")
    assert 16 <= len(keys.nonce) <= 64
    again = Keys(tmp_path / "new", "a-1", 1)
    assert again.load()
    assert (again.nonce, again.credential) == (keys.nonce, "hr_session")
    assert not Keys(tmp_path / "new", "a-1", 2).load()
    assert not Keys(tmp_path / "new", "a-2", 1).load()
    assert (tmp_path / "new" / "claim.json").stat().st_mode & 0o077 == 0


def test_which_run_it_is() -> None:
    assert run_of({"HATOBA_RUN": "uid", "AWS_BATCH_JOB_ID": "job"}) == "uid"
    assert run_of({"AWS_BATCH_JOB_ID": "job"}) == "job"
    assert run_of({}) == ""
    # Nobody answers there.
    assert run_of({"ECS_CONTAINER_METADATA_URI_V4": "http://127.0.0.1:1/v4"}) == ""
    assert run_of({"ECS_CONTAINER_METADATA_URI_V4": "file:///etc/passwd"}) == ""


# -- the claim -------------------------------------------------------------------------------------


class Desk:
    """Answers claims from a list; a clock that sleeping moves."""

    def __init__(self, *answers: runner_pb2.ClaimAttemptResponse | Exception) -> None:
        self.answers = list(answers)
        self.now = 0.0

    async def claim(self, address: str) -> runner_pb2.ClaimAttemptResponse:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def sleep(self, seconds: float) -> None:
        self.now += seconds

    def claiming(self, patience: float = 600.0) -> Claiming:
        calls = cast(Calls, self)
        return Claiming(calls, patience, lambda: self.now, self.sleep, lambda: 1.0)


def answer(verdict: runner_pb2.ClaimVerdict.ValueType) -> runner_pb2.ClaimAttemptResponse:
    return runner_pb2.ClaimAttemptResponse(verdict=verdict)


async def test_a_claim_waits_for_its_gang_and_for_the_server() -> None:
    waiting = answer(WAIT)
    waiting.retry_after.FromSeconds(500)
    desk = Desk(Away("x"), waiting, Away("x"), waiting, answer(GRANTED))
    assert (await desk.claiming().run("")).verdict == GRANTED
    assert desk.now > 1000


async def test_a_server_that_is_away_for_too_long_is_not_reached() -> None:
    desk = Desk(Away("no route to host"))
    with pytest.raises(Unreached, match="no route to host"):
        await desk.claiming(600.0).run("")
    assert 600 <= desk.now < 610


@pytest.mark.parametrize(
    "verdict",
    [
        runner_pb2.CLAIM_VERDICT_DUPLICATE,
        runner_pb2.CLAIM_VERDICT_SUPERSEDED,
        runner_pb2.CLAIM_VERDICT_CANCELLED,
        runner_pb2.CLAIM_VERDICT_UNSPECIFIED,
    ],
)
async def test_what_is_not_granted_is_refused(
    verdict: runner_pb2.ClaimVerdict.ValueType,
) -> None:
    with pytest.raises(Refused):
        await Desk(answer(verdict)).claiming().run("")


def test_an_assignment_as_a_container_sees_it() -> None:
    launch = worker_pb2.LaunchAttempt(attempt="a-1", gpus=["0"])
    launch.environment.image = "x:1"
    packed = any_pb2.Any()
    packed.Pack(launch)
    found = assignment_of(runner_pb2.ClaimAttemptResponse(assignment=packed))
    assert not found.gpus
    assert not found.HasField("environment")
    with pytest.raises(Denied):
        assignment_of(runner_pb2.ClaimAttemptResponse())


@pytest.mark.parametrize("told", ["10.0.0.1:29500", "[fd00::1]:29500", "pod-0.svc:29500"])
def test_an_address_with_a_port_is_said_as_it_is(told: str) -> None:
    with Meeting(_gang(told)) as meeting:
        assert meeting.address == told


def test_an_address_without_a_port_gets_a_free_one() -> None:
    with Meeting(_gang("pod-0.svc")) as meeting:
        host, _, port = meeting.address.rpartition(":")
        assert (host, meeting.address) == ("pod-0.svc", f"pod-0.svc:{port}")
        assert 1024 <= int(port) < 65536
    with Meeting(_gang("")) as meeting:
        assert meeting.address.rpartition(":")[0]


def _gang(address: str):  # type: ignore[no-untyped-def]
    return settings_of(
        {
            "HATOBA_SERVER": "grpcs://h:443",
            "HATOBA_ATTEMPT": "a-1",
            "HATOBA_FENCE": "1",
            "HATOBA_CREDENTIAL": "hr_x",
            "HATOBA_GANG_SIZE": "2",
            "HATOBA_ADDRESS": address,
        }
    )


# -- the rest --------------------------------------------------------------------------------------


async def test_unless_something_happens_before() -> None:
    event = asyncio.Event()

    async def seven() -> int:
        return 7

    async def fails() -> int:
        raise ValueError("no")

    assert await unless(event, seven()) == 7
    with pytest.raises(ValueError, match="no"):
        await unless(event, fails())
    event.set()
    assert await unless(event, asyncio.sleep(60, 1)) is None


@pytest.fixture
def small_files(no_blocking_call_on_the_loop: BlockBuster) -> None:
    """The runner looks at sizes itself."""
    for function in no_blocking_call_on_the_loop.functions.values():
        function.can_block_in("hatoba_worker/tinyfiles.py", {"size"})


@pytest.mark.usefixtures("small_files")
async def test_what_a_command_writes_is_copied_once(tmp_path: Path) -> None:
    source = tmp_path / "stdout.log"
    reader, writer = os.pipe()
    tee = Tee({str(source): writer})
    await tee.copy()
    source.write_bytes(b"one\n")
    await tee.copy()
    with source.open("ab") as log:
        log.write(b"two\n")
    await tee.finish()
    os.close(writer)
    assert os.read(reader, 100) == b"one\ntwo\n"
    os.close(reader)


@pytest.mark.usefixtures("small_files")
async def test_who_has_closed_stdout_is_not_written_to(tmp_path: Path) -> None:
    source = tmp_path / "stdout.log"
    source.write_bytes(b"one\n")
    reader, writer = os.pipe()
    os.close(reader)
    tee = Tee({str(source): writer})
    await tee.copy()
    await tee.finish()
    os.close(writer)


def test_what_a_pod_shares_is_open_to_all_but_the_caches_files(tmp_path: Path) -> None:
    home = tmp_path / "attempt"
    for name in ("work", "inputs", "restore/step-3"):
        (home / name).mkdir(parents=True, mode=0o700)
    (home / "work" / "run.sh").write_text("")
    (home / "work" / "run.sh").chmod(0o700)
    cached = tmp_path / "cached"
    cached.write_text("data")
    cached.chmod(0o400)
    os.link(cached, home / "inputs" / "x")
    pod_files.complete(tmp_path, 3)
    modes = {path.name: path.stat().st_mode & 0o777 for path in home.rglob("*")}
    assert modes["work"] == modes["inputs"] == 0o777
    assert modes["run.sh"] == 0o777
    assert modes["x"] == 0o444
    assert modes["spool.jsonl"] == modes["params.json"] == 0o666
    assert (home / "restore" / "latest").resolve() == home / "restore" / "step-3"
    assert (tmp_path / "lib" / "hatoba" / "job_context.py").exists()
