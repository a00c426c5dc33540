"""Recommendations out to a Kinesis stream: at least once, under their event ids.

A batch that is processed again (a retry, a restart) is sent again, and duplicates that the files take out are
sent too: a consumer that minds tells them by `event_id`, which is the partition key as well, so that all
copies of a record go to one shard.
"""

import dataclasses
import logging
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import apache_beam as beam

from beamrec.io.aws import explained
from beamrec.io.kinesis_client import Address, Backoff, Stream, parse_address, patiently
from beamrec.io.sinks import SendLinesDoFn
from beamrec.schemas.errors import UsageError

__all__ = ["WriteKinesis", "open_sink", "put_lines"]

_OPTION = "--also"
_CHECK_ATTEMPTS = 4
# Limits of one PutRecords call: records, bytes with their keys, and bytes of one record with its key.
_RECORDS = 500
_REQUEST_BYTES = 5 << 20
_RECORD_BYTES = 1 << 20
_LOGGER = logging.getLogger(__name__)
_Record = dict[str, Any]


def open_sink(uri: str) -> "WriteKinesis":
    """A transform that writes to the stream.

    Raises:
      UsageError: the URI is not of the form, or there is no such stream.
      UnavailableError: the service does not answer, or refuses.
    """
    address = parse_address(uri, _OPTION)
    if address.start != "horizon" or address.end is not None:
        raise UsageError(f"{_OPTION} {address.where}: a stream that is written to has neither start nor end")
    Stream(address, _CHECK_ATTEMPTS).check(_OPTION)
    return WriteKinesis(address)


def put_lines(stream: Stream, lines: Sequence[tuple[str, bytes]], stopped: threading.Event) -> int:
    """Puts lines until the stream has them all; returns how many were too large for Kinesis.

    Throttling, outages and the refusal of single records are waited out.

    Args:
      stream: to put into.
      lines: partition key, 1 to 256 characters, and data of each.
      stopped: makes it give up.

    Raises:
      StoppedError: `stopped` was set.
      ClientError, BotoCoreError: a refusal that would not pass by itself.
    """
    records = [{"PartitionKey": key, "Data": data} for key, data in lines]
    fitting = [record for record in records if _size(record) <= _RECORD_BYTES]
    for request in _requests(fitting):
        _put(stream, request, stopped)
    return len(records) - len(fitting)


def _size(record: _Record) -> int:
    return len(record["Data"]) + len(record["PartitionKey"].encode())


def _requests(records: list[_Record]) -> Iterator[list[_Record]]:
    request: list[_Record] = []
    size = 0
    for record in records:
        if len(request) == _RECORDS or (request and size + _size(record) > _REQUEST_BYTES):
            yield request
            request, size = [], 0
        request.append(record)
        size += _size(record)
    if request:
        yield request


def _put(stream: Stream, records: list[_Record], stopped: threading.Event) -> None:
    backoff = Backoff(stopped, stream.address.where)
    while True:
        answer = patiently(
            lambda: stream.client.put_records(StreamName=stream.address.stream, Records=records),  # noqa: B023
            stopped,
            stream.address.where,
        )
        refused = [result.get("ErrorCode") for result in answer["Records"]]
        records = [record for record, code in zip(records, refused, strict=True) if code]
        if not records:
            return
        backoff.wait(f"{len(records)} records refused ({next(filter(None, refused))})")


class _PutDoFn(SendLinesDoFn):
    def __init__(self, address: Address) -> None:
        super().__init__(address.where, "kinesis", "Kinesis")
        self._address = address

    def setup(self) -> None:
        self._stream = Stream(self._address)
        self._stopped = threading.Event()

    def teardown(self) -> None:
        self._stopped.set()

    def send(self, lines: Sequence[tuple[str, bytes]]) -> int:
        with explained(f"{_OPTION} {self._address.where}"):
            return put_lines(self._stream, lines, self._stopped)


@dataclasses.dataclass(eq=False)
class WriteKinesis(beam.PTransform):  # type: ignore[misc]
    """Writes the lines of visible outcomes to a stream, at least once, under their event ids."""

    address: Address

    def expand(self, outcomes: beam.PCollection) -> beam.PCollection:
        """[OUTCOMES] -> how many records were put, a number a batch."""
        return outcomes | "Put" >> beam.ParDo(_PutDoFn(self.address)).with_output_types(int)
