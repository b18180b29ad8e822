"""Machines become hosts by a token, stay them by a key, and speak for nobody else."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import grpc
import pytest
from joining import connected, join_token, machine
from server_process import HatobaServer
from waiting import until
from wire import Wire, shell

from hatoba.v1 import admin_pb2, common_pb2, runner_pb2, worker_pb2
from hatoba_worker import keys
from hatoba_worker.joining import JoinText

from .conftest import Joiner, calls_of, hello, stream


async def refused(asked: Awaitable[Any]) -> tuple[grpc.StatusCode, str]:
    """Code and message of a call that is refused."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await asked
    return caught.value.code(), str(caught.value.details())


async def token_of(wire: Wire, role: admin_pb2.Role.ValueType) -> str:
    request = admin_pb2.CreateTokenRequest(principal="someone", role=role)
    return (await wire.once(request, admin_pb2.CreateTokenResponse)).secret


# -- tokens ----------------------------------------------------------------------------------------


async def test_a_token_makes_one_host(wire: Wire, joiner: Joiner, server: HatobaServer) -> None:
    made = await join_token(wire, "once")
    first = await joiner.join(made.secret, "ignored")
    assert first.host == "once"
    # A reply that was lost: the same key gets an answer again, and no second host.
    again = await joiner.join(made.secret, "ignored")
    assert again.host == "once"
    code, why = await refused(Joiner(server).join(made.secret, "once"))
    assert (code, "used by another machine" in why) == (grpc.StatusCode.UNAUTHENTICATED, True)
    listed = await wire.once(admin_pb2.ListTokensRequest(), admin_pb2.ListTokensResponse)
    (kept,) = [one for one in listed.tokens if one.name == made.name]
    assert (kept.principal, kept.role) == ("hosts/once", admin_pb2.ROLE_JOIN)
    assert not kept.HasField("expire_time")


async def test_a_token_that_nobody_made_opens_nothing(joiner: Joiner) -> None:
    unknown = "hb_0123456789ab_" + "x" * 32
    code, why = await refused(joiner.join(unknown, "nobody"))
    assert (code, why.partition(";")[0]) == (
        grpc.StatusCode.UNAUTHENTICATED,
        "this server does not know the token",
    )


async def test_a_revoked_token_makes_no_host(wire: Wire, joiner: Joiner) -> None:
    made = await join_token(wire)
    await wire.once(admin_pb2.RevokeTokenRequest(name=made.name), admin_pb2.Token)
    code, why = await refused(joiner.join(made.secret, "late"))
    assert (code, "revoked" in why) == (grpc.StatusCode.UNAUTHENTICATED, True)


async def test_a_join_token_opens_nothing_else(wire: Wire, server: HatobaServer) -> None:
    made = await join_token(wire)
    async with calls_of(server, made.secret) as joining:
        code, _ = await refused(
            joining.once(worker_pb2.ListHostsRequest(), worker_pb2.ListHostsResponse)
        )
        assert code == grpc.StatusCode.PERMISSION_DENIED
        error = await hello(joining, "anyone")
        assert error is not None
        assert error.code() == grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.parametrize(
    "role", [admin_pb2.ROLE_USER, admin_pb2.ROLE_WORKER, admin_pb2.ROLE_ROUTER]
)
async def test_who_is_no_administrator_makes_no_join_tokens(
    wire: Wire, server: HatobaServer, role: admin_pb2.Role.ValueType
) -> None:
    async with calls_of(server, await token_of(wire, role)) as other:
        code, _ = await refused(join_token(other))
    assert code == grpc.StatusCode.PERMISSION_DENIED


async def test_join_tokens_are_not_made_by_other_ways(wire: Wire) -> None:
    request = admin_pb2.CreateTokenRequest(principal="x", role=admin_pb2.ROLE_JOIN)
    code, _ = await refused(wire.once(request, admin_pb2.CreateTokenResponse))
    assert code == grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("seconds", [59, 7 * 86_400 + 1])
async def test_how_long_a_token_is_good_has_bounds(wire: Wire, seconds: int) -> None:
    code, _ = await refused(join_token(wire, seconds=seconds))
    assert code == grpc.StatusCode.INVALID_ARGUMENT


async def test_a_signing_request_has_to_be_one(wire: Wire, server: HatobaServer) -> None:
    made = await join_token(wire)
    good = keys.request_for(keys.new_key())
    async with calls_of(server, made.secret) as joining:
        for csr, serving in (("nonsense", good), (good, "nonsense")):
            request = worker_pb2.JoinHostRequest(host="h", csr=csr, serving_csr=serving)
            code, why = await refused(joining.once(request, worker_pb2.HostCertificates))
            assert code == grpc.StatusCode.INVALID_ARGUMENT, why


