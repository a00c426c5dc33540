"""The bounded sink: Hive-partitioned Parquet and dead letters, published together by one manifest."""

import dataclasses
import hashlib
import os
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

import beamrec.transforms.coders  # noqa: F401
from beamrec.io.manifest import TRAINING_FOLDER, DataFile, LetterFile, Manifest
from beamrec.io.publish import publish, staging_folder
from beamrec.schemas.deadletters import DeadLetter
from beamrec.schemas.errors import BadDataError
from beamrec.schemas.paths import hour_folder, local_path
from beamrec.schemas.ranges import SourceSnapshot

__all__ = ["WriteTrainingFiles", "write_dead_letters", "write_partitions"]

_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"


def write_partitions(batch: pa.RecordBatch, column: str, folder: Path) -> list[DataFile]:
    """Writes one file per value of a column, which then stands in the path and not in the file.

    Args:
      batch: rows of whole partitions, without NULL in the column; their order within one is kept.
      column: the partition column.
      folder: written below `TRAINING_FOLDER` there, under names made of the files' content.

    Returns:
      One DataFile per partition, with paths relative to `folder`.
    """
    ordered = batch.take(pc.sort_indices(batch.column(column)))
    keys = ordered.column(column)
    content = ordered.drop_columns([column])
    changes = pc.not_equal(keys[1:], keys[:-1]).to_numpy(zero_copy_only=False)
    starts = [0, *(np.flatnonzero(changes) + 1).tolist()] if len(keys) else []
    ends = [*starts[1:], len(keys)]
    return [
        _write_part(content.slice(start, end - start), f"{column}={_escape(keys[start].as_py())}", folder)
        for start, end in zip(starts, ends, strict=False)
    ]


def write_dead_letters(letters: Sequence[DeadLetter], folder: Path) -> LetterFile:
    """Writes letters of one stage and hour as one JSONL file.

    Args:
      letters: at least one; all of one stage and first seen in one hour.
      folder: written below `errors/` there.
    """
    first = letters[0]
    hour = hour_folder(f"errors/{first.stage}", datetime.fromisoformat(first.first_seen))
    data = b"".join(letter.to_json() + b"\n" for letter in letters)
    timeless = b"".join(dataclasses.replace(letter, first_seen="").to_json() for letter in letters)
    content = hashlib.sha256(timeless).hexdigest()
    path = f"{hour}/part-{content[:16]}.jsonl"
    _write(folder / path, data)
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
class WriteTrainingFiles(beam.PTransform):  # type: ignore[misc]
    """Stages training rows and dead letters, then publishes both at once.

    Takes `{"examples": batches of whole partitions, "dead_letters": lists of DeadLetter, "snapshot": one
    SourceSnapshot}` and gives the one `Manifest` that stands in the folder afterwards.

    Attributes:
      output: local path or `file://` URI.
      run: id of the run; names its staging folder.
      ratings: table whose count in the snapshot is the number of records that went in.
      partition_column: Hive key.
      max_bad_fraction: dead letters by records in; above it nothing is published.
      options: what the manifest says of the run's options.
    """

    output: str
    run: str
    ratings: str
    partition_column: str
    max_bad_fraction: float
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def expand(self, inputs: Any) -> Any:
        folder = Path(local_path(self.output, "--output")) / staging_folder(self.run)
        files = (
            inputs["examples"]
            | "Stage examples" >> beam.Map(write_partitions, self.partition_column, folder)
        )  # fmt: skip
        letters = inputs["dead_letters"] | "Stage dead letters" >> beam.Map(write_dead_letters, folder)
        return (
            (files, letters, inputs["snapshot"])
            | "Parts" >> beam.Flatten()
            | "One key" >> beam.Map(lambda part: (0, part))
            | "Together" >> beam.GroupByKey()
            | "Publish" >> beam.MapTuple(self._publish)
        )

    def _publish(self, _: int, parts: Iterable[Any]) -> Manifest:
        manifest = self._manifest(list(parts))
        _check_account(manifest, self.max_bad_fraction)
        return publish(self.output, manifest)

    def _manifest(self, parts: list[Any]) -> Manifest:
        (snapshot,) = (part for part in parts if isinstance(part, SourceSnapshot))
        files = [file for part in parts if isinstance(part, list) for file in part]
        letters = [part for part in parts if isinstance(part, LetterFile)]
        return Manifest(
            run=self.run,
            system=snapshot.system,
            snapshot=snapshot.method,
            taken_at=snapshot.taken_at,
            counts=snapshot.counts,
            records_in=snapshot.counts[self.ratings],
            partition_columns=(self.partition_column,),
            types=snapshot.types,
            options=dict(self.options),
            files=tuple(sorted(files, key=lambda file: file.path)),
            dead_letters=tuple(sorted(letters, key=lambda letter: letter.path)),
        )


def _check_account(manifest: Manifest, max_bad_fraction: float) -> None:
    """Raises BadDataError if there is too much bad data or a record without exactly one fate."""
    rows, letters, total = manifest.rows, manifest.letters, manifest.records_in
    if rows + letters != total:
        raise BadDataError(
            f"the account does not add up: the snapshot holds {total} ratings, "
            f"{rows} became training rows and {letters} dead letters; nothing was published"
        )
    if letters > max_bad_fraction * total:
        rules = ", ".join(f"{rule} {count}" for rule, count in manifest.rules.most_common())
        raise BadDataError(
            f"{letters} of {total} ratings are bad ({letters / total:.2%}; {rules}), expected at most "
            f"{max_bad_fraction:.2%}; nothing was published. Mend the source, or raise --max-bad-fraction "
            "to publish the rest and see the dead letters"
        )


def _write_part(content: pa.RecordBatch, folder_name: str, folder: Path) -> DataFile:
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, content.schema, compression="snappy") as writer:
        writer.write_batch(content)
    data = sink.getvalue()
    sha256 = hashlib.sha256(data).hexdigest()
    path = f"{TRAINING_FOLDER}/{folder_name}/part-{sha256[:16]}.parquet"
    _write(folder / path, data)
    return DataFile(path, folder_name, content.num_rows, data.size, sha256)


def _write(path: Path, data: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Two attempts at one bundle may write the same file at a time.
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)


def _escape(value: Any) -> str:
    """A partition value as it stands in a path: percent-encoded, also the Hive name of NULL."""
    escaped = quote(str(value), safe="")
    return f"%5F{escaped[1:]}" if escaped == _HIVE_NULL else escaped
