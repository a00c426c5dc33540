"""Search under business rules: deeper for rows that they leave short, down to the popularity list."""

import dataclasses
import functools
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import apache_beam as beam
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from apache_beam.utils import shared

from beamrec.io.exact_product import best_items
from beamrec.io.pgvector import Catalogue
from beamrec.io.retrieval import Retrieval, SearchDoFn
from beamrec.io.rule_facts import FactsSource, RuleFacts
from beamrec.schemas.reasons import RULED_SIMILAR
from beamrec.schemas.releases import ActiveRelease
from beamrec.schemas.rules import Facts, Ranking
from beamrec.transforms import metrics

__all__ = ["SearchByRules", "SearchRules", "until_full", "with_popular"]

_Ints = npt.NDArray[np.int64]
Search = Callable[[_Ints], pa.ListArray]
"""Rows of a batch → the candidates of each."""

# Candidates that are ranked at once: each takes some hundred bytes on its way.
_MOST_AT_ONCE = 500_000
_SAY_SECONDS = 60.0
_NO_FACTS = Facts(None, np.empty(0, np.int64), pa.array([], pa.string()))
_log = logging.getLogger(__name__)

HEADED = pa.list_(pa.struct([("id", pa.string()), ("score", pa.float64()), ("popular", pa.bool_())]))


@dataclasses.dataclass(frozen=True)
class SearchRules:
    """The rules of a search; picklable.

    Attributes:
      facts: None if no rule needs any.
      candidates: how many items are looked for at first, beside those of the history.
      most_candidates: how many for rows that are left short; and how many of the most popular at the end.
    """

    ranking: Ranking
    facts: FactsSource | None
    candidates: int = 50
    most_candidates: int = 1_000


class _RuledSearch:
    """The rules as a worker applies them, with the facts that it remembers; safe for threads."""

    def __init__(self, rules: SearchRules) -> None:
        self._rules = rules
        self._facts = RuleFacts(rules.facts) if rules.facts else None
        self._lock = threading.Lock()
        self._next_word = 0.0

    def lists(
        self, batch: pa.RecordBatch, customer: str, searches: Sequence[tuple[int, Search]]
    ) -> tuple[pa.ListArray, pa.ListArray]:
        """What the rules leave of what the searches find for a batch, and of its `similar`.

        Args:
          batch: with `history`, `similar` and the column `customer`.
          searches: as `until_full` takes them.
        """
        rules, facts = self._rules, _NO_FACTS
        if self._facts is not None:
            facts = self._facts.of(batch.column(customer))
            failures, unknown = self._facts.take_counts()
            metrics.count("rule_facts_failures", failures)
            metrics.count("purchases_unknown", unknown)
            metrics.gauge("rule_facts_age_seconds", round(self._facts.age_seconds()))
        ranking = rules.ranking
        found, short = until_full(
            batch.num_rows,
            searches,
            lambda rows, candidates: ranking.rank(batch, rows, candidates, facts),
            ranking.items,
        )
        if short:
            metrics.count("short_lists", short)
            self._say_short(short)
        return found, ranking.similar(batch, facts)

    def _say_short(self, short: int) -> None:
        with self._lock:
            now = time.monotonic()
            is_due = now >= self._next_word
            if is_due:
                self._next_word = now + _SAY_SECONDS
        if is_due:
            _log.warning(
                "rules: they leave %d lists of a batch with fewer than %d items, of the nearest %d and the "
                "most popular %d; said once a minute", short, self._rules.ranking.items,
                self._rules.most_candidates, self._rules.most_candidates,
            )  # fmt: skip


