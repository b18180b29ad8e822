"""The calls to AWS IoT and SQS that are made, each in one place."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hatoba.shadows import Json, Shadow, compact, shadow_of
from hatoba_plugins.aws import AwsClients, Paging, Unanswered, refusal_of
from hatoba_plugins.errors import BackendError, Conflict, Invalid, Retry
from hatoba_plugins.values import Rate

AT_ONCE = 16
"""Calls that go out beside each other."""
CLUSTER = "hatoba-cluster"
"""Attribute of a thing: the installation whose device it is."""
PLACE: Json = {"desired": {"format": 1}}
LIMITS: tuple[tuple[str, Rate], ...] = (
    ("iot-data:GetThingShadow", Rate(200.0, 400)),
    ("iot-data:UpdateThingShadow", Rate(200.0, 400)),
    ("iot-data:DeleteThingShadow", Rate(200.0, 400)),
    ("iot:DescribeEndpoint", Rate(5.0, 10)),
    ("iot:DescribeThing", Rate(100.0, 350)),
    ("iot:CreateThing", Rate(50.0, 100)),
    ("iot:DeleteThing", Rate(50.0, 100)),
    ("iot:ListThings", Rate(5.0, 10)),
    ("iot:ListThingPrincipals", Rate(5.0, 10)),
    ("iot:AttachThingPrincipal", Rate(20.0, 50)),
    ("iot:DetachThingPrincipal", Rate(20.0, 50)),
    ("iot:CreateCertificateFromCsr", Rate(10.0, 15)),
    ("iot:DescribeCertificate", Rate(5.0, 10)),
    ("iot:UpdateCertificate", Rate(5.0, 10)),
    ("iot:DeleteCertificate", Rate(5.0, 10)),
    ("iot:AttachPolicy", Rate(10.0, 15)),
    ("iot:DetachPolicy", Rate(10.0, 15)),
    ("iot:CreateJob", Rate(5.0, 10)),
    ("iot:DeleteJob", Rate(5.0, 10)),
    ("sqs:ReceiveMessage", Rate(50.0, 100)),
    ("sqs:DeleteMessageBatch", Rate(50.0, 100)),
)
"""No more than AWS allows an account in a region that nobody raised the quotas of."""
_THINGS = Paging("things")


@dataclass(frozen=True, slots=True)
class Thing:
    """A thing of the registry."""

    name: str
    arn: str
    attributes: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Certificate:
    """One that AWS signed."""

    arn: str
    pem: str

    @property
    def id(self) -> str:
        """By which it is changed."""
        return certificate_id(self.arn)


@dataclass(frozen=True, slots=True)
class Letter:
    """A message of the queue, and by what it is taken from it."""

    body: str
    receipt: str


def certificate_id(arn: str) -> str:
    """The last part of its ARN."""
    return arn.rsplit("/", 1)[-1]


class IotCalls:
    """AWS IoT of one account and region. `data` reaches the shadows, perhaps at another address."""

    def __init__(self, aws: AwsClients, data: AwsClients) -> None:
        self._aws = aws
        self._data = data

    # -- shadows --------------------------------------------------------------------------------

    async def shadow(self, thing: str, name: str) -> Shadow:
        """As it is now; version 0: there is none. Raises a BackendError."""
        operation = "iot-data:GetThingShadow"
        try:
            reply = await self._data.read(operation, thingName=thing, shadowName=name)
        except Invalid as error:
            if is_missing(error):
                return Shadow()
            raise
        try:
            return shadow_of(await _document(operation, reply))
        except (Unanswered, ValueError) as error:
            raise Retry(f"the shadow {name!r} of {thing!r}: {error}", after=1.0) from error

    async def update(
        self, thing: str, name: str, state: Json, version: int | None = None
    ) -> int | None:
        """Merge into a shadow; its new version. None: it is not of this `version` any more.

        Raises a BackendError when nothing happened, else Unanswered.
        """
        operation = "iot-data:UpdateThingShadow"
        guard = {} if version is None else {"version": version}
        payload = compact({"state": state, **guard})
        try:
            reply = await self._data.write(
                operation, thingName=thing, shadowName=name, payload=payload
            )
        except Invalid as error:
            if code_of(error) == "ConflictException":
                return None
            raise
        try:
            return shadow_of(await _document(operation, reply)).version
        except ValueError as error:
            raise Unanswered(f"{operation}: {error}") from error

    async def place(self, thing: str, name: str) -> None:
        """Have a shadow be there, so that an update can name its version. Changes nothing in one
        that is there already. Raises a BackendError.
        """
        try:
            await self.update(thing, name, PLACE)
        except Unanswered as error:
            if not (await self.shadow(thing, name)).version:
                raise Retry(str(error), after=1.0) from error

    async def delete_shadow(self, thing: str, name: str) -> None:
        """Idempotent."""
        try:
            await self._data.read("iot-data:DeleteThingShadow", thingName=thing, shadowName=name)
        except Invalid as error:
            if not is_missing(error):
                raise

    # -- things ---------------------------------------------------------------------------------

    async def endpoint(self) -> str:
        """The host that devices dial. Raises a BackendError where AWS IoT does not answer us."""
        told = await self._aws.read("iot:DescribeEndpoint", endpointType="iot:Data-ATS")
        return str(told["endpointAddress"])

    async def thing(self, name: str) -> Thing | None:
        """One, if it is there."""
        try:
            told = await self._aws.read("iot:DescribeThing", thingName=name)
        except Invalid as error:
            if is_missing(error):
                return None
            raise
        return _thing(told)

    async def things(self, cluster_id: str) -> AsyncIterator[Thing]:
        """All of an installation."""
        pages = self._aws.pages(
            "iot:ListThings", _THINGS, attributeName=CLUSTER, attributeValue=cluster_id
        )
        async for told in pages:
            yield _thing(told)

    async def make_thing(self, name: str, cluster_id: str) -> None:
        """Idempotent. Raises Conflict for a thing of somebody else."""
        attributes = {CLUSTER: cluster_id}
        try:
            await self._aws.read(
                "iot:CreateThing", thingName=name, attributePayload={"attributes": attributes}
            )
        except Conflict as error:
            raise Conflict(
                f"{error.message}. There is a thing {name!r} that is not ours; "
                "take another name, or another `thing_prefix`.",
                evidence=error.evidence,
            ) from error

    async def delete_thing(self, name: str) -> None:
        """Idempotent."""
        await self._aws.read("iot:DeleteThing", thingName=name)

    # -- certificates ---------------------------------------------------------------------------

    async def sign(self, csr: str) -> Certificate:
        """A certificate for this request; nothing may be done with it yet. Another one each time.

        Raises Unanswered where there is perhaps one that nobody knows: it can do nothing.
        """
        told = await self._aws.write(
            "iot:CreateCertificateFromCsr", certificateSigningRequest=csr, setAsActive=False
        )
        return Certificate(str(told["certificateArn"]), str(told["certificatePem"]))

    async def certificate(self, arn: str) -> Certificate | None:
        """One, if it is there."""
        try:
            told = await self._aws.read(
                "iot:DescribeCertificate", certificateId=certificate_id(arn)
            )
        except Invalid as error:
            if is_missing(error):
                return None
            raise
        return Certificate(arn, str(told["certificateDescription"]["certificatePem"]))

    async def attach(self, thing: str, certificate: Certificate, policy: str) -> None:
        """Have a certificate be this thing's, and open to it what the policy says."""
        await self._aws.read("iot:AttachPolicy", policyName=policy, target=certificate.arn)
        await self._aws.read("iot:AttachThingPrincipal", thingName=thing, principal=certificate.arn)
        await self._aws.read(
            "iot:UpdateCertificate", certificateId=certificate.id, newStatus="ACTIVE"
        )

    async def principals(self, thing: str) -> list[str] | None:
        """ARNs of all certificates of a thing; None: there is no such thing."""
        pages = self._aws.pages("iot:ListThingPrincipals", Paging("principals"), thingName=thing)
        try:
            return [str(arn) async for arn in pages]
        except Invalid as error:
            if is_missing(error):
                return None
            raise

    async def end_certificate(self, thing: str, arn: str, policy: str) -> None:
        """Refuse it from now on, and delete it. Idempotent."""
        name = certificate_id(arn)
        for operation, parameters in (
            ("iot:UpdateCertificate", {"certificateId": name, "newStatus": "INACTIVE"}),
            ("iot:DetachPolicy", {"policyName": policy, "target": arn}),
            ("iot:DetachThingPrincipal", {"thingName": thing, "principal": arn}),
            ("iot:DeleteCertificate", {"certificateId": name}),
        ):
            try:
                await self._aws.read(operation, **parameters)
            except Invalid as error:
                if not is_missing(error):
                    raise

    # -- jobs -----------------------------------------------------------------------------------

    async def make_job(self, name: str, thing_arn: str, document: Json) -> None:
        """A job for one thing. Idempotent."""
        try:
            await self._aws.read(
                "iot:CreateJob",
                jobId=name,
                targets=[thing_arn],
                document=json.dumps(document),
                targetSelection="SNAPSHOT",
            )
        except Conflict:
            return

    async def delete_job(self, name: str) -> None:
        """Whether or not it was taken up. Idempotent."""
        try:
            await self._aws.read("iot:DeleteJob", jobId=name, force=True)
        except Invalid as error:
            if not is_missing(error):
                raise

    # -- the queue ------------------------------------------------------------------------------

    async def letters(self, queue: str) -> list[Letter]:
        """What has come, waiting for it as long as the queue says."""
        told = await self._aws.read("sqs:ReceiveMessage", QueueUrl=queue, MaxNumberOfMessages=10)
        return [Letter(one["Body"], one["ReceiptHandle"]) for one in told.get("Messages") or ()]

    async def taken(self, queue: str, letters: Sequence[Letter]) -> None:
        """These need not come again; they may all the same."""
        entries = [
            {"Id": str(number), "ReceiptHandle": letter.receipt}
            for number, letter in enumerate(letters)
        ]
        if entries:
            await self._aws.read("sqs:DeleteMessageBatch", QueueUrl=queue, Entries=entries)


async def _document(operation: str, reply: dict[str, Any]) -> object:
    """The document in a reply. Raises Unanswered where it does not come, or is none."""
    try:
        return json.loads(await reply["payload"].read())
    except Exception as error:
        raise Unanswered(f"{operation}: {type(error).__name__}: {error}") from error


def _thing(told: dict[str, Any]) -> Thing:
    return Thing(told["thingName"], told["thingArn"], told.get("attributes") or {})


def code_of(error: BackendError) -> str:
    """AWS's word for it; empty: it was not asked."""
    answer = refusal_of(error)
    return answer.code if answer is not None else ""


def is_missing(error: BackendError) -> bool:
    """Whether AWS said that there is no such thing, shadow, certificate or job."""
    return code_of(error) == "ResourceNotFoundException"
