"""What the sources of replays share: they end by themselves, and the ledger says where they stand."""

import abc
import dataclasses
from typing import Any, Self

import pyarrow as pa
from apache_beam import coders
from apache_beam.io.unbounded_source import UnboundedSource

import beamrec.transforms.coders  # noqa: F401  (registers the batch coder)
from beamrec.io.events import SourceOptions
from beamrec.io.reader import LedgerMark, LedgerReader

__all__ = ["BoundedSource"]


@dataclasses.dataclass(frozen=True)
class BoundedSource(UnboundedSource):  # type: ignore[misc]
    """A source that is read by one reader, from where the ledger of the output says that it stands.

    Attributes:
      options: what a source needs to know of the job.
    """

    options: SourceOptions

    def split(self, desired_num_splits: int, options: Any = None) -> list[Self]:
        """Itself."""
        return [self]

    @abc.abstractmethod
    def create_reader(self, options: Any, checkpoint_mark: LedgerMark | None) -> LedgerReader:
        """A reader that resumes from the ledger."""

    def get_checkpoint_mark_coder(self) -> coders.Coder:
        """Of `LedgerMark`."""
        return coders.PickleCoder()

    def default_output_coder(self) -> coders.Coder:
        """Arrow IPC."""
        return coders.registry.get_coder(pa.RecordBatch)
