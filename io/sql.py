"""The bounded source: ratings, customers and products of an SQL database, range by range, as Arrow.

Ratings are read in ranges of the partition column, so that one range holds whole partitions (or a slice
of a very large one) and the stages behind it need no shuffle. Some connections read at a time, all in one
snapshot where the system can; where it cannot, or where a connection was lost, what was read is read again
at the end and compared (`Verification`).
"""

import collections
import contextlib
import dataclasses
import datetime as dt
import functools
import itertools
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import apache_beam as beam
import pyarrow as pa

import beamrec.transforms.coders  # noqa: F401
from beamrec.io.arrow_types import check_key_type
from beamrec.io.backend import Access, Backend, Snapshot
from beamrec.io.key_ranges import KeyRange, Slice, pack_keys, plan_slices, slice_condition, with_entities
from beamrec.io.range_reader import (
    Part,
    Products,
    ShopTables,
    digest,
    read_products,
    read_range,
    slices_of,
)
from beamrec.io.registry import backend, reject_password, scheme_of
from beamrec.io.table_reader import Row, TableReader
from beamrec.schemas.errors import BadDataError, ConnectionLostError, UnavailableError, UsageError
from beamrec.schemas.ranges import RangeCheck, RatingsRange, SourceSnapshot, Verified
from beamrec.schemas.shop import Shop, Table

__all__ = ["CHECKS", "RATINGS", "SNAPSHOT", "ReadRatings", "Verification", "read_ratings"]

RATINGS = "ratings"
SNAPSHOT = "snapshot"
CHECKS = "checks"

# An outage is waited out for this long; a range whose connection breaks more often is given up.
_PATIENCE_SECONDS = 120.0
_MOST_TRIES = 50
_FIRST_WAIT_SECONDS = 0.1
_LONGEST_WAIT_SECONDS = 5.0

# Fewer customers than this are not worth a connection of their own to count their ratings.
_LEAST_CUSTOMERS = 50

_log = logging.getLogger(__name__)
Answer = TypeVar("Answer")
Element = SourceSnapshot | RatingsRange | RangeCheck


class _Readers:
    """Connections that threads borrow; one that is lost is replaced, and its work begun again."""

    def __init__(self, module: Backend, access: Access, snapshot: Snapshot) -> None:
        self._module, self._access, self._snapshot = module, access, snapshot
        self._stack = contextlib.ExitStack()
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._all = list(snapshot.readers)
        for connection in snapshot.readers:
            self._idle.put(connection)
        self._ended = threading.Event()
        self.left_the_snapshot = snapshot.verify
        self.reconnects = 0

    def run(self, work: Callable[[Any], Answer]) -> Answer:
        """Calls `work` with a connection, again from its start whenever the connection is lost.

        Raises:
          ConnectionLostError: the database stayed away for two minutes, the connection was lost again and
            again, or the reading has ended.
        """
        connection = self._idle.get()
        try:
            for attempt in itertools.count(1):
                try:
                    connection = self._reconnected() if connection is None else connection
                    return work(connection)
                except ConnectionLostError:
                    if connection is None or attempt == _MOST_TRIES or self._ended.is_set():
                        raise
                    self._module.close(connection)
                    connection = None
            raise AssertionError
        finally:
            self._idle.put(connection)

    def _reconnected(self) -> Any:
        """A new connection; waits for a database that is away."""
        gone_since, wait = time.monotonic(), _FIRST_WAIT_SECONDS
        while True:
            # The first attempt waits too: a server that is about to stop still answers.
            if self._ended.wait(wait):
                raise ConnectionLostError("reading has ended")
            try:
                return self._connect()
            except ConnectionLostError:
                if time.monotonic() - gone_since > _PATIENCE_SECONDS:
                    raise
                wait = min(2 * wait, _LONGEST_WAIT_SECONDS)

    def _connect(self) -> Any:
        self.reconnects += 1
        connection = None
        if self._snapshot.token is not None:
            # Where whoever held the snapshot open is gone, so is the snapshot.
            with _unless_lost():
                connection = self._module.reconnect(self._stack, self._access, self._snapshot.token)
        if connection is None:
            connection = self._module.reconnect(self._stack, self._access, None)
            self.left_the_snapshot = True
        self._all.append(connection)
        return connection

    def close(self) -> None:
        """Ends waiting and reading in all threads, and closes what was opened here."""
        self._ended.set()
        for connection in self._all:
            self._module.close(connection)
        self._stack.close()


