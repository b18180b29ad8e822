"""The kit's proxy before an emulator of AWS, with calls of its own to complete what it says."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from hatoba_plugins.conformance.proxy import Aws, FaultProxy, Json


class AwsProxy(FaultProxy):
    """What moto leaves out of its answers is added here, as AWS has it."""

    @classmethod
    @asynccontextmanager
    async def before(cls, upstream: str) -> AsyncIterator[AwsProxy]:
        """One that listens on loopback until it is left."""
        async with cls.running(upstream, Aws()) as proxy:
            yield proxy

    async def call(self, path: str, body: Json, like: str = "batch") -> Json:
        """A call of the proxy's own, as a service's client would make it."""
        assert self._session is not None
        credential = f"hatoba-test/20260101/us-east-1/{like}/aws4_request"
        signed = f"AWS4-HMAC-SHA256 Credential={credential}, SignedHeaders=host, Signature=0"
        headers = {"Authorization": signed}
        async with self._session.post(self.upstream + path, json=body, headers=headers) as reply:
            text = await reply.text()
            assert reply.status == 200, text
            answer: Json = json.loads(text or "{}")
            return answer