def until_full(
    rows: int,
    searches: Sequence[tuple[int, Search]],
    rank: Callable[[_Ints, pa.ListArray], pa.ListArray],
    items: int,
) -> tuple[pa.ListArray, int]:
    """Ranks what each search finds, the next one for rows only whose list is not full.

    Args:
      searches: (most candidates a row, search), each deeper than the one before; at least one.
      rank: candidates of some rows → what the rules leave of them.
      items: entries of a full list.

    Returns:
      (the lists of all rows, how many are not full).
    """
    parts: list[pa.ListArray] = []
    order: list[_Ints] = []
    pending = np.arange(rows)
    for number, (depth, search) in enumerate(searches, 1):
        at_once = max(1, _MOST_AT_ONCE // max(depth, 1))
        short = [np.empty(0, np.int64)]
        for start in range(0, max(len(pending), 1), at_once):
            some = pending[start : start + at_once]
            found = rank(some, search(some))
            lengths = np.asarray(found.value_lengths().fill_null(0))
            done = (lengths >= items) | (number == len(searches))
            parts.append(found.filter(pa.array(done)))
            order.append(some[done])
            short.append(some[~done] if number < len(searches) else some[lengths < items])
        pending = np.concatenate(short)
        if not len(pending):
            break
    lists = pa.concat_arrays(parts).take(pa.array(np.argsort(np.concatenate(order))))
    return lists, len(pending)


def with_popular(
    found: pa.ListArray, vectors: npt.NDArray[np.float32], scored: npt.NDArray[np.bool_], head: Catalogue
) -> pa.ListArray:
    """Puts the most popular items between those found, by the inner product with the row's vector.

    Args:
      found: CANDIDATES [n].
      vectors: [number of scored, dim], those of the scored rows in their order.
      scored: bool [n], rows with a vector; to the others nothing is added.
      head: the most popular items.

    Returns:
      HEADED [n]: descending by score, each item once, `popular` where it was not found.
    """
    lengths = np.asarray(found.value_lengths().fill_null(0)).astype(np.int64)
    places, products = best_items(vectors, head.vectors, len(head.ids))
    of_popular = np.repeat(np.flatnonzero(scored), places.shape[1])
    rows = np.concatenate([np.repeat(np.arange(len(found)), lengths), of_popular])
    entries = found.flatten()
    ids = pa.concat_arrays([entries.field("id"), head.ids.take(pa.array(places.ravel()))])
    scores = np.concatenate([np.asarray(entries.field("score")), products.ravel().astype(np.float64)])
    encoded = ids.dictionary_encode()
    keys = rows * max(len(encoded.dictionary), 1) + np.asarray(encoded.indices).astype(np.int64)
    # The first of each: what the search has found comes before the popular ones.
    first = np.unique(keys, return_index=True)[1]
    order = first[np.lexsort((first, -scores[first], rows[first]))]
    popular = order >= len(entries)
    columns = [ids.take(pa.array(order)), pa.array(scores[order]), pa.array(popular)]
    structs = pa.StructArray.from_arrays(columns, fields=list(HEADED.value_type))
    offsets = np.searchsorted(rows[order], np.arange(len(found) + 1)).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), structs, HEADED)


class _RuledSearchDoFn(SearchDoFn):
    # One a worker, with one set of facts.
    _shared_rules = shared.Shared()

    def __init__(self, vector_db: str, retrieval: Retrieval, rules: SearchRules, customer: str) -> None:
        super().__init__(vector_db, rules.ranking.items, retrieval)
        self._rules, self._customer = rules, customer

    def setup(self) -> None:
        super().setup()
        self._ruled = self._shared_rules.acquire(lambda: _RuledSearch(self._rules), tag=self._rules)

    def process(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        with metrics.timed("search_us"):
            searches = self._searches(batch.select(["history", "user_vector"]), self.release_of(batch))
            found, similar = self._ruled.lists(batch, self._customer, searches)
        yield batch.append_column("candidates", found).append_column(RULED_SIMILAR, similar)

    def _searches(self, batch: pa.RecordBatch, release: ActiveRelease) -> list[tuple[int, Search]]:
        first = max(self._rules.candidates, self._rules.ranking.items)
        most = max(self._rules.most_candidates, first)

        def nearest(count: int, rows: _Ints) -> pa.ListArray:
            return self.find(batch.take(pa.array(rows)), release, count)

        def and_popular(rows: _Ints) -> pa.ListArray:
            vectors = batch.column("user_vector").take(pa.array(rows))
            scored = vectors.is_valid().to_numpy(zero_copy_only=False)
            flat = vectors.drop_null().flatten().to_numpy().reshape(-1, vectors.type.list_size)
            return with_popular(nearest(most, rows), flat, scored, self.head(release, most))

        searches: list[tuple[int, Search]] = [(first, functools.partial(nearest, first))]
        if not self.covers(release, first):
            searches.append((most, functools.partial(nearest, most)))
            if not self.covers(release, most):
                searches.append((2 * most, and_popular))
        return searches


@dataclasses.dataclass(eq=False)
class SearchByRules(beam.PTransform):  # type: ignore[misc]
    """`SearchItems` under business rules.

    Attributes:
      customer: the batches' column with the customer's key.
    """

    vector_db: str
    rules: SearchRules
    customer: str
    retrieval: Retrieval = "auto"

    def expand(self, batches: beam.PCollection) -> beam.PCollection:
        """[batches with `user_vector`] -> [the same with `candidates` and RULED_SIMILAR]."""
        search = beam.ParDo(_RuledSearchDoFn(self.vector_db, self.retrieval, self.rules, self.customer))
        return batches | "Search" >> search.with_output_types(pa.RecordBatch)
