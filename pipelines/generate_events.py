"""`beamrec generate events`: a seeded click stream with every dirty case that real streams hold."""

import argparse
import dataclasses
import datetime as dt
import json
import random
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from beamrec.io.registry import backend, known_schemes, reject_password
from beamrec.pipelines.console import Console
from beamrec.pipelines.environment import default
from beamrec.schemas.errors import UsageError
from beamrec.schemas.paths import local_path
from beamrec.schemas.shop import Shop, Table, load_shop

__all__ = [
    "HELP",
    "Catalogue",
    "Dirt",
    "EventGenerator",
    "add_arguments",
    "read_catalogue",
    "run",
    "write_events",
]

HELP = "writes click-stream events, good and dirty, into a folder"

_SEED = "the same seed makes the same events and ids: a second time into one stream they are duplicates"
_UNSEEN_CITIES = ("Bräcke", "Charleroi", "Östersund", "São Paulo", "")
_UNSEEN_COUNTRIES = ("Iceland", "Chile", "")
_GARBAGE = (
    b"not json",
    b'{"customer_number": 12',
    b"[]",
    b'{"customer_number": "many"}',
    b'{"browse_history": [{"product_code": null}]}',
    b'{"event_time": "yesterday"}',
    b'{"city": "\xff"}',
)


@dataclasses.dataclass(frozen=True)
class Dirt:
    """Shares (0 to 1) of the cases that a stream has to bear.

    Attributes:
      garbage: lines that are no valid event.
      duplicates: events sent twice, as a producer's retry.
      late: events that happened up to `max_late_seconds` before they are sent.
      expired: events that happened a day before.
      unknown_customers, unknown_products: not in the database.
    """

    garbage: float = 0.01
    duplicates: float = 0.02
    late: float = 0.05
    expired: float = 0.005
    unknown_customers: float = 0.6
    unknown_products: float = 0.03
    max_late_seconds: float = 1800.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name != "max_late_seconds" and not 0 <= value <= 1:
                raise UsageError(
                    f"--{field.name.replace('_', '-')}: expected a share from 0 to 1, got {value}"
                )


@dataclasses.dataclass(frozen=True)
class Catalogue:
    """What a click stream draws from: rows of (key, then each feature that events carry), product keys."""

    customers: tuple[tuple[Any, ...], ...]
    products: tuple[Any, ...]


def read_catalogue(uri: str, shop: Shop) -> Catalogue:
    """Customers and products of a shop database.

    Raises:
      UsageError: it has no customers or no products.
    """
    module = backend("tables", uri, "--source")
    with module.connect(uri) as connection:

        def rows(table: Table, columns: Sequence[str]) -> tuple[tuple[Any, ...], ...]:
            names = ", ".join(module.quote(c) for c in columns)
            sql = f"SELECT {names} FROM {module.quote(table.name)} ORDER BY {module.quote(table.key)}"  # noqa: S608
            return tuple(tuple(row) for chunk in module.fetch(connection, sql) for row in chunk)

        customers = rows(shop.customers, [shop.customers.key, *(f.column for f in shop.user_features)])
        products = tuple(row[0] for row in rows(shop.products, [shop.products.key]))
    if not customers or not products:
        raise UsageError(f"--source {uri}: the tables of customers and products must not be empty")
    return Catalogue(customers, products)


class EventGenerator:
    """Lines of JSON, the same for the same seed but for their times.

    Args:
      shop: how an event maps to customer, products, time and id.
      catalogue: what to draw from.
      seed: of every draw.
      dirt: shares of dirty cases.
      event_time: whether events carry their own time and id; without them a late event has no meaning
        and a duplicate cannot be recognised, so there are none.
    """

    def __init__(
        self, shop: Shop, catalogue: Catalogue, seed: int, dirt: Dirt | None = None, event_time: bool = True
    ) -> None:
        self._shop = shop
        self._catalogue = catalogue
        self._random = random.Random(seed)  # noqa: S311  (sample data)
        self._dirt = dirt or Dirt()
        self._event_time = event_time
        # Popularity falls with the rank, as in a real shop.
        self._weights = [1.0 / (rank + 3) for rank in range(len(catalogue.products))]
        self._previous: bytes | None = None

    def line(self, now: dt.datetime) -> bytes:
        """The next event, sent at `now`, without a line end."""
        draw, dirt = self._random, self._dirt
        if draw.random() < dirt.garbage:
            return draw.choice(_GARBAGE)
        if self._event_time and self._previous and draw.random() < dirt.duplicates:
            return self._previous
        event = self._event(now)
        line = json.dumps(event, ensure_ascii=False).encode()
        self._previous = line
        return line

    def _event(self, now: dt.datetime) -> dict[str, Any]:
        names, draw = self._shop.events, self._random
        event: dict[str, Any] = {names.session: self._id()}
        event |= self._customer()
        if names.shape == "click":
            event |= self._click()
        else:
            event[names.history] = self._history()
        if self._event_time:
            event[names.event_id] = self._id()
            event[names.event_time] = self._time(now).isoformat().replace("+00:00", "Z")
        if draw.random() < 0.05:
            event["campaign"] = {"source": "newsletter", "tags": ["autumn", None]}
        return event

    def _id(self) -> str:
        return str(uuid.UUID(int=self._random.getrandbits(128), version=4))

    def _customer(self) -> dict[str, Any]:
        """Mostly strangers, and customers whose features are not those in the database."""
        draw, shop = self._random, self._shop
        row = draw.choice(self._catalogue.customers)
        key = row[0]
        if draw.random() < self._dirt.unknown_customers:
            key = draw.randrange(10**6, 10**7) if shop.customers.key_type == "int" else self._id()
        values: dict[str, Any] = {shop.events.customer: key}
        donor = draw.choice(self._catalogue.customers) if draw.random() < 0.9 else row
        for feature, value in zip(shop.user_features, donor[1:], strict=True):
            values[str(feature.event_field)] = self._feature(feature.kind, feature.column, value)
        return values

    def _feature(self, kind: str, column: str, value: Any) -> Any:
        draw = self._random
        if kind == "number":
            return -draw.randrange(1, 5000) if draw.random() < 0.03 else int(float(value or 0))
        if draw.random() < 0.05:
            return draw.choice(_UNSEEN_COUNTRIES if "country" in column.lower() else _UNSEEN_CITIES)
        return value

    def _history(self) -> list[dict[str, Any]]:
        length = self._random.choice((0, 1, 1, 2, 2, 3, 4, 5))
        history = [self._click() for _ in range(length)]
        if length > 1 and self._random.random() < 0.05:
            history[-1] = dict(history[0])
        return history

    def _click(self) -> dict[str, Any]:
        draw, names = self._random, self._shop.events
        product = draw.choices(self._catalogue.products, self._weights)[0]
        if draw.random() < self._dirt.unknown_products:
            product = f"NEW_{draw.randrange(1000)}" if isinstance(product, str) else product + 10**9
        quantity = draw.randrange(1, 10)
        return {
            names.product: product,
            names.quantity: str(quantity) if draw.random() < 0.8 else quantity,
            names.in_cart: draw.random() < 0.5,
        }

    def _time(self, now: dt.datetime) -> dt.datetime:
        draw, dirt = self._random, self._dirt
        kind = draw.random()
        if kind < dirt.expired:
            return now - dt.timedelta(days=1)
        if kind < dirt.expired + dirt.late:
            return now - dt.timedelta(seconds=draw.uniform(0, dirt.max_late_seconds))
        return now


