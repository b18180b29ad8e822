"""Devices as things: made by their signing request, held to a policy, and gone without a rest."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from scripted_iot import CLUSTER_ID, SAID, IotDesk, iot_desk, signed

from hatoba_plugins.aws import Unanswered
from hatoba_plugins.backend import SignsDevices
from hatoba_plugins.backends.iot_edge.things import AGAIN
from hatoba_plugins.errors import BackendError, Conflict, Denied, Retry
from hatoba_plugins.values import Accepted, NotYet, Released
from hatoba_worker import keys

THING = "hatoba-a"


@asynccontextmanager
async def signing_desk(**options: object) -> AsyncIterator[IotDesk]:
    """One whose AWS signs real requests."""
    async with iot_desk(**options) as desk:
        desk.aws.sign = signed
        yield desk


def request() -> str:
    """Of a new key, PEM."""
    return keys.request_for(keys.new_key())


def active(desk: IotDesk, *arns: str) -> bool:
    """Whether a thing has exactly these certificates, all active and held to the policy."""
    certificates, policies = desk.aws.certificates, desk.aws.policies
    return (
        desk.aws.principals[THING] == list(arns) == list(certificates)
        and set(certificates.values()) == {"ACTIVE"}
        and all(policies[arn] == {"hatoba-device"} for arn in arns)
    )


async def test_a_device_is_enrolled_by_its_request() -> None:
    async with iot_desk() as desk:
        identity = await desk.role.things.enroll("a", "request")
        assert (identity.thing, identity.certificate) == (THING, "signed request")
        assert desk.aws.things == {THING: CLUSTER_ID}
        assert active(desk, identity.certificate_arn)
        desk.aws.calls.clear()
        assert await desk.wish("a", 1) == [Accepted("a")]
        assert "iot:DescribeThing" not in desk.aws.calls


async def test_a_certificate_can_do_nothing_before_it_is_bound() -> None:
    """One whose reply was lost stays as it was made: of no use, whoever has it."""
    async with iot_desk() as desk:
        desk.aws.lose("iot:CreateCertificateFromCsr")
        with pytest.raises(Unanswered):
            await desk.role.things.enroll("a", "request")
        assert list(desk.aws.certificates.values()) == ["INACTIVE"]
        await desk.role.things.enroll("a", "request")
        assert list(desk.aws.certificates.values()) == ["INACTIVE", "ACTIVE"]


async def test_who_enrolls_again_has_one_certificate() -> None:
    async with iot_desk() as desk:
        await desk.role.things.enroll("a", "one")
        identity = await desk.role.things.enroll("a", "two")
        assert active(desk, identity.certificate_arn)


async def test_a_certificate_is_renewed_in_two_steps() -> None:
    async with iot_desk() as desk:
        old = await desk.role.things.enroll("a", "one")
        new = await desk.role.things.renew("a", "two")
        assert active(desk, old.certificate_arn, new.certificate_arn)
        await desk.role.things.keep_only(new)
        assert active(desk, new.certificate_arn)


async def test_a_thing_of_somebody_else_is_not_taken() -> None:
    async with iot_desk() as desk:
        desk.aws.things[THING] = "another"
        with pytest.raises(Conflict, match="is not ours"):
            await desk.role.things.enroll("a", "request")
        assert await desk.role.forget(["a"]) == [Released("a")]
        assert desk.aws.things == {THING: "another"}
        assert desk.aws.certificates == {}


async def test_what_a_former_device_of_the_name_left_is_not_for_a_new_one() -> None:
    async with iot_desk() as desk:
        desk.device("a")
        await desk.wish("a", 9)
        desk.aws.put(THING, SAID, {"reported": {"link": "old"}})
        del desk.aws.things[THING]
        desk.role.things.drop("a")
        await desk.role.things.enroll("a", "request")
        assert desk.wanted_of("a") is None
        assert desk.aws.document(THING, SAID)["state"]["reported"] == {}


async def test_nothing_is_left_of_who_is_forgotten() -> None:
    async with iot_desk() as desk:
        await desk.role.things.enroll("a", "request")
        await desk.wish("a", 1)
        for name in (SAID, f"{SAID}-2"):
            desk.aws.put(THING, name, {"reported": {"turn": 1, "parts": 2}})
        desk.aws.calls.clear()
        assert await desk.role.forget(["a"]) == [Released("a")]
        assert desk.aws.things == {}
        assert desk.aws.certificates == {}
        assert not any(shadow.there for shadow in desk.aws.shadows.values())
        # It can write no more before its shadows are deleted, and is known until all is done.
        ends = [one for one in desk.aws.calls if one.rpartition(":")[2].startswith("De")]
        assert ends[1] == "iot:DetachPolicy"
        assert ends[-1] == "iot:DeleteThing"
        assert ends.index("iot:DeleteCertificate") < ends.index("iot-data:DeleteThingShadow")
        assert await desk.role.forget(["a"]) == [Released("a")]


@pytest.mark.parametrize(
    ("operation", "code", "status", "message"),
    [
        ("iot:DeleteThing", "InvalidRequestException", 400, "it is still attached"),
        ("iot:DeleteCertificate", "DeleteConflictException", 409, "things are attached"),
        ("iot:DeleteCertificate", "CertificateStateException", 406, "it is active"),
        ("iot:ListThingPrincipals", "ThrottlingException", 429, "Rate exceeded"),
        ("iot:DetachThingPrincipal", "InternalFailureException", 500, "oops"),
    ],
)
async def test_what_is_still_in_use_is_not_released(
    operation: str, code: str, status: int, message: str
) -> None:
    async with iot_desk() as desk:
        await desk.role.things.enroll("a", "request")
        desk.aws.refuse(operation, code, status, message)
        assert await desk.role.forget(["a"]) == [NotYet("a", AGAIN)]
        assert desk.aws.things
        assert await desk.role.forget(["a"]) == [Released("a")]
        assert (desk.aws.things, desk.aws.certificates) == ({}, {})


async def test_what_may_not_be_forgotten_is_said() -> None:
    async with iot_desk() as desk:
        await desk.role.things.enroll("a", "request")
        desk.aws.refuse("iot:DeleteThing", "AccessDeniedException", 403)
        with pytest.raises(Denied, match=r"Allow the server's role iot:DeleteThing\."):
            await desk.role.forget(["a"])


async def test_who_is_being_forgotten_is_wished_nothing_and_may_come_anew() -> None:
    async with iot_desk() as desk:
        await desk.role.things.enroll("a", "request")
        desk.aws.refuse("iot:DeleteThing", "ThrottlingException", 429)
        await desk.role.forget(["a"])
        assert await desk.wish("a", 1) != [Accepted("a")]
        await desk.role.things.enroll("a", "request")
        assert await desk.wish("a", 1) == [Accepted("a")]


# -- by the server ---------------------------------------------------------------------------------


async def test_a_device_is_told_where_it_is_and_what_it_is_there() -> None:
    content = "s3://models?region=r&role-alias=a&credentials=c"
    async with signing_desk(content=content) as desk:
        assert isinstance(desk.role, SignsDevices)
        told = await desk.role.enroll("a", request())
        assert told.device == "a"
        assert told.aws_iot.endpoint == "x-ats.iot.eu-central-1.amazonaws.com:8883"
        assert (told.aws_iot.thing, told.aws_iot.shadow) == (THING, "hatoba")
        assert told.aws_iot.content == content
        assert list(desk.aws.pems.values()) == [told.certificate]


@pytest.mark.parametrize("endpoint", ["iot.example", "iot.example:443"])
async def test_another_endpoint_may_be_theirs(endpoint: str) -> None:
    async with signing_desk(device_endpoint=endpoint) as desk:
        told = await desk.role.enroll("a", request())
        assert told.aws_iot.endpoint in (endpoint, f"{endpoint}:8883")
        assert "iot:DescribeEndpoint" not in desk.aws.calls


async def test_the_same_key_has_the_same_certificate() -> None:
    async with signing_desk() as desk:
        csr = request()
        first = await desk.role.enroll("a", csr)
        await desk.wish("a", 3)
        assert await desk.role.enroll("a", csr) == first
        assert desk.aws.counts["iot:CreateCertificateFromCsr"] == 1
        assert desk.wanted_of("a") is not None


@pytest.mark.parametrize(
    "operation", ["iot:AttachPolicy", "iot:AttachThingPrincipal", "iot:UpdateCertificate"]
)
async def test_what_was_half_done_is_done_when_it_is_asked_again(operation: str) -> None:
    async with signing_desk() as desk:
        csr = request()
        desk.aws.refuse(operation, "ServiceUnavailableException", 503)
        with pytest.raises(Retry):
            await desk.role.enroll("a", csr)
        told = await desk.role.enroll("a", csr)
        (arn,) = desk.aws.principals[THING]
        assert desk.aws.pems[arn] == told.certificate
        assert desk.aws.certificates[arn] == "ACTIVE"
        assert desk.aws.policies[arn] == {"hatoba-device"}
        active = [one for one, status in desk.aws.certificates.items() if status == "ACTIVE"]
        assert active == [arn]


async def test_who_does_not_hear_of_its_certificate_is_to_ask_again() -> None:
    async with signing_desk() as desk:
        desk.aws.lose("iot:CreateCertificateFromCsr")
        with pytest.raises(Retry, match="no answer"):
            await desk.role.enroll("a", request())


async def test_another_key_takes_the_place_and_begins_anew() -> None:
    async with signing_desk() as desk:
        await desk.role.enroll("a", request())
        await desk.wish("a", 3)
        desk.comes("a")
        await desk.pass_time()
        desk.aws.put(THING, SAID, {"desired": {"stored": 500}})
        told = await desk.role.enroll("a", request())
        assert [desk.aws.pems[arn] for arn in desk.aws.principals[THING]] == [told.certificate]
        assert len(desk.aws.certificates) == 1
        assert desk.aws.document(THING, SAID)["state"] == {"desired": {}, "reported": {}}
        assert [type(one).__name__ for one in await desk.pass_time()] == ["DeviceWent"]
        assert await desk.wish("a", 3) == [Accepted("a")]
        wanted = desk.wanted_of("a")
        assert wanted is not None
        assert wanted.generation == 3


async def test_one_that_is_revoked_has_no_certificate_and_keeps_its_thing() -> None:
    async with signing_desk() as desk:
        await desk.role.enroll("a", request())
        for _ in range(2):
            await desk.role.revoke("a")
        assert (desk.aws.certificates, list(desk.aws.things)) == ({}, [THING])
        await desk.role.revoke("stranger")


async def test_a_revocation_that_fails_is_told_and_may_be_repeated() -> None:
    async with signing_desk() as desk:
        await desk.role.enroll("a", request())
        desk.aws.lose("iot:DeleteCertificate")
        with pytest.raises(Retry):
            await desk.role.revoke("a")
        assert "ACTIVE" not in desk.aws.certificates.values()
        await desk.role.revoke("a")


async def test_a_thing_of_somebody_else_is_not_revoked() -> None:
    async with signing_desk() as desk:
        desk.aws.things[THING] = "another"
        desk.aws.principals[THING].append("arn:cert/theirs")
        for act in (desk.role.revoke("a"), desk.role.enroll("a", request())):
            with pytest.raises(Conflict):
                await act
        assert desk.aws.principals[THING] == ["arn:cert/theirs"]


@pytest.mark.parametrize(("leaving", "error"), [(False, Conflict), (True, Retry)])
async def test_a_name_that_a_thing_has_is_not_free(
    leaving: bool, error: type[BackendError]
) -> None:
    async with signing_desk() as desk:
        await desk.role.check_free("a")
        await desk.role.enroll("a", request())
        if leaving:
            desk.aws.refuse("iot:DeleteThing", "ThrottlingException", 429)
            await desk.role.forget(["a"])
        with pytest.raises(error):
            await desk.role.check_free("a")
