"""Customers or products that keep the Shop's rules, and dead letters for those that break one."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from beamrec.schemas.deadletters import DeadLetter
from beamrec.schemas.key_index import KeyIndex
from beamrec.schemas.ranges import MalformedRow
from beamrec.schemas.shop import Table
from beamrec.transforms.rejects import Rejects, drop_repeated, letter_order, shown
from beamrec.transforms.rules import BrokenRule, broken_rules, first_broken, true_where

__all__ = ["CheckedTable", "check_table"]


@dataclasses.dataclass(frozen=True)
class CheckedTable:
    """One table after its check.

    Attributes:
      rows: the rows that keep every rule, one for each key, ascending by key.
      letters: a dead letter for each other row.
      rejected: keys of the other rows, where they have one.
      index: finds `rows` by key.
    """

    rows: pa.RecordBatch
    letters: tuple[DeadLetter, ...]
    rejected: frozenset[Any]
    index: KeyIndex


def check_table(
    batch: pa.RecordBatch, table: Table, malformed: Sequence[MalformedRow], rejects: Rejects
) -> CheckedTable:
    """Splits customers or products into rows that keep every rule and dead letters.

    A row is reported for the first rule it breaks: `bad_type`, `null_key`, `empty_key`; then column by
    column `null_value`, `out_of_range`, `not_allowed`; then `duplicate_key`. Of rows with one key the one
    whose JSON is least stays, whatever order the server sends them in.

    Args:
      batch: the key, then the feature columns.
      table: names and rules.
      malformed: the rows that fit no batch.
      rejects: makes the dead letters.

    Raises:
      UsageError: a rule does not go with the type of its column.
    """
    rules = list(broken_rules(batch, table))
    kept, letters = _sound(batch, rules, rejects) if rules else (batch, [])
    rows, repeated = _unique(kept)
    for row in repeated:
        message = f"expected {table.key} that no other row has, got {shown(row[table.key])}"
        letters.append(rejects.letter("duplicate_key", message, row))
    letters += [rejects.malformed(row) for row in malformed]
    keys = (letter.source["position"][table.key] for letter in letters)
    return CheckedTable(
        rows=rows,
        letters=tuple(sorted(letters, key=letter_order)),
        rejected=frozenset(keys) - {None},
        index=KeyIndex(rows.column(0)),
    )


def _sound(
    batch: pa.RecordBatch, rules: Sequence[BrokenRule], rejects: Rejects
) -> tuple[pa.RecordBatch, list[DeadLetter]]:
    """Rows that break no rule, and a dead letter for each other row."""
    first = first_broken([rule.rows for rule in rules], batch.num_rows)
    sound = pa.array(first < 0)
    broken = [rules[number] for number in first[first >= 0].tolist()]
    rows = batch.filter(pc.invert(sound)).to_pylist()
    return batch.filter(sound), [
        rejects.letter(rule.name, rule.message(row), row) for rule, row in zip(broken, rows, strict=True)
    ]


def _unique(batch: pa.RecordBatch) -> tuple[pa.RecordBatch, list[dict[str, Any]]]:
    """Rows ascending by key, one for each; and the others."""
    keys = batch.column(0)
    if true_where(pc.less(keys[:-1], keys[1:])).all():
        return batch, []
    ordered = batch.take(pc.sort_indices(keys))
    keys = ordered.column(0)
    repeated = true_where(pc.equal(keys[:-1], keys[1:]))
    if not repeated.any():
        return ordered, []
    stays, dropped = drop_repeated(ordered, repeated)
    return ordered.filter(pa.array(stays)), dropped
