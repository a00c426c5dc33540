"""Several files of one format as one, row by row in the order given, with the memory of one of them."""

import gzip
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from beamrec.io.store import Store
from beamrec.schemas.errors import BeamrecError
from beamrec.schemas.records import changed_columns, columns_text

__all__ = ["join_files"]

_ROWS_A_GROUP = 100_000


def join_files(store: Store, paths: Sequence[str], target: Path) -> int:
    """Writes a local file with the rows of all; the suffix of the paths says how they are written.

    Returns:
      How many rows there are, counted in what was written.

    Raises:
      BeamrecError: a file is damaged or has other columns, or what was written has not as many rows as what
        was read.
    """
    join, count = _FORMATS[paths[0][paths[0].rindex("/") :].partition(".")[2]]
    try:
        read = join(store, paths, target)
    except (OSError, EOFError, pa.ArrowInvalid) as error:
        raise BeamrecError(f"a file of {paths[0].rpartition('/')[0]} cannot be read: {error}") from error
    written = count(target)
    if read != written:
        raise BeamrecError(f"{written} rows were written of {read} in {paths[0].rpartition('/')[0]}")
    return written


def _join_lines(store: Store, paths: Sequence[str], target: Path) -> int:
    rows = 0
    with open(target, "wb") as out:
        for path in paths:
            data = store.read(path)
            rows += data.count(b"\n")
            out.write(data)
    return rows


def _join_zipped(store: Store, paths: Sequence[str], target: Path) -> int:
    """Anew, since not every reader goes on behind the end of the first of several gzip members."""
    rows = 0
    with open(target, "wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as out:
        for path in paths:
            data = gzip.decompress(store.read(path))
            rows += data.count(b"\n")
            out.write(data)
    return rows


def _join_tables(store: Store, paths: Sequence[str], target: Path) -> int:
    rows, waiting = 0, []
    with pq.ParquetFile(pa.BufferReader(store.read(paths[0]))) as first:
        schema = first.schema_arrow
    columns = columns_text(schema)
    with pq.ParquetWriter(target, schema) as out:
        for path in paths:
            # Read with the first one's schema, a file would lose what that does not have, silently.
            data = pa.BufferReader(store.read(path))
            if changed := changed_columns(columns, columns_text(pq.read_schema(data))):
                raise BeamrecError(f"{path} has other columns than the files that it is to join ({changed})")
            data.seek(0)
            waiting.append(pq.read_table(data, schema=schema))
            rows += waiting[-1].num_rows
            if sum(table.num_rows for table in waiting) >= _ROWS_A_GROUP:
                out.write_table(pa.concat_tables(waiting))
                waiting = []
        if waiting:
            out.write_table(pa.concat_tables(waiting))
    return rows


def _count_lines(path: Path) -> int:
    with open(path, "rb") as file:
        return sum(1 for _ in file)


def _count_zipped(path: Path) -> int:
    with gzip.open(path, "rb") as file:
        return sum(1 for _ in file)


def _count_rows(path: Path) -> int:
    return int(pq.read_metadata(path).num_rows)


_Join = Callable[[Store, Sequence[str], Path], int]
_FORMATS: Mapping[str, tuple[_Join, Callable[[Path], int]]] = {
    "jsonl": (_join_lines, _count_lines),
    "jsonl.gz": (_join_zipped, _count_zipped),
    "parquet": (_join_tables, _count_rows),
}
