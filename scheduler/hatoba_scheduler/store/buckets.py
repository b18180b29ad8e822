"""Buckets of object stores: opened by URL, with errors that say which endpoint and what to do.

Credentials are looked for where the platform's own tools look: environment, files, instance.
"""

from __future__ import annotations

import datetime as dt
import re
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import structlog

from hatoba_scheduler.config import BlobsConfig
from hatoba_scheduler.errors import FailedPrecondition, HatobaError, InvalidArgument, Reason
from hatoba_scheduler.store.blob_place import Signed
from hatoba_scheduler.store.errors import StorageFailed

if TYPE_CHECKING:
    from obstore.store import ObjectStore

RETRIES = 3
RETRY_SECONDS = 10
CONNECT_SECONDS = 5
CALL_SECONDS = 60
URL_LIFE = dt.timedelta(minutes=15)
MOST_OPEN = 64
"""Users' buckets that are kept open; which there are is up to those who name them."""
_URI = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/(.*))?", re.DOTALL)
_REFUSED = re.compile(
    "AccessDenied|InvalidAccessKeyId|SignatureDoesNotMatch|NoSuchBucket|PermanentRedirect"
    "|AuthorizationHeaderMalformed|status code: 40[13]"
)
_CODE = re.compile("<Code>([A-Za-z]+)</Code>")

log = structlog.get_logger("hatoba.buckets")


class ExternalMeta(NamedTuple):
    """An object as a bucket lists it: key, entity tag without quotes, size in bytes."""

    key: str
    etag: str
    size: int


class Place(NamedTuple):
    """A parsed `s3://BUCKET/KEY`."""

    bucket: str
    key: str


def parse_uri(uri: str, field: str = "uri") -> Place:
    """The parts of `s3://BUCKET/KEY`, whose key may be empty. Raises InvalidArgument."""
    matched = _URI.fullmatch(uri)
    if matched is None:
        raise InvalidArgument.field(field, "must be `s3://BUCKET/PREFIX`", value=uri)
    return Place(matched[1], matched[2] or "")


