"""The distinct customers or products of a stream of rows: a number for each, and its features once.

Memory grows with the customers and products, as the model's identity embeddings do, and not with the rows.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from beamrec.model.split import hash_keys
from beamrec.schemas.hashing import Hashes

__all__ = ["EntityCollector", "EntityTable"]

_SLACK_ROWS = 65_536  # rows that were replaced may stay so long


@dataclasses.dataclass(frozen=True)
class EntityTable:
    """All customers, or all products, sorted by key.

    Attributes:
      features: record batch as `build_features` makes it: the key as text, then the features.
      hashes: `hash_keys` of the keys, uint64 [rows].
      place: row of each code that the collector gave, int32 [codes].
    """

    features: pa.RecordBatch
    hashes: Hashes
    place: npt.NDArray[np.int32]


class EntityCollector:
    """Numbers keys as they come and keeps one row of features a key.

    Rows of one key should agree on its features. Where they do not, the row of the least `rank` counts,
    so that the order in which rows are seen makes no difference.

    Args:
      key: column of the key, of any type that `features` takes.
      features: rows → their key as text and features, such as `build_features` of one side.
    """

    def __init__(self, key: str, features: Callable[[pa.RecordBatch], pa.RecordBatch]) -> None:
        self._key, self._features = key, features
        self._codes: dict[str, int] = {}
        self._hashes = np.empty(0, np.uint64)
        self._least = np.empty(0, np.uint64)
        self._row = np.empty(0, np.int64)
        self._parts: list[pa.RecordBatch] = []
        self._rows = 0

    def __len__(self) -> int:
        return len(self._codes)

    def codes(self, batch: pa.RecordBatch) -> npt.NDArray[np.int32]:
        """A number for each row's key, int32 [rows], the same for the same key in every batch."""
        column = batch.column(self._key)
        keys = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
        local = keys.indices.to_numpy()
        distinct, first = np.unique(local, return_index=True)
        texts = self._features(batch.take(pa.array(first))).column(0)
        known: npt.NDArray[np.int32] = np.zeros(len(keys.dictionary), np.int32)
        known[distinct] = [self._codes.setdefault(text, len(self._codes)) for text in texts.to_pylist()]
        self._grow(known[distinct], hash_keys(texts))
        codes: npt.NDArray[np.int32] = known[local]
        return codes

    def _grow(self, codes: npt.NDArray[np.int32], hashes: Hashes) -> None:
        missing = len(self._codes) - len(self._row)
        if missing > 0:
            room = max(missing, len(self._row))  # doubled, so that growing costs no square
            self._hashes = np.concatenate([self._hashes, np.zeros(room, np.uint64)])
            self._least = np.concatenate([self._least, np.full(room, np.iinfo(np.uint64).max)])
            self._row = np.concatenate([self._row, np.full(room, -1, np.int64)])
        self._hashes[codes] = hashes

    def hashes(self, codes: npt.NDArray[np.int32]) -> Hashes:
        """`hash_keys` of the keys with these numbers, uint64 [rows]."""
        return self._hashes[codes]

    def offer(self, batch: pa.RecordBatch, codes: npt.NDArray[np.int32], ranks: Hashes) -> None:
        """Takes the features of keys that have none yet, or whose row has a lower rank than the one taken.

        Args:
          codes: what `codes` gave for the batch.
          ranks: uint64 [rows], by the content of each row alone.
        """
        by_rank = np.argsort(ranks)[::-1]
        lowest = np.full(len(self), -1, np.int64)
        lowest[codes[by_rank]] = by_rank  # the last one written, of the least rank, stays
        rows = lowest[lowest >= 0]
        rows = rows[(ranks[rows] < self._least[codes[rows]]) | (self._row[codes[rows]] < 0)]
        if not len(rows):
            return
        self._parts.append(self._features(batch.take(pa.array(rows))))
        self._least[codes[rows]] = ranks[rows]
        self._row[codes[rows]] = self._rows + np.arange(len(rows))
        self._rows += len(rows)
        if self._rows > 2 * len(self) + _SLACK_ROWS:
            self._compact()

    def _compact(self) -> pa.RecordBatch:
        """Features of all keys by their number; those of replaced rows are let go."""
        features = pa.concat_batches(self._parts).take(pa.array(self._row[: len(self)]))
        self._parts, self._rows = [features], len(self)
        self._row[: len(self)] = np.arange(len(self))
        return features

    def table(self) -> EntityTable:
        """Everything collected; needs `offer` of every batch that `codes` saw, and at least one row."""
        features = self._compact()
        order = pc.sort_indices(features.column(0)).to_numpy()
        place = np.empty(len(order), np.int32)
        place[order] = np.arange(len(order), dtype=np.int32)
        return EntityTable(features.take(pa.array(order)), self._hashes[order], place)
