"""The shop as configuration: tables, keys, features, rating scale and event mapping.

Nothing outside this module knows a column name of one shop. A shop is read from TOML with
`Shop.from_toml` (`--shop`); `CLASSICMODELS` is the built-in default.
"""

import dataclasses
import datetime as dt
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from beamrec.schemas.errors import UsageError
from beamrec.schemas.feature import Feature, check_choice, check_identifier, check_number, check_type

__all__ = ["CLASSICMODELS", "EventMapping", "Feature", "RatingsTable", "Shop", "Table", "load_shop"]

KeyType = Literal["int", "string"]
_MAX_HISTORY_LENGTH = 100  # for every click: all of them are looked up, and so many more items searched


@dataclasses.dataclass(frozen=True)
class Table:
    """Customers or products: a key, its type and the feature columns in training-file order."""

    name: str
    key: str
    key_type: KeyType
    features: tuple[Feature, ...]

    def __post_init__(self) -> None:
        check_identifier(self.name, "table name")
        check_identifier(self.key, f"table {self.name}: key")
        check_choice(self.key_type, ("int", "string"), f"table {self.name}: key_type")
        if not isinstance(self.features, tuple) or not all(isinstance(f, Feature) for f in self.features):
            raise UsageError(f"table {self.name}: expected a tuple of features, got {self.features!r}")
        names = [self.key, *self.columns]
        if len({n.lower() for n in names}) != len(names):
            raise UsageError(f"table {self.name}: columns must be distinct regardless of case, got {names}")

    @property
    def columns(self) -> tuple[str, ...]:
        """Feature columns in order, without the key."""
        return tuple(f.column for f in self.features)


@dataclasses.dataclass(frozen=True)
class RatingsTable:
    """The ratings: foreign keys to customers and products, and the rating with its scale (inclusive).

    Attributes:
      time: when it was given, a date, a timestamp or a number that ascends with time; None if not known.
    """

    name: str
    customer: str
    product: str
    rating: str
    min_rating: float = 1
    max_rating: float = 5
    time: str | None = None

    def __post_init__(self) -> None:
        check_identifier(self.name, "ratings table name")
        for column in self.columns:
            check_identifier(column, f"table {self.name}")
        if self.time is not None and self.time.lower() in (c.lower() for c in self.columns[:3]):
            raise UsageError(f"table {self.name}: time must be a column of its own, got {self.time}")
        for name in ("min_rating", "max_rating"):
            check_number(getattr(self, name), f"table {self.name}: {name}")
        if not self.min_rating < self.max_rating:
            raise UsageError(
                f"table {self.name}: min_rating must be below max_rating, "
                f"got {self.min_rating} and {self.max_rating}"
            )

    @property
    def columns(self) -> tuple[str, ...]:
        """Customer, product, rating, and the time if it is known: what is read, in this order."""
        return (self.customer, self.product, self.rating, *(() if self.time is None else (self.time,)))


@dataclasses.dataclass(frozen=True)
class EventMapping:
    """How one JSON event maps to customer, products, quantity, cart, time and id.

    Attributes:
      shape: `session` (an event holds its whole history) or `click` (one product an event).
      customer, event_id, event_time, session: top-level fields; all but `customer` optional in an event.
      history_length: how many clicks of its session before it a click is served with (`click` shape).
      history: field holding the list of viewed products (`session` shape).
      product, quantity, in_cart: fields of one history entry (or of the click itself).
    """

    shape: Literal["session", "click"] = "session"
    customer: str = "customer_number"
    event_id: str = "event_id"
    event_time: str = "event_time"
    session: str = "session_id"
    history: str = "browse_history"
    product: str = "product_code"
    quantity: str = "quantity"
    in_cart: str = "in_shopping_cart"
    history_length: int = 10

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if field.name != "history_length":
                check_type(getattr(self, field.name), str, f"events: {field.name}")
        check_choice(self.shape, ("session", "click"), "events: shape")
        length = self.history_length
        if not isinstance(length, int) or isinstance(length, bool) or not 0 <= length <= _MAX_HISTORY_LENGTH:
            raise UsageError(
                f"events: history_length: expected a whole number from 0 to {_MAX_HISTORY_LENGTH}, "
                f"got {length!r}"
            )


