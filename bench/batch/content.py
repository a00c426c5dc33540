"""Whether two outputs hold the same rows, whatever their files, their order and their integers' widths."""

import dataclasses
import tempfile
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
_EMPTY = f"SELECT {', '.join(f'NULL::{type_}' for type_ in _TYPES.values())} WHERE false"
_NAMES = ", ".join(f'"{name}"' for name in _TYPES)
_HASH = f"hash({_NAMES})"
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
        hashes = f"SELECT {_HASH} AS h FROM ({_select([str(output / '**' / '*.parquet')])})"  # noqa: S608
        sql = f"SELECT count(*), sum(h::HUGEINT), bit_xor(h) FROM ({hashes})"  # noqa: S608
        rows, total, mixed = connection.execute(sql).fetchone() or (0, 0, 0)
    return Content(rows, f"{total or 0:x}-{mixed or 0:x}")


def first_difference(ours: Path, theirs: Path, rows: int) -> str | None:
    """A row that one output has, or has more often, than the other; None if there is none.

    Every row counts with all its columns, and NULL is equal to NULL alone. A slice of the customers is
    compared at a time, so that memory is bounded.

    Args:
      ours: folder with a partition for each customer.
      theirs: such a folder, or one of plain files that have the customer as a column.
      rows: about how many each of them has.
    """
    customers = sorted({number for output in (ours, theirs) for number in _partitions(output)})
    if not customers:
        return f"expected partitions of customerNumber in {ours}, found none"
    size = max(1, len(customers) * _ROWS_PER_SLICE // max(1, rows))
    with _connect() as connection:
        for start in range(0, len(customers), size):
            mine, other = (_slice(output, customers[start : start + size]) for output in (ours, theirs))
            both = f"SELECT *, 1 AS n FROM ({mine}) UNION ALL SELECT *, -1 FROM ({other})"  # noqa: S608
            # The same as EXCEPT ALL both ways, in half its time.
            sql = f"SELECT {_NAMES}, sum(n) FROM ({both}) GROUP BY {_NAMES} HAVING sum(n) <> 0 LIMIT 1"  # noqa: S608
            row = connection.execute(sql).fetchone()
            if row:
                return f"{row[:-1]} stands {abs(row[-1])} times more in {'ours' if row[-1] > 0 else 'theirs'}"
    return None


def _connect() -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect()
    connection.execute("SET memory_limit = '6GB'")
    connection.execute(f"SET temp_directory = '{tempfile.gettempdir()}/beamrec-bench-spill'")
    connection.execute("SET preserve_insertion_order = false")
    return connection


def _partitions(output: Path) -> dict[int, Path]:
    return {int(path.name.partition("=")[2]): path for path in output.glob("customerNumber=*")}


def _slice(output: Path, customers: list[int]) -> str:
    """Query of an output's rows of some customers, the partitions named one by one: a glob takes seconds."""
    partitions = _partitions(output)
    if not partitions:
        within = f"customerNumber BETWEEN {customers[0]} AND {customers[-1]}"
        return f"SELECT * FROM ({_select([str(output / '*.parquet')])}) WHERE {within}"  # noqa: S608
    found = [partitions[customer] for customer in customers if customer in partitions]
    files = [str(path) for folder in found for path in folder.glob("*.parquet")]
    return _select(files) if files else _EMPTY


def _select(files: list[str]) -> str:
    listed = ", ".join("'" + file.replace("'", "''") + "'" for file in files)
    return f"SELECT {_COLUMNS} FROM read_parquet([{listed}], hive_partitioning = true)"  # noqa: S608
