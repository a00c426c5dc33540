"""Business rules on lists of items: the history is taken out, then each rule has its say, in their order."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from beamrec.schemas.errors import BeamrecError
from beamrec.schemas.events import CANDIDATES, NEIGHBOURS, SIMILAR
from beamrec.schemas.reasons import MOVES, RANKED
from beamrec.schemas.rules import Facts, Rule, RuleSpec
from beamrec.transforms.ranked_lists import ProductsOfRows, kept, lengths_of, ranks_of
from beamrec.transforms.rule_kinds import open_rule

__all__ = ["RankByRules", "apply_rules"]

_Ints = npt.NDArray[np.int64]
_NamedRule = tuple[str, Rule]


def apply_rules(
    candidates: pa.RecordBatch, rules: Sequence[_NamedRule], products: pa.RecordBatch | None = None
) -> tuple[_Ints, _Ints]:
    """Which candidates the rules leave, and how each rule moved them.

    Args:
      candidates: `list` (int64, ascending), `id`, `score`, `customer` and `bought`, as `schemas.rules.Rule`
        says; `rank` is made here.
      products: the columns that rules ask for, a row for each candidate; None if none asks.

    Returns:
      (places in `candidates` of those that stay, list by list in their order; int64 [rules + 1, candidates],
      the place in its list of each candidate before the first rule and after each, meaningless of those
      that did not stay).

    Raises:
      BeamrecError: a rule raised, or answered what no rule may.
    """
    lists = np.asarray(candidates.column("list"))
    order = np.arange(len(lists))
    ranks = np.zeros((len(rules) + 1, len(lists)), np.int64)
    ranks[0] = ranks_of(lists)
    for number, (name, rule) in enumerate(rules, 1):
        given = _given(candidates, products, getattr(rule, "columns", ()), order, ranks[number - 1])
        order = order[_chosen(name, rule, given)]
        ranks[number, order] = ranks_of(lists[order])
    return order, ranks


def _given(
    candidates: pa.RecordBatch,
    products: pa.RecordBatch | None,
    columns: Sequence[str],
    order: _Ints,
    ranks: _Ints,
) -> pa.RecordBatch:
    taken = candidates.take(pa.array(order))
    fields: dict[str, pa.Array] = {name: taken.column(name) for name in ("list", "id", "score")}
    fields["rank"] = pa.array(ranks[order])
    fields |= {name: taken.column(name) for name in ("customer", "bought")}
    if products is not None:
        fields |= {name: products.column(name).take(pa.array(order)) for name in columns}
    return pa.RecordBatch.from_pydict(fields)


def _chosen(name: str, rule: Rule, given: pa.RecordBatch) -> _Ints:
    """Places in `given` of those that stay, list by list."""
    try:
        answer = np.asarray(rule(given))
    except Exception as error:
        raise BeamrecError(
            f"rule {name!r} raised {type(error).__name__}: {error}; mend it or take it out of --rules: "
            "nothing is lost, a job that is started again goes on where this one stopped"
        ) from error
    if answer.dtype == bool and answer.shape == (given.num_rows,):
        return np.flatnonzero(answer)
    is_order = answer.ndim == 1 and (answer.dtype.kind in "iu" or not len(answer))
    places = answer.astype(np.int64) if is_order else np.array([-1])
    inside = len(places) == 0 or (places.min() >= 0 and places.max() < given.num_rows)
    if not inside or len(np.unique(places)) != len(places):
        raise BeamrecError(
            f"rule {name!r}: expected a Boolean for each of {given.num_rows} candidates, or distinct places "
            f"among them; got {answer.dtype} of shape {answer.shape}"
        )
    lists = np.asarray(given.column("list"))
    return places[np.argsort(lists[places], kind="stable")]


@dataclasses.dataclass(frozen=True)
class RankByRules:
    """A `schemas.rules.Ranking`; the rules are made on each worker.

    Attributes:
      specs: the rules in their order.
      items: how many items a list holds at most.
      customer: the batch's column with the customer.
      explain: say which rules moved an item: RANKED lists, else CANDIDATES.
    """

    specs: tuple[RuleSpec, ...]
    items: int
    customer: str
    explain: bool = False

    @functools.cached_property
    def rules(self) -> list[_NamedRule]:
        """(name, rule); raises UsageError if one cannot be made."""
        return [(spec.name, open_rule(spec)) for spec in self.specs]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "rules"}

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of products that some rule asks for, each once."""
        return tuple(dict.fromkeys(c for _, rule in self.rules for c in getattr(rule, "columns", ())))

    @property
    def purchases(self) -> bool:
        """Whether some rule asks what was bought."""
        return any(getattr(rule, "purchases", False) for _, rule in self.rules)

    def rank(
        self, batch: pa.RecordBatch, rows: _Ints, candidates: pa.ListArray, facts: Facts
    ) -> pa.ListArray:
        """What is left of the candidates of some rows, in order.

        Args:
          batch: with `history` and the customer's column.
          rows: int64 [n], ascending.
          candidates: CANDIDATES [n] of those rows, or the same with a third field `popular`.
          facts: of the whole batch.

        Returns:
          RANKED or CANDIDATES [n], of at most `items` each, nothing of the history among them.
        """
        history = batch.column("history").take(pa.array(rows))
        seen = ProductsOfRows(
            np.repeat(np.arange(len(rows)), lengths_of(history)),
            history.flatten().field("product").cast(pa.string()),
        )
        lists = np.repeat(np.arange(len(rows)), lengths_of(candidates))
        left = kept(candidates, ~seen.have(lists, candidates.flatten().field("id")))
        lists, entries = np.repeat(np.arange(len(rows)), lengths_of(left)), left.flatten()
        scores = entries.field("score")
        order, ranks = self._apply(batch, rows[lists], lists, entries.field("id"), scores, facts, self.rules)
        order = order[ranks[-1, order] <= self.items]
        return self._ranked(entries.take(pa.array(order)), lists[order], ranks[:, order], len(rows))

    def similar(self, batch: pa.RecordBatch, facts: Facts) -> pa.ListArray:
        """`similar` of a batch as those rules leave it that are asked about similar items: SIMILAR."""
        rules = [(name, rule) for name, rule in self.rules if getattr(rule, "similar", False)]
        similar = batch.column("similar")
        entries = similar.flatten()
        if not rules or not len(entries):
            return similar
        rows, items = np.repeat(np.arange(batch.num_rows), lengths_of(similar)), entries.field("items")
        lists, flat = np.repeat(np.arange(len(items)), lengths_of(items)), items.flatten()
        order, _ = self._apply(
            batch, rows[lists], lists, flat.field("id"), flat.field("distance"), facts, rules
        )
        left = pa.ListArray.from_arrays(
            _offsets(lists[order], len(items)), flat.take(pa.array(order)), NEIGHBOURS
        )
        structs = pa.StructArray.from_arrays(
            [entries.field("product"), left], fields=list(SIMILAR.value_type)
        )
        return pa.ListArray.from_arrays(_offsets(rows, batch.num_rows), structs, SIMILAR)

    def _apply(
        self,
        batch: pa.RecordBatch,
        rows: _Ints,
        lists: _Ints,
        ids: pa.StringArray,
        scores: pa.Array,
        facts: Facts,
        rules: Sequence[_NamedRule],
    ) -> tuple[_Ints, _Ints]:
        """`apply_rules` to items [n] of lists [n] of rows [n]."""
        customers = batch.column(self.customer).cast(pa.string()).take(pa.array(rows))
        bought = pa.nulls(len(ids), pa.bool_())
        if self.purchases:
            bought = pa.array(ProductsOfRows(facts.rows, facts.bought).have(rows, ids))
        candidates = pa.RecordBatch.from_pydict(
            {"list": pa.array(lists), "id": ids, "score": scores, "customer": customers, "bought": bought}
        )
        return apply_rules(candidates, rules, facts.products.of(ids) if facts.products else None)

    def _ranked(self, entries: pa.StructArray, lists: _Ints, ranks: _Ints, rows: int) -> pa.ListArray:
        """Entries [n] that stay, of lists [n], with ranks [rules + 1, n] before and after each rule."""
        columns = [entries.field("id"), entries.field("score")]
        kind = CANDIDATES
        if self.explain:
            popular = pa.array(np.zeros(len(entries), bool))
            if entries.type.get_field_index("popular") >= 0:
                popular = entries.field("popular")
            columns += [pa.array(ranks[0]), popular, _moves([name for name, _ in self.rules], ranks)]
            kind = RANKED
        structs = pa.StructArray.from_arrays(columns, fields=list(kind.value_type))
        return pa.ListArray.from_arrays(_offsets(lists, rows), structs, kind)


def _moves(names: Sequence[str], ranks: _Ints) -> pa.ListArray:
    """Of each of n items the rules that changed its place: MOVES [n]."""
    moved = (ranks[1:] != ranks[:-1]).T
    item, rule = np.nonzero(moved)
    columns = [
        pa.array(names, pa.string()).take(pa.array(rule)),
        pa.array(ranks[rule, item]),
        pa.array(ranks[rule + 1, item]),
    ]
    structs = pa.StructArray.from_arrays(columns, fields=list(MOVES.value_type))
    return pa.ListArray.from_arrays(_offsets(item, len(moved)), structs, MOVES)


def _offsets(lists: _Ints, count: int) -> pa.Array:
    """Offsets of `count` lists whose entries, of lists that ascend, lie one behind the other."""
    return pa.array(np.searchsorted(lists, np.arange(count + 1)).astype(np.int32))
