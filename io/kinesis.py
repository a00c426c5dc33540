"""An unbounded source of events from a Kinesis stream, in plain Python on boto3; bounded with `end=`.

A whole shard belongs to the split whose range of the hash space holds the shard's first hash key; records are
never told apart by hash, for producers may set their own. A child shard begins at the trim horizon once its
parents were read to their ends, which the ledger says, whoever read them. Aggregates of the Kinesis Producer
Library are unpacked.

Sequence numbers have 128 bits: a position is the ordinal of a user record in its shard as it was read, and
`Part.tail` holds the sequence numbers between which a part lies. Where `start=latest` or a time began is
sealed once, under the stream's own name. Arrival is what Kinesis stored with each record.
"""

import dataclasses
from datetime import datetime

from beamrec.io.event_interval import with_bounds
from beamrec.io.events import SourceOptions
from beamrec.io.kinesis_client import Address, Shard, Stream, parse_address
from beamrec.io.kinesis_reader import KinesisReader
from beamrec.io.ledger_source import LedgerSource

__all__ = ["KinesisEvents", "identity", "open_interval", "open_sources"]

_OPTION = "--input"
_HASH_BITS = 128
_CHECK_ATTEMPTS = 4


def open_sources(uri: str, options: SourceOptions) -> "list[KinesisEvents]":
    """One source a split; raises UsageError if there is no such stream."""
    address = parse_address(uri, _OPTION)
    Stream(address, _CHECK_ATTEMPTS).check(_OPTION)
    return [KinesisEvents(address, options, index) for index in range(options.splits)]


def open_interval(uri: str, options: SourceOptions, begin: datetime, end: datetime) -> "list[KinesisEvents]":
    """See io.event_interval."""
    return open_sources(with_bounds(uri, begin, end), options)


def identity(uri: str) -> str:
    """Stream and region: the endpoint, the role and the start are only the way there."""
    address = parse_address(uri, _OPTION)
    return f"{address.where}?region={address.region or ''}"


@dataclasses.dataclass(frozen=True)
class KinesisEvents(LedgerSource):
    """A stream, read from where the ledger of the output says that it stands.

    Attributes:
      address: the stream, and where to start and end.
      options: what the source needs to know of the job.
      split_index: this is one of `options.splits` readers, each with its range of the hash space.
    """

    address: Address
    options: SourceOptions
    split_index: int = 0

    def make_reader(self) -> KinesisReader:
        """A reader that resumes from the ledger."""
        return KinesisReader(self.address, self.options, self.owns)

    def owns(self, shard: Shard) -> bool:
        """Whether this split reads the shard."""
        return shard.first_hash * self.options.splits >> _HASH_BITS == self.split_index
