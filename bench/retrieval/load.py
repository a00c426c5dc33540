"""Embedding load beside other clients: `.venv/bin/python bench/retrieval/load.py`; see bench/README.md.

Timed is the way from ids and vectors in memory to a committed, analysed table with its primary key; no
vector index is built, and no neighbours are computed. Ours is the step `items` of `release load`, with the
checksum of every row computed on both sides; the peers check nothing. Rounds are interleaved.
"""

import argparse
import hashlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from load_peers import PEERS, Rows

from beamrec.io import embedded
from beamrec.io.pgvector import ReleaseStore
from beamrec.io.pgvector_index import IndexOptions
from beamrec.io.postgres import connect
from beamrec.schemas.releases import ReleaseContents, ReleaseManifest

_RESULTS = Path(__file__).resolve().parents[1] / "results" / "load.jsonl"
_OURS = "beamrec"
_GOALS = {"executemany": 6.0, "numpy_copy": 0.9}


class _EndOfStepError(Exception):
    """Ends a load behind the step that is timed."""


def main() -> None:
    """Runs the rounds and prints the table."""
    values = _arguments()
    values.results.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="beamrec-load-", dir=values.work) as home:
        folder = Path(home) / "pg"
        embedded.ensure_running(folder)
        try:
            for items in values.items:
                for dim in values.dim:
                    _contest(folder, items, dim, values)
        finally:
            embedded.stop_server(folder)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--items", type=int, nargs="+", default=[200_000], help="sizes of the catalogue")
    add("--dim", type=int, nargs="+", default=[64], help="numbers a vector")
    add("--rounds", type=int, default=5)
    add("--only", nargs="+", choices=[peer.name for peer in PEERS], help="these peers only")
    add("--whole", action="store_true", help="also load a whole release: index and neighbours")
    add("--results", type=Path, default=_RESULTS, help="JSON lines, appended")
    add("--work", type=Path, help="where the server's folder is made")
    return parser.parse_args()


def _contest(folder: Path, items: int, dim: int, values: argparse.Namespace) -> None:
    release = _made_up(items, dim)
    ranks = np.arange(items, dtype=np.int32)
    rows = Rows(release.manifest.id, release.item_ids, release.item_vectors, ranks)
    uri = embedded.ensure_running(folder).uri
    peers = [peer for peer in PEERS if not values.only or peer.name in values.only]
    seconds: dict[str, list[float]] = {name: [] for name in (_OURS, *(peer.name for peer in peers))}
    for _ in range(values.rounds + 1):  # the first one warms up
        for peer in peers:
            _settle(uri)
            began = time.perf_counter()
            peer.load(uri, rows)
            seconds[peer.name].append(time.perf_counter() - began)
            _check_peer(uri, rows)
        _settle(uri)
        seconds[_OURS].append(_load_items(uri, release))
    timed = {name: found[1:] for name, found in seconds.items()}
    record: dict[str, Any] = {"items": items, "dim": dim, "seconds": timed, **_machine()}
    if values.whole:
        ReleaseStore(uri).load(release, status=lambda text: print(text, flush=True))
        record["whole"] = ReleaseStore(uri).show(release.manifest.id)["built"]
    with values.results.open("a") as file:
        file.write(json.dumps(record) + "\n")
    _print(record)


def _made_up(items: int, dim: int) -> ReleaseContents:
    """A release of `items` unit vectors and one customer."""
    vectors = np.random.default_rng(7).normal(size=(items, dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    ids = tuple(f"S{number:07d}" for number in range(items))
    manifest = ReleaseManifest(
        id=f"bench-{items}-{dim}", created_at="2026-11-22T12:00:00Z", code_version="0", shop="bench",
        user_key_type="int", item_key_type="string", dim=dim, items=items, users=1, files=(),
    )  # fmt: skip
    checksum = hashlib.sha256(manifest.to_json()).hexdigest()
    return ReleaseContents(manifest, "/bench", checksum, ids, vectors, ("1",), vectors[:1], ids)


def _load_items(uri: str, release: ReleaseContents) -> float:
    """Seconds from the call to the end of the step `items`, its commit included; the load is ended there."""
    marks: list[float] = []
    began = time.perf_counter()

    def status(text: str) -> None:
        marks.append(time.perf_counter())
        if len(marks) == 2:
            raise _EndOfStepError

    try:
        ReleaseStore(uri).load(release, IndexOptions("none"), status)
    except _EndOfStepError:
        return marks[1] - began
    raise RuntimeError("the load did not stop behind its first step")


def _settle(uri: str) -> None:
    """The same start for everybody: our leftovers dropped, dirty pages on the disk."""
    connection = connect(uri)
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute("SELECT to_regclass('beamrec.release_loads') IS NOT NULL")
        if cursor.fetchone()[0]:
            cursor.execute("SELECT id FROM beamrec.release_loads")
            for (release,) in cursor.fetchall():
                cursor.execute(f'DROP TABLE IF EXISTS beamrec."item_embeddings_{release}"')
            cursor.execute("DELETE FROM beamrec.release_loads")
        cursor.execute("CREATE EXTENSION IF NOT EXISTS vector; DROP TABLE IF EXISTS public.peer")
        cursor.execute("CHECKPOINT")
    connection.close()
    os.sync()


def _check_peer(uri: str, rows: Rows) -> None:
    """What a peer stored is what it was given; not timed."""
    connection = connect(uri)
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*), sum(popularity_rank) FROM public.peer")
        if cursor.fetchone() != (len(rows.ids), int(rows.ranks.sum(dtype=np.int64))):
            raise RuntimeError("a peer lost rows")
        cursor.execute("SELECT embedding::real[] FROM public.peer WHERE id = %s", [rows.ids[-1]])
        np.testing.assert_array_equal(np.array(cursor.fetchone()[0], np.float32), rows.vectors[-1])
    connection.close()


def _machine() -> dict[str, Any]:
    return {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
    }


def _print(record: dict[str, Any]) -> None:
    ours = statistics.median(record["seconds"][_OURS])
    print(f"\n{record['items']:,} × {record['dim']}, {len(record['seconds'][_OURS])} rounds")
    print("| client | seconds (least, most) | rows/s | beamrec against it | goal |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, seconds in record["seconds"].items():
        print(_line(name, seconds, ours, record["items"]))


def _line(name: str, seconds: Sequence[float], ours: float, items: int) -> str:
    titles = {peer.name: peer.title for peer in PEERS} | {_OURS: "beamrec, checks included"}
    median = statistics.median(seconds)
    against = "" if name == _OURS else f"{median / ours:.2f} ×"
    goal = f"≥ {_GOALS[name]:g} ×" if name in _GOALS else ""
    spread = f"{median:.2f} ({min(seconds):.2f}, {max(seconds):.2f})"
    return f"| {titles[name]} | {spread} | {items / median:,.0f} | {against} | {goal} |"


if __name__ == "__main__":
    main()