@dataclasses.dataclass(frozen=True)
class Shop:
    """Everything that differs from one shop to the next."""

    name: str
    customers: Table
    products: Table
    ratings: RatingsTable
    events: EventMapping = EventMapping()

    def __post_init__(self) -> None:
        check_type(self.name, str, "shop: name")
        tables = [self.customers.name, self.products.name, self.ratings.name]
        if len({name.lower() for name in tables}) != len(tables):
            raise UsageError(
                f"shop {self.name}: customers, products and ratings are counted by their tables' names, got "
                f"{', '.join(tables)}; give one of them as a view"
            )
        columns = [self.customers.key, *self.training_columns]
        if len({c.lower() for c in columns}) != len(columns):
            raise UsageError(
                f"shop {self.name}: the training files would hold two columns of one name: {columns}; "
                "rename one in the source (a view will do)"
            )

    @property
    def training_columns(self) -> tuple[str, ...]:
        """Columns inside a training file, in order; the partition column is in the path."""
        of_product = (self.products.key, *self.products.columns)
        return (*self.customers.columns, *of_product, *self.ratings.columns[2:])

    @property
    def partition_column(self) -> str:
        """Column that the training files are partitioned by."""
        return self.customers.key

    @property
    def user_features(self) -> tuple[Feature, ...]:
        """Customer features that the user tower sees: modelled, and carried by events."""
        return tuple(f for f in self.customers.features if f.kind != "none" and f.event_field)

    @property
    def item_features(self) -> tuple[Feature, ...]:
        """Product features that the item tower sees."""
        return tuple(f for f in self.products.features if f.kind != "none")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Shop":
        """Builds a shop from the nested mapping that a shop TOML holds.

        Raises:
          UsageError: a key is missing, unknown or of the wrong type.
        """

        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(data) - known)
        if unknown:
            raise UsageError(f"shop: unknown key {unknown[0]!r}; known are {', '.join(sorted(known))}")
        for required in ("customers", "products", "ratings"):
            if required not in data:
                raise UsageError(f"shop: the table [{required}] is missing; `beamrec init` writes an example")
        return cls(
            name=data.get("name", "shop"),
            customers=_table(data["customers"], "customers"),
            products=_table(data["products"], "products"),
            ratings=_build(RatingsTable, data["ratings"], "ratings"),
            events=_build(EventMapping, data.get("events", {}), "events"),
        )

    @classmethod
    def from_toml(cls, path: str | Path) -> "Shop":
        """Reads a shop from a TOML file.

        Raises:
          UsageError: the file is missing, is not TOML, or does not describe a shop.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--shop {path}: cannot be read: {error}") from None
        try:
            data = tomllib.loads(text)
        except (ValueError, RecursionError) as error:  # also of 5,000 digits, or brackets
            raise UsageError(f"--shop {path}: not valid TOML: {error}") from None
        try:
            return cls.from_dict(data)
        except UsageError as error:
            raise UsageError(f"--shop {path}: {error}") from None


def _build(kind: type, values: Any, where: str) -> Any:
    if not isinstance(values, Mapping):
        raise UsageError(f"{where}: expected a table, got {values!r}")
    known = {f.name for f in dataclasses.fields(kind)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise UsageError(f"{where}: unknown key {unknown[0]!r}; known are {', '.join(sorted(known))}")
    missing = [f.name for f in dataclasses.fields(kind) if f.name not in values and _is_required(f)]
    if missing:
        raise UsageError(f"{where}: the key {missing[0]!r} is missing; `beamrec init` writes an example")
    return kind(**values)


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _table(values: Any, where: str) -> Table:
    if not isinstance(values, Mapping):
        raise UsageError(f"{where}: expected a table, got {values!r}")
    features = values.get("features", ())
    if not isinstance(features, list | tuple):
        raise UsageError(f"{where}.features: expected an array of tables, got {features!r}")
    built = tuple(_build(Feature, _plain(f), f"{where}.features[{i}]") for i, f in enumerate(features))
    table: Table = _build(Table, {**values, "features": built}, where)
    return table


def _plain(feature: Any) -> Any:
    """A feature's rules as `Feature` takes them: TOML's own dates as text, the list of values as a tuple."""
    if not isinstance(feature, Mapping):
        return feature
    plain = dict(feature)
    for name in ("min", "max"):
        if isinstance(plain.get(name), dt.date):
            plain[name] = plain[name].isoformat()
    if isinstance(plain.get("values"), list):
        plain["values"] = tuple(plain["values"])
    return plain


def load_shop(path: str | None) -> Shop:
    """The shop of `--shop PATH`, or classicmodels where none is given."""
    return Shop.from_toml(path) if path else CLASSICMODELS


CLASSICMODELS = Shop(
    name="classicmodels",
    customers=Table(
        name="customers",
        key="customerNumber",
        key_type="int",
        features=(
            Feature("city", event_field="city"),
            Feature("state"),
            Feature("postalCode"),
            Feature("country", event_field="country"),
            Feature("creditLimit", kind="number", event_field="credit_limit"),
        ),
    ),
    products=Table(
        name="products",
        key="productCode",
        key_type="string",
        features=(
            Feature("productLine"),
            Feature("productScale"),
            Feature("quantityInStock", kind="number"),
            Feature("buyPrice", kind="number"),
            Feature("MSRP", kind="number"),
        ),
    ),
    ratings=RatingsTable("ratings", "customerNumber", "productCode", "productRating"),
)
