"""Format options: what may be asked for, and what it means for a shop."""

import pyarrow as pa
import pytest

from beamrec.io.formats import FileOptions, parse_partition_by
from beamrec.schemas.errors import UsageError
from beamrec.schemas.shop import CLASSICMODELS, Feature, RatingsTable, Shop, Table

SHOP = CLASSICMODELS
EVERY = (SHOP.partition_column, *SHOP.training_columns)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"format": "csv"}, "--format: expected parquet or tfrecord, got 'csv'"),
        ({"compression": "lzo"}, "--compression of parquet: expected snappy or zstd, got 'lzo'"),
        ({"compression": "gzip"}, "--compression of parquet"),
        ({"format": "tfrecord", "compression": "snappy"}, "--compression of tfrecord: expected none or gzip"),
        ({"mode": "append"}, "--mode: expected overwrite or incremental"),
        ({"buckets": -1}, "--buckets: expected 0 to"),
        ({"buckets": 10**9}, "--buckets: expected 0 to"),
        ({"buckets": 8, "partition_by": ("city",)}, "--buckets and --partition-by: expected one of them"),
        ({"partition_by": ("city", "CITY")}, "--partition-by: expected each column once"),
    ],
)
def test_options_are_checked_when_they_are_made(values: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        FileOptions(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "codec", "suffix"),
    [
        ({}, "snappy", ".parquet"),
        ({"compression": "zstd"}, "zstd", ".parquet"),
        ({"format": "tfrecord"}, "none", ".tfrecord"),
        ({"format": "tfrecord", "compression": "gzip"}, "gzip", ".tfrecord.gz"),
    ],
)
def test_each_format_has_its_compressions_and_names(values: dict[str, str], codec: str, suffix: str) -> None:
    options = FileOptions(**values)  # type: ignore[arg-type]
    assert options.codec == codec
    assert options.layout(SHOP).path("a=1", "0" * 64) == f"a=1/part-{'0' * 16}{suffix}"
    assert options.layout(SHOP).path("", "f" * 64) == f"part-{'f' * 16}{suffix}"


@pytest.mark.parametrize(
    ("options", "columns", "merges"),
    [
        (FileOptions(), ("customerNumber",), False),
        (FileOptions(partition_by=()), (), False),
        (FileOptions(partition_by=("COUNTRY",)), ("country",), True),
        (
            FileOptions(partition_by=("productLine", "customernumber")),
            ("productLine", "customerNumber"),
            False,
        ),
        (FileOptions(buckets=64), ("bucket",), True),
    ],
)
def test_only_partitions_of_several_ranges_are_merged(
    options: FileOptions, columns: tuple[str, ...], merges: bool
) -> None:
    layout = options.layout(SHOP)
    assert (layout.columns, layout.merges) == (columns, merges)


def test_a_partition_column_that_the_shop_lacks_is_refused_with_those_it_has() -> None:
    with pytest.raises(UsageError, match=r"expected any of customerNumber, city, .* or none, got 'town'"):
        FileOptions(partition_by=("town",)).layout(SHOP)


def test_a_column_must_stay_in_the_files() -> None:
    with pytest.raises(UsageError, match="expected a column to stay in the files"):
        FileOptions(partition_by=EVERY).layout(SHOP)


@pytest.mark.parametrize(
    ("column", "options"),
    [("Bucket", FileOptions(buckets=2)), ("_town", FileOptions(partition_by=("_town",)))],
)
def test_a_shop_whose_names_do_not_fit_is_refused(column: str, options: FileOptions) -> None:
    customers = Table("c", "k", "int", (Feature(column),))
    shop = Shop("s", customers, Table("p", "film", "int", ()), RatingsTable("r", "k", "film", "v"))
    with pytest.raises(UsageError, match="rename it by a view"):
        options.layout(shop)


@pytest.mark.parametrize(
    ("text", "expected"),
    [(None, None), ("none", ()), ("NONE", ()), ("city", ("city",)), (" city , year ", ("city", "year"))],
)
def test_partition_by_is_columns_with_commas_or_none(
    text: str | None, expected: tuple[str, ...] | None
) -> None:
    assert parse_partition_by(text) == expected


@pytest.mark.parametrize("text", ["", "a,,b", ","])
def test_partition_by_without_a_name_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="columns with commas between, or none"):
        parse_partition_by(text)


def test_an_example_holds_its_partition_columns_and_no_bucket() -> None:
    """tf.data does not read Hive paths."""
    rows = pa.RecordBatch.from_pydict({"k": [1, 2], "town": ["T", "T"], "film": [1, 1], "v": [1, 2]})
    shop = Shop("s", Table("c", "k", "int", (Feature("town"),)), Table("p", "film", "int", ()),
                RatingsTable("r", "k", "film", "v"))  # fmt: skip
    for options in (FileOptions("tfrecord", partition_by=("town",)), FileOptions("tfrecord", buckets=1)):
        layout = options.layout(shop)
        ((folder, part),) = layout.partitions(rows)
        data = layout.encode(part).to_pybytes()
        assert folder in ("town=T", "bucket=000")
        assert all(data.count(name) == 2 for name in (b"town", b"film"))
        assert b"bucket" not in data