class Bucket:
    """One bucket, or a prefix of one. Raises FailedPrecondition when the URL cannot be opened."""

    def __init__(self, settings: BlobsConfig) -> None:
        self.url = settings.url
        self.endpoint = settings.endpoint or f"the usual endpoint of {self.url.partition(':')[0]}"
        try:
            self.store = _opened(settings)
        except Exception as error:
            raise FailedPrecondition(
                f"{self.url} cannot be opened: {_told(error)}; mend [blobs] in hatoba.toml",
                reason=Reason.BLOBS_REFUSED,
            ) from error

    def probe(self) -> None:
        """Write and delete a small object, to see whether we may.

        Raises FailedPrecondition when the bucket refuses; that it does not answer is only logged.
        """
        try:
            self.check()
        except StorageFailed as error:
            log.warning("blobs.unreachable", error=error.message)

    def check(self) -> None:
        """As probe, but raises StorageFailed as well."""
        import obstore

        key = f"checking/{secrets.token_hex(16)}"
        with self.errors():
            obstore.put(self.store, key, b"hatoba")
            obstore.delete(self.store, key)

    def objects(self, prefix: str) -> Iterator[ExternalMeta]:
        """All objects whose keys begin so, in order of their keys. Blocks."""
        import obstore

        with self.errors():
            for page in obstore.list(self.store, prefix or None):
                for one in page:
                    yield ExternalMeta(one["path"], (one["e_tag"] or "").strip('"'), one["size"])

    def signed(self, method: Literal["GET", "PUT"], keys: Sequence[str]) -> Signed:
        """Addresses at the bucket that anybody may use for a while. Blocks."""
        import obstore

        until = time.time() + URL_LIFE.total_seconds()
        if not keys:
            return Signed([], until)
        with self.errors():
            signed = obstore.sign(cast(Any, self.store), method, list(keys), URL_LIFE)
        return Signed(list(signed), until)

    @property
    def signs(self) -> bool:
        """Whether addresses can be given out for it."""
        return self.url.partition(":")[0] in {"s3", "s3a", "gs", "az", "azure", "abfs", "abfss"}

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn what obstore raises into StorageFailed and FailedPrecondition.

        FileNotFoundError is left to those who know what is missing.
        """
        try:
            yield
        except (HatobaError, GeneratorExit):
            raise
        except FileNotFoundError as error:
            if _REFUSED.search(str(error)):
                raise self._refused(error) from error
            raise
        except Exception as error:
            raise self._typed(error) from error

    def _typed(self, error: Exception) -> HatobaError:
        from obstore.exceptions import PermissionDeniedError, UnauthenticatedError

        denied = isinstance(error, PermissionDeniedError | UnauthenticatedError)
        if denied or _REFUSED.search(str(error)):
            return self._refused(error)
        return StorageFailed(
            f"{self.url} does not answer at {self.endpoint}: {_told(error)}; check [blobs] "
            "in hatoba.toml and the network, then try again; nothing was lost"
        )

    def _refused(self, error: Exception) -> FailedPrecondition:
        return FailedPrecondition(
            f"{self.url} refuses us at {self.endpoint}: {_told(error)}; check that the "
            "bucket exists, its region in [blobs], and the credentials in the server's environment "
            "(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY); nothing was lost",
            reason=Reason.BLOBS_REFUSED,
        )


def external_bucket(name: str, settings: BlobsConfig) -> Bucket:
    """A user's bucket by name, reached as `settings` say for the server's own."""
    return Bucket(settings.of_bucket(name))


class Externals:
    """Users' buckets, reached with the endpoint and region of `[blobs]`. Every method blocks."""

    def __init__(self, settings: BlobsConfig) -> None:
        self._settings = settings
        self._buckets: dict[str, Bucket] = {}

    def bucket(self, name: str) -> Bucket:
        """A bucket by name. Raises FailedPrecondition when it cannot be opened."""
        found = self._buckets.get(name)
        if found is None:
            found = external_bucket(name, self._settings)
            for oldest in list(self._buckets)[: max(0, len(self._buckets) + 1 - MOST_OPEN)]:
                self._buckets.pop(oldest, None)
            self._buckets[name] = found
        return found

    def urls(self, uris: Sequence[str]) -> Signed:
        """Where these objects can be got, in order. Raises InvalidArgument, FailedPrecondition."""
        signed = Signed([], time.time() + URL_LIFE.total_seconds())
        for uri in uris:
            place = parse_uri(uri)
            signed.urls.extend(self.bucket(place.bucket).signed("GET", [place.key]).urls)
        return signed


def _opened(settings: BlobsConfig) -> ObjectStore:
    from obstore.store import from_url

    s3 = settings.url.startswith(("s3://", "s3a://"))
    options: dict[str, Any] = {
        name: value
        for name, value in (
            ("endpoint", settings.endpoint),
            ("region", settings.region),
            ("virtual_hosted_style_request", settings.virtual_hosted_style),
        )
        if s3 and value
    }
    timing = dt.timedelta
    client = {
        **({"allow_http": True} if settings.allow_http else {}),
        "connect_timeout": timing(seconds=CONNECT_SECONDS),
        "timeout": timing(seconds=CALL_SECONDS),
    }
    retry = {"max_retries": RETRIES, "retry_timeout": timing(seconds=RETRY_SECONDS)}
    return from_url(
        settings.url, client_options=cast(Any, client), retry_config=cast(Any, retry), **options
    )


def _told(error: Exception) -> str:
    """What the store said, in a few words: obstore adds bodies and its own debugging."""
    text = str(error).strip()
    code = _CODE.search(text)
    if code is not None:
        return code[1]
    line = text.partition("\n")[0]
    return line if len(line) <= 300 else f"{line[:300]}..."
