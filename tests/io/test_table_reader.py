"""A table's rows come typed, or apart from the others with the column that does not fit."""

import contextlib
import datetime as dt
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from beamrec.io import sqlite
from beamrec.io.table_reader import Rows, TableReader
from beamrec.schemas.errors import UsageError

MOMENT = dt.datetime(2004, 10, 16, 12)  # noqa: DTZ001  (a DATETIME has no zone)


def read(path: Path, declared: str, values: Sequence[Any], columns: Sequence[str] = ("id", "v")) -> Rows:
    """Columns of a table `t` with an `id` from 0, a column `v` of the values and a `place` on the map."""
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(f"CREATE TABLE t (id INTEGER PRIMARY KEY, v {declared}, place geometry)")
        connection.executemany("INSERT INTO t (id, v) VALUES (?, ?)", enumerate(values))
    with sqlite.connect(f"sqlite:///{path}") as connection:
        return TableReader.open(sqlite, connection, "t", columns, bulk=True).read(connection)


@pytest.mark.parametrize(
    ("declared", "values", "kept", "misfit"),
    [
        ("DATETIME", ["2004-10-16 12:00:00", 1097884800], [MOMENT], {1: 1097884800}),
        ("DATETIME", [1097884800, 1097884800], [], {0: 1097884800, 1: 1097884800}),
        ("TIMESTAMP", [1097884800.5, "2004-10-16 12:00:00"], [MOMENT], {0: 1097884800.5}),
        ("DATE", [20041016, "2004-10-16", None], [MOMENT.date(), None], {0: 20041016}),
        ("BOOLEAN", [1, "yes", 0], [1, 0], {1: "yes"}),
    ],
)
def test_what_does_not_fit_comes_apart(
    tmp_path: Path, declared: str, values: list[Any], kept: list[Any], misfit: dict[int, Any]
) -> None:
    batch, malformed = read(tmp_path / "db", declared, values)
    assert batch.column("v").to_pylist() == kept
    assert {row.row["id"]: row.row["v"] for row in malformed} == misfit
    assert {row.column for row in malformed} == {"v"}


def test_text_among_numbers_is_the_number_that_it_spells(tmp_path: Path) -> None:
    """A column of a view has no affinity, and holds what its expressions give."""
    path = tmp_path / "db"
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE base (id INTEGER PRIMARY KEY, v BLOB)")
        connection.execute("INSERT INTO base VALUES (1, 7), (2, '8'), (3, 'x'), (4, NULL)")
    with sqlite.connect(f"sqlite:///{path}") as connection:
        schema = pa.schema([("id", pa.int64()), ("v", pa.int32())])
        batch, malformed = TableReader(sqlite, "base", schema, ("id", "v"), bulk=True).read(connection)
    assert batch.column("v").to_pylist() == [7, 8, None]
    assert [row.row for row in malformed] == [{"id": 3, "v": "x"}]


def test_a_column_of_an_unknown_type_is_refused_only_where_it_is_read(tmp_path: Path) -> None:
    assert read(tmp_path / "db", "INT", [5])[0].to_pylist() == [{"id": 0, "v": 5}]
    with pytest.raises(UsageError, match=r"table t, column place: unknown column type 'geometry'; give"):
        read(tmp_path / "other", "INT", [5], columns=("id", "place"))
