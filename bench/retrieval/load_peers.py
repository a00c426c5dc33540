"""How others put embeddings into PostgreSQL: a table with its key, filled by five hand-written clients.

Each makes the same table with the same rows (release, id, embedding, popularity_rank), gives it its primary
key, analyses it and commits. None of them checks what it stored.
"""

import dataclasses
import io
import struct
from collections.abc import Callable, Sequence

import numpy as np
import psycopg
import psycopg2
from pgvector.psycopg import register_vector
from psycopg2.extras import execute_values

__all__ = ["PEERS", "Peer", "Rows"]

_TABLE = (
    "DROP TABLE IF EXISTS public.peer; CREATE TABLE public.peer (release text NOT NULL, "
    'id text COLLATE "C" NOT NULL, embedding vector NOT NULL, popularity_rank int)'
)
_FINISH = "ALTER TABLE public.peer ADD PRIMARY KEY (id); ANALYZE public.peer"
_INSERT = "INSERT INTO public.peer VALUES (%s, %s, %s, %s)"
_HEADER = b"PGCOPY\n\xff\r\n\x00" + struct.pack(">ii", 0, 0)
_CHUNK_ROWS = 20_000


@dataclasses.dataclass(frozen=True)
class Rows:
    """What is loaded: ids of one length, as most shops have them, and vectors [rows, dim] float32."""

    release: str
    ids: Sequence[str]
    vectors: np.ndarray
    ranks: np.ndarray


@dataclasses.dataclass(frozen=True)
class Peer:
    """A client: what it is, and the function that loads rows into the database of a libpq URI."""

    name: str
    title: str
    load: Callable[[str, Rows], None]


def _vectors(uri: str) -> psycopg.Connection:
    """A connection that knows vectors; its cursors must be made afterwards."""
    connection = psycopg.connect(uri)
    register_vector(connection)
    return connection


def _executemany(uri: str, rows: Rows) -> None:
    """psycopg 3: a pipeline of one prepared statement, vectors in binary."""
    with _vectors(uri) as connection, connection.cursor() as cursor:
        cursor.execute(_TABLE)
        values = zip([rows.release] * len(rows.ids), rows.ids, rows.vectors, rows.ranks.tolist(), strict=True)
        cursor.executemany(_INSERT, values)
        cursor.execute(_FINISH)


def _execute_values(uri: str, rows: Rows) -> None:
    """psycopg2: a thousand rows a statement, vectors as text."""
    with psycopg2.connect(uri) as connection, connection.cursor() as cursor:
        cursor.execute(_TABLE)
        values = [
            (rows.release, i, str(vector), rank)
            for i, vector, rank in zip(rows.ids, rows.vectors.tolist(), rows.ranks.tolist(), strict=True)
        ]
        execute_values(cursor, "INSERT INTO public.peer VALUES %s", values, page_size=1000)
        cursor.execute(_FINISH)
    connection.close()


def _write_rows(uri: str, rows: Rows) -> None:
    """psycopg 3: binary COPY a row at a time, as pgvector's own example does."""
    with _vectors(uri) as connection, connection.cursor() as cursor:
        cursor.execute(_TABLE)
        with cursor.copy("COPY public.peer FROM STDIN WITH (FORMAT BINARY)") as copy:
            copy.set_types(["text", "text", "vector", "int4"])
            for i, vector, rank in zip(rows.ids, rows.vectors, rows.ranks.tolist(), strict=True):
                copy.write_row((rows.release, i, vector, rank))
        cursor.execute(_FINISH)


def _records(rows: Rows, part: slice) -> bytes:
    """Rows of binary COPY as one NumPy array; it knows that all ids are equally long, and ASCII."""
    release, ids = rows.release.encode(), rows.ids[part]
    vectors, width = rows.vectors[part], len(ids[0])
    dim = vectors.shape[1]
    kind = np.dtype(
        [
            ("fields", ">i2"),
            ("l1", ">i4"),
            ("release", f"S{len(release)}"),
            ("l2", ">i4"),
            ("id", f"S{width}"),
            ("l3", ">i4"),
            ("dim", ">i2"),
            ("unused", ">i2"),
            ("vector", ">f4", (dim,)),
            ("l4", ">i4"),
            ("rank", ">i4"),
        ]
    )
    records = np.zeros(len(ids), kind)
    records["fields"], records["l1"], records["release"] = 4, len(release), release
    records["l2"], records["id"] = width, np.array(ids, f"S{width}")
    records["l3"], records["dim"], records["vector"] = 4 + 4 * dim, dim, vectors
    records["l4"], records["rank"] = 4, rows.ranks[part]
    return records.tobytes()


def _numpy_copy(uri: str, rows: Rows) -> None:
    """psycopg2: binary COPY built with NumPy, 20,000 rows at a time."""
    with psycopg2.connect(uri) as connection, connection.cursor() as cursor:
        cursor.execute(_TABLE)
        for start in range(0, len(rows.ids), _CHUNK_ROWS):
            data = _HEADER + _records(rows, slice(start, start + _CHUNK_ROWS)) + struct.pack(">h", -1)
            cursor.copy_expert("COPY public.peer FROM STDIN (FORMAT binary)", io.BytesIO(data), 2**20)
        cursor.execute(_FINISH)
    connection.close()


def _numpy_copy_frozen(uri: str, rows: Rows) -> None:
    """The same in one COPY … FREEZE: all that we do, but the checks."""
    with psycopg2.connect(uri) as connection, connection.cursor() as cursor:
        cursor.execute(_TABLE)
        parts = (
            _records(rows, slice(start, start + _CHUNK_ROWS))
            for start in range(0, len(rows.ids), _CHUNK_ROWS)
        )
        data = io.BytesIO(b"".join((_HEADER, *parts, struct.pack(">h", -1))))
        cursor.copy_expert("COPY public.peer FROM STDIN (FORMAT binary, FREEZE)", data, 2**20)
        cursor.execute(_FINISH)
    connection.close()


PEERS = (
    Peer("executemany", "executemany (psycopg 3, pipelined, binary vectors)", _executemany),
    Peer("execute_values", "execute_values (psycopg2, 1,000 rows a statement)", _execute_values),
    Peer("write_row", "binary COPY, a row at a time (psycopg 3)", _write_rows),
    Peer("numpy_copy", "binary COPY by hand (NumPy, psycopg2)", _numpy_copy),
    Peer("numpy_copy_frozen", "the same in one COPY … FREEZE", _numpy_copy_frozen),
)
