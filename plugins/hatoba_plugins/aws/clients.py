"""AWS's clients behind one small protocol: the SDK is known to this file alone."""

from __future__ import annotations

import asyncio
import importlib
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, NamedTuple, Protocol

from hatoba_plugins.aws.errors import AwsAnswer, AwsRefusal, Unanswered, meaning, unreachable
from hatoba_plugins.aws.options import AwsOptions
from hatoba_plugins.backend import BackendContext
from hatoba_plugins.errors import BackendError, Denied, Fatal, Invalid, Retry, Throttled

Reply = dict[str, Any]
READS = 4
"""How often a question is asked before it is given up."""
PAUSE = 0.25
"""Seconds before a question is asked again, at first; doubled each time, with jitter."""
MAY_BE_EMPTY = frozenset({"ReceiveMessage"})
"""Operations whose answer has nothing in it where there is nothing to tell."""
CONNECT_SECONDS = 5.0
READ_SECONDS = 20.0


class Paging(NamedTuple):
    """Where an operation's pages have their items and tokens."""

    items: str
    token_in: str = "nextToken"
    token_out: str = "nextToken"


class AwsClients(Protocol):
    """Calls to some services of one account and region. Operations are `service:Operation`, the
    name of their budget too, which is awaited before each call.
    """

    @property
    def region(self) -> str:
        """The region that is called."""
        ...

    def can(self, operation: str) -> bool:
        """Whether the client library knows this operation."""
        ...

    async def read(self, operation: str, **parameters: object) -> Reply:
        """Ask; asked again a few times when nobody answers. Raises a BackendError."""
        ...

    async def write(self, operation: str, **parameters: object) -> Reply:
        """Call once. Raises a BackendError when nothing happened, else Unanswered."""
        ...

    def pages(self, operation: str, paging: Paging, **parameters: object) -> AsyncIterator[Any]:
        """All items of a listing, page by page. Raises a BackendError, also when a page's token
        has expired: begin anew.
        """
        ...


@asynccontextmanager
async def open_aws(
    options: AwsOptions, ctx: BackendContext, services: Sequence[str]
) -> AsyncIterator[AwsClients]:
    """Clients for these services. Raises Denied and Invalid for credentials and a region that
    cannot be."""
    secret = await _explicit(options, ctx)
    # The SDK takes seconds to import and reads its models from disk.
    sdk = await asyncio.to_thread(_Sdk, options, secret, services)
    async with AsyncExitStack() as stack:
        clients = {name: await stack.enter_async_context(sdk.client(name)) for name in services}
        yield _BotoClients(sdk, clients, ctx)


async def _explicit(options: AwsOptions, ctx: BackendContext) -> dict[str, str]:
    """Credentials that the server keeps as a secret; empty: the SDK finds them."""
    if not options.credentials:
        return {}
    try:
        text = await ctx.secret(options.credentials)
    except KeyError as error:
        raise Denied(str(error.args[0])) from error
    try:
        told = json.loads(text)
        keys = {
            "aws_access_key_id": told["AccessKeyId"],
            "aws_secret_access_key": told["SecretAccessKey"],
        }
    except (ValueError, TypeError, KeyError):
        # Not chained: what the parser says may show a piece of the secret.
        raise Denied(
            f"{options.credentials!r}, named by `credentials`, is no JSON object with AccessKeyId"
            " and SecretAccessKey"
        ) from None
    token = told.get("SessionToken")
    return keys | ({"aws_session_token": token} if token else {})


class _Sdk:
    """The SDK, imported and warmed up: made in a thread, for all of it blocks."""

    def __init__(
        self, options: AwsOptions, secret: dict[str, str], services: Sequence[str]
    ) -> None:
        self.errors: Any = importlib.import_module("botocore.exceptions")
        self._xform: Any = importlib.import_module("botocore").xform_name
        config: Any = importlib.import_module("aiobotocore.config").AioConfig
        session: Any = importlib.import_module("aioboto3").Session
        try:
            self._session = session(
                region_name=options.region or None, profile_name=options.profile or None, **secret
            )
        except self.errors.ProfileNotFound as error:
            raise Denied(f"{error}; name one of the server's ~/.aws/config") from error
        self.region: str = self._session.region_name or ""
        if not self.region:
            raise Invalid("no region is configured: set `region`, or AWS_REGION for the server")
        self._endpoint = options.endpoint or None
        # One try each: asking again is for `read` to decide, and each try awaits its budget.
        self._config = config(
            retries={"mode": "standard", "total_max_attempts": 1},
            connect_timeout=CONNECT_SECONDS,
            read_timeout=READ_SECONDS,
            tcp_keepalive=True,
            max_pool_connections=20,
        )
        self._warm(services)

    def _warm(self, services: Sequence[str]) -> None:
        """Have models and credentials in memory: they are read where it may block, once."""
        core = self._session._session
        asyncio.run(core.get_credentials())
        blocking = importlib.import_module("botocore.session").Session()
        blocking.register_component("data_loader", core.get_component("data_loader"))
        for service in services:
            blocking.create_client(
                service, self.region, aws_access_key_id="none", aws_secret_access_key="none"
            )

    def client(self, service: str) -> Any:
        """A context manager that gives a service's client."""
        return self._session.client(service, endpoint_url=self._endpoint, config=self._config)

    def method(self, client: Any, operation: str) -> Any:
        """What calls an operation."""
        return getattr(client, self._xform(operation))

    def is_empty(self, client: Any, name: str, reply: Reply) -> bool:
        """Whether there is nothing in it though there ought to be: so the SDK reads any page that
        is no error, a portal's for example.
        """
        shape = client.meta.service_model.operation_model(name).output_shape
        if name in MAY_BE_EMPTY:
            return False
        return bool(shape is not None and shape.members and not reply.keys() & shape.members.keys())


