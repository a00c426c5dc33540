"""What business rules need of the shop's database: stock and the like, and who bought what.

Read beside serving and kept for some seconds. An outage changes nothing but how old the last known facts
are: it is counted and logged, no batch waits for it for long, and nothing becomes a dead letter.
"""

import dataclasses
import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
import pyarrow as pa

from beamrec.io.arrow_types import check_key_type
from beamrec.io.backend import Backend
from beamrec.io.registry import backend
from beamrec.io.table_reader import TableReader
from beamrec.schemas.errors import UnavailableError, UsageError
from beamrec.schemas.rules import Facts, ProductFacts, PurchasesTable
from beamrec.schemas.shop import Shop

__all__ = ["FactsSource", "RuleFacts"]

# Within this time a healthy database has answered; a batch waits no longer for what is only newer.
_PATIENCE_SECONDS = 5.0
_RETRY_SECONDS = 5.0
_MOST_HANGING = 32
_MOST_CUSTOMERS = 200_000
_CUSTOMERS_PER_QUERY = 10_000  # SQLite takes 32,766 parameters

_log = logging.getLogger(__name__)
_Answer = TypeVar("_Answer")
_Purchases = dict[Any, list[str]]
_READER = "_reader"


@dataclasses.dataclass(frozen=True)
class FactsSource:
    """Where the facts are, and which are needed; picklable.

    Attributes:
      uri: of the shop's database.
      shop: names its tables and keys.
      columns: of the products' table, whether the shop names them as features or not.
      purchases: who bought what; None if no rule asks.
      refresh_seconds: how old facts may be while the database answers.
      secret: where the password is; None is the environment.
    """

    uri: str
    shop: Shop
    columns: tuple[str, ...] = ()
    purchases: PurchasesTable | None = None
    refresh_seconds: float = 30.0
    secret: str | None = None

    def check(self) -> None:
        """Reads once what will be read again and again.

        Raises:
          UsageError: the URI is wrong, or a table or column is not there.
          UnavailableError: the database is away, or refuses us.
        """
        try:
            if self.columns:
                self.read_products()
            if self.purchases is not None:
                self.read_purchases([0 if self.shop.customers.key_type == "int" else ""])
        except UsageError as error:
            # Readers know of --shop only; columns and [purchases] stand in the rules' own file.
            said = str(error).replace("in --shop", "in --rules, or in --shop where they name none")
            raise UsageError(f"the rules' facts: {said}") from error

    def read_products(self) -> ProductFacts:
        """All products now; raises as `check`."""
        module, table = backend("tables", self.uri, "--source"), self.shop.products
        with module.connect(self.uri, self.secret) as connection:
            reader = TableReader.open(module, connection, table.name, (table.key, *self.columns), bulk=True)
            check_key_type(reader.schema.field(0).type, table.key_type, f"{table.name}.{table.key}")
            rows, malformed = reader.read(connection)
        if malformed:
            first = malformed[0]
            _log.warning(
                "rules: %d products have no facts: a value is not of its column's type, the first in %s",
                len(malformed), first.column,
            )  # fmt: skip
        return ProductFacts(rows.column(0).cast(pa.string()), rows.select(list(self.columns)))

    def read_purchases(self, customers: Sequence[Any]) -> _Purchases:
        """Customer → ids of the products that they bought; raises as `check`.

        Args:
          customers: distinct, of the key's type; each is in the answer.
        """
        found: dict[str, list[str]] = defaultdict(list)
        # A text with NUL is no key of any table, and PostgreSQL refuses it.
        asked = [key for key in customers if "\0" not in str(key)]
        module = backend("tables", self.uri, "--source")
        with module.connect(self.uri, self.secret) as connection:
            reader = self._purchases_reader(module, connection)
            for start in range(0, len(asked), _CUSTOMERS_PER_QUERY):
                some = asked[start : start + _CUSTOMERS_PER_QUERY]
                marks = ", ".join([module.PLACEHOLDER] * len(some))
                rows, _ = reader.read(connection, f"{reader.column(0)} IN ({marks})", tuple(some))
                pairs = (rows.column(number).cast(pa.string()).to_pylist() for number in range(2))
                for customer, product in zip(*pairs, strict=True):
                    found[customer].append(product)
        return {customer: found.get(str(customer), []) for customer in customers}

    def _purchases_reader(self, module: Backend, connection: Any) -> TableReader:
        """The table as the database spells it, looked up once."""
        if _READER not in self.__dict__:
            if self.purchases is None:
                raise UsageError("no rule asks who bought what")
            names = self.purchases
            columns = (names.customer, names.product)
            self.__dict__[_READER] = TableReader.open(module, connection, names.table, columns, bulk=True)
        reader: TableReader = self.__dict__[_READER]
        return reader

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != _READER}


