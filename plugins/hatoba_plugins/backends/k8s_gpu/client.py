"""Kubernetes' API as JSON: one open client of one cluster, and its errors in our words.

kubernetes-asyncio brings configuration, credentials and transport. Its models are not used: ten
thousand pods as model objects would take more memory than all the rest of the server.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from hatoba_plugins.backends.k8s_gpu.options import K8sOptions
from hatoba_plugins.errors import (
    BackendError,
    Conflict,
    Denied,
    Fatal,
    Invalid,
    NoCapacity,
    Throttled,
)

if TYPE_CHECKING:
    import aiohttp
    from kubernetes_asyncio.client import ApiClient

CALL_TIMEOUT = 30.0
CONNECT_TIMEOUT = 10.0
PAGE = 250
CONNECTIONS = 64
HEARTBEAT = 30.0
LONGEST_LINE = 2 << 20
"""Bytes of a line that are waited for; no object of a watch is larger than etcd takes, 1.5 MiB."""
_HANDSHAKE = {
    403: "our account may not `create` and `get` pods/exec and pods/portforward there",
    404: "there is no such pod (any more)",
}
MERGE_PATCH = "application/merge-patch+json"
_JSON = "application/json"
Answer = dict[str, Any]


class Refusal(Exception):
    """The API server answered with an error. `after`: seconds, where it said when to come again."""

    def __init__(
        self, status: int, told: Mapping[str, Any], after: float | None, what: str
    ) -> None:
        self.status = status
        self.reason = str(told.get("reason") or "")
        self.message = str(told.get("message") or f"HTTP {status}")
        self.causes = [
            str(one.get("reason") or "") for one in (told.get("details") or {}).get("causes") or ()
        ]
        self.after = after
        self.of_kubernetes = told.get("kind") == "Status"
        super().__init__(f"{what}: {self.message}")

    def error(self) -> BackendError | None:
        """As a promise that nothing happened; None where perhaps it did."""
        if self.status == 429:
            return Throttled(self.message, after=self.after)
        if self.status == 401:
            return Denied(f"the cluster does not accept our credentials: {self.message}")
        if self.status == 403:
            return self._forbidden()
        if self.status == 404 and not self.of_kubernetes:
            return Fatal(
                f"{self.message}: something else than Kubernetes answers; look at `server`"
            )
        if self.status == 404:
            return Fatal(f"{self.message}: create it, or correct `namespace`")
        if self.status == 409:
            return Conflict(self.message, evidence=self.reason)
        if self.status in (400, 405, 413, 415, 422):
            return Invalid(self.message)
        return None

    def _forbidden(self) -> BackendError:
        if "exceeded quota" in self.message:
            return NoCapacity(self.message)
        if "NamespaceTerminating" in self.causes or "being terminated" in self.message:
            return Fatal(f"{self.message}; it is being deleted")
        return Denied(f"{self.message}; see deploy/kubernetes/rbac.yaml for the rights it needs")


class Unreached(Exception):
    """The API server was not reached. `sent`: perhaps it got the request all the same."""

    def __init__(self, message: str, *, sent: bool) -> None:
        super().__init__(message)
        self.sent = sent


class Kube:
    """An open client. Every method raises Refusal or Unreached."""

    def __init__(self, api: ApiClient) -> None:
        self._api = api

    async def get(self, path: str, query: Mapping[str, str] | None = None) -> Answer:
        """Read one object, or a list's page."""
        return await self._call("GET", path, query)

    async def create(self, path: str, body: Mapping[str, Any]) -> Answer:
        """Create an object; never sent twice."""
        return await self._call("POST", path, None, body)

    async def patch(self, path: str, body: Mapping[str, Any]) -> Answer:
        """Merge this into an object."""
        return await self._call("PATCH", path, None, body, MERGE_PATCH)

    async def delete(self, path: str, options: Mapping[str, Any]) -> Answer:
        """Delete an object by DeleteOptions."""
        body = {"kind": "DeleteOptions", "apiVersion": "v1", **options}
        return await self._call("DELETE", path, None, body)

    async def pages(self, path: str, query: Mapping[str, str]) -> AsyncGenerator[Answer, None]:
        """A list, page by page."""
        asked = {"limit": str(PAGE), **query}
        while True:
            page = await self.get(path, asked)
            yield page
            after = page["metadata"].get("continue")
            if not after:
                return
            asked["continue"] = after

    async def every(self, path: str, query: Mapping[str, str]) -> AsyncGenerator[Answer, None]:
        """All objects of a list."""
        async with aclosing(self.pages(path, query)) as pages:
            async for page in pages:
                for item in page["items"]:
                    yield item

    @asynccontextmanager
    async def lines(
        self, path: str, query: Mapping[str, str], silence: float | None
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """A stream of lines, of which very long ones come in pieces; Unreached after so many
        seconds without a byte.
        """
        response = await self._send("GET", path, query, None, _JSON, _patient(silence))
        try:
            if response.status >= 400:
                raise await _refusal(response, f"GET {path}")
            yield _reading(response, path)
        finally:
            response.close()

    @asynccontextmanager
    async def socket(
        self, path: str, query: Sequence[tuple[str, str]], protocol: str
    ) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
        """A WebSocket that speaks `protocol`; a broken connection raises OSError."""
        import aiohttp

        headers = {"User-Agent": "hatoba"}
        await self._api.update_params_for_auth(headers, [], ["BearerToken"])
        url = f"{self._api.configuration.host}{path}?{urlencode(query)}"
        try:
            async with self._api.rest_client.pool_manager.ws_connect(
                url,
                headers=headers,
                protocols=(protocol,),
                heartbeat=HEARTBEAT,
                timeout=aiohttp.ClientWSTimeout(ws_close=CONNECT_TIMEOUT),
                max_msg_size=0,
            ) as socket:
                yield socket
        except aiohttp.WSServerHandshakeError as error:
            # What the API server said is not told: only its status.
            told = {"message": _HANDSHAKE.get(error.status, error.message)}
            raise Refusal(error.status, told, None, path) from error
        except (aiohttp.ClientError, TimeoutError) as error:
            raise Unreached(f"{path}: {error!r}", sent=True) from error

    async def _call(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: Mapping[str, Any] | None = None,
        kind: str = _JSON,
    ) -> Answer:
        response = await self._send(method, path, query, body, kind, _hasty())
        async with response:
            if response.status >= 400:
                raise await _refusal(response, f"{method} {path}")
            return await _parsed(response, path)

    async def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: Mapping[str, Any] | None,
        kind: str,
        timeout: aiohttp.ClientTimeout,
    ) -> aiohttp.ClientResponse:
        import aiohttp

        headers = {"Accept": _JSON, "Content-Type": kind, "User-Agent": "hatoba"}
        try:
            await self._api.update_params_for_auth(headers, [], ["BearerToken"])
            response: aiohttp.ClientResponse = await self._api.rest_client.request(
                method,
                f"{self._api.configuration.host}{path}",
                query_params=dict(query or {}),
                headers=headers,
                body=body,
                _preload_content=False,
                _request_timeout=timeout,
            )
        except aiohttp.ClientConnectorError as error:
            raise Unreached(f"{method} {path}: {error}", sent=False) from error
        except (aiohttp.ClientError, TimeoutError, OSError, ssl.SSLError) as error:
            raise Unreached(f"{method} {path}: {error!r}", sent=True) from error
        return response


