"""Whether two outputs hold the same rows, whatever their files, their order and their integers' widths."""

import dataclasses
from pathlib import Path

import duckdb

__all__ = ["Content", "fingerprint", "first_difference"]

_TYPES = {
    "customerNumber": "BIGINT",
    "city": "VARCHAR",
    "state": "VARCHAR",
    "postalCode": "VARCHAR",
    "country": "VARCHAR",
    "creditLimit": "DECIMAL(10, 2)",
    "productCode": "VARCHAR",
    "productLine": "VARCHAR",
    "productScale": "VARCHAR",
    "quantityInStock": "BIGINT",
    "buyPrice": "DECIMAL(10, 2)",
    "MSRP": "DECIMAL(10, 2)",
    "productRating": "BIGINT",
}
_COLUMNS = ", ".join(f'"{name}"::{type_} AS "{name}"' for name, type_ in _TYPES.items())
_HASH = f"hash({', '.join(f'{chr(34)}{name}{chr(34)}' for name in _TYPES)})"
_ROWS_PER_SLICE = 5_000_000


@dataclasses.dataclass(frozen=True)
class Content:
    """How many rows an output has, and sum and exclusive or of their hashes over all 13 columns.

    Two outputs of equal content are equal; unequal ones are so with a chance of about 2⁻¹²⁸ at best.
    """

    rows: int
    fingerprint: str


def fingerprint(output: Path) -> Content:
    """The content of an output as three figures that do not depend on the order of its rows."""
    with _connect() as connection:
        hashes = f"SELECT {_HASH} AS h FROM ({_select(output)})"  # noqa: S608
        sql = f"SELECT count(*), sum(h::HUGEINT), bit_xor(h) FROM ({hashes})"  # noqa: S608
        rows, total, mixed = connection.execute(sql).fetchone() or (0, 0, 0)
    return Content(rows, f"{total or 0:x}-{mixed or 0:x}")


def first_difference(ours: Path, theirs: Path) -> str | None:
    """A row that one output has, or has more often, than the other; None if there is none.

    Compared by `EXCEPT ALL` both ways, a slice of the customers at a time, so that memory is bounded.
    """
    with _connect() as connection:
        for low, high in _slices(connection, ours, theirs):
            within = f"WHERE customerNumber BETWEEN {low} AND {high}"
            for left, right, where in ((ours, theirs, "the peer's"), (theirs, ours, "ours")):
                rows, others = (f"(SELECT * FROM ({_select(o)}) {within})" for o in (left, right))  # noqa: S608
                row = connection.execute(f"{rows} EXCEPT ALL {others} LIMIT 1").fetchone()
                if row:
                    return f"{row} is missing in {where}"
    return None


def _connect() -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect()
    connection.execute("SET memory_limit = '6GB'")
    connection.execute("SET preserve_insertion_order = false")
    return connection


def _select(output: Path) -> str:
    files = str(output / "**" / "*.parquet").replace("'", "''")
    source = f"read_parquet('{files}', hive_partitioning = true, hive_types_autocast = true)"
    return f"SELECT {_COLUMNS} FROM {source}"  # noqa: S608


def _slices(connection: duckdb.DuckDBPyConnection, *outputs: Path) -> list[tuple[int, int]]:
    """Intervals of customers that hold about five million rows each, without a gap between them.

    They span the partitions of all outputs; an output that is one file has none.
    """
    customers = sorted({int(p.name.partition("=")[2]) for o in outputs for p in o.glob("customerNumber=*")})
    if not customers:
        raise SystemExit(f"no partition of customerNumber in {outputs[0]}")
    rows = connection.execute(f"SELECT count(*) FROM ({_select(outputs[0])})").fetchone()  # noqa: S608
    parts = max(1, (rows[0] if rows else 0) // _ROWS_PER_SLICE)
    size = -(-len(customers) // parts)
    starts = customers[::size]
    return list(zip(starts, [*(start - 1 for start in starts[1:]), customers[-1]], strict=True))
