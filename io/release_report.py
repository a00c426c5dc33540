"""Measures how the items of a loaded release are best searched, with the release's own vectors.

Indexes are built on a copy of the release's table, inside one transaction that is rolled back at the end:
nobody else ever sees the copy, and a report that is killed leaves nothing behind. The served table is read
and not touched.
"""

import contextlib
import dataclasses
import math
import secrets
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import psycopg2
from psycopg2 import sql

from beamrec.io.exact_product import best_items
from beamrec.io.pgvector import Catalogue, ReleaseStore
from beamrec.io.pgvector_index import IndexKind, IndexOptions, create_index
from beamrec.io.pgvector_schema import partition_name
from beamrec.io.pgvector_session import Session, open_session
from beamrec.io.vector_search import VectorSearch, nearest
from beamrec.schemas.embeddings import search_operator
from beamrec.schemas.events import NEIGHBOURS
from beamrec.schemas.releases import ActiveRelease
from beamrec.schemas.search_report import MeasuredSearch, SearchReport, recommend
from beamrec.schemas.serving import SearchSetting

__all__ = ["ReportOptions", "measure_release"]

_EF_SEARCH = (20, 40, 80, 100, 200, 400, 800)
_PROBES = (1, 2, 4, 8, 16, 32, 64)
_LEAST_QUERIES = 10
_MOST_PRODUCT_BYTES = 2**29  # what a worker may be asked to hold
_TOLERANCE = 1e-5  # of a score, between the server's arithmetic and ours

