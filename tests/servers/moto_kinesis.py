"""Moto's server, with Kinesis' resharding and retention; run as a program with the port to listen on.

Moto 5.2.5 leaves a shard that was split or merged open for ever: records go on into it (the first shard that
holds the key takes it, closed or not), its iterators never end, and a merge copies what the parents hold. It
also keeps every record. At SIGUSR2 its clock goes on by 25 hours; records go some time after their retention,
as Kinesis leaves it open.
"""

import contextlib
import datetime as dt
import signal
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler
from typing import Any

from moto.kinesis import models
from moto.server import main

_get_records, _list_shards = models.KinesisBackend.get_records, models.KinesisBackend.list_shards
_split, _merge = models.Stream.split_shard, models.Stream.merge_shards
_TRIM_LATE_SECONDS = 2 * 3600
_utcnow, _shift, _lock = models.utcnow, [0.0], threading.Lock()


def a_day_passes(*_: Any) -> None:
    """The clock of records and answers goes on by 25 hours."""
    _shift[0] += 25 * 3600


def utcnow() -> dt.datetime:
    """By that clock."""
    now: dt.datetime = _utcnow() + dt.timedelta(seconds=_shift[0])
    return now


def date_time_string(_: Any, timestamp: float | None = None) -> str:
    """By that clock, for the header `Date`."""
    return formatdate((timestamp or time.time()) + _shift[0], usegmt=True)


def trim(stream: Any) -> None:
    """As Kinesis: records go with the retention, and a closed shard with its last one."""
    now = models.unix_time(utcnow())
    with _lock:
        for name, shard in list(stream.shards.items()):
            oldest = now - 3600 * stream.retention_period_hours - _TRIM_LATE_SECONDS
            while shard.records and next(iter(shard.records.values())).created_at < oldest:
                shard.trimmed_to, _ = shard.records.popitem(last=False)
            if not shard.is_open and not shard.records and shard.closed_at < oldest:
                del stream.shards[name]


def get_max_sequence_number(shard: Any) -> int:
    """As moto's, not through all records, and known after they are gone."""
    last: int = next(reversed(shard.records), 0) or getattr(shard, "trimmed_to", 0)
    return last


def put_record(shard: Any, partition_key: str, data: str, explicit_hash_key: str) -> str:
    """As moto's; numbers go on where all records before are gone."""
    number = get_max_sequence_number(shard) + 1
    shard.records[number] = models.Record(partition_key, data, number, explicit_hash_key)
    return str(number)


def list_shards(backend: Any, stream_arn: str | None, stream_name: str | None, **page: Any) -> Any:
    """As Kinesis: without those that have expired."""
    trim(backend.describe_stream(stream_arn=stream_arn, stream_name=stream_name))
    return _list_shards(backend, stream_arn=stream_arn, stream_name=stream_name, **page)


@contextlib.contextmanager
def _left_alone(*shards: Any) -> Iterator[None]:
    """Their records stay where they are."""
    records = [shard.records for shard in shards]
    for shard in shards:
        shard.records = OrderedDict()
    try:
        yield
    finally:
        for shard, own in zip(shards, records, strict=True):
            shard.records = own


def split_shard(stream: Any, shard: str, key: str) -> None:
    """As Kinesis: the children begin empty."""
    parent = stream.shards[shard]
    with _left_alone(parent):
        _split(stream, shard, key)
    parent.closed_at = models.unix_time(utcnow())


def merge_shards(stream: Any, shard: str, adjacent: str) -> None:
    """As Kinesis: the child begins empty."""
    parents = stream.shards[shard], stream.shards[adjacent]
    with _left_alone(*parents):
        _merge(stream, shard, adjacent)
    for parent in parents:
        parent.closed_at = models.unix_time(utcnow())


def get_shard_for_key(stream: Any, partition_key: str, explicit_hash_key: str | None) -> Any:
    """As Kinesis: of the shards that are open."""
    key = int(models.md5_hash(partition_key.encode()).hexdigest(), 16)
    if explicit_hash_key:
        key = int(explicit_hash_key)
    return next(s for s in stream.shards.values() if s.is_open and s.starting_hash <= key <= s.ending_hash)


def get_records(backend: Any, stream_arn: str | None, iterator: str, limit: int | None) -> Any:
    """As Kinesis: a closed shard has an end, and what has expired is passed over without a word."""
    trim(
        backend.describe_stream(
            stream_arn=stream_arn, stream_name=models.decompose_shard_iterator(iterator)[0]
        )
    )
    following, records, behind = _get_records(backend, stream_arn, iterator, limit)
    stream_name, shard_id, last = models.decompose_shard_iterator(following)
    shard = backend.describe_stream(stream_arn=stream_arn, stream_name=stream_name).get_shard(shard_id)
    ended = not shard.is_open and int(last) >= shard.get_max_sequence_number()
    return None if ended else following, records, behind


models.Stream.split_shard = split_shard
models.Stream.merge_shards = merge_shards
models.Stream.get_shard_for_key = get_shard_for_key
models.Shard.put_record, models.Shard.get_max_sequence_number = put_record, get_max_sequence_number
models.KinesisBackend.get_records, models.KinesisBackend.list_shards = get_records, list_shards
models.utcnow, BaseHTTPRequestHandler.date_time_string = utcnow, date_time_string

if __name__ == "__main__":
    signal.signal(signal.SIGUSR2, a_day_passes)
    main(["-H", "127.0.0.1", "-p", sys.argv[1]])
