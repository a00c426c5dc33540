"""Clients that look for the items of highest score for users' vectors, each its own way.

Each takes vectors [n, dim] and says for each statement how long it took, and for each vector what was found.
"""

import contextlib
import dataclasses
import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pyarrow as pa
from pgvector.psycopg import register_vector

from beamrec.io.pgvector_schema import partition_name
from beamrec.io.retrieval import Retrieval, SearchDoFn
from beamrec.schemas.events import RELEASE_ID, event_schema
from beamrec.schemas.shop import CLASSICMODELS

__all__ = ["EF_SEARCH", "K", "Pass", "ask_beamrec", "ask_hnswlib", "ask_pgvector"]

K = 10
EF_SEARCH = (20, 40, 60, 80, 100, 150, 200, 300, 400, 600, 800, 1000)
_HISTORY = event_schema(CLASSICMODELS).field("history").type
_PEER = Path(__file__).resolve().parent / "hnswlib_peer.py"


@dataclasses.dataclass(frozen=True)
class Pass:
    """One pass over the queries.

    Attributes:
      seconds: of each statement.
      sizes: how many queries each answered.
      ids: of the items found, for each query.
    """

    seconds: list[float]
    sizes: list[int]
    ids: list[list[str]]


def _timed(ask: Callable[[Any], Any], batches: list[Any]) -> tuple[list[float], list[Any]]:
    """Asks batch by batch: (seconds, answers)."""
    seconds, answers = [], []
    for batch in batches:
        began = time.perf_counter()
        answers.append(ask(batch))
        seconds.append(time.perf_counter() - began)
    return seconds, answers


@contextlib.contextmanager
def ask_beamrec(uri: str, release: str, retrieval: Retrieval, size: int) -> Iterator[Callable[..., Pass]]:
    """What `SearchItems` does on a worker: a batch of events with vectors in, candidates out, both Arrow."""
    worker = SearchDoFn(uri, K, retrieval)
    worker.setup()

    def run(vectors: np.ndarray) -> Pass:
        parts = [vectors[start : start + size] for start in range(0, len(vectors), size)]
        batches = [_events(part, release) for part in parts]
        seconds, answers = _timed(lambda batch: next(worker.process(batch)), batches)
        rows = [row for answer in answers for row in answer.column("candidates").to_pylist()]
        ids = [[entry["id"] for entry in row] for row in rows]
        return Pass(seconds, [len(part) for part in parts], ids)

    yield run


def _events(vectors: np.ndarray, release: str) -> pa.RecordBatch:
    count, dim = vectors.shape
    columns = [
        pa.array([[]] * count, _HISTORY),
        pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), dim),
    ]
    batch = pa.RecordBatch.from_arrays(columns, ["history", "user_vector"])
    return batch.replace_schema_metadata({RELEASE_ID: release})


@contextlib.contextmanager
def ask_pgvector(uri: str, release: str, dim: int, ef_search: int) -> Iterator[Callable[..., Pass]]:
    """psycopg 3 with pgvector's own adapter: a prepared query, in binary, for each vector."""
    table = partition_name("item_embeddings", release)
    statement = f'SELECT id FROM beamrec."{table}" ORDER BY (embedding::vector({dim})) <-> %s LIMIT {K}'  # noqa: S608
    with psycopg.connect(uri, autocommit=True) as connection:
        register_vector(connection)
        connection.execute(f"SET hnsw.ef_search = {ef_search}")
        cursor = connection.cursor(binary=True)

        def ask(vector: np.ndarray) -> list[str]:
            cursor.execute(statement, [vector], prepare=True)
            return [key for (key,) in cursor]

        def run(vectors: np.ndarray) -> Pass:
            seconds, ids = _timed(ask, list(vectors))
            return Pass(seconds, [1] * len(ids), ids)

        yield run


@contextlib.contextmanager
def ask_hnswlib(
    python: Path, folder: Path, items: np.ndarray, ids: list[str], size: int, target: float
) -> Iterator[Callable[..., Pass]]:
    """hnswlib on one thread, in a process of another Python; its index is kept in `folder`."""
    names = np.array(ids, object)

    def run(vectors: np.ndarray) -> Pass:
        with tempfile.TemporaryDirectory() as work:
            folder.mkdir(parents=True, exist_ok=True)
            np.save(folder / "items.npy", items)
            np.save(Path(work) / "queries.npy", vectors)
            command = [str(python), str(_PEER), str(folder), work, str(K), "1", str(size),
                       str(target)]  # fmt: skip
            done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603
            answer = json.loads(done.stdout)
            found = np.load(Path(work) / "found.npy")
        return Pass(answer["seconds"], answer["sizes"], [list(row) for row in names[found]])

    yield run