# -- names -----------------------------------------------------------------------------------------


async def test_a_name_that_is_taken_needs_a_token_of_its_own(
    wire: Wire, server: HatobaServer, tmp_path: Path
) -> None:
    first, second = Joiner(server), Joiner(server)
    given = await first.join((await join_token(wire)).secret, "taken")
    code, why = await refused(second.join((await join_token(wire)).secret, "taken"))
    assert (code, "hosts add taken" in why) == (grpc.StatusCode.ALREADY_EXISTS, True)
    replaced = await second.join((await join_token(wire, "taken")).secret, "taken")
    assert replaced.host == "taken"
    # Whoever was it before is it no more.
    former = await asyncio.to_thread(first.known_by, given, tmp_path)
    async with calls_of(server, former.credential()) as calls:
        error = await hello(calls, "taken")
    assert error is not None
    assert error.code() == grpc.StatusCode.UNAUTHENTICATED


# -- identities ------------------------------------------------------------------------------------


async def test_a_host_speaks_for_itself_alone(
    wire: Wire, joiner: Joiner, server: HatobaServer, tmp_path: Path
) -> None:
    given = await joiner.join((await join_token(wire, "alpha")).secret, "alpha")
    await Joiner(server).join((await join_token(wire, "beta")).secret, "beta")
    alpha = await asyncio.to_thread(joiner.known_by, given, tmp_path)
    async with calls_of(server, alpha.credential()) as calls:
        assert await hello(calls, "alpha") is None
        for other in ("beta", "gamma"):
            error = await hello(calls, other)
            assert error is not None
            assert error.code() == grpc.StatusCode.PERMISSION_DENIED
            impostors = [line for line in server.log_text().splitlines() if "host.impostor" in line]
            assert f'"host": "{other}"' in impostors[-1]
            assert '"principal": "hosts/alpha"' in impostors[-1]
    async with calls_of(server, server.token("worker")) as shared:
        error = await hello(shared, "alpha")
        assert error is not None
        assert error.code() == grpc.StatusCode.PERMISSION_DENIED
        assert await hello(shared, "delta") is None


async def test_a_credential_that_was_changed_is_refused(
    wire: Wire, joiner: Joiner, server: HatobaServer, tmp_path: Path
) -> None:
    given = await joiner.join((await join_token(wire, "careful")).secret, "careful")
    good = (await asyncio.to_thread(joiner.known_by, given, tmp_path)).credential()
    certificate, signed, signature = good.split(".")
    stranger = await asyncio.to_thread(Joiner(server).known_by, given, tmp_path / "stranger")
    for bad in (
        f"{certificate}.{int(signed) + 1}.{signature}",
        f"{certificate}.{signed}.{signature[:-8]}AAAAAAAA",
        f"{certificate}.{signed}",
        "hc_",
        stranger.credential(),
    ):
        async with calls_of(server, bad) as calls:
            error = await hello(calls, "careful")
            assert error is not None
            assert error.code() == grpc.StatusCode.UNAUTHENTICATED, bad


async def test_a_host_says_nothing_of_anothers_attempts(
    wire: Wire, server: HatobaServer, tmp_path: Path
) -> None:
    made = await join_token(wire, "honest")
    async with machine(tmp_path / "honest") as honest:
        await asyncio.to_thread(honest.start, "--server", server.address, "--join", made.secret)
        await connected(wire, "honest")
        job = await wire.submit(shell("sleep 600"))
        await wire.in_state(job.name, common_pb2.JOB_STATE_RUNNING)
        (attempt,) = await wire.attempts(job.name)
        liar = Joiner(server)
        given = await liar.join((await join_token(wire, "liar")).secret, "liar")
        known = await asyncio.to_thread(liar.known_by, given, tmp_path / "liar")
        end = runner_pb2.CommitAttemptRequest(
            attempt=attempt.external_name, fence=1, kind=runner_pb2.EXIT_KIND_EXITED
        )
        said = worker_pb2.WorkerItem(commit=end)
        async with (
            calls_of(server, known.credential()) as calls,
            stream(calls, "liar", said),
        ):
            await until(lambda: "host.foreign_attempt" in server.log_text())
            code, _ = await refused(calls.once(end, runner_pb2.CommitAttemptResponse))
            assert code == grpc.StatusCode.PERMISSION_DENIED
        assert (await wire.job(job.name)).state == common_pb2.JOB_STATE_RUNNING
        await wire.cancel(job.name)
        await wire.ended(job.name)


