"""The shop as configuration: tables, keys, features, rating scale and event mapping.

Nothing outside this module knows a column name of one shop. A shop is read from TOML with
`Shop.from_toml` (`--shop`); `CLASSICMODELS` is the built-in default.
"""

import dataclasses
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from beamrec.schemas.errors import UsageError

__all__ = ["CLASSICMODELS", "EventMapping", "Feature", "RatingsTable", "Shop", "Table", "load_shop"]

KeyType = Literal["int", "string"]
FeatureKind = Literal["category", "number", "text", "none"]

_IDENTIFIER = re.compile(r"[^\x00/\\]{1,64}")


def _identifier(value: str, where: str) -> None:
    if not isinstance(value, str) or not _IDENTIFIER.fullmatch(value):
        raise UsageError(
            f"{where}: expected a column or table name of 1 to 64 characters "
            f"without slashes or NUL, got {value!r}"
        )


def _choice(value: str, choices: tuple[str, ...], where: str) -> None:
    if value not in choices:
        raise UsageError(f"{where}: expected one of {', '.join(choices)}, got {value!r}")


@dataclasses.dataclass(frozen=True)
class Feature:
    """One non-key column of a table, how the model sees it and where an event carries it.

    Attributes:
      column: column name in the source table and in the training files.
      kind: `category` (vocabulary), `number` (scaled), `text`, or `none` (kept in the files, not modelled).
      event_field: the event's field of the same meaning; None where events do not carry it. A customer
        column that no event carries stays out of the user tower: training on what serving cannot see
        would only cost accuracy.
      trim: strip white space inside the preprocessing graph (files keep the source's bytes).
      lower: fold case inside the preprocessing graph.
      log: take log1p of a number before scaling (skewed amounts).
    """

    column: str
    kind: FeatureKind = "category"
    event_field: str | None = None
    trim: bool = True
    lower: bool = False
    log: bool = False

    def __post_init__(self) -> None:
        _identifier(self.column, "feature column")
        _choice(self.kind, ("category", "number", "text", "none"), f"feature {self.column}: kind")


@dataclasses.dataclass(frozen=True)
class Table:
    """Customers or products: a key, its type and the feature columns in training-file order."""

    name: str
    key: str
    key_type: KeyType
    features: tuple[Feature, ...]

    def __post_init__(self) -> None:
        _identifier(self.name, "table name")
        _identifier(self.key, f"table {self.name}: key")
        _choice(self.key_type, ("int", "string"), f"table {self.name}: key_type")
        names = [self.key, *self.columns]
        if len({n.lower() for n in names}) != len(names):
            raise UsageError(f"table {self.name}: columns must be distinct regardless of case, got {names}")

    @property
    def columns(self) -> tuple[str, ...]:
        """Feature columns in order, without the key."""
        return tuple(f.column for f in self.features)


@dataclasses.dataclass(frozen=True)
class RatingsTable:
    """The ratings: foreign keys to customers and products, and the rating with its scale (inclusive)."""

    name: str
    customer: str
    product: str
    rating: str
    min_rating: float = 1
    max_rating: float = 5

    def __post_init__(self) -> None:
        _identifier(self.name, "ratings table name")
        for column in (self.customer, self.product, self.rating):
            _identifier(column, f"table {self.name}")
        if not self.min_rating < self.max_rating:
            raise UsageError(
                f"table {self.name}: min_rating must be below max_rating, "
                f"got {self.min_rating} and {self.max_rating}"
            )


@dataclasses.dataclass(frozen=True)
class EventMapping:
    """How one JSON event maps to customer, products, quantity, cart, time and id.

    Attributes:
      shape: `session` (an event holds its whole history) or `click` (one product an event).
      customer, event_id, event_time, session: top-level fields; all but `customer` optional in an event.
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

    def __post_init__(self) -> None:
        _choice(self.shape, ("session", "click"), "events: shape")


@dataclasses.dataclass(frozen=True)
class Shop:
    """Everything that differs from one shop to the next."""

    name: str
    customers: Table
    products: Table
    ratings: RatingsTable
    events: EventMapping = EventMapping()

    def __post_init__(self) -> None:
        columns = [self.customers.key, *self.training_columns]
        if len({c.lower() for c in columns}) != len(columns):
            raise UsageError(
                f"shop {self.name}: the training files would hold two columns of one name: {columns}; "
                "rename one in the source (a view will do)"
            )

    @property
    def training_columns(self) -> tuple[str, ...]:
        """Columns inside a training file, in order; the partition column is in the path."""
        return (*self.customers.columns, self.products.key, *self.products.columns, self.ratings.rating)

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

        unknown = sorted(set(data) - {"name", "customers", "products", "ratings", "events"})
        if unknown:
            raise UsageError(f"shop: unknown key {unknown[0]!r}")
        for required in ("customers", "products", "ratings"):
            if required not in data:
                raise UsageError(f"shop: the table [{required}] is missing; `beamrec init` writes an example")
        return cls(
            name=str(data.get("name", "shop")),
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
        except tomllib.TOMLDecodeError as error:
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
    try:
        return kind(**values)
    except TypeError as error:
        raise UsageError(f"{where}: {error}") from None


def _table(values: Any, where: str) -> Table:
    if not isinstance(values, Mapping):
        raise UsageError(f"{where}: expected a table, got {values!r}")
    features = values.get("features", ())
    if not isinstance(features, list | tuple):
        raise UsageError(f"{where}.features: expected an array of tables, got {features!r}")
    built = tuple(_build(Feature, f, f"{where}.features[{i}]") for i, f in enumerate(features))
    table: Table = _build(Table, {**values, "features": built}, where)
    return table


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
