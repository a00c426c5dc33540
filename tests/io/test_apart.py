"""Which inputs and outputs lie in one another."""

import os

import pytest

from beamrec.io.apart import check_apart
from beamrec.schemas.errors import UsageError


@pytest.mark.parametrize(
    ("events", "output"),
    [
        ("clicks", "./clicks/"),
        ("clicks", "file:///{here}/clicks/out"),
        ("s3://bucket/a", "s3://bucket/a"),
        ("s3://bucket", "s3://bucket/out"),
        ("gs://bucket/a/b", "gs://bucket/a/"),
        ("s3://bucket/a?region=eu", "s3://bucket/a/out"),
    ],
)
def test_one_in_the_other_is_refused(events: str, output: str) -> None:
    with pytest.raises(UsageError, match="its own files would be read as events"):
        check_apart(events, output.format(here=os.getcwd()))


@pytest.mark.parametrize(
    ("events", "output"),
    [
        ("clicks", "clicks2"),
        ("s3://bucket/clicks", "s3://bucket/clicks-out"),
        ("s3://bucket/a", "gs://bucket/a"),
        ("s3://bucket/a?endpoint=http://one:1", "s3://bucket/a?endpoint=http://two:1"),
        ("kafka://broker:9092/clicks", "/clicks"),
        ("kinesis://clicks", "clicks"),
    ],
)
def test_what_lies_beside_it_is_fine(events: str, output: str) -> None:
    check_apart(events, output)