async def test_new_certificates_take_the_place_of_the_old(
    wire: Wire, joiner: Joiner, server: HatobaServer, tmp_path: Path
) -> None:
    given = await joiner.join((await join_token(wire, "young")).secret, "young")
    known = await asyncio.to_thread(joiner.known_by, given, tmp_path)
    fresh = Joiner(server)
    request = worker_pb2.RenewHostRequest(
        csr=keys.request_for(fresh.own), serving_csr=keys.request_for(fresh.serving)
    )
    async with calls_of(server, known.credential()) as calls:
        renewed = await calls.once(request, worker_pb2.HostCertificates)
    newer = await asyncio.to_thread(fresh.known_by, renewed, tmp_path)
    assert (newer.host, newer.identity) == (known.host, known.identity)
    async with calls_of(server, newer.credential()) as calls:
        assert await hello(calls, "young") is None
    async with calls_of(server, server.token("worker")) as shared:
        code, _ = await refused(shared.once(request, worker_pb2.HostCertificates))
    assert code == grpc.StatusCode.FAILED_PRECONDITION


# -- the worker ------------------------------------------------------------------------------------


async def test_a_machine_joins_and_works_and_is_removed(
    wire: Wire, server: HatobaServer, tmp_path: Path
) -> None:
    made = await join_token(wire, "worker-1")
    line = ("--server", server.address, "--join", made.secret)
    async with machine(tmp_path / "worker-1") as one:
        await asyncio.to_thread(one.start, *line)
        assert (await connected(wire, "worker-1")).joined
        modes = {path.name: path.stat().st_mode & 0o777 for path in (one.data / "tls").iterdir()}
        assert modes == dict.fromkeys(("host.pem", "serving.pem", "authority.pem"), 0o600)
        # The line may stand in a unit file: the token is used once, the second start needs it not.
        await one.stop()
        await asyncio.to_thread(one.start, *line)
        await connected(wire, "worker-1")
        await one.stop()
        await asyncio.to_thread(one.start)
        await connected(wire, "worker-1")
        removing = worker_pb2.RemoveHostRequest(name="worker-1")
        await wire.once(removing, worker_pb2.Host)
        await until(lambda: "UNAUTHENTICATED" in one.log.read_text())
        code, _ = await refused(
            wire.once(worker_pb2.GetHostRequest(name="worker-1"), worker_pb2.Host)
        )
        assert code == grpc.StatusCode.NOT_FOUND
        again = await join_token(wire, "worker-1")
        await one.stop()
        await asyncio.to_thread(one.start, "--server", server.address, "--join", again.secret)
        await connected(wire, "worker-1")


async def test_a_machine_that_cannot_join_says_why(
    wire: Wire, server: HatobaServer, tmp_path: Path
) -> None:
    async with machine(tmp_path / "m") as one:
        used = await join_token(wire)
        await Joiner(server).join(used.secret, "somebody")
        said = {
            "used by another machine": ("--server", server.address, "--join", used.secret),
            "no join token": ("--server", server.address, "--join", "hatoba"),
            "not whole": ("--server", server.address, "--join", f"{used.secret}.AAAA"),
            "cannot be reached": ("--server", "127.0.0.1:9", "--join", used.secret),
            "give --join": ("--server", server.address),
            "is no host yet": (),
        }
        for why, options in said.items():
            text = await asyncio.to_thread(one.refused, *options)
            assert why in text.splitlines()[-1], text
        assert not (one.data / "host.json").exists()


async def test_what_has_work_is_not_removed(
    wire: Wire, server: HatobaServer, tmp_path: Path
) -> None:
    made = await join_token(wire, "busy")
    async with machine(tmp_path / "busy") as one:
        await asyncio.to_thread(one.start, "--server", server.address, "--join", made.secret)
        await connected(wire, "busy")
        job = await wire.submit(shell("sleep 600"))
        await wire.in_state(job.name, common_pb2.JOB_STATE_RUNNING)
        removing = worker_pb2.RemoveHostRequest(name="busy")
        code, why = await refused(wire.once(removing, worker_pb2.Host))
        assert (code, "drain" in why) == (grpc.StatusCode.FAILED_PRECONDITION, True)
        await wire.cancel(job.name)
        await wire.ended(job.name)


def test_a_token_text_names_its_server_only_where_it_must() -> None:
    plain = JoinText.parse("hb_0123456789ab_" + "x" * 32)
    assert (plain.identity, plain.authority) == ("0123456789ab", "")
