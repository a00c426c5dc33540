"""A Kinesis stream as its readers and writers see it: its URI, its shards, and calls that are waited out.

A *place* is where reading of a shard goes on: `""` at the trim horizon, `@<microseconds>` at the first record
that arrived then or later, else after the record with that sequence number.
"""

import dataclasses
import datetime as dt
import email.utils
import logging
import math
import random
import re
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlsplit

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    NoCredentialsError,
    ReadTimeoutError,
)

from beamrec.io.aws import error_code, explained, open_client, region_of
from beamrec.io.store_waits import WAITS
from beamrec.schemas.errors import UsageError

__all__ = [
    "HORIZON",
    "MOST_RECORDS",
    "Address",
    "Backoff",
    "Shard",
    "StoppedError",
    "Stream",
    "parse_address",
    "patiently",
]

HORIZON = ""
MOST_RECORDS = 10_000
"""That Kinesis gives in an answer."""

_KEYS = ("region", "endpoint", "role", "start", "end")
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_EXPECTED = "kinesis://stream?region=&endpoint=&role=&start=horizon|latest|<RFC 3339>&end=<RFC 3339>"
_FIRST_WAIT_SECONDS = 0.25
_LONGEST_WAIT_SECONDS = 10.0
_THROTTLED_SECONDS = 30.0  # that a check at the start waits out
_TIMEOUT_SECONDS = 10
_CONNECTIONS = 32  # botocore keeps ten, and complains of each one more
# Refusals that pass by themselves, beside everything that the server calls its own fault.
_PASSING = {
    "ProvisionedThroughputExceededException",
    "LimitExceededException",
    "RequestLimitExceeded",
    "ThrottlingException",
    "Throttling",
    "KMSThrottlingException",
    "ExpiredTokenException",
    "RequestTimeout",
    "RequestExpired",
    "InternalFailure",
}
_LOGGER = logging.getLogger(__name__)
_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True)
class Address:
    """A `kinesis://` URI, taken apart.

    Attributes:
      region: as the URI or this machine says; a worker elsewhere has no other way to know.
      endpoint, role: None for those of the environment.
      start: `horizon`, `latest`, or an arrival time in microseconds since the epoch.
      end: arrival time at which a bounded read ends, in microseconds since the epoch; None never ends.
    """

    stream: str
    region: str | None = None
    endpoint: str | None = None
    role: str | None = None
    start: str | int = "horizon"
    end: int | None = None

    @property
    def where(self) -> str:
        """For messages."""
        return f"kinesis://{self.stream}"


def parse_address(uri: str, option: str) -> Address:
    """Takes a `kinesis://` URI apart; asks nothing of the stream.

    Raises:
      UsageError: it is not of the form.
    """
    parts = urlsplit(uri)
    # A plus sign is that of a time's offset.
    query = parse_qs(parts.query.replace("+", "%2B"), keep_blank_values=True)
    unknown = sorted(query.keys() - set(_KEYS))
    if unknown or parts.path.strip("/") or not _NAME.fullmatch(parts.netloc):
        what = f"the parameter {unknown[0]!r}" if unknown else "no stream's name after kinesis://"
        raise UsageError(f"{option}: expected {_EXPECTED}, got {what}")
    values = {key: found[-1] for key, found in query.items() if found[-1]}
    start = values.get("start", "horizon")
    return Address(
        parts.netloc,
        region_of(values.get("region")),
        values.get("endpoint"),
        values.get("role"),
        start if start in ("horizon", "latest") else _micros(start, f"{option}: start"),
        _micros(values["end"], f"{option}: end") if "end" in values else None,
    )


def _micros(text: str, where: str) -> int:
    try:
        found = dt.datetime.fromisoformat(text)
        known = found.tzinfo is not None
    except ValueError:
        known = False
    if not known:
        raise UsageError(f"{where}: expected a time such as 2026-11-22T07:00:00Z, got {text}")
    return round(found.timestamp() * 1e6)


class StoppedError(Exception):
    """The caller was told to stop while it waited."""


class Backoff:
    """Waits that grow from a quarter of a second to ten; said in the log once they are longer than one."""

    def __init__(self, stopped: threading.Event, where: str) -> None:
        self._stopped = stopped
        self._where = where
        self._seconds = _FIRST_WAIT_SECONDS

    def wait(self, reason: str) -> None:
        """Waits once; raises StoppedError if told to stop."""
        if self._seconds > 1:
            _LOGGER.warning("%s: %s; trying again", self._where, reason)
        seconds = self._seconds * random.uniform(0.5, 1.0)  # noqa: S311  (spreads retries)
        WAITS.add("kinesis", seconds)
        if self._stopped.wait(seconds):
            raise StoppedError(self._where)
        self._seconds = min(2 * self._seconds, _LONGEST_WAIT_SECONDS)


def patiently(call: Callable[[], _T], stopped: threading.Event, where: str) -> _T:
    """Calls until it succeeds: throttling, time-outs and outages are waited out, whatever their length.

    Raises:
      StoppedError: `stopped` was set.
      ClientError, BotoCoreError: a refusal that would not pass by itself.
    """
    backoff = Backoff(stopped, where)
    while True:
        try:
            return call()
        except (ClientError, BotoCoreError) as error:
            if not _passes(error):
                raise
            reason = str(error)
        backoff.wait(reason)


