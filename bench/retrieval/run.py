"""The retrieval bench: `.venv/bin/python bench/retrieval/run.py`; see bench/README.md."""

import argparse
import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from lookups import BATCH_EVENTS, CLIENTS, beamrec_batches, make_events, plain
from report import write_report
from results import Key, Results, describe_machine
from searches import EF_SEARCH, K, Pass, ask_beamrec, ask_hnswlib, ask_pgvector
from server import serve
from stock import fill, item_ids, release_id
from vectors import Catalogue, make_catalogue

from beamrec.io.exact_product import best_items
from beamrec.io.pgvector import ReleaseStore
from beamrec.schemas.serving import SearchSetting

_BENCH = Path(__file__).resolve().parents[1]
_WORK = _BENCH.parent / ".beamrec" / "bench-retrieval"
_RESULTS = _BENCH / "results" / "retrieval.jsonl"
_CALIBRATION = 200
_TARGET = 0.99
_TOLERANCE = 1e-5
_SIZES = (1, 10, 100)
_LOOKUP_BATCHES = {"one_query_per_event": 2, "connect_per_event": 1}
_CONNECTED_EVENTS = 60


def main() -> None:
    """Fills the store, runs the contests, writes the report."""
    values = _arguments()
    path = values.results or (values.work / "small.jsonl" if values.small else _RESULTS)
    if values.fresh:
        path.unlink(missing_ok=True)
    results = Results(path)
    if not values.report:
        with serve((values.work / "pg").resolve()) as uri:
            results.append(describe_machine(uri))
            if "lookups" in values.contest:
                for items in values.items:
                    _lookups(uri, items, values, results)
            if "search" in values.contest:
                for kind, items, dim in _catalogues(values):
                    _search(uri, kind, items, dim, values, results)
    readme = _BENCH / "README.md" if path == _RESULTS else None
    print(write_report(results, path.with_suffix(".html"), readme))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--items", type=int, nargs="+", help="sizes of the catalogue; 10000 200000 1000000")
    add("--dim", type=int, nargs="+", help="numbers a vector; 32 64")
    add("--uniform", type=int, default=200_000, help="also vectors without clusters, of this many items")
    add("--contest", nargs="+", choices=("search", "lookups"), default=["search", "lookups"])
    add("--queries", type=int, default=500, help="users looked for in a round")
    add("--rounds", type=int, default=5)
    add("--small", action="store_true", help="a smoke run of a minute; its figures mean nothing")
    add("--results", type=Path, help="JSON lines; rounds that stand there are not run again")
    add("--fresh", action="store_true", help="forget what stands in --results")
    add("--report", action="store_true", help="only write the report of what stands in --results")
    add("--work", type=Path, default=_WORK, help="the server's folder and hnswlib's indexes, kept")
    add("--peer-python", type=Path, default=_BENCH / ".venv" / "bin" / "python", help="has hnswlib")
    values = parser.parse_args()
    values.items = values.items or ([2_000] if values.small else [10_000, 200_000, 1_000_000])
    values.dim = values.dim or ([16] if values.small else [32, 64])
    if values.small:
        values.uniform, values.queries, values.rounds = 0, 100, min(values.rounds, 2)
    return values


def _catalogues(values: argparse.Namespace) -> Iterator[tuple[str, int, int]]:
    for items in values.items:
        for dim in values.dim:
            yield "clustered", items, dim
    if values.uniform:
        yield "uniform", values.uniform, values.dim[-1]


def _search(uri: str, kind: str, items: int, dim: int, values: argparse.Namespace, results: Results) -> None:
    catalogue = make_catalogue(items, _CALIBRATION + values.queries, dim, kind)
    name, ids = release_id(items, dim, kind), item_ids(items)
    fill(uri, name, catalogue, lists=False)
    judge = _Judge(catalogue, ids)
    ef_search = _calibrated(uri, name, dim, judge)
    ReleaseStore(uri).set_search(name, SearchSetting("hnsw", ef_search=ef_search))
    key: Key = {"contest": "search", "kind": kind, "items": items, "dim": dim, "queries": values.queries}
    folder = values.work / "hnswlib" / name
    with contextlib.ExitStack() as stack:
        clients: dict[str, Callable[..., Pass]] = {
            "pgvector": stack.enter_context(ask_pgvector(uri, name, dim, ef_search))
        }
        for size in _SIZES:
            for way in ("exact", "index"):
                clients[f"beamrec_{way}_{size}"] = stack.enter_context(ask_beamrec(uri, name, way, size))
        for size in (1, 100) if _has_hnswlib(values.peer_python) else ():
            peer = ask_hnswlib(values.peer_python, folder, catalogue.items, ids, size, _TARGET)
            clients[f"hnswlib_{size}"] = stack.enter_context(peer)
        _rounds(key, clients, judge, values.rounds, results, {"ef_search": ef_search})


