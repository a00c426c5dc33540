"""PostgreSQL's side of the bounded source, against a real server."""

import dataclasses
import datetime as dt
import decimal
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from beamrec.io import postgres_tables as tables
from beamrec.io.arrow_types import to_array
from beamrec.io.backend import Query
from beamrec.schemas.errors import BadDataError, ConnectionLostError, UnavailableError, UsageError

pytestmark = pytest.mark.usefixtures("source_password")

MOMENT = dt.datetime(2004, 2, 29, 23, 59, 59, 999999)  # noqa: DTZ001  (TIMESTAMP has no zone)
INSTANT = dt.datetime(2004, 2, 29, 21, 59, 59, 500000, tzinfo=dt.UTC)
MONEY, LONG = pa.decimal128(10, 2), pa.decimal256(50, 3)
# Column type, values as SQL, values as Python sees them, Arrow type.
TYPES: list[tuple[str, list[str], list[Any], pa.DataType]] = [
    ("smallint", ["-32768", "NULL"], [-32768, None], pa.int16()),
    ("integer", ["-2147483648", "2147483647"], [-(2**31), 2**31 - 1], pa.int32()),
    ("bigint", ["-9223372036854775808"], [-(2**63)], pa.int64()),
    ("decimal(10,2)", ["21000", "-0.01", "NULL"], ["21000.00", "-0.01", None], MONEY),
    (
        "numeric(50,3)",
        ["123456789012345678901234567890123456789.5"],
        ["123456789012345678901234567890123456789.5"],
        LONG,
    ),
    ("numeric(2,5)", ["0.00015"], ["0.00015"], pa.decimal128(5, 5)),
    ("numeric(3,-2)", ["12345"], ["12300"], pa.decimal128(5, 0)),
    ("numeric", ["1 / 3::numeric", "1e17", "NULL"], ["0." + "3" * 20, "1e17", None], pa.decimal128(38, 20)),
    ("numeric(99,2)", ["1"], ["1.00"], pa.string()),
    ("double precision", ["0.1", "1e300", "'-Infinity'"], [0.1, 1e300, float("-inf")], pa.float64()),
    ("real", ["16777215", "0.1"], [16777215.0, 0.10000000149011612], pa.float32()),
    ("boolean", ["true", "false", "NULL"], [1, 0, None], pa.int8()),
    ("date", ["'2004-02-29'", "NULL"], [dt.date(2004, 2, 29), None], pa.date32()),
    ("timestamp", ["'2004-02-29 23:59:59.999999'"], [MOMENT], pa.timestamp("us")),
    ("timestamp(0)", ["'2004-02-29 23:59:59'"], [MOMENT.replace(microsecond=0)], pa.timestamp("us")),
    ("timestamptz", ["'2004-02-29 23:59:59.5+02'"], [INSTANT], pa.timestamp("us", "UTC")),
    ("text", ["''", "NULL", "'Norway  '", "'Köln 🚗'"], ["", None, "Norway  ", "Köln 🚗"], pa.string()),
    ("varchar(20)", ["E'a\\\\b''c%s\"\\n\\\\.\\n'"], ["a\\b'c%s\"\n\\.\n"], pa.string()),
    ("char(5)", ["'ab'", "''", "' a'"], ["ab", "", " a"], pa.string()),
    (
        "uuid",
        ["'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'"],
        ["a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"],
        pa.string(),
    ),
    ("json", ["'{\"a\": 1}'", "NULL"], ['{"a": 1}', None], pa.string()),
    ("jsonb", ["'{\"a\":1}'"], ['{"a": 1}'], pa.string()),
    ("time", ["'23:59:59.5'"], ["23:59:59.5"], pa.string()),
    ("integer[]", ["'{1,NULL}'"], ["{1,NULL}"], pa.string()),
    ("colour", ["'red'", "NULL"], ["red", None], pa.string()),
    ("rating", ["5", "NULL"], [5, None], pa.int16()),
    ("bytea", ["'\\x00ff'", "''", "NULL"], [b"\x00\xff", b"", None], pa.binary()),
]