async def _parsed(response: aiohttp.ClientResponse, path: str) -> Answer:
    import aiohttp

    try:
        data = await response.read()
        answer = json.loads(data)
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise Unreached(f"{path}: {error!r}", sent=True) from error
    except ValueError as error:
        raise Unreached(f"{path} speaks something else than Kubernetes", sent=True) from error
    if not isinstance(answer, dict):
        raise Unreached(f"{path} speaks something else than Kubernetes", sent=True)
    return answer


async def _refusal(response: aiohttp.ClientResponse, what: str) -> Refusal:
    """The Status that an error comes with; whatever else came with it is not ours to trust."""
    text = await response.text(errors="replace")
    try:
        told = json.loads(text)
    except ValueError:
        told = {"message": text.strip()[:500]}
    if not isinstance(told, dict):
        told = {}
    return Refusal(response.status, told, _retry_after(response.headers), what)


def _retry_after(headers: Mapping[str, str]) -> float | None:
    try:
        return float(headers["Retry-After"])
    except (KeyError, ValueError):
        return None


async def _reading(response: aiohttp.ClientResponse, path: str) -> AsyncGenerator[bytes, None]:
    import aiohttp

    rest = b""
    try:
        # Its own iteration by lines gives up at 128 KiB: a progress bar is one line for hours.
        async for data in response.content.iter_any():
            *whole, rest = (rest + data).split(b"\n")
            for line in whole:
                yield line + b"\n"
            if len(rest) > LONGEST_LINE:
                yield rest
                rest = b""
        if rest:
            yield rest
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        raise Unreached(f"{path}: {error!r}", sent=True) from error


def _hasty() -> aiohttp.ClientTimeout:
    import aiohttp

    return aiohttp.ClientTimeout(total=CALL_TIMEOUT, sock_connect=CONNECT_TIMEOUT)


def _patient(silence: float | None) -> aiohttp.ClientTimeout:
    import aiohttp

    return aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT, sock_read=silence)


@asynccontextmanager
async def connected(options: K8sOptions) -> AsyncIterator[Kube]:
    """A client of the cluster that the options name. Raises Fatal when they cannot be used."""
    library = await asyncio.to_thread(importlib.import_module, "kubernetes_asyncio")
    configuration = library.client.Configuration()
    configuration.connection_pool_maxsize = CONNECTIONS
    try:
        if options.kubeconfig or options.context:
            await _configure(library.config, options, configuration)
        else:
            load = library.config.load_incluster_config
            await asyncio.to_thread(load, configuration)
    except (library.config.ConfigException, OSError, ValueError, TypeError) as error:
        raise Fatal(f"the cluster's configuration cannot be used: {error}") from error
    api = library.client.ApiClient(configuration)
    try:
        yield Kube(api)
    finally:
        await api.close()


async def _configure(config: Any, options: K8sOptions, configuration: Any) -> None:
    """Read a kubeconfig, and run what brings its credentials: in a thread with a loop of its own,
    since the library reads and writes files there.
    """
    loading = config.load_kube_config(
        config_file=options.kubeconfig or None,
        context=options.context or None,
        client_configuration=configuration,
        persist_config=False,
    )
    loader = await asyncio.to_thread(asyncio.run, loading)
    configuration.refresh_api_key_hook = _Renewal(loader)


class _Renewal:
    """Renews a token that a plug-in of kubectl brought, before it expires."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    async def __call__(self, configuration: Any) -> None:
        """Called before each request; the loader looks at the expiry first."""
        user = getattr(self._loader, "_user", None)
        if user is not None and "exec" in user:
            await self._loader.load_from_exec_plugin()
            configuration.api_key["BearerToken"] = self._loader.token