def _passes(error: ClientError | BotoCoreError) -> bool:
    if isinstance(error, ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return error_code(error) in _PASSING or status >= 500 or status == 429
    # The service that hands out a machine's credentials has its outages too; having none at all is for good.
    return isinstance(error, CredentialRetrievalError) or not isinstance(error, NoCredentialsError)


@dataclasses.dataclass(frozen=True)
class Shard:
    """A shard as listed; `parents` may be gone already, `closed` means that it takes no more records."""

    id: str
    first_hash: int
    parents: tuple[str, ...]
    closed: bool = False


class Stream:
    """The calls of one stream; may be shared by threads. They raise ClientError and BotoCoreError.

    Args:
      address: the stream.
      attempts: calls are tried as often by boto3; 1 for a caller that counts them or waits by itself.
    """

    def __init__(self, address: Address, attempts: int = 1) -> None:
        self.address = address
        self.client = open_client(
            "kinesis",
            address.region,
            address.endpoint,
            address.where,
            address.role,
            retries={"mode": "standard", "total_max_attempts": attempts},
            connect_timeout=_TIMEOUT_SECONDS,
            read_timeout=_TIMEOUT_SECONDS,
            max_pool_connections=_CONNECTIONS,
        )

    def check(self, option: str) -> None:
        """Asks for the stream; a service that throttles is asked again for half a minute.

        Raises:
          UsageError: there is none of this name.
          UnavailableError: the service does not answer, or refuses.
        """
        backoff = Backoff(threading.Event(), self.address.where)
        give_up = time.monotonic() + _THROTTLED_SECONDS
        with explained(f"{option} {self.address.where}"):
            while True:
                try:
                    self.shards()
                    return
                except ClientError as error:
                    if error_code(error) == "ResourceNotFoundException":
                        region = self.client.meta.region_name
                        raise UsageError(
                            f"{option}: there is no stream {self.address.stream} in {region}"
                        ) from None
                    if not _passes(error) or time.monotonic() > give_up:
                        raise
                    reason = str(error)
                backoff.wait(reason)

    def shards(self) -> tuple[list[Shard], float]:
        """All shards that are not trimmed yet, and the service's clock (seconds, at most one behind)."""
        found, clock = [], math.inf
        arguments = {"StreamName": self.address.stream}
        while True:
            answer = self.client.list_shards(**arguments)
            found += [_shard(entry) for entry in answer["Shards"]]
            clock = min(clock, _clock(answer))
            if not answer.get("NextToken"):
                return found, clock
            arguments = {"NextToken": answer["NextToken"]}

    def retention_seconds(self) -> float | None:
        """How long records are kept; None, and a warning, where the caller may not know."""
        try:
            answer = self.client.describe_stream_summary(StreamName=self.address.stream)
        except ClientError as error:
            if error_code(error) != "AccessDeniedException":
                raise
            _LOGGER.warning(
                "%s: without the right kinesis:DescribeStreamSummary it cannot be told whether records were "
                "lost to retention while the job stood still",
                self.address.where,
            )
            return None
        return 3600.0 * float(answer["StreamDescriptionSummary"]["RetentionPeriodHours"])

    def iterator(self, shard: str, place: str) -> str:
        """An iterator at a place of a shard; for a time it may be one before that time."""
        try:
            return self._iterator(shard, place)
        except ReadTimeoutError:
            # Kinesalite does not answer before it has a record of that time or later.
            if not place.startswith("@"):
                raise
            return self._iterator(shard, HORIZON)

    def _iterator(self, shard: str, place: str) -> str:
        kind: dict[str, Any] = {"ShardIteratorType": "TRIM_HORIZON"}
        if place.startswith("@"):
            kind = {"ShardIteratorType": "AT_TIMESTAMP", "Timestamp": int(place[1:]) / 1e6}
        elif place:
            kind = {"ShardIteratorType": "AFTER_SEQUENCE_NUMBER", "StartingSequenceNumber": place}
        answer = self.client.get_shard_iterator(StreamName=self.address.stream, ShardId=shard, **kind)
        found: str = answer["ShardIterator"]
        return found

    def read(self, iterator: str, limit: int = MOST_RECORDS) -> dict[str, Any]:
        """One answer of GetRecords: up to 10 MB or that many records."""
        answer: dict[str, Any] = self.client.get_records(ShardIterator=iterator, Limit=limit)
        return answer


def _shard(entry: dict[str, Any]) -> Shard:
    parents = filter(None, (entry.get("ParentShardId"), entry.get("AdjacentParentShardId")))
    first_hash = int(entry["HashKeyRange"]["StartingHashKey"])
    closed = "EndingSequenceNumber" in entry["SequenceNumberRange"]
    return Shard(entry["ShardId"], first_hash, tuple(parents), closed)


def _clock(answer: dict[str, Any]) -> float:
    date = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
    return email.utils.parsedate_to_datetime(date).timestamp() if date else time.time()