@pytest.fixture
def database(postgresql: Any) -> str:
    """An empty database."""
    name: str = postgresql.create_database("scratch")
    return name


def read(uri: str, table: str, column: str, bulk: bool = True) -> pa.Array:
    """One column as the source reads it, in the order of `id`."""
    with tables.connect(uri) as connection:
        types = tables.column_types(connection, table)
        query = Query(table, tuple((name, types[name]) for name in ("id", column)))
        columns = tables.read(connection, query, bulk)
    ids, values = (to_array(each, types[name]) for each, name in zip(columns, ("id", column), strict=True))
    return values.take(pc.sort_indices(ids))


@pytest.mark.parametrize("bulk", [True, False], ids=["copied", "row by row"])
@pytest.mark.parametrize(("declared", "sql", "expected", "type_"), TYPES, ids=[each[0] for each in TYPES])
def test_every_type_is_read_exactly(
    postgresql: Any,
    database: str,
    declared: str,
    sql: list[str],
    expected: list[Any],
    type_: pa.DataType,
    bulk: bool,
) -> None:
    rows = ", ".join(f"({number}, {value})" for number, value in enumerate(sql))
    postgresql.execute_as_shop(
        "CREATE TYPE colour AS ENUM ('red')",
        "CREATE DOMAIN rating AS smallint CHECK (VALUE BETWEEN 1 AND 5)",
        f"CREATE TABLE t (id int PRIMARY KEY, v {declared})",
        f"INSERT INTO t VALUES {rows}",  # noqa: S608
    )
    array = read(postgresql.uri(database), "t", "v", bulk)
    assert array.type == type_
    wanted = [decimal.Decimal(v) if pa.types.is_decimal(type_) and v else v for v in expected]
    assert array.to_pylist() == wanted


@pytest.mark.parametrize("bulk", [True, False], ids=["copied", "row by row"])
@pytest.mark.parametrize(
    ("declared", "value", "shown"),
    [
        ("numeric", "1e18", "1000000000000000000"),
        ("numeric", "50428212743793442270814901748677432112", "50428212743793442270814901748677432112"),
        ("numeric", "1e-21", "0.000000000000000000001"),
        ("numeric(9,2)", "'NaN'", "NaN"),
        ("date", "'infinity'", "infinity"),
        ("timestamp", "'0044-03-15 BC'", "0044-03-15 00:00:00 BC"),
    ],
)
def test_a_value_that_arrow_cannot_hold_comes_as_it_is(
    postgresql: Any, database: str, declared: str, value: str, shown: str, bulk: bool
) -> None:
    postgresql.execute_as_shop(f"CREATE TABLE t (id int, v {declared})", f"INSERT INTO t VALUES (1, {value})")  # noqa: S608
    with tables.connect(postgresql.uri(database)) as connection:
        types = tables.column_types(connection, "t")
        ids, values = tables.read(connection, Query("t", tuple(types.items())), bulk)
    assert to_array(ids, pa.int32()).to_pylist() == [1]
    assert [str(each) for each in values] == [shown]
    with pytest.raises((pa.ArrowException, ValueError)):
        to_array(values, types["v"])


@pytest.mark.parametrize("bulk", [True, False], ids=["copied", "row by row"])
def test_text_that_is_not_utf_8_comes_as_bytes(postgresql: Any, bulk: bool) -> None:
    postgresql.create_database("ascii", "ENCODING 'SQL_ASCII' LOCALE 'C'")
    postgresql.execute(
        "CREATE TABLE t (id int, v text)",
        "INSERT INTO t VALUES (1, convert_from('\\xff'::bytea, 'SQL_ASCII')), (2, 'Malmö'), (3, NULL)",
        "GRANT SELECT ON t TO shop",
        database="ascii",
    )
    with tables.connect(postgresql.uri("ascii")) as connection:
        _, values = tables.read(connection, Query("t", (("id", pa.int32()), ("v", pa.string()))), bulk)
        assert list(values) == [b"\xff", "Malmö", None]
        with pytest.raises(BadDataError, match="not UTF-8"):
            list(tables.fetch(connection, "SELECT v FROM t"))


