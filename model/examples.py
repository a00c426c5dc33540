"""Training examples on the disk: written in one pass over the training files, streamed by tf.data.

The first pass scatters the ratings over shard files by a hash of customer and product; the second takes
one shard at a time, sorts it, and splits off what the model must not see. So the files do not depend on
the order of the data, memory is bounded by a shard and the tables of customers and products, and reading
the shards in any order, each shuffled, is a shuffle of all.
"""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from beamrec.model.entities import EntityCollector, EntityTable
from beamrec.model.split import held_out, held_out_since, time_cut
from beamrec.schemas.evaluation import SplitOptions
from beamrec.schemas.hashing import Hashes, mix

__all__ = ["EXAMPLE", "TABLES", "ExampleWriter", "Examples", "open_examples", "read_shard"]

EXAMPLE = np.dtype([("user", "<i4"), ("item", "<i4"), ("rating", "<f4")])
"""One rating: rows of the customer and the product in their tables, and the rating scaled to 0…1."""

_SCATTERED = np.dtype([*EXAMPLE.descr, ("time", "<f8")])
_MAX_SHARDS = 512  # open files in the first pass; from 134 M ratings on, a shard grows instead
_MAX_VALIDATION = 200_000  # ratings; more make an epoch's loss no surer
_TIMES = 262_144  # of the sample that the moment of the split is taken from
_ROWS_A_TABLE_BATCH = 65_536
_META, _COUNTS = "examples.json", "items.npz"

_PARTS = ("training", "validation", "held")

TABLES = ("users.arrow", "items.arrow")
"""Arrow IPC files of the customers and of the products."""


@dataclasses.dataclass(frozen=True)
class Examples:
    """A finished folder of examples.

    Attributes:
      folder: holds the shards.
      users, items: features of each customer and product, sorted by key, as `build_features` makes them.
      rows: examples by part: `training`, `validation` (of early stopping) and `held` (of the metrics).
      shards: number of files of each part.
      item_counts: ratings of each product, training, validation and held, int64 [items, 3].
      item_sums: sum of all its ratings, float64 [items].
      mean_rating: of the part `training`.
    """

    folder: Path
    users: pa.RecordBatch
    items: pa.RecordBatch
    rows: dict[str, int]
    shards: int
    item_counts: npt.NDArray[np.int64]
    item_sums: npt.NDArray[np.float64]
    mean_rating: float

    def files(self, part: str) -> list[Path]:
        """The shards of a part."""
        return [_shard(self.folder, part, number) for number in range(self.shards)]

    def read(self, part: str) -> Iterator[npt.NDArray[Any]]:
        """A part's examples, one shard at a time, EXAMPLE [rows of the shard]."""
        return (read_shard(path) for path in self.files(part))


def _shard(folder: Path, part: str, number: int) -> Path:
    return folder / f"{part}-{number:05d}"


def read_shard(path: Path) -> npt.NDArray[Any]:
    """A shard's examples, EXAMPLE [rows]."""
    return np.fromfile(path, EXAMPLE)