_Floats = npt.NDArray[np.float32]
_Ask = Callable[[_Floats], list[_Floats]]
_Status = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class ReportOptions:
    """What is asked for, and for how long.

    Attributes:
      k: items a query.
      queries: vectors that are looked for, a seeded sample of the release's users.
      batch: queries in a statement where throughput is measured.
      seconds: for each pass over the queries, after which it stops early.
      recall: the least that a recommended setting has.

    Raises:
      ValueError: at construction, for a value out of range.
    """

    k: int = 10
    queries: int = 200
    batch: int = 100
    seconds: float = 5.0
    recall: float = 0.99
    seed: int = 42

    def __post_init__(self) -> None:
        for name, least in (("k", 1), ("queries", _LEAST_QUERIES), ("batch", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, got {getattr(self, name)}")
        if not 0 < self.seconds < math.inf:
            raise ValueError(f"seconds: expected a number above 0, got {self.seconds}")
        if not 0 < self.recall <= 1:
            raise ValueError(f"recall: expected a share above 0 and at most 1, got {self.recall}")


def measure_release(uri: str, release_id: str, options: ReportOptions, status: _Status) -> SearchReport:
    """Measures every way of searching a release and recommends one.

    Args:
      uri: of the store, as `postgres.connect` takes it.
      status: told what is measured next.

    Raises:
      UsageError: no such release is loaded.
      UnavailableError: the store is away, or this user may not make a table in the schema beamrec.
    """
    store = ReleaseStore(uri)
    release, shown = store.release(release_id), store.show(release_id)
    catalogue = store.catalogue(release_id)
    queries, whose = _queries(store, release, catalogue, options)
    store.close()
    bench = _Bench(catalogue.vectors, queries, options)
    status(f"exact, in the worker: {release.items:,} items of {release.dim} numbers")
    measured = [bench.measure(SearchSetting("exact"), bench.product)]
    operator = search_operator(release.operator, shown["manifest"]["normalized"])
    own = IndexOptions.of(shown["built"].get("index") or {})
    with open_session(uri, "release report") as session, _undone(session) as cursor:
        measured += _measure_server(cursor, bench, release, operator, own, status)
    usable = {own.kind, "none"} | ({"exact"} if catalogue.vectors.nbytes <= _MOST_PRODUCT_BYTES else set())
    return SearchReport(
        release=release.id, index=own.kind, items=len(catalogue.ids), dim=release.dim, operator=operator,
        queried_with=whose, k=options.k, batch=options.batch, target=options.recall, measured=tuple(measured),
        recommended=recommend(tuple(m for m in measured if m.setting.index in usable), options.recall),
    )  # fmt: skip


def _queries(
    store: ReleaseStore, release: ActiveRelease, catalogue: Catalogue, options: ReportOptions
) -> tuple[_Floats, str]:
    """Vectors to look for, [queries, dim], and whose they are."""
    draw = np.random.default_rng(options.seed)
    users = store.user_vectors(release.id, options.queries, options.seed)
    if len(users):
        return users, "users"
    rows = draw.permutation(len(catalogue.vectors))[: options.queries]
    return catalogue.vectors[rows], "items"


@contextlib.contextmanager
def _undone(session: Session) -> Iterator[psycopg2.extensions.cursor]:
    with session.cursor() as cursor:
        cursor.execute("BEGIN")
        try:
            yield cursor
        finally:
            if not session.connection.closed:
                cursor.execute("ROLLBACK")


def _measure_server(
    cursor: psycopg2.extensions.cursor,
    bench: "_Bench",
    release: ActiveRelease,
    operator: str,
    own: IndexOptions,
    status: _Status,
) -> Iterator[MeasuredSearch]:
    """Every kind of index on a copy of the items; that of the release's kind is built as the release's is."""
    table = f"search_report_{secrets.token_hex(8)}"
    served = sql.Identifier("beamrec", partition_name("item_embeddings", release.id))
    copy = sql.Identifier("beamrec", table)
    status("copying the items to a table that nobody else sees")
    cursor.execute(sql.SQL("CREATE UNLOGGED TABLE {} (LIKE {})").format(copy, served))
    cursor.execute(sql.SQL("INSERT INTO {} SELECT * FROM {}").format(copy, served))
    cursor.execute(sql.SQL("ANALYZE {}").format(copy))

    def ask(setting: SearchSetting) -> _Ask:
        return lambda vectors: _scores(cursor, table, release.dim, operator, bench.k, setting, vectors)

    status("exact, in PostgreSQL")
    yield bench.measure(SearchSetting("none"), ask(SearchSetting("none")))
    lists = (own if own.kind == "ivfflat" else IndexOptions("ivfflat")).described(release.items)["lists"]
    for kind, settings in _settings(bench.k, lists).items():
        options = own if own.kind == kind else IndexOptions(kind)
        status(f"building {_in_words(options, release.items)}")
        seconds, size = _build(cursor, table, release, operator, options)
        for setting in settings:
            measured = bench.measure(setting, ask(setting))
            status(f"{measured.name}: recall {measured.recall:.4f}")
            yield dataclasses.replace(measured, build_seconds=seconds, index_bytes=size)
        _drop_indexes(cursor, table)


def _settings(k: int, lists: int) -> dict[IndexKind, Sequence[SearchSetting]]:
    """What is worth measuring for `k` items a query, and an IVFFlat index of so many lists."""
    widths = {*(probes for probes in _PROBES if probes < lists), min(lists, _PROBES[-1])}
    return {
        "hnsw": [SearchSetting("hnsw", ef_search=width) for width in _EF_SEARCH if width >= k],
        "ivfflat": [SearchSetting("ivfflat", probes=probes) for probes in sorted(widths)],
    }


def _in_words(options: IndexOptions, items: int) -> str:
    kind, *parameters = options.described(items).items()
    return ", ".join([kind[1], *(f"{name} {value}" for name, value in parameters)])


def _build(
    cursor: psycopg2.extensions.cursor,
    table: str,
    release: ActiveRelease,
    operator: str,
    options: IndexOptions,
) -> tuple[float, int]:
    """Seconds that an index takes, and its bytes."""
    began = time.perf_counter()
    create_index(cursor, table, release.items, release.dim, frozenset({operator}), options)
    seconds = time.perf_counter() - began
    cursor.execute("SELECT pg_indexes_size(%s::regclass)", [f'beamrec."{table}"'])
    return seconds, int(cursor.fetchone()[0])


def _drop_indexes(cursor: psycopg2.extensions.cursor, table: str) -> None:
    cursor.execute(
        "SELECT indexname FROM pg_indexes WHERE schemaname = 'beamrec' AND tablename = %s", [table]
    )
    for (name,) in cursor.fetchall():
        cursor.execute(sql.SQL("DROP INDEX {}").format(sql.Identifier("beamrec", name)))


def _scores(
    cursor: psycopg2.extensions.cursor,
    table: str,
    dim: int,
    operator: str,
    k: int,
    setting: SearchSetting,
    vectors: _Floats,
) -> list[_Floats]:
    """Scores of what is found for each vector."""
    search = VectorSearch(
        ("beamrec", table), k, operator=operator, dim=dim, reported="<#>",  # type: ignore[arg-type]
        ef_search=setting.ef_search, probes=setting.probes,
    )  # fmt: skip
    found = nearest(cursor, search, vectors, NEIGHBOURS)
    scores = -found.values.field("distance").to_numpy(zero_copy_only=False)
    return np.split(scores.astype(np.float32), found.offsets.to_numpy()[1:-1])


class _Bench:
    """Queries with their true answers, and a clock."""

    def __init__(self, items: _Floats, queries: _Floats, options: ReportOptions) -> None:
        self.k = min(options.k, len(items))
        self._items, self._queries, self._options = items, queries, options
        least = best_items(queries, items, self.k)[1][:, -1]
        self._least = least - _TOLERANCE * np.maximum(1, np.abs(least))

    def product(self, vectors: _Floats) -> list[_Floats]:
        """The exact answer, computed here."""
        return list(best_items(vectors, self._items, self.k)[1])

    def measure(self, setting: SearchSetting, ask: _Ask) -> MeasuredSearch:
        """Asks one by one for latencies, then in batches for throughput and recall."""
        ask(self._queries[:1])
        latencies = [seconds for _, seconds in self._pass(ask, 1, len(self._queries))]
        answered = list(self._pass(ask, self._options.batch, len(latencies)))
        found = [scores for answers, _ in answered for scores in answers]
        hits = [np.sum(scores >= least) for scores, least in zip(found, self._least, strict=False)]
        p50, p99 = np.percentile(latencies, [50, 99]) * 1e3
        return MeasuredSearch(
            setting=setting,
            recall=float(np.minimum(hits, self.k).mean() / self.k),
            p50_ms=float(p50),
            p99_ms=float(p99),
            queries_per_second=len(found) / sum(seconds for _, seconds in answered),
            queries=len(found),
        )

    def _pass(self, ask: _Ask, size: int, count: int) -> Iterator[tuple[list[_Floats], float]]:
        """Answers and seconds of each statement, until all were asked or the time is up."""
        deadline = time.perf_counter() + self._options.seconds
        for start in range(0, count, size):
            began = time.perf_counter()
            if began > deadline and start >= _LEAST_QUERIES:
                return
            answers = ask(self._queries[start : min(start + size, count)])
            yield answers, time.perf_counter() - began