@pytest.mark.parametrize("name", ['we"ird', "%s", "order", "a'b;--", "Größe", "MSRP"])
def test_hostile_names_are_names(postgresql: Any, database: str, name: str) -> None:
    quoted = '"' + name.replace('"', '""') + '"'
    postgresql.execute_as_shop(
        f"CREATE TABLE {quoted} (id int PRIMARY KEY, {quoted} int)",
        f"INSERT INTO {quoted} VALUES (1, 7), (2, 8)",  # noqa: S608
    )
    for bulk in (True, False):
        assert read(postgresql.uri(database), name, name, bulk).to_pylist() == [7, 8]
    with tables.connect(postgresql.uri(database)) as connection:
        query = Query(name, ((name, pa.int32()),), f"{tables.quote(name)} > %s", (7,))
        assert [list(tables.read(connection, query, bulk)[0]) for bulk in (True, False)] == [
            [pa.scalar(8, pa.int32())],
            ["8"],
        ]


def test_conditions_take_any_text(postgresql: Any, database: str) -> None:
    postgresql.execute_as_shop("CREATE TABLE t (v text)", "INSERT INTO t VALUES (E'\\\\%s''\"'), ('b')")
    with tables.connect(postgresql.uri(database)) as connection:
        query = Query("t", (("v", pa.string()),), '"v" = %s', ("\\%s'\"",))
        assert [
            to_array(tables.read(connection, query, bulk)[0], pa.string()).to_pylist()
            for bulk in (True, False)
        ] == [["\\%s'\""]] * 2
        nothing = dataclasses.replace(query, parameters=("c",))
        assert [len(tables.read(connection, nothing, bulk)[0]) for bulk in (True, False)] == [0, 0]


@given(
    st.lists(
        st.tuples(
            st.none()
            | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=9)
            | st.text('"\\.\r\n, N', max_size=5),
            st.none() | st.integers(-(2**31), 2**31 - 1),
        ),
        max_size=30,
    )
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_copied_rows_are_the_rows(postgresql: Any, rows: list[tuple[str | None, int | None]]) -> None:
    batch = pa.RecordBatch.from_pydict(
        {
            "id": pa.array(range(len(rows)), pa.int32()),
            "v": pa.array([text for text, _ in rows], pa.string()),
            "n": pa.array([number for _, number in rows], pa.int32()),
        }
    )
    if not postgresql.execute("SELECT 1 FROM pg_database WHERE datname = 'packed'"):
        postgresql.create_database("packed")
    uri = postgresql.uri("packed")
    with tables.connect_for_writing(uri) as connection:
        columns = {"id": "int(11)", "v": "varchar(20)", "n": "int"}
        tables.write_table(connection, "t", columns, ["id"], [batch] if rows else [])
    for column in ("v", "n"):
        for bulk in (True, False):
            assert read(uri, "t", column, bulk).to_pylist() == batch.column(column).to_pylist()


def test_a_column_alone_keeps_its_nulls_and_huge_values(postgresql: Any, database: str) -> None:
    postgresql.execute_as_shop(
        "CREATE TABLE t (v text)",
        "INSERT INTO t SELECT repeat(E'a\"\\n', 1000000) FROM generate_series(1, 4)",
        "INSERT INTO t VALUES (NULL), ('')",
    )
    with tables.connect(postgresql.uri(database)) as connection:
        (values,) = tables.read(connection, Query("t", (("v", pa.string()),)), True)
    assert values.to_pylist() == ['a"\n' * 1_000_000] * 4 + [None, ""]


