"""The business rules that come with beamrec, and those of a user's own.

To add a kind, write a frozen dataclass that is a `schemas.rules.Rule` and add one line to `_KINDS`.
"""

import dataclasses
import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from beamrec.schemas.errors import UsageError
from beamrec.schemas.feature import check_number, check_type
from beamrec.schemas.rules import CANDIDATE_COLUMNS, Rule, RuleSpec
from beamrec.transforms.numbers import to_float64
from beamrec.transforms.ranked_lists import ranks_of

__all__ = ["AlreadyBought", "Diversity", "InStock", "open_rule"]

_Flags = npt.NDArray[np.bool_]


@dataclasses.dataclass(frozen=True)
class InStock:
    """Keeps products with at least so much in stock; one with none said, or not in the table, has none.

    Attributes:
      column: number in the products' table.
    """

    column: str
    at_least: float = 1
    similar: bool = True

    def __post_init__(self) -> None:
        check_type(self.column, str, "column")
        check_number(self.at_least, "at_least")
        check_type(self.similar, bool, "similar")

    @property
    def columns(self) -> tuple[str, ...]:
        """The stock."""
        return (self.column,)

    def __call__(self, candidates: pa.RecordBatch) -> _Flags:
        """Boolean [candidates]."""
        stock = np.asarray(to_float64(candidates.column(self.column)).fill_null(float("nan")))
        flags: _Flags = stock >= self.at_least
        return flags


@dataclasses.dataclass(frozen=True)
class Diversity:
    """Keeps the first so many products of each value of a column in a list; those without one all stay.

    Attributes:
      column: the product line, or whatever should not fill a list.
    """

    column: str
    most: int
    similar: bool = False

    def __post_init__(self) -> None:
        check_type(self.column, str, "column")
        if not isinstance(self.most, int) or isinstance(self.most, bool) or self.most < 1:
            raise UsageError(f"most: expected a whole number from 1, got {self.most!r}")
        check_type(self.similar, bool, "similar")

    @property
    def columns(self) -> tuple[str, ...]:
        """The product line."""
        return (self.column,)

    def __call__(self, candidates: pa.RecordBatch) -> _Flags:
        """Boolean [candidates]."""
        values = candidates.column(self.column)
        encoded = values.cast(pa.string()).dictionary_encode()
        codes = np.asarray(encoded.indices.fill_null(-1)).astype(np.int64)
        groups = np.asarray(candidates.column("list")) * (len(encoded.dictionary) + 1) + codes
        order = np.argsort(groups, kind="stable")
        flags: _Flags = codes < 0
        flags[order] |= ranks_of(groups[order]) <= self.most
        return flags


@dataclasses.dataclass(frozen=True)
class AlreadyBought:
    """Takes out what the customer has bought; without a customer, or where nobody knows, nothing."""

    similar: bool = False
    purchases = True

    def __post_init__(self) -> None:
        check_type(self.similar, bool, "similar")

    def __call__(self, candidates: pa.RecordBatch) -> _Flags:
        """Boolean [candidates]."""
        flags: _Flags = ~np.asarray(candidates.column("bought").fill_null(False))
        return flags


def _python(factory: str, options: dict[str, Any] | None = None) -> Any:
    """The object that `package.module:name` of an installed package makes with the options."""
    module, colon, name = factory.partition(":") if isinstance(factory, str) else ("", "", "")
    if not (module and colon and name) or module == "__main__":
        raise UsageError(
            f'factory: expected "package.module:name" of a package that is installed on the workers, '
            f"got {factory!r}"
        )
    try:
        make = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"factory: {factory} cannot be imported: {error}; install its package") from error
    return make(**(options or {}))


_KINDS: dict[str, Callable[..., Any]] = {
    "in_stock": InStock,
    "diversity": Diversity,
    "already_bought": AlreadyBought,
    "python": _python,
}


def open_rule(spec: RuleSpec) -> Rule:
    """Makes a rule; the same on the machine that starts the job and on each worker.

    Raises:
      UsageError: there is no such kind, an option is wrong, or a user's own rule cannot be imported, fails
        to be made, or is not a rule.
    """
    where = f"rule {spec.name!r}"
    if spec.kind not in _KINDS:
        raise UsageError(f"{where}: kind: expected one of {', '.join(_KINDS)}, got {spec.kind!r}")
    make = _KINDS[spec.kind]
    _check_keys(spec, inspect.signature(make).parameters, where)
    try:
        rule: Rule = make(**spec.options)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error
    except Exception as error:
        raise UsageError(f"{where}: cannot be made: {type(error).__name__}: {error}") from error
    columns = getattr(rule, "columns", ())
    if not callable(rule) or not isinstance(columns, tuple):
        raise UsageError(
            f"{where}: expected a callable whose `columns`, if it has any, are a tuple; got {rule!r}"
        )
    for column in columns:
        check_type(column, str, f"{where}: columns")
        if column in CANDIDATE_COLUMNS:
            raise UsageError(f"{where}: the column {column!r} has the name of one of the candidates' own")
    return rule


def _check_keys(spec: RuleSpec, known: Mapping[str, inspect.Parameter], where: str) -> None:
    unknown = sorted(spec.options.keys() - known.keys())
    if unknown:
        names = ", ".join(("kind", "name", *known))
        raise UsageError(f"{where}: unknown key {unknown[0]!r}; known are {names}")
    for name, parameter in known.items():
        if parameter.default is parameter.empty and name not in spec.options:
            raise UsageError(f"{where}: the key {name!r} is missing")
