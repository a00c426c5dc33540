"""Aggregates of the Kinesis Producer Library: unpacked if whole, else records like any other."""

from collections.abc import Callable, Sequence
from hashlib import md5

import pytest

from beamrec.io.kpl import unpack

MAGIC = b"\xf3\x89\x9a\xc2"
Pack = Callable[[Sequence[bytes]], bytes]


@pytest.mark.parametrize("payloads", [[], [b"a"], [b"a", b"", b"c" * 300, b"\x00\xff"], [b"x" * 70_000]])
def test_an_aggregate_gives_its_records_in_order(kpl_aggregate: Pack, payloads: list[bytes]) -> None:
    assert unpack(kpl_aggregate(payloads)) == payloads


def test_the_published_example_is_read() -> None:
    """Packed by another library (ex_kpl, from its documentation): key `partition_key`, data `data`."""
    message = b"\n\rpartition_key\x1a\x08\x08\x00\x1a\x04data"
    digest = bytes([208, 54, 153, 218, 90, 34, 47, 163, 33, 8, 173, 27, 217, 85, 161, 78])
    assert unpack(MAGIC + message + digest) == [b"data"]


def test_every_damage_leaves_a_plain_record(kpl_aggregate: Pack) -> None:
    whole = kpl_aggregate([b"first", b"second"])
    damaged = [whole[:length] for length in range(len(whole))]
    damaged += [bytes([*whole[:i], whole[i] ^ 1, *whole[i + 1 :]]) for i in range(len(whole))]
    assert [unpack(data) for data in damaged] == [[data] for data in damaged]


@pytest.mark.parametrize("message", [b"\xff\xff", b"\x1a\x02\x08\x00", b"\x1a\x7f", b"\x1a\x04\x1a\x7fab"])
def test_a_right_checksum_over_a_wrong_message_is_a_plain_record(message: bytes) -> None:
    data = MAGIC + message + md5(message, usedforsecurity=False).digest()
    assert unpack(data) == [data]


def test_a_record_without_the_magic_number_is_itself() -> None:
    assert unpack(b'{"a": 1}') == [b'{"a": 1}']
    assert unpack(b"") == [b""]