def test_views_and_partitions_are_tables_and_schemas_are_chosen_in_the_uri(
    postgresql: Any, database: str
) -> None:
    postgresql.execute_as_shop(
        'CREATE SCHEMA "Sales"',
        'CREATE TABLE "Sales".t (id int, v int) PARTITION BY LIST (id)',
        'CREATE TABLE "Sales".t1 PARTITION OF "Sales".t DEFAULT',
        'INSERT INTO "Sales".t VALUES (1, 10)',
        "CREATE TABLE public.t (id int, v int)",
        'CREATE VIEW public.w AS SELECT id, v + 1 AS v FROM "Sales".t',
        'CREATE MATERIALIZED VIEW public."M" AS SELECT 1 AS id, 2 AS v',
    )
    uri = postgresql.uri(database)
    assert read(uri, "t", "v").to_pylist() == []
    assert read(f"{uri}?schema=Sales", "t", "v").to_pylist() == [10]
    assert read(f"{uri}?schema=Sales", "w", "v").to_pylist() == [11]
    assert read(uri, "M", "v").to_pylist() == [2]
    with tables.connect(f"{uri}?schema=Sales") as connection:
        assert tables.table_names(connection) == {"t", "t1", "w", "M"}
    with pytest.raises(
        UsageError, match=r"expected a table none.*in the schemas \"Sales\", public; .*--shop"
    ):
        read(f"{uri}?schema=Sales", "none", "v")


def test_a_user_without_rights_is_told_what_to_grant(postgresql: Any, database: str) -> None:
    postgresql.execute_as_shop(
        "CREATE TABLE t (id int, open int, secret int)", "GRANT SELECT (id, open) ON t TO reader"
    )
    uri = postgresql.uri(database, "reader")
    assert read(uri, "t", "open").to_pylist() == []
    for bulk in (True, False):
        with pytest.raises(
            UnavailableError, match=r"permission denied for table t; grant the user SELECT"
        ) as caught:
            read(uri, "t", "secret", bulk)
        assert not isinstance(caught.value, ConnectionLostError)
    postgresql.execute_as_shop("CREATE SCHEMA closed", "CREATE TABLE closed.u (id int)")
    with pytest.raises(UsageError, match="grant the user USAGE on the schema and SELECT"):
        read(f"{uri}?schema=closed", "u", "id")


def test_what_is_written_is_read_back_and_all_or_nothing(postgresql: Any, database: str) -> None:
    batch = pa.RecordBatch.from_pydict(
        {
            "id": pa.array([1, 2], pa.int32()),
            "v%": pa.array(["a'b\\c%s%%🚗", None]),
            "d": pa.array([decimal.Decimal("1.10"), None], pa.decimal128(10, 2)),
        }
    )
    columns = {"id": "int(11) NOT NULL", "v%": "varchar(20)", "d": "decimal(10,2)"}
    uri = postgresql.uri(database)
    for _ in range(2):  # the second replaces the first
        with tables.connect_for_writing(uri) as connection:
            tables.write_table(connection, 't"%', columns, ["id"], [batch])
    with (
        pytest.raises(UnavailableError, match="duplicate key"),
        tables.connect_for_writing(uri) as connection,
    ):
        tables.write_table(connection, 't"%', columns, ["id"], [batch, batch])
    assert read(uri, 't"%', "v%").to_pylist() == ["a'b\\c%s%%🚗", None]
    assert read(uri, 't"%', "d").to_pylist() == [decimal.Decimal("1.10"), None]


@pytest.mark.parametrize("bulk", [True, False], ids=["copied", "row by row"])
def test_a_connection_that_is_lost_mid_read_gives_no_part_of_the_rows(
    postgresql: Any, database: str, bulk: bool
) -> None:
    """The query ends its own connection after it has sent many rows."""
    postgresql.execute_as_shop(
        "CREATE TABLE t (id int)",
        "INSERT INTO t SELECT generate_series(1, 50000)",
        "CREATE FUNCTION slip(int) RETURNS int VOLATILE LANGUAGE sql AS "
        "$$ SELECT CASE WHEN $1 = 40000 THEN pg_terminate_backend(pg_backend_pid())::int ELSE $1 END $$",
        "CREATE VIEW w AS SELECT slip(id) AS id FROM t",
    )
    query = Query("w", (("id", pa.int32()),))
    with (
        pytest.raises(ConnectionLostError, match=r"terminating connection|server closed the connection"),
        tables.connect(postgresql.uri(database)) as connection,
    ):
        tables.read(connection, query, bulk)