class ExampleWriter:
    """Writes the examples of one data set into a new folder.

    Args:
      rows: how many ratings are to come; decides the number of shards.
      users, items: collect the tables.
      split: what is held out for the metrics.
      validation: share of the rest that early stopping looks at; at most 200,000 ratings.
      rows_a_shard: about so many ratings a shard; reading and shuffling takes the memory of two.
    """

    def __init__(
        self,
        folder: Path,
        rows: int,
        users: EntityCollector,
        items: EntityCollector,
        split: SplitOptions,
        validation: float,
        rows_a_shard: int = 262_144,
    ) -> None:
        self._folder, self._users, self._items, self._split = folder, users, items, split
        self._validation = min(validation, _MAX_VALIDATION / max(rows, 1))
        self._shards = min(max(1, -(-rows // rows_a_shard)), _MAX_SHARDS)
        self._times = _TimeSample(_TIMES)

    @contextlib.contextmanager
    def scattering(self) -> Iterator[Callable[[pa.RecordBatch, npt.NDArray[Any], npt.NDArray[Any]], None]]:
        """The first pass: gives `add(batch, rating, time)`.

        `batch` holds the columns that the collectors take, `rating` is float32 [rows] on the scale 0…1,
        and `time` float64 [rows], whose unit and meaning are the split's; zeros will do for a split by
        interactions.
        """
        with contextlib.ExitStack() as stack:
            paths = [_shard(self._folder, "scattered", n) for n in range(self._shards)]
            files = [stack.enter_context(path.open("wb")) for path in paths]

            def add(batch: pa.RecordBatch, rating: npt.NDArray[Any], time: npt.NDArray[Any]) -> None:
                rows = np.empty(batch.num_rows, _SCATTERED)
                rows["user"], rows["item"] = self._users.codes(batch), self._items.codes(batch)
                rows["rating"], rows["time"] = rating, time
                ranks = _rank(self._users.hashes(rows["user"]), self._items.hashes(rows["item"]))
                self._users.offer(batch, rows["user"], ranks)
                self._items.offer(batch, rows["item"], ranks)
                if self._split.by == "time":
                    self._times.add(rows["time"], ranks)
                for number, part in _parts(rows, ranks % np.uint64(self._shards), self._shards):
                    files[number].write(part.tobytes())

            yield add

    def finish(self) -> Examples:
        """The second pass: sorts each shard, splits it, and writes the tables.

        Raises:
          UsageError: the ratings cannot be split by time.
        """
        users, items = self._users.table(), self._items.table()
        cut = time_cut(self._times.values, self._split.holdout) if self._split.by == "time" else None
        tally = _Tally(len(items.hashes))
        for number in range(self._shards):
            examples, part_of = self._shard_parts(number, users, items, cut)
            tally.add(examples, part_of)
            for place, part in enumerate(_PARTS):
                _shard(self._folder, part, number).write_bytes(examples[part_of == place].tobytes())
            _shard(self._folder, "scattered", number).unlink()
        _write_meta(self._folder, users, items, tally, self._shards)
        return open_examples(self._folder)

    def _shard_parts(
        self, number: int, users: EntityTable, items: EntityTable, cut: float | None
    ) -> tuple[npt.NDArray[Any], npt.NDArray[np.intp]]:
        """One shard in its final order, EXAMPLE [rows], and the part of each row as a place in `_PARTS`."""
        scattered = np.fromfile(_shard(self._folder, "scattered", number), _SCATTERED)
        user, item = users.place[scattered["user"]], items.place[scattered["item"]]
        order = np.lexsort((scattered["rating"], scattered["time"], item, user))
        examples = np.empty(len(order), EXAMPLE)
        examples["user"], examples["item"] = user[order], item[order]
        examples["rating"] = scattered["rating"][order]
        user_hashes, item_hashes = users.hashes[examples["user"]], items.hashes[examples["item"]]
        if cut is None:
            held = held_out(user_hashes, item_hashes, self._split)
        else:
            held = held_out_since(scattered["time"][order], cut)
        if not self._validation:
            return examples, np.where(held, 2, 0)
        # Another seed than the split's: the two draws must know nothing of each other.
        draw = SplitOptions(self._validation, "interactions", self._split.seed + 1)
        return examples, np.where(held, 2, np.where(held_out(user_hashes, item_hashes, draw), 1, 0))


def _rank(users: Hashes, items: Hashes) -> Hashes:
    """A number for each pair of customer and product, as if drawn, uint64 [rows]."""
    return mix(mix(users) ^ items)


def _parts(rows: npt.NDArray[Any], numbers: Hashes, shards: int) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    """(shard, its rows) of a batch, for the shards that get any."""
    order = np.argsort(numbers, kind="stable")
    ends = np.searchsorted(numbers[order], np.arange(shards + 1, dtype=np.uint64))
    for number in range(shards):
        if ends[number] < ends[number + 1]:
            yield number, rows[order[ends[number] : ends[number + 1]]]


class _Tally:
    """What is counted while the shards are written; sums do not depend on the order of the data."""

    def __init__(self, items: int) -> None:
        self.counts = np.zeros((items, len(_PARTS)), np.int64)
        self.sums = np.zeros(items)
        self.training_sum = 0.0

    def add(self, examples: npt.NDArray[Any], part_of: npt.NDArray[np.intp]) -> None:
        places = examples["item"] * np.int64(len(_PARTS)) + part_of
        self.counts += np.bincount(places, minlength=self.counts.size).reshape(self.counts.shape)
        self.sums += np.bincount(examples["item"], examples["rating"], minlength=len(self.sums))
        self.training_sum += float(examples["rating"][part_of == 0].sum(dtype=np.float64))

    @property
    def rows(self) -> dict[str, int]:
        """Examples by part."""
        return dict(zip(_PARTS, self.counts.sum(0).tolist(), strict=True))


class _TimeSample:
    """The times of those ratings whose ranks are least: the same sample in any order of the rows."""

    def __init__(self, size: int) -> None:
        self._size = size
        self.values, self._ranks = np.empty(0), np.empty(0, np.uint64)

    def add(self, times: npt.NDArray[np.float64], ranks: Hashes) -> None:
        self.values = np.concatenate([self.values, times])
        self._ranks = np.concatenate([self._ranks, ranks])
        if len(self.values) > self._size:
            kept = np.argpartition(self._ranks, self._size)[: self._size]
            self.values, self._ranks = self.values[kept], self._ranks[kept]


def _write_meta(folder: Path, users: EntityTable, items: EntityTable, tally: _Tally, shards: int) -> None:
    for name, table in zip(TABLES, (users, items), strict=True):
        features = table.features
        with pa.OSFile(str(folder / name), "wb") as file, pa.ipc.new_file(file, features.schema) as writer:
            writer.write_table(pa.Table.from_batches([features]), _ROWS_A_TABLE_BATCH)
    np.savez(folder / _COUNTS, counts=tally.counts, sums=tally.sums)
    mean = tally.training_sum / max(tally.rows["training"], 1)
    # Last: a folder with this file is whole.
    temporary = folder / f".{_META}"
    temporary.write_text(json.dumps({"rows": tally.rows, "shards": shards, "mean": mean}))
    temporary.replace(folder / _META)


def open_examples(folder: Path) -> Examples:
    """Examples that were written before.

    Raises:
      FileNotFoundError: the folder is not whole, or a shard has not the size that it was written with.
    """
    values = json.loads((folder / _META).read_text())
    arrays = np.load(folder / _COUNTS)
    examples = Examples(
        folder=folder,
        users=_read_table(folder / TABLES[0]),
        items=_read_table(folder / TABLES[1]),
        rows=values["rows"],
        shards=values["shards"],
        item_counts=arrays["counts"],
        item_sums=arrays["sums"],
        mean_rating=values["mean"],
    )
    for part, rows in examples.rows.items():
        if sum(path.stat().st_size for path in examples.files(part)) != rows * EXAMPLE.itemsize:
            raise FileNotFoundError(f"{folder}: the part {part} is not whole")
    return examples


def _read_table(path: Path) -> pa.RecordBatch:
    with pa.OSFile(str(path)) as file, pa.ipc.open_file(file) as reader:
        table = reader.read_all().combine_chunks()
    return next(iter(table.to_batches()), pa.RecordBatch.from_pylist([], schema=table.schema))