@contextlib.contextmanager
def _unless_lost() -> Iterator[None]:
    """Lets only lost connections through, of all that makes a database unavailable."""
    try:
        yield
    except ConnectionLostError:
        raise
    except UnavailableError as error:
        _log.warning("%s: what was read is read again at the end", error)


class _Reading:
    """One reading of a shop: what is planned at its start, and its ranges."""

    def __init__(self, readers: _Readers, tables: ShopTables, range_rows: int, parallel: int) -> None:
        self.readers, self.tables = readers, tables
        self.taken_at = dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds")
        self._range_rows, self._parallel = range_rows, parallel
        self.counts = {each.name: readers.run(each.count) for each in (tables.customers, tables.products)}
        self.ranges = with_entities(self._plan())

    def _plan(self) -> list[KeyRange]:
        """Ranges of the ratings, counted by every connection between some quantiles of the customers."""
        table, ratings = self.tables.customers, self.tables.ratings
        step = max(_LEAST_CUSTOMERS, -(-self.counts[table.name] // self._parallel))
        bounds = self.readers.run(lambda c: table.bounds(c, 0, step))
        mark = ratings.backend.PLACEHOLDER
        conditions = [slice_condition(part, ratings.column(0), mark) for part in plan_slices(bounds)]

        def pack(where: tuple[str, Row]) -> list[KeyRange]:
            return self.readers.run(lambda c: pack_keys(ratings.key_counts(c, *where), self._range_rows))

        with ThreadPoolExecutor(self._parallel, "plan") as pool:
            return [range_ for packed in pool.map(pack, conditions) for range_ in packed]

    def elements(self) -> Iterator[RatingsRange | RangeCheck]:
        """Ranges in the order of their keys, read ahead of the one that is worked on."""
        products, checks = self.readers.run(lambda c: read_products(self.tables, c))
        yield from checks
        pool = ThreadPoolExecutor(self._parallel, "read")
        try:
            # Counted apart from the plan, so that the account does not rest on the ranges.
            total = pool.submit(self.readers.run, self.tables.ratings.count)
            for number, future in enumerate(self._ahead(pool, products)):
                range_, checks = future.result()
                yield from checks
                yield dataclasses.replace(range_, counts_products=number == 0)
            self.counts[self.tables.ratings.name] = total.result()
        finally:
            # Without waiting: whoever closes the readers ends what is still being read.
            pool.shutdown(wait=False, cancel_futures=True)

    def _ahead(self, pool: ThreadPoolExecutor, products: Products) -> Iterator[Future[Any]]:
        waiting: collections.deque[Future[Any]] = collections.deque()
        for part in self._parts(pool):
            waiting.append(pool.submit(self._read, part, products))
            if len(waiting) > self._parallel:
                yield waiting.popleft()
        yield from waiting

    def _read(self, part: Part, products: Products) -> tuple[RatingsRange, list[RangeCheck]]:
        return self.readers.run(lambda c: read_range(self.tables, c, part, products, self.taken_at))

    def _parts(self, pool: ThreadPoolExecutor) -> Iterator[Part]:
        """Ranges cut into slices; where to cut is looked up while earlier ranges are read."""
        ahead: collections.deque[tuple[KeyRange, Future[list[Slice]]]] = collections.deque()
        for range_ in self.ranges:
            ahead.append((range_, pool.submit(self._slices, range_)))
            if len(ahead) > self._parallel + 1:
                yield from self._cut(*ahead.popleft())
        for each in ahead:
            yield from self._cut(*each)

    def _slices(self, range_: KeyRange) -> list[Slice]:
        if range_.rows <= self._range_rows:
            return plan_slices([])
        return self.readers.run(lambda c: slices_of(self.tables, c, range_, self._range_rows))

    def _cut(self, range_: KeyRange, slices: Future[list[Slice]]) -> Iterator[Part]:
        for number, part in enumerate(slices.result()):
            yield Part(range_, part, is_first=number == 0, alone=len(self.ranges) == 1)


def read_ratings(access: Access, shop: Shop, range_rows: int) -> Iterator[Element]:
    """Reads a shop: ranges with what to compare at the end, and last what the snapshot was.

    Args:
      shop: names of tables and columns; matched regardless of case.
      range_rows: ratings that a range holds at most.

    Raises:
      UnavailableError: the database does not answer, stays away or refuses the login.
      UsageError: a table or column is missing or a key has another type than the Shop says.
      BadDataError: there are no ratings.
    """
    module: Backend = backend("tables", access.uri, "--source")
    with module.connect(access.uri, access.secret) as connection, contextlib.ExitStack() as stack:
        tables = _open_tables(module, connection, shop, access.bulk)
        _check_collations(module, connection, tables)
        names = [table.name for table in tables.all]
        snapshot = module.open_snapshot(stack, access, connection, names)
        readers = _Readers(module, access, snapshot)
        stack.callback(readers.close)
        reading = _Reading(readers, tables, range_rows, len(snapshot.readers))
        if not reading.ranges:
            raise BadDataError(f"table {shop.ratings.name} of --source holds no ratings: nothing to train on")
        yield from reading.elements()
        yield SourceSnapshot(
            system=scheme_of(access.uri),
            method=_method(snapshot, readers),
            taken_at=reading.taken_at,
            counts=reading.counts,
            types=_training_types(shop, tables),
            verify=readers.left_the_snapshot,
        )


@dataclasses.dataclass(frozen=True)
class Verification:
    """Reads again what was read and compares it; does nothing if it was all of one moment.

    If every range and every count is still the same, then they were the same at the moment between both
    readings, and what was read is the state of that moment.

    Attributes:
      accept: take tables that changed all the same.
    """

    access: Access
    shop: Shop
    accept: bool = False

    def __call__(self, snapshot: SourceSnapshot, checks: Sequence[RangeCheck]) -> Verified:
        """How it went; raises UnavailableError if the tables were changed meanwhile."""
        if not snapshot.verify:
            return Verified("one snapshot")
        changed = self._changed(snapshot, checks)
        if not changed:
            return Verified(f"{len(checks)} ranges read again, none changed")
        if self.accept:
            text = f"{len(checks)} ranges read again, changes in {', '.join(changed)} accepted"
            return Verified(text, {name: _rows_read(name, checks) for name in changed})
        raise UnavailableError(
            f"table {changed[0]} of --source was changed while it was read, and there was no snapshot; "
            "nothing was published. Run the command again, at a quieter time, or with --on-change accept"
        )

    def _changed(self, snapshot: SourceSnapshot, checks: Sequence[RangeCheck]) -> list[str]:
        module: Backend = backend("tables", self.access.uri, "--source")
        access = self.access
        with module.connect(access.uri, access.secret) as connection, contextlib.ExitStack() as stack:
            tables = {t.name: t for t in _open_tables(module, connection, self.shop, access.bulk).all}
            readers = _Readers(module, access, Snapshot("", (connection,)))
            stack.callback(readers.close)
            changed = {name for name, t in tables.items() if readers.run(t.count) != snapshot.counts[name]}
            for check in checks:
                if readers.run(functools.partial(_digest_now, tables[check.table], check)) != check.digest:
                    changed.add(check.table)
            return sorted(changed)


def _rows_read(table: str, checks: Sequence[RangeCheck]) -> int:
    return sum(check.digest[0] for check in checks if check.table == table)


def _digest_now(table: TableReader, check: RangeCheck, connection: Any) -> tuple[int, int]:
    return digest(table.read(connection, check.condition, check.parameters))


@dataclasses.dataclass(eq=False)
class ReadRatings(beam.PTransform):  # type: ignore[misc]
    """Reads a shop: outputs RATINGS (`RatingsRange`s), CHECKS (`RangeCheck`s), SNAPSHOT (one)."""

    access: Access
    shop: Shop
    range_rows: int = 200_000

    def __post_init__(self) -> None:
        reject_password(self.access.uri, "--source", "BEAMREC_SOURCE_PASSWORD")
        if self.range_rows < 1:
            raise UsageError(f"--range-rows: expected at least 1, got {self.range_rows}")

    def expand(self, begin: Any) -> Any:
        reading = beam.ParDo(_Read(self)).with_output_types(RatingsRange)
        return (
            begin
            | "Once" >> beam.Impulse()
            | "Ranges" >> reading.with_outputs(SNAPSHOT, CHECKS, main=RATINGS)
        )


class _Read(beam.DoFn):  # type: ignore[misc]
    def __init__(self, options: ReadRatings) -> None:
        self._options = options

    def process(self, _: bytes) -> Iterator[Any]:
        options = self._options
        tags = {SourceSnapshot: SNAPSHOT, RangeCheck: CHECKS}
        for part in read_ratings(options.access, options.shop, options.range_rows):
            tag = tags.get(type(part))
            yield beam.pvalue.TaggedOutput(tag, part) if tag else part


def _method(snapshot: Snapshot, readers: _Readers) -> str:
    if not readers.reconnects:
        return snapshot.method
    again = ", checksums of every range read again at the end" if readers.left_the_snapshot else ""
    return f"{snapshot.method}; {readers.reconnects} lost connections replaced{again}"


def _open_tables(module: Backend, connection: Any, shop: Shop, bulk: bool) -> ShopTables:
    ratings = TableReader.open(module, connection, shop.ratings.name, shop.ratings.columns, bulk)
    customers, products = (
        _open_entities(module, connection, table, bulk) for table in (shop.customers, shop.products)
    )
    _check_ratings(shop, ratings.schema)
    return ShopTables(ratings, customers, products)


def _open_entities(module: Backend, connection: Any, table: Table, bulk: bool) -> TableReader:
    reader = TableReader.open(module, connection, table.name, (table.key, *table.columns), bulk)
    check_key_type(reader.schema.field(0).type, table.key_type, f"{table.name}.{table.key}")
    return reader


def _check_ratings(shop: Shop, ratings: pa.Schema) -> None:
    for position, table in enumerate((shop.customers, shop.products)):
        field = ratings.field(position)
        check_key_type(field.type, table.key_type, f"{shop.ratings.name}.{field.name}")
    rating = ratings.field(2)
    numeric: Sequence[Callable[[pa.DataType], bool]] = (
        pa.types.is_integer,
        pa.types.is_floating,
        pa.types.is_decimal,
    )
    if not any(kind(rating.type) for kind in numeric):
        raise UsageError(f"{shop.ratings.name}.{rating.name}: expected numbers, got {rating.type}")
    for moment in list(ratings)[3:]:
        if not any(kind(moment.type) for kind in (*numeric, pa.types.is_date, pa.types.is_timestamp)):
            raise UsageError(
                f"{shop.ratings.name}.{moment.name}: expected dates, timestamps or numbers, got {moment.type}"
            )


def _check_collations(module: Backend, connection: Any, tables: ShopTables) -> None:
    """Ranges and look-ups by key go over two tables, whose columns must agree on what is equal and next."""
    for position, entities in enumerate((tables.customers, tables.products)):
        if not pa.types.is_string(entities.schema.field(0).type):
            continue
        columns = (tables.ratings.name, tables.ratings.actual[position]), (entities.name, entities.actual[0])
        if module.collation(connection, *columns[0]) != module.collation(connection, *columns[1]):
            one, other = (".".join(column) for column in columns)
            raise UsageError(
                f"{one} and {other} are compared by other rules (collations); expected equal ones: "
                "give --shop a view with COLLATE, or change a column"
            )


def _training_types(shop: Shop, tables: ShopTables) -> dict[str, str]:
    """Types of the training files' columns; keys have the type of the table that they are the key of."""
    fields = {
        field.name: field.type for table in (tables.customers, tables.products) for field in table.schema
    }
    fields |= {field.name: field.type for field in list(tables.ratings.schema)[2:]}
    return {name: str(fields[name]) for name in (shop.partition_column, *shop.training_columns)}
