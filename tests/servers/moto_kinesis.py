"""Moto's server, with resharding as Kinesis does it; run as a program with the port to listen on.

Moto 5.2.5 leaves a shard that was split or merged open for ever: records go on into it (the first shard that
holds the key takes it, closed or not), its iterators never end, and a merge copies what the parents hold.
"""

import contextlib
import sys
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

from moto.kinesis import models
from moto.server import main

_get_records = models.KinesisBackend.get_records
_split, _merge = models.Stream.split_shard, models.Stream.merge_shards


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
    with _left_alone(stream.shards[shard]):
        _split(stream, shard, key)


def merge_shards(stream: Any, shard: str, adjacent: str) -> None:
    """As Kinesis: the child begins empty."""
    with _left_alone(stream.shards[shard], stream.shards[adjacent]):
        _merge(stream, shard, adjacent)


def get_shard_for_key(stream: Any, partition_key: str, explicit_hash_key: str | None) -> Any:
    """As Kinesis: of the shards that are open."""
    key = int(models.md5_hash(partition_key.encode()).hexdigest(), 16)
    if explicit_hash_key:
        key = int(explicit_hash_key)
    return next(s for s in stream.shards.values() if s.is_open and s.starting_hash <= key <= s.ending_hash)


def get_records(backend: Any, stream_arn: str | None, iterator: str, limit: int | None) -> Any:
    """As Kinesis: a closed shard has an end."""
    following, records, behind = _get_records(backend, stream_arn, iterator, limit)
    stream_name, shard_id, last = models.decompose_shard_iterator(following)
    shard = backend.describe_stream(stream_arn=stream_arn, stream_name=stream_name).get_shard(shard_id)
    ended = not shard.is_open and int(last) >= shard.get_max_sequence_number()
    return None if ended else following, records, behind


models.Stream.split_shard = split_shard
models.Stream.merge_shards = merge_shards
models.Stream.get_shard_for_key = get_shard_for_key
models.KinesisBackend.get_records = get_records

if __name__ == "__main__":
    main(["-H", "127.0.0.1", "-p", sys.argv[1]])
