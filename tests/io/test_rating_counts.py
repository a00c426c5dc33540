"""Ratings of each product: an id is what stands in the file, whatever the rows before it look like."""

import dataclasses
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from beamrec.io.rating_counts import count_ratings
from beamrec.schemas.errors import BadDataError, UsageError
from beamrec.schemas.shop import CLASSICMODELS

INTEGERS = dataclasses.replace(
    CLASSICMODELS, products=dataclasses.replace(CLASSICMODELS.products, key_type="int")
)
HEADER = "customerNumber,productCode,productRating\n"


def _csv(folder: Path, text: str) -> str:
    path = folder / "ratings.csv"
    path.write_bytes(text.encode())
    return str(path)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ("1,00001,3\n2,00001,4\n3,1,5\n", {"00001": 2, "1": 1}),
        ("1,1e5,3\n2,true,4\n3,2026-01-01,5\n", {"1e5": 1, "true": 1, "2026-01-01": 1}),
        ("1,NA,3\n2,null,4\n3,,5\n", {"NA": 1, "null": 1}),
        ('1,"a,b",3\n2,"a\nb",4\n', {"a,b": 1, "a\nb": 1}),
    ],
)
def test_ids_of_a_csv_file_are_text(rows: str, expected: dict[str, int], tmp_path: Path) -> None:
    assert count_ratings(_csv(tmp_path, HEADER + rows), CLASSICMODELS) == expected


def test_a_late_id_of_another_look_is_counted_too(tmp_path: Path) -> None:
    """Behind the block that Arrow would guess a type from."""
    rows = "".join(f"{row},{10_000 + row % 7},3\n" for row in range(100_000))
    found = count_ratings(_csv(tmp_path, f"{HEADER}{rows}1,S10_1678,5\n"), CLASSICMODELS)
    assert (sum(found.values()), found["S10_1678"], found["10000"]) == (100_001, 1, 14_286)


def test_integer_ids_are_counted_in_their_shortest_form(tmp_path: Path) -> None:
    """As `release import` reads those of the embeddings."""
    found = count_ratings(_csv(tmp_path, HEADER + "1,007,3\n2,7.0,4\n3,7,5\n4,-0,5\n"), INTEGERS)
    assert found == {"7": 3, "0": 1}


def test_a_float_column_of_parquet_is_counted_as_integers(tmp_path: Path) -> None:
    path = tmp_path / "ratings.parquet"
    parquet.write_table(pa.table({"PRODUCTCODE": [7.0, 8.0, 7.0, None]}), path)
    assert count_ratings(str(path), INTEGERS) == {"7": 2, "8": 1}


@pytest.mark.parametrize("rows", ["1,a,3\n2,b\n", "1,a,3\n2,b,3,4\n"])
def test_a_row_that_cannot_be_read_is_bad_data(rows: str, tmp_path: Path) -> None:
    good = "1,a,3\n" * 300_000  # more than is looked at when the file is opened
    with pytest.raises(BadDataError, match=r"--ratings .*ratings.csv: column productCode cannot be read: .*"):
        count_ratings(_csv(tmp_path, HEADER + good + rows), CLASSICMODELS)


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n"])
def test_a_file_without_the_column_is_wrong_usage(text: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot be read as csv|expected a column productCode, got a, b"):
        count_ratings(_csv(tmp_path, text), CLASSICMODELS)


def test_a_column_of_lists_is_bad_data(tmp_path: Path) -> None:
    path = tmp_path / "ratings.parquet"
    parquet.write_table(pa.table({"productCode": [[{"a": 1}]]}), path)
    with pytest.raises(BadDataError, match="column productCode cannot be read"):
        count_ratings(str(path), CLASSICMODELS)
