"""What Beam asks of every event source here: fixed splits, and the ledger says where to read on."""

import abc
from typing import Any, Self

import pyarrow as pa
from apache_beam import coders
from apache_beam.io.unbounded_source import UnboundedSource

import beamrec.transforms.coders  # noqa: F401  (registers the batch coder)
from beamrec.io.reader import LedgerMark, LedgerReader, resume_or

__all__ = ["LedgerSource"]


class LedgerSource(UnboundedSource, abc.ABC):  # type: ignore[misc]
    """A source that one reader reads, from where the ledger of the output says that it stands.

    Attributes:
      split_index: which of the job's readers it is.
    """

    split_index: int = 0

    @abc.abstractmethod
    def make_reader(self) -> LedgerReader:
        """A reader that resumes from the ledger."""

    def create_reader(self, options: Any, checkpoint_mark: LedgerMark | None) -> LedgerReader:
        """The reader that cut the mark, where it may go on, else a new one."""
        reader = resume_or(checkpoint_mark, self.make_reader)
        reader.split_index = self.split_index
        return reader

    def split(self, desired_num_splits: int, options: Any = None) -> list[Self]:
        """Itself: the number of splits is fixed when the graph is built, one Read for each."""
        return [self]

    def get_checkpoint_mark_coder(self) -> coders.Coder:
        """Of `LedgerMark`."""
        return coders.PickleCoder()

    def default_output_coder(self) -> coders.Coder:
        """Arrow IPC."""
        return coders.registry.get_coder(pa.RecordBatch)