def _has_hnswlib(python: Path) -> bool:
    if python.exists() and not subprocess.run([python, "-c", "import hnswlib"], check=False).returncode:  # noqa: S603
        return True
    print(f"hnswlib is not installed for {python} (bench/requirements.lock): left out", file=sys.stderr)
    return False


def _rounds(
    key: Key,
    clients: dict[str, Callable[..., Pass]],
    judge: "_Judge",
    rounds: int,
    results: Results,
    more: dict[str, Any],
) -> None:
    """Every client in turns, so that what disturbs the machine disturbs all."""
    for number in range(rounds):
        for system, ask in clients.items():
            if any(record["round"] == number for record in results.rounds(key, system)):
                continue
            if not number:
                ask(judge.queries[:20])  # caches, connections, plans
            answered = ask(judge.queries)
            each = np.repeat(answered.seconds, answered.sizes) * 1e3
            record = {
                "queries_per_second": len(judge.queries) / sum(answered.seconds),
                "p50_ms": float(np.percentile(each, 50)),
                "p99_ms": float(np.percentile(each, 99)),
                "recall": judge.recall(judge.queries, answered.ids),
            }
            results.append({**key, **more, "system": system, "round": number, **record})
            _say(key, system, record)


class _Judge:
    """Users to look for, and how much of the truth was found."""

    def __init__(self, catalogue: Catalogue, ids: list[str]) -> None:
        self._catalogue = catalogue
        self._rows = {key: row for row, key in enumerate(ids)}
        self.calibration, self.queries = catalogue.users[:_CALIBRATION], catalogue.users[_CALIBRATION:]

    def recall(self, users: np.ndarray, found: list[list[str]]) -> float:
        """Share of the true best, by score: another item of the same score is as good."""
        least = best_items(users, self._catalogue.items, K)[1][:, -1] - _TOLERANCE
        hits = 0
        for user, bound, ids in zip(users, least, found, strict=True):
            rows = [self._rows[key] for key in dict.fromkeys(ids)]
            hits += min(K, int((self._catalogue.items[rows] @ user >= bound).sum()))
        return hits / (K * len(users))


def _calibrated(uri: str, name: str, dim: int, judge: _Judge) -> int:
    """The least ef_search with the recall asked for, on users that are not timed."""
    for width in EF_SEARCH:
        with ask_pgvector(uri, name, dim, width) as ask:
            if judge.recall(judge.calibration, ask(judge.calibration).ids) >= _TARGET:
                break
    return width


def _lookups(uri: str, items: int, values: argparse.Namespace, results: Results) -> None:
    name, ids = release_id(items, 8, "lists"), item_ids(items)
    fill(uri, name, make_catalogue(items, 10, 8, "clustered"), lists=True)
    key: Key = {"contest": "lookups", "items": items, "batch": BATCH_EVENTS}
    with contextlib.ExitStack() as stack:
        clients = {system: stack.enter_context(make(uri, name)) for system, make in CLIENTS.items()}
        _compare(clients, ids)
        for number in range(values.rounds):
            for system, answer in clients.items():
                if any(record["round"] == number for record in results.rounds(key, system)):
                    continue
                # Every round has events of its own: what is remembered of them was remembered before.
                batches = _batches(system, ids, number)
                given = beamrec_batches(batches) if system.startswith("beamrec") else batches
                began = time.perf_counter()
                for _ in answer(given):
                    pass
                seconds = time.perf_counter() - began
                record = {"events_per_second": sum(map(len, batches)) / seconds}
                results.append({**key, "system": system, "round": number, **record})
                _say(key, system, record)


def _batches(system: str, ids: list[str], number: int) -> list[Any]:
    count = _LOOKUP_BATCHES.get(system, 20)
    size = _CONNECTED_EVENTS if system == "connect_per_event" else BATCH_EVENTS
    return [make_events(ids, size, 1_000 * (number + 1) + place) for place in range(count)]


def _compare(clients: dict[str, Any], ids: list[str]) -> None:
    """All clients give the same answer, or nothing is measured."""
    events = [make_events(ids, 40, seed) for seed in range(3)]
    answers = {
        system: [plain(found) for found in answer(beamrec_batches(events) if "beamrec" in system else events)]
        for system, answer in clients.items()
    }
    for system, found in answers.items():
        if found != answers["hand_batched"]:
            raise SystemExit(f"lookups: {system} answers something else than the hand-batched client")


def _say(key: Key, system: str, record: dict[str, float]) -> None:
    figures = ", ".join(f"{name} {value:,.4g}" for name, value in record.items())
    where = " ".join(str(value) for value in key.values())
    print(f"{where}: {system}: {figures}", file=sys.stderr)


if __name__ == "__main__":
    main()