def write_events(
    generator: EventGenerator,
    folder: Path,
    count: int,
    rate: float | None = None,
    progress: Callable[[int], None] | None = None,
) -> Path:
    """Appends events to a new file in `folder`; returns its path.

    Args:
      count: events.
      rate: events per second, in steps of at least a tenth of a second; None writes all at once, and the
        file appears whole.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"events-{dt.datetime.now(dt.UTC):%Y%m%dT%H%M%S%f}.jsonl"
    if rate is None:
        partial = path.with_suffix(".tmp")
        partial.write_bytes(b"".join(line + b"\n" for line in _lines(generator, count)))
        partial.rename(path)
        return path
    began, sent, told = time.monotonic(), 0, 0.0
    with open(path, "ab") as file:
        while sent < count:
            due = min(count, int((time.monotonic() - began) * rate) + 1)
            if due > sent:
                file.write(b"".join(line + b"\n" for line in _lines(generator, due - sent)))
                file.flush()
                sent = due
                if progress and time.monotonic() - told > 1:
                    told = time.monotonic()
                    progress(sent)
            time.sleep(min(0.1, 1 / rate))
    return path


def _lines(generator: EventGenerator, count: int) -> Iterator[bytes]:
    for _ in range(count):
        yield generator.line(dt.datetime.now(dt.UTC))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `generate events`."""
    add = parser.add_argument
    schemes = ", ".join(known_schemes("tables"))
    add("--output", required=True, help="folder to write a new JSONL file into [folder]")
    add("--source", default=default("source"), help=f"shop to draw from: {schemes} [URI]")
    add("--shop", default=default("shop"), help="shop TOML; classicmodels if not given [file]")
    add("--events", type=int, default=2000, help="how many")
    pace = parser.add_mutually_exclusive_group()
    pace.add_argument("--rate", type=float, help="events a second; all at once if not given [1/s]")
    pace.add_argument("--mean-interval", type=float, help="the same as an interval [s]")
    add("--seed", type=int, default=default("seed"), help=_SEED)
    add("--no-event-time", action="store_true", help="without event_time and event_id, as some producers are")
    for field in dataclasses.fields(Dirt):
        unit = "s" if field.name == "max_late_seconds" else "0 to 1"
        flag = f"--{field.name.replace('_', '-')}"
        add(flag, type=float, default=field.default, help=f"{_DIRT_HELP[field.name]} [{unit}]")


_DIRT_HELP = {
    "garbage": "lines that are no valid event",
    "duplicates": "events sent twice",
    "late": "events that happened a while before",
    "expired": "events that happened a day before",
    "unknown_customers": "customers that are not in the shop",
    "unknown_products": "products that are not in the shop",
    "max_late_seconds": "how late at most",
}


def run(values: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Writes the events and returns the `--json` object."""
    if not values.source:
        raise UsageError("--source is missing: customers and products are drawn from a shop database")
    rate = 1 / values.mean_interval if values.mean_interval else values.rate
    if values.events < 1 or (rate is not None and rate <= 0):
        raise UsageError("--events, --rate and --mean-interval: expected more than zero")
    reject_password(values.source, "--source", "BEAMREC_SOURCE_PASSWORD")
    shop = load_shop(values.shop)
    dirt = Dirt(**{field.name: getattr(values, field.name) for field in dataclasses.fields(Dirt)})
    generator = EventGenerator(
        shop, read_catalogue(values.source, shop), values.seed, dirt, not values.no_event_time
    )
    path = write_events(
        generator,
        Path(local_path(values.output, "--output")),
        values.events,
        rate,
        lambda sent: console.progress(f"{sent:,} of {values.events:,} events sent"),
    )
    console.print(f"{values.events:,} events: {path}")
    return {"events": values.events, "paths": {"events": str(path)}}
