"""Arrow IPC as the wire format of record batches.

Every module whose transforms emit batches imports this one: importing it registers the coder. Beam's
default coder pickles a slice together with its whole parent (620 kB for 100 rows, IPC writes 6.7 kB).
"""

import pyarrow as pa
from apache_beam import coders

__all__ = ["RecordBatchCoder"]


class RecordBatchCoder(coders.Coder):  # type: ignore[misc]
    """One `pyarrow.RecordBatch` with its schema and schema metadata as an Arrow IPC stream."""

    def encode(self, value: pa.RecordBatch) -> bytes:
        """Encodes one batch; raises `pyarrow.ArrowInvalid` for a type that IPC cannot carry."""
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, value.schema) as writer:
            writer.write_batch(value)
        return bytes(sink.getvalue())

    def decode(self, encoded: bytes) -> pa.RecordBatch:
        """The inverse of `encode`; the batch shares memory with `encoded`."""
        with pa.ipc.open_stream(encoded) as reader:
            return reader.read_next_batch()

    def is_deterministic(self) -> bool:
        """Batches are never keys."""
        return False

    def to_type_hint(self) -> type:
        """The type that this coder is registered for."""
        kind: type = pa.RecordBatch
        return kind

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other)

    def __hash__(self) -> int:
        return hash(type(self))


coders.registry.register_coder(pa.RecordBatch, RecordBatchCoder)