class _Question(Generic[_Answer]):
    """One piece of work in a thread of its own, so that a database that hangs holds nobody up."""

    def __init__(self, work: Callable[[], _Answer], ended: Callable[[], None]) -> None:
        self._work, self._ended = work, ended
        self._done = threading.Event()
        self._answer: tuple[_Answer] | None = None
        self._error: BaseException | None = None
        threading.Thread(target=self._run, name="rule facts", daemon=True).start()

    def _run(self) -> None:
        try:
            self._answer = (self._work(),)
        except BaseException as error:  # noqa: BLE001  (handed to whoever asked)
            self._error = error
        finally:
            self._ended()
            self._done.set()

    def wait(self, seconds: float) -> _Answer:
        """The answer; raises what the work raised, or TimeoutError."""
        if not self._done.wait(seconds):
            raise TimeoutError(f"no answer within {seconds:g} s")
        if self._error is not None:
            raise self._error
        if self._answer is None:
            raise RuntimeError("ended without an answer")
        return self._answer[0]


class RuleFacts:
    """The facts as a worker knows them; safe for threads.

    Args:
      patience_seconds: how long a batch waits for newer facts than it has.
      retry_seconds: until a database that failed is asked again.
    """

    def __init__(
        self,
        source: FactsSource,
        patience_seconds: float = _PATIENCE_SECONDS,
        retry_seconds: float = _RETRY_SECONDS,
    ) -> None:
        self._source = source
        self._patience, self._retry = patience_seconds, retry_seconds
        self._lock = threading.Lock()
        self._hanging = threading.BoundedSemaphore(_MOST_HANGING)
        self._products: tuple[float, ProductFacts] | None = None
        self._refreshing: _Question[ProductFacts] | None = None
        self._bought: dict[Any, tuple[float, list[str]]] = {}
        self._not_before = 0.0
        self._is_away = False
        self._failures = self._unknown = 0

    def of(self, customers: pa.Array) -> Facts:
        """What is known of the products, and of the customers of a batch.

        Args:
          customers: the batch's column of keys; null where nobody knows who it is.

        Raises:
          UsageError: there were no facts yet, and there is no such table or column; an outage is waited out.
        """
        products = self._current_products() if self._source.columns else None
        if self._source.purchases is None:
            return Facts(products, np.empty(0, np.int64), pa.array([], pa.string()))
        encoded = customers.drop_null().dictionary_encode()
        rows = np.flatnonzero(np.asarray(customers.is_valid()))
        bought = self._bought_by(encoded.dictionary.to_pylist())
        counts = np.array([len(products) for products in bought], np.int64)
        codes = np.asarray(encoded.indices).astype(np.int64)
        by_customer = pa.ListArray.from_arrays(
            np.concatenate([[0], np.cumsum(counts)]).astype(np.int32),
            pa.array([product for products in bought for product in products], pa.string()),
        )
        return Facts(products, np.repeat(rows, counts[codes]), by_customer.take(encoded.indices).flatten())

    def age_seconds(self) -> float:
        """How long ago the products' facts were asked for; 0 if no rule asks."""
        with self._lock:
            return time.monotonic() - self._products[0] if self._products else 0.0

    def take_counts(self) -> tuple[int, int]:
        """(failed readings, customers whose purchases nobody knew) since this was asked last."""
        with self._lock:
            counts = self._failures, self._unknown
            self._failures = self._unknown = 0
            return counts

    def _current_products(self) -> ProductFacts:
        while True:
            now = time.monotonic()
            with self._lock:
                known = self._products
                if known is not None and now - known[0] < self._source.refresh_seconds:
                    return known[1]
                refreshing = self._refresh(now)
            # Twice as old as they may be: nobody has asked for a while, and new ones are worth waiting for.
            is_old = known is None or now - known[0] >= 2 * self._source.refresh_seconds
            if refreshing is not None and is_old:
                self._wait_for(refreshing, must=known is None)
            with self._lock:
                if self._products is not None:
                    return self._products[1]
            time.sleep(min(0.2, self._retry))

    def _refresh(self, now: float) -> _Question[ProductFacts] | None:
        """The reading under way, or a new one, if the database may be asked; with the lock held."""
        if self._refreshing is None and now >= self._not_before:
            self._refreshing = self._ask(lambda: self._read_products(now))
        return self._refreshing

    def _read_products(self, asked_at: float) -> ProductFacts:
        try:
            found = self._source.read_products()
            with self._lock:
                self._products = asked_at, found
            self._answered()
            return found
        except Exception as error:
            self._failed(error)
            raise
        finally:
            with self._lock:
                self._refreshing = None

    def _wait_for(self, refreshing: _Question[ProductFacts], must: bool) -> None:
        with self._lock:
            is_away = self._is_away
        try:
            # Once a batch has waited in vain, the others need not.
            refreshing.wait(0.0 if is_away and not must else self._patience)
        except TimeoutError as error:
            if not is_away:
                self._failed(error)
        except UnavailableError:
            return
        except Exception:
            if must:
                raise

    def _bought_by(self, customers: list[Any]) -> list[list[str]]:
        now = time.monotonic()
        with self._lock:
            due = [
                customer
                for customer in customers
                if customer not in self._bought
                or now - self._bought[customer][0] >= self._source.refresh_seconds
            ]
            question = (
                self._ask(lambda: self._read_purchases(now, due)) if due and now >= self._not_before else None
            )
        if question is not None:
            try:
                question.wait(self._patience)
            except Exception as error:  # noqa: BLE001  (the last known hold)
                self._failed(error)
        with self._lock:
            self._unknown += sum(customer not in self._bought for customer in customers)
            return [self._bought.get(customer, (0.0, []))[1] for customer in customers]

    def _read_purchases(self, now: float, customers: list[Any]) -> _Purchases:
        """Remembers the answer, also one that comes when nobody waits for it any more."""
        found = self._source.read_purchases(customers)
        self._remember(now, found)
        self._answered()
        return found

    def _remember(self, now: float, found: _Purchases) -> None:
        with self._lock:
            for customer, products in found.items():
                self._bought.pop(customer, None)
                self._bought[customer] = now, products
            while len(self._bought) > max(_MOST_CUSTOMERS, len(found)):
                self._bought.pop(next(iter(self._bought)))

    def _ask(self, work: Callable[[], _Answer]) -> _Question[_Answer] | None:
        """Begins some work, unless as many as may be hang already."""
        if not self._hanging.acquire(blocking=False):
            return None
        return _Question(work, self._hanging.release)

    def _answered(self) -> None:
        with self._lock:
            was_away, self._is_away = self._is_away, False
        if was_away:
            _log.warning("rules: the shop's database answers again")

    def _failed(self, error: Exception) -> None:
        with self._lock:
            self._failures += 1
            self._not_before = time.monotonic() + self._retry
            was_away, self._is_away = self._is_away, True
        if not was_away:
            _log.error(
                "rules: the shop's database cannot be read (%s); the last known facts hold until it can",
                error,
            )
