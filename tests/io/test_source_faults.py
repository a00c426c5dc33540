"""The bounded source while connections break and rows change, on real MariaDB and PostgreSQL servers."""

import contextlib
import dataclasses
import itertools
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from beamrec.io import sql
from beamrec.io.backend import Access
from beamrec.io.registry import backend
from beamrec.io.sql import Verification, read_ratings
from beamrec.pipelines.batch_options import BatchConfig
from beamrec.pipelines.batch_training import run_batch
from beamrec.pipelines.generate_shop import ShopSize, generate_shop
from beamrec.schemas.errors import UnavailableError
from beamrec.schemas.ranges import RangeCheck, RatingsRange, SourceSnapshot, Verified
from beamrec.schemas.shop import CLASSICMODELS

pytestmark = pytest.mark.usefixtures("source_password")

SIZE = ShopSize(customers=100, products=300, ratings=12_000)
RANGE_ROWS = 300
DROPS = 20
# Less than a connection sends for two ranges, so that most cuts come within one.
MOST_BYTES = 10_000


@dataclasses.dataclass
class Source:
    """A generated shop in a real server."""

    server: Any
    database: str
    system: str

    @property
    def uri(self) -> str:
        uri: str = self.server.uri(self.database)
        return uri

    def through(self, port: int) -> str:
        """The same shop behind a proxy."""
        return self.uri.replace(f":{self.server.port}/", f":{port}/")

    def rows(self) -> Counter[tuple[Any, ...]]:
        """All ratings, by the server's own client library."""
        quote = backend("tables", self.uri, "--source").quote
        columns = ", ".join(quote(c) for c in ("customerNumber", "productCode", "productRating"))
        return Counter(self.server.execute(f"SELECT {columns} FROM ratings", database=self.database))  # noqa: S608

    @contextlib.contextmanager
    def being_rewritten(self) -> Iterator[Callable[[], None]]:
        """While a writer gives all ratings one value, then all of them the next, and so on.

        Yields a function that waits until it has done so once more.
        """
        value = backend("tables", self.uri, "--source").quote("productRating")
        stopped, written = threading.Event(), threading.Semaphore(0)

        def write() -> None:
            for number in itertools.count(1):
                if stopped.is_set():
                    return
                self.server.execute(f"UPDATE ratings SET {value} = {number}", database=self.database)  # noqa: S608
                written.release()

        def wait() -> None:
            while written.acquire(blocking=False):
                pass
            assert written.acquire(timeout=300)

        writer = threading.Thread(target=write)
        writer.start()
        try:
            wait()
            yield wait
        finally:
            stopped.set()
            writer.join()


@pytest.fixture(params=["mysql", "postgresql"])
def source(request: pytest.FixtureRequest) -> Source:
    """A shop on each system."""
    system: str = request.param
    if system == "mysql":
        server = request.getfixturevalue("mariadb")
        server.execute("DROP DATABASE IF EXISTS faulty", "CREATE DATABASE faulty")
        database = "faulty"
    else:
        server = request.getfixturevalue("postgresql")
        database = server.create_database("faulty")
    generate_shop(server.uri(database), SIZE)
    return Source(server, database, system)


Reading = tuple[Counter[tuple[Any, ...]], SourceSnapshot, list[RangeCheck]]


def collected(parts: Iterable[object]) -> Reading:
    """The ratings, the snapshot, and what is to be compared at the end."""
    rows: Counter[tuple[Any, ...]] = Counter()
    checks: list[RangeCheck] = []
    snapshots: list[SourceSnapshot] = []
    for part in parts:
        if isinstance(part, RatingsRange):
            rows.update(zip(*(column.to_pylist() for column in part.ratings.columns), strict=True))
        elif isinstance(part, RangeCheck):
            checks.append(part)
        elif isinstance(part, SourceSnapshot):
            snapshots.append(part)
    (snapshot,) = snapshots
    return rows, snapshot, checks


def as_numbers(rows: Iterable[tuple[Any, ...]]) -> Counter[tuple[Any, ...]]:
    """Rows of a client library, whose numbers may be text."""
    return Counter((int(customer), product, int(rating)) for customer, product, rating in rows)


def faulty_reading(source: Source, proxy: Any, access: Access, during: Callable[[], None]) -> Reading:
    """A reading whose connections are cut `DROPS` times after some ranges; `during` is called first."""
    parts = read_ratings(access, CLASSICMODELS, RANGE_ROWS)
    taken = list(itertools.islice(parts, 10))
    during()
    proxy.left = DROPS
    proxy.cut_all()
    return collected([*taken, *parts])


