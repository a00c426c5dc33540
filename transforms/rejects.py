"""Table rows as dead letters: their payload, their message and which of several like ones stays."""

import dataclasses
import datetime as dt
import decimal
import itertools
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from beamrec.schemas.deadletters import DeadLetter
from beamrec.schemas.ranges import MalformedRow

__all__ = ["Rejects", "canonical_json", "drop_repeated", "letter_order", "shown"]

_SHOWN_CHARACTERS = 100

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Rejects:
    """Makes the dead letters of one table.

    Attributes:
      system: URI scheme of the source.
      table: its name.
      keys: columns that say which row it is.
      taken_at: RFC 3339 time of the snapshot.
    """

    system: str
    table: str
    keys: tuple[str, ...]
    taken_at: str

    def letter(self, rule: str, message: str, row: Row) -> DeadLetter:
        """The dead letter of a row that breaks a rule."""
        return DeadLetter(
            stage="validate",
            error_type=rule,
            error_message=message,
            payload=canonical_json(row),
            source={
                "system": self.system,
                "name": self.table,
                "position": {key: _plain(row.get(key)) for key in self.keys},
            },
            first_seen=self.taken_at,
        )

    def malformed(self, row: MalformedRow) -> DeadLetter:
        """The dead letter of a row that has no place in a batch."""
        value = shown(row.row.get(row.column))
        return self.letter("bad_type", f"expected {row.column} of type {row.expected}, got {value}", row.row)


def canonical_json(row: Row) -> bytes:
    """A row as JSON with sorted keys and no spaces.

    Decimals, dates, times and numbers that JSON lacks are text, bytes are hex.
    """
    options: dict[str, Any] = {"sort_keys": True, "ensure_ascii": False, "separators": (",", ":")}
    try:
        text = json.dumps(row, default=_text, allow_nan=False, **options)
    except ValueError:
        text = json.dumps({name: _plain(value) for name, value in row.items()}, **options)
    return text.encode("utf-8", "backslashreplace")


def shown(value: Any) -> str:
    """A value as a message shows it: cut short where it is long."""
    if isinstance(value, str | bytes) and len(value) > _SHOWN_CHARACTERS:
        unit = "bytes" if isinstance(value, bytes) else "characters"
        return f"{value[:_SHOWN_CHARACTERS]!r}… ({len(value)} {unit})"
    if value is None:
        return "NULL"
    return str(value) if isinstance(value, dt.date | dt.time | decimal.Decimal) else repr(value)


def letter_order(letter: DeadLetter) -> tuple[Any, ...]:
    """Sort key of one table's dead letters; those that it does not tell apart are equal."""
    return letter.payload, letter.error_type, letter.error_message


def drop_repeated(
    batch: pa.RecordBatch, repeated: npt.NDArray[np.bool_], rank: Callable[[Row], Any] = canonical_json
) -> tuple[npt.NDArray[np.bool_], list[Row]]:
    """Keeps one row of each key, whatever order rows of one key come in.

    Args:
      batch: rows in the order of their keys.
      repeated: for each row but the first, whether it has the key of the row before it.
      rank: the row of the least rank stays; equal ranks mean equal rows.

    Returns:
      Which rows stay, and the others.
    """
    members = np.flatnonzero(np.append(False, repeated) | np.append(repeated, False))
    keys = np.cumsum(~np.append(False, repeated))[members].tolist()
    rows = batch.take(pa.array(members)).to_pylist()
    ranks = [rank(row) for row in rows]
    ordered = sorted(range(len(rows)), key=lambda at: (keys[at], ranks[at]))
    dropped = [at for before, at in itertools.pairwise(ordered) if keys[before] == keys[at]]
    stays = np.ones(batch.num_rows, bool)
    stays[members[dropped]] = False
    return stays, [rows[at] for at in dropped]


def _plain(value: Any) -> Any:
    """A value as JSON has it."""
    if value is None or isinstance(value, int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return _text(value)


def _text(value: Any) -> str:
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).hex()
    if isinstance(value, decimal.Decimal):
        return format(value, "f")
    if isinstance(value, dt.date | dt.time):
        return value.isoformat()
    return str(value)
