"""Files of a run on their way to publication: training rows and dead letters, under content-made names."""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc

import beamrec.transforms.coders  # noqa: F401
from beamrec.io.formats import Layout
from beamrec.io.manifest import TRAINING_FOLDER, DataFile, LetterFile, read_manifest
from beamrec.io.merge import FILE_ROWS, encode_runs, fill_files, merge_runs, read_run
from beamrec.io.publish import staging_folder
from beamrec.io.store import Data, Store, open_store
from beamrec.schemas.deadletters import DeadLetter
from beamrec.schemas.paths import hour_folder

__all__ = ["StageExamples", "write_dead_letters", "write_partitions"]

# Encoding and writing leave Python's lock most of the time; a third thread gained nothing on two cores.
_THREADS = 2
_RUNS_FOLDER = "_runs"
_Piece = tuple[str, pa.RecordBatch]


def write_partitions(
    partitions: Iterable[_Piece],
    layout: Layout,
    store: Store,
    folder: str = "",
    standing: Mapping[str, DataFile] | None = None,
) -> list[DataFile]:
    """Writes one file per piece.

    Args:
      partitions: (folder of the partition, rows with all columns).
      layout: how they are encoded and named.
      store: the output.
      folder: written below `TRAINING_FOLDER` there, for example in a run's staging folder.
      standing: files by path that need not be written, because they are in place with this content.

    Returns:
      The files in the order of the pieces, with paths as they will be once published.
    """
    pieces = list(partitions)
    shares = [pieces[start::_THREADS] for start in range(min(_THREADS, len(pieces)))]
    shared = [_Share(share, layout, store, folder, standing or {}) for share in shares]
    if len(shared) < _THREADS:
        return [file for share in shared for file in share.write()]
    with ThreadPoolExecutor(_THREADS) as pool:
        written = list(pool.map(_Share.write, shared))
    return [written[index % _THREADS][index // _THREADS] for index in range(len(pieces))]


@dataclasses.dataclass
class _Share:
    """What one thread writes."""

    pieces: Sequence[_Piece]
    layout: Layout
    store: Store
    folder: str
    standing: Mapping[str, DataFile]
    files: list[DataFile] = dataclasses.field(default_factory=list)

    def write(self) -> list[DataFile]:
        self.store.put_all(self._objects())
        return self.files

    def _objects(self) -> Iterator[tuple[str, Data]]:
        for partition, rows in self.pieces:
            data = self.layout.encode(rows)
            sha256 = hashlib.sha256(data).hexdigest()
            path = f"{TRAINING_FOLDER}/{self.layout.path(partition, sha256)}"
            file = DataFile(path, partition, rows.num_rows, data.size, sha256)
            self.files.append(file)
            if self.standing.get(path) != file:
                yield _below(self.folder, path), data


def write_dead_letters(letters: Sequence[DeadLetter], store: Store, folder: str = "") -> LetterFile:
    """Writes letters of one stage, table and hour as one JSONL file.

    Args:
      letters: at least one; all of one stage and table, and first seen in one hour.
      store: the output.
      folder: written below `errors/` there.
    """
    first = letters[0]
    hour = hour_folder(f"errors/{first.stage}", datetime.fromisoformat(first.first_seen))
    data = b"".join(letter.to_json() + b"\n" for letter in letters)
    timeless = b"".join(dataclasses.replace(letter, first_seen="").to_json() for letter in letters)
    content = hashlib.sha256(timeless).hexdigest()
    path = f"{hour}/part-{content[:16]}.jsonl"
    store.put(_below(folder, path), data)
    return LetterFile(
        path=path,
        rows=len(letters),
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        content=content,
        rules=dict(sorted(Counter(letter.error_type for letter in letters).items())),
        table=str(first.source["name"]),
    )


@dataclasses.dataclass(eq=False)
class StageExamples(beam.PTransform):  # type: ignore[misc]
    """Record batches of training rows to lists of staged `DataFile`s.

    Where every partition lies in one range of customers, as those of one customer do, there is no shuffle:
    a batch is split and written where it is. A customer read in several slices gets a file for each.
    Otherwise ranges leave sorted runs, whose names alone are shuffled, and each partition is merged from
    them (`io.merge`).

    Attributes:
      output: path or URI of the output folder.
      run: id of the run.
      layout: what goes where.
    """

    output: str
    run: str
    layout: Layout

    def expand(self, batches: Any) -> Any:
        if not self.layout.merges:
            return batches | "Stage partitions" >> beam.ParDo(_Stage(self))
        return (
            batches
            | "Stage runs" >> beam.ParDo(_StageRuns(self))
            | "By group of partitions" >> beam.GroupByKey()
            | "Merge partitions" >> beam.ParDo(_Merge(self))
        )


class _Staging(beam.DoFn):  # type: ignore[misc]
    """What the stages share: the open store, and which files need not be written."""

    def __init__(self, options: StageExamples) -> None:
        self._options = options
        self._layout = options.layout
        self._folder = staging_folder(options.run)

    def setup(self) -> None:
        self._store = open_store(self._options.output)
        incremental = self._layout.options.mode == "incremental"
        previous = read_manifest(self._options.output) if incremental else None
        self._standing = {file.path: file for file in previous.files} if previous else {}

    def _write(self, pieces: Iterable[_Piece]) -> list[DataFile]:
        return write_partitions(pieces, self._layout, self._store, self._folder, self._standing)


class _Stage(_Staging):
    def process(self, batch: pa.RecordBatch) -> Iterator[list[DataFile]]:
        yield self._write(self._layout.partitions(batch))


class _StageRuns(_Staging):
    def process(self, batch: pa.RecordBatch) -> Iterator[tuple[int, str]]:
        runs = {}
        order = pc.sort_indices(batch, [(name, "ascending") for name in self._layout.order])
        for group, run in encode_runs(self._layout.partitions(batch.take(order))):
            name = hashlib.sha256(run).hexdigest()[:32]
            runs[_below(self._folder, f"{_RUNS_FOLDER}/{group:02}-{name}")] = (group, run)
        self._store.put_all((path, run) for path, (_, run) in runs.items())
        for path, (group, _) in runs.items():
            yield group, path


class _Merge(_Staging):
    def process(self, group: tuple[int, Iterable[str]]) -> Iterator[list[DataFile]]:
        runs = [read_run(self._store.read(path)) for path in sorted(set(group[1]))]
        for lot in _lots(fill_files(merge_runs(runs, self._layout.order))):
            yield self._write(lot)


def _lots(pieces: Iterable[_Piece]) -> Iterator[list[_Piece]]:
    """Pieces that a worker holds and writes together; each is a file."""
    lot: list[_Piece] = []
    held = 0
    for folder, rows in pieces:
        lot.append((folder, rows))
        held += rows.num_rows
        if held >= FILE_ROWS:
            yield lot
            lot, held = [], 0
    if lot:
        yield lot


def _below(folder: str, path: str) -> str:
    return f"{folder}/{path}" if folder else path