@pytest.mark.parametrize("readers", [1, 3])
def test_dropped_connections_cost_no_row_and_double_none(
    source: Source, dropping_proxy: Callable[..., Any], readers: int
) -> None:
    proxy = dropping_proxy(source.server.port, drops=0, most_bytes=MOST_BYTES, seed=readers)
    access = Access(source.through(proxy.port), readers=readers)
    rows, snapshot, checks = faulty_reading(source, proxy, access, lambda: None)
    assert proxy.cut == DROPS
    assert rows == as_numbers(source.rows())
    assert snapshot.counts["ratings"] == SIZE.ratings
    assert "lost connections replaced" in snapshot.method
    assert "none changed" in Verification(access, CLASSICMODELS)(snapshot, checks).text


@pytest.mark.parametrize("mode", ["auto", "connection"])
def test_a_writer_does_not_tear_a_snapshot(source: Source, mode: Any) -> None:
    access = Access(source.uri, readers=3, mode=mode)
    with source.being_rewritten():
        rows, snapshot, checks = collected(read_ratings(access, CLASSICMODELS, RANGE_ROWS))
        assert Verification(access, CLASSICMODELS)(snapshot, checks) == Verified("one snapshot")
    assert rows.total() == SIZE.ratings
    assert len({rating for _, _, rating in rows}) == 1


def test_without_a_snapshot_a_writer_is_a_declared_failure(source: Source) -> None:
    access = Access(source.uri, readers=3, mode="checksums")
    with source.being_rewritten() as wait:
        rows, snapshot, checks = collected(read_ratings(access, CLASSICMODELS, RANGE_ROWS))
        wait()
        with pytest.raises(UnavailableError, match=r"table ratings .* was changed while it was read"):
            Verification(access, CLASSICMODELS)(snapshot, checks)
        accepted = Verification(access, CLASSICMODELS, accept=True)(snapshot, checks)
    assert rows.total() == SIZE.ratings
    assert "changes in ratings accepted" in accepted.text
    assert accepted.changed == {"ratings": SIZE.ratings}


def test_without_a_snapshot_a_row_added_between_ranges_is_noticed(source: Source) -> None:
    access = Access(source.uri, mode="checksums")
    _, snapshot, checks = collected(read_ratings(access, CLASSICMODELS, RANGE_ROWS))
    assert "none changed" in Verification(access, CLASSICMODELS)(snapshot, checks).text
    source.server.execute("INSERT INTO ratings VALUES (1000000, 'S1', 5)", database=source.database)
    with pytest.raises(UnavailableError, match=r"table ratings .* was changed"):
        Verification(access, CLASSICMODELS)(snapshot, checks)
    accepted = Verification(access, CLASSICMODELS, accept=True)(snapshot, checks)
    assert accepted.changed == {"ratings": SIZE.ratings}


@pytest.mark.parametrize("on_change", ["fail", "accept"])
def test_a_row_added_while_it_is_read_fails_the_run_or_is_in_its_account(
    source: Source, on_change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One connection counts the ratings; then a customer gives one more; then they are read."""
    customer = backend("tables", source.uri, "--source").quote("customerNumber")
    more = f"INSERT INTO ratings SELECT MAX({customer}), 'S1', 5 FROM ratings"  # noqa: S608
    read_range = sql.read_range

    def adding(*args: Any) -> Any:
        monkeypatch.setattr(sql, "read_range", read_range)
        source.server.execute(more, database=source.database)
        return read_range(*args)

    monkeypatch.setattr(sql, "read_range", adding)
    config = BatchConfig(
        source.uri,
        str(tmp_path),
        CLASSICMODELS,
        "run",
        readers=1,
        snapshot="checksums",
        on_change=on_change,
    )
    if on_change == "fail":
        with pytest.raises(UnavailableError, match=r"table ratings .* was changed while it was read"):
            run_batch(config)
        return
    result = run_batch(config)
    # A connection to InnoDB goes on seeing what it saw at first.
    read = SIZE.ratings + (source.system == "postgresql")
    assert result.counts.records_in == result.counts.out + result.counts.dead_letters == read
    assert "changes in ratings accepted" in result.manifest.verification


def test_a_connection_lost_while_a_writer_is_at_work_is_exact_or_a_declared_failure(
    source: Source, dropping_proxy: Callable[..., Any]
) -> None:
    """The snapshot is lost with MySQL's connections, and with the one that holds PostgreSQL's."""
    proxy = dropping_proxy(source.server.port, drops=0, most_bytes=MOST_BYTES, seed=7)
    access = Access(source.through(proxy.port), readers=2)
    value = backend("tables", source.uri, "--source").quote("productRating")
    change = f"UPDATE ratings SET {value} = 1 + {value} % 5"  # noqa: S608
    rows, snapshot, checks = faulty_reading(
        source, proxy, access, lambda: source.server.execute(change, database=source.database)
    )
    assert rows.total() == SIZE.ratings
    with pytest.raises(UnavailableError, match=r"table ratings .* was changed while it was read"):
        Verification(access, CLASSICMODELS)(snapshot, checks)
