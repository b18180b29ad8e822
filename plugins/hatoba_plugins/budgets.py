"""How often backends may call out: one token bucket per account, region and operation.

Instances that share an account share its buckets. The core makes one `Budgets`, gives each backend
a `Budget` as `ctx.budget`, and declares the instance's limits on it once it is open.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from hatoba_plugins.backend import Clock
from hatoba_plugins.values import Rate


class BucketKey(NamedTuple):
    """What one bucket is for."""

    account: str
    region: str
    operation: str


class TokenBucket:
    """Tokens that come back at a steady rate; takers are served in the order they came."""

    def __init__(self, rate: Rate, clock: Clock) -> None:
        self.rate = _checked(rate)
        self._clock = clock
        self._tokens = float(rate.burst)
        self._filled = clock.monotonic()

    def tighten(self, rate: Rate) -> None:
        """Keep the lower of both rates: two who share a bucket are bound by the stricter."""
        stricter = _checked(rate)
        self._fill()
        self.rate = Rate(
            min(self.rate.per_second, stricter.per_second), min(self.rate.burst, stricter.burst)
        )

    async def take(self) -> None:
        """Take one token, waiting for it. A cancelled wait gives it back."""
        self._fill()
        self._tokens -= 1.0
        if self._tokens >= 0.0:
            return
        try:
            await self._clock.sleep(-self._tokens / self.rate.per_second)
        except BaseException:
            self._tokens += 1.0
            raise

    def _fill(self) -> None:
        now = self._clock.monotonic()
        earned = (now - self._filled) * self.rate.per_second
        self._tokens = min(float(self.rate.burst), self._tokens + earned)
        self._filled = now


class Budgets:
    """All buckets of one server."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._buckets: dict[BucketKey, TokenBucket] = {}

    def share(self, account: str, region: str = "") -> Budget:
        """The budget of an instance that uses this account in this region."""
        return Budget(self, account, region)

    def declare(self, key: BucketKey, rate: Rate) -> None:
        """Limit an operation. ValueError when the rate would let nothing through."""
        bucket = self._buckets.get(key)
        if bucket is None:
            self._buckets[key] = TokenBucket(rate, self._clock)
        else:
            bucket.tighten(rate)

    async def take(self, key: BucketKey) -> None:
        """Wait until the operation may be called; at once when nobody limited it."""
        bucket = self._buckets.get(key)
        if bucket is not None:
            await bucket.take()


class Budget:
    """One instance's way to its buckets; `await budget("create")` before the native call."""

    def __init__(self, budgets: Budgets, account: str, region: str) -> None:
        self._budgets = budgets
        self._account = account
        self._region = region

    async def __call__(self, operation: str) -> None:
        """Wait until the operation may be called."""
        await self._budgets.take(BucketKey(self._account, self._region, operation))

    def declare(self, limits: Iterable[tuple[str, Rate]]) -> None:
        """Put an instance's `Capabilities.limits` in force."""
        for operation, rate in limits:
            self._budgets.declare(BucketKey(self._account, self._region, operation), rate)


def _checked(rate: Rate) -> Rate:
    if not 0.0 < rate.per_second < float("inf") or rate.burst < 1:
        raise ValueError(f"a rate needs per_second > 0 and burst >= 1, not {rate}")
    return rate
