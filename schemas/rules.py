"""Business rules of the ranking: what a rule is given, what it answers, and the file that names them.

A rule is any object, also a function, that takes the candidates of a batch and says which stay, or in which
order. It is called on the worker, by several threads, and must depend on nothing but what it is given.
"""

import dataclasses
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from beamrec.schemas.errors import UsageError
from beamrec.schemas.feature import check_identifier
from beamrec.schemas.key_index import KeyIndex

__all__ = [
    "CANDIDATE_COLUMNS",
    "Facts",
    "ProductFacts",
    "PurchasesTable",
    "Ranking",
    "Rule",
    "RuleSet",
    "RuleSpec",
]

CANDIDATE_COLUMNS = ("list", "id", "score", "rank", "customer", "bought")
"""Columns of candidates; behind them come the columns of products that the rule asked for."""

_FILE_KEYS = {"candidates", "most_candidates", "refresh_seconds", "purchases", "rules"}


class Rule(Protocol):
    """One business rule.

    Attributes (each may be missing):
      columns: names of the products' columns that it reads, () if missing.
      purchases: whether it reads `bought`; False if missing.
      similar: whether it is asked about `similar_items` too; False if missing.
    """

    def __call__(self, candidates: pa.RecordBatch) -> Any:
        """Judges the candidates of all lists of a batch.

        Args:
          candidates: ordered by list, in it by rank. `list` int64 (which list of the batch), `id` string,
            `score` float64 (in similar_items the distance), `rank` int64 (place in its list, from 1, after
            the rules before), `customer` string (null if unknown), `bought` Boolean (null unless asked for),
            then the asked columns of products, null where the product is not in the table.

        Returns:
          A Boolean for each candidate, true for those that stay; or the places (integers from 0, each once)
          of those that stay, in their new order. A list keeps to itself, whatever the order between lists.
        """


@dataclasses.dataclass(frozen=True)
class RuleSpec:
    """One `[[rules]]` of the file: what kind, by which name it is reported, with which options."""

    kind: str
    name: str
    options: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class PurchasesTable:
    """Where purchases stand in the shop's database: one row each, or each once, it does not matter."""

    table: str
    customer: str
    product: str

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            check_identifier(getattr(self, field.name), f"purchases: {field.name}")


@dataclasses.dataclass(frozen=True)
class RuleSet:
    """The rules in the order in which they are applied, and how much is looked for.

    Attributes:
      candidates: items looked for at first for each list.
      most_candidates: items looked for where the rules leave a list short, nearest and most popular each.
      refresh_seconds: how old the products' columns and a customer's purchases may be.
      purchases: None for the shop's ratings.

    Raises:
      UsageError: at construction, for a value out of range.
    """

    rules: tuple[RuleSpec, ...]
    candidates: int = 50
    most_candidates: int = 1_000
    refresh_seconds: float = 30.0
    purchases: PurchasesTable | None = None

    def __post_init__(self) -> None:
        for name in ("candidates", "most_candidates"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UsageError(f"{name}: expected a whole number from 1, got {value!r}")
        seconds = self.refresh_seconds
        if not isinstance(seconds, int | float) or isinstance(seconds, bool) or not 0 < seconds < 1e9:
            raise UsageError(f"refresh_seconds: expected seconds above 0, got {seconds!r}")
        names = [spec.name for spec in self.rules]
        if len(set(names)) != len(names):
            raise UsageError(f"rules: names must be distinct, got {', '.join(names)}; give each a name")

    @classmethod
    def from_toml(cls, path: str | Path) -> "RuleSet":
        """Reads the file of `--rules`.

        Raises:
          UsageError: it is missing, is not TOML, or does not hold rules.
        """
        try:
            data = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--rules {path}: cannot be read: {error}") from None
        except (ValueError, RecursionError) as error:  # also of 5,000 digits, or brackets
            raise UsageError(f"--rules {path}: not valid TOML: {error}") from None
        try:
            return cls.from_dict(data)
        except UsageError as error:
            raise UsageError(f"--rules {path}: {error}") from None

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "RuleSet":
        """Builds the rules from the mapping that the file holds; raises UsageError."""
        unknown = sorted(set(data) - _FILE_KEYS)
        if unknown:
            raise UsageError(f"unknown key {unknown[0]!r}; known are {', '.join(sorted(_FILE_KEYS))}")
        rules = data.get("rules")
        if not isinstance(rules, list) or not rules:
            raise UsageError(f"expected at least one [[rules]], got {rules!r}")
        plain = {name: value for name, value in data.items() if name not in ("rules", "purchases")}
        specs = tuple(_spec(entry, number) for number, entry in enumerate(rules, 1))
        return cls(specs, purchases=_purchases(data.get("purchases")), **plain)


def _spec(entry: Any, number: int) -> RuleSpec:
    kind = entry.get("kind") if isinstance(entry, Mapping) else None
    if not isinstance(kind, str):
        raise UsageError(f'rules[{number}]: expected a table with kind = "…", got {entry!r}')
    name = entry.get("name", kind)
    if not isinstance(name, str) or not name:
        raise UsageError(f"rules[{number}]: name: expected a text, got {name!r}")
    return RuleSpec(kind, name, {key: entry[key] for key in entry if key not in ("kind", "name")})


def _purchases(values: Any) -> PurchasesTable | None:
    if values is None:
        return None
    names = {field.name for field in dataclasses.fields(PurchasesTable)}
    if not isinstance(values, Mapping) or set(values) != names:
        raise UsageError(f"[purchases]: expected exactly {', '.join(sorted(names))}, got {values!r}")
    return PurchasesTable(**values)


class ProductFacts:
    """Columns of the products as they were at one moment.

    Args:
      keys: string [n], the products' keys as the release has them.
      columns: [n] rows.
    """

    def __init__(self, keys: pa.StringArray, columns: pa.RecordBatch) -> None:
        self._index, self._columns = KeyIndex(keys), columns

    def of(self, ids: pa.StringArray) -> pa.RecordBatch:
        """The row of each id; all null where there is no such product."""
        encoded = ids.dictionary_encode()
        rows = self._index.rows(encoded.dictionary).take(encoded.indices)
        return self._columns.take(rows)


@dataclasses.dataclass(frozen=True)
class Facts:
    """What rules may know of a batch.

    Attributes:
      products: None if no rule asked for a column.
      rows: int64 [p], the row of the batch of each purchase.
      bought: string [p], the product of each purchase.
    """

    products: ProductFacts | None
    rows: npt.NDArray[np.int64]
    bought: pa.StringArray


class Ranking(Protocol):
    """Rules as the search uses them; picklable."""

    @property
    def items(self) -> int:
        """Entries of a full list."""

    def rank(
        self, batch: pa.RecordBatch, rows: npt.NDArray[np.int64], candidates: pa.ListArray, facts: Facts
    ) -> pa.ListArray:
        """What is left of the candidates of some rows of a batch, in order, `items` of each at most."""

    def similar(self, batch: pa.RecordBatch, facts: Facts) -> pa.ListArray:
        """`similar` of the batch as the rules leave it: SIMILAR."""