class _BotoClients:
    """The protocol over botocore's async clients."""

    def __init__(self, sdk: _Sdk, clients: dict[str, Any], ctx: BackendContext) -> None:
        self._sdk = sdk
        self._clients = clients
        self._ctx = ctx
        self._translate = _Translator(sdk.errors)

    @property
    def region(self) -> str:
        """The region that is called."""
        return self._sdk.region

    def can(self, operation: str) -> bool:
        """Whether the client library knows this operation."""
        service, _, name = operation.partition(":")
        client = self._clients.get(service)
        return client is not None and name in client.meta.service_model.operation_names

    async def read(self, operation: str, **parameters: object) -> Reply:
        """Ask, and ask again when nobody answers."""
        pause = PAUSE
        for left in reversed(range(READS)):
            try:
                return await self.write(operation, **parameters)
            except Unanswered as error:
                if not left:
                    raise Retry(str(error), after=1.0) from error
            except (Retry, Throttled) as error:
                if not left or (error.after or 0.0) > 1.0:
                    raise
            await self._ctx.clock.sleep(self._ctx.rng.uniform(pause / 2, pause))
            pause *= 2
        raise AssertionError("the last round returns or raises")

    async def write(self, operation: str, **parameters: object) -> Reply:
        """Call once."""
        service, _, name = operation.partition(":")
        await self._ctx.budget(operation)
        try:
            method = self._sdk.method(self._clients[service], name)
            reply: Reply = await method(**parameters)
        except Exception as error:  # noqa: BLE001 - each is translated, and raised again
            raise self._translate(operation, error) from self._translate.cause(operation, error)
        if self._sdk.is_empty(self._clients[service], name, reply):
            raise Unanswered(f"{operation}: an empty answer; what answers there may not be AWS")
        return reply

    async def pages(
        self, operation: str, paging: Paging, **parameters: object
    ) -> AsyncIterator[Any]:
        """All items, page by page."""
        token = ""
        while True:
            more = {paging.token_in: token} if token else {}
            reply = await self._page(operation, token, {**parameters, **more})
            for item in reply.get(paging.items) or ():
                yield item
            following = reply.get(paging.token_out) or ""
            if not following:
                return
            if following == token:
                raise Retry(f"{operation}: the same page comes again and again", after=1.0)
            token = following

    async def _page(self, operation: str, token: str, parameters: dict[str, object]) -> Reply:
        try:
            return await self.read(operation, **parameters)
        except Invalid as error:
            if token:  # the first page was well, so it is the token that is not any more
                raise Retry(f"a page has expired: {error.message}", after=0.0) from error
            raise


class _Translator:
    """From what the SDK raises to what the contract knows."""

    def __init__(self, errors: Any) -> None:
        self._errors = errors
        self._nobody: tuple[type[Exception], ...] = (
            errors.EndpointConnectionError,
            errors.ConnectTimeoutError,
            errors.ProxyConnectionError,
        )
        self._nameless: tuple[type[Exception], ...] = (
            errors.NoCredentialsError,
            errors.PartialCredentialsError,
            errors.CredentialRetrievalError,
            errors.TokenRetrievalError,
        )

    def __call__(self, operation: str, error: Exception) -> BackendError | Unanswered:
        """The error to raise."""
        errors = self._errors
        if isinstance(error, errors.ClientError):
            answer = answer_of(operation, error)
            return meaning(answer) or Unanswered(str(AwsRefusal(answer)))
        if isinstance(error, self._nobody):
            return unreachable(operation, error)
        if isinstance(error, self._nameless):
            remedy = "Give the server a profile, a role or `credentials`."
            return Denied(f"{operation}: {error}. {remedy}")
        if isinstance(error, errors.ParamValidationError):
            return Invalid(f"{operation}: {error}")
        if isinstance(error, errors.UnknownServiceError | AttributeError):
            return Fatal(f"{operation}: this version of the AWS SDK does not know it")
        return Unanswered(f"{operation}: {type(error).__name__}: {error}")

    def cause(self, operation: str, error: Exception) -> Exception:
        """What `refusal_of` reads."""
        if isinstance(error, self._errors.ClientError):
            return AwsRefusal(answer_of(operation, error))
        return error


def answer_of(operation: str, error: Any) -> AwsAnswer:
    """A ClientError as a value."""
    told, meta = error.response.get("Error", {}), error.response.get("ResponseMetadata", {})
    after = meta.get("HTTPHeaders", {}).get("retry-after", "")
    return AwsAnswer(
        operation,
        str(told.get("Code", "")),
        str(told.get("Message", "")),
        int(meta.get("HTTPStatusCode", 0)),
        float(after) if after.isdecimal() else None,
    )
