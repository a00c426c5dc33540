"""Vector indexes of a filled partition: which kinds, with which parameters, and what building one needs."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

import psycopg2
from psycopg2 import sql

from beamrec.schemas.errors import UsageError

__all__ = ["OPERATOR_CLASSES", "IndexKind", "IndexOptions", "create_index", "ivfflat_lists"]

IndexKind = Literal["hnsw", "ivfflat", "none"]

OPERATOR_CLASSES = {"<->": "vector_l2_ops", "<=>": "vector_cosine_ops", "<#>": "vector_ip_ops"}

_LIST_ROWS = 1_000  # rows a list, as pgvector advises up to a million rows; beyond it √rows lists
_MOST_ROWS_BY_THOUSANDS = 1_000_000
_MOST_GIVEN_MEMORY = 2**41 - 2**20  # bytes; the setting ends there, in kilobytes of an int
_LEAST_MEMORY, _MOST_MEMORY = 64 * 2**20, 2**31 - 2**20  # bytes; before PostgreSQL 18 the setting ended there


@dataclasses.dataclass(frozen=True)
class IndexOptions:
    """How the items of a release are indexed.

    Attributes:
      kind: `hnsw`; `ivfflat`, which is built several times faster and finds less; or `none`.
      m, ef_construction: HNSW's edges a node and the width of its search while it is built.
      lists: IVFFlat's number of lists; None takes it from the number of items.
      workers: processes that build beside the first one.
      memory_bytes: maintenance_work_mem while building; None takes what the index needs, 2 GiB at most. An
        HNSW index that does not fit into it is built several times slower.
    """

    kind: IndexKind = "hnsw"
    m: int = 16
    ef_construction: int = 64
    lists: int | None = None
    workers: int = 2
    memory_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("hnsw", "ivfflat", "none"):
            raise UsageError(f"--index: expected hnsw, ivfflat or none, got {self.kind!r}")
        if not 2 <= self.m <= 100:
            raise UsageError(f"--hnsw-m: expected 2 to 100, got {self.m}")
        if not max(4, 2 * self.m) <= self.ef_construction <= 1000:
            raise UsageError(
                f"--hnsw-ef-construction: expected {2 * self.m} (twice --hnsw-m) to 1000, "
                f"got {self.ef_construction}"
            )
        if self.lists is not None and not 1 <= self.lists <= 32_768:
            raise UsageError(f"--ivfflat-lists: expected 1 to 32768, got {self.lists}")
        if not 0 <= self.workers <= 1024:
            raise UsageError(f"--index-workers: expected 0 to 1024, got {self.workers}")
        if self.memory_bytes is not None and not 2**20 <= self.memory_bytes <= _MOST_GIVEN_MEMORY:
            raise UsageError(
                f"--index-memory-mb: expected 1 to {_MOST_GIVEN_MEMORY // 2**20:,}, "
                f"got {self.memory_bytes // 2**20:,}"
            )

    @classmethod
    def of(cls, described: Mapping[str, Any]) -> "IndexOptions":
        """The inverse of `described`: builds an index like that which a release has."""
        return cls(**described)

    def described(self, rows: int) -> dict[str, Any]:
        """The parameters that matter for `rows` items, as they are kept with a release."""
        if self.kind == "hnsw":
            return {"kind": "hnsw", "m": self.m, "ef_construction": self.ef_construction}
        if self.kind == "ivfflat":
            return {"kind": "ivfflat", "lists": self.lists or ivfflat_lists(rows)}
        return {"kind": "none"}

    def needed_memory(self, rows: int, dim: int) -> int:
        """Bytes of maintenance_work_mem: an HNSW graph holds every vector and 2 m edges at its base."""
        if self.memory_bytes is not None:
            return self.memory_bytes
        needed = rows * (4 * dim + 40 * self.m + 200) if self.kind == "hnsw" else rows * 4 * dim // 4
        return min(_MOST_MEMORY, max(_LEAST_MEMORY, needed))


def ivfflat_lists(rows: int) -> int:
    """Lists that pgvector advises for so many rows."""
    return max(1, rows // _LIST_ROWS) if rows <= _MOST_ROWS_BY_THOUSANDS else math.isqrt(rows)


def create_index(
    cursor: psycopg2.extensions.cursor,
    table: str,
    rows: int,
    dim: int,
    operators: frozenset[str],
    options: IndexOptions,
) -> None:
    """Builds the index of a filled table of `beamrec` on the typed cast of its vectors, one an operator.

    The settings hold until the end of the transaction.
    """
    if options.kind == "none":
        return
    settings = {
        "maintenance_work_mem": f"{options.needed_memory(rows, dim) // 1024}kB",
        "max_parallel_maintenance_workers": str(options.workers),
    }
    _set_local(cursor, settings)
    for operator in sorted(operators):
        _create_with_workers(cursor, table, rows, dim, operator, options)


def _create_with_workers(
    cursor: psycopg2.extensions.cursor,
    table: str,
    rows: int,
    dim: int,
    operator: str,
    options: IndexOptions,
) -> None:
    """Builds one index; where workers cannot share memory (a container's small /dev/shm), alone."""
    parameters = {name: value for name, value in options.described(rows).items() if name != "kind"}
    statement = sql.SQL("CREATE INDEX ON beamrec.{} USING {} ((embedding::vector({})) {}) WITH ({})").format(
        sql.Identifier(table),
        sql.SQL(options.kind),
        sql.Literal(dim),
        sql.SQL(OPERATOR_CLASSES[operator]),
        sql.SQL(", ").join(sql.SQL(f"{name} = {value}") for name, value in parameters.items()),
    )
    cursor.execute("SAVEPOINT before_index")
    try:
        cursor.execute(statement)
    except psycopg2.errors.DiskFull as error:
        if "shared memory" not in str(error):
            raise
        cursor.execute("ROLLBACK TO SAVEPOINT before_index")
        _set_local(cursor, {"max_parallel_maintenance_workers": "0"})
        cursor.execute(statement)
    cursor.execute("RELEASE SAVEPOINT before_index")


def _set_local(cursor: psycopg2.extensions.cursor, settings: dict[str, str]) -> None:
    for name, value in settings.items():
        try:
            cursor.execute("SELECT set_config(%s, %s, true)", [name, value])
        except psycopg2.errors.InvalidParameterValue as error:  # bounds differ between versions and systems
            reason = str(error).splitlines()[0]
            raise UsageError(
                f"--index-memory-mb, --index-workers: this server refuses that: {reason}"
            ) from error
