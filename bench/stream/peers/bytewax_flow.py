"""Peer: the job as a Bytewax dataflow.

Bytewax's own Kafka source, a `map` that parses, its own `collect` into batches by partition (`--batch`
messages, or what came in `--wait` seconds), a `map` that serves a batch by the same code as the hand-written
loop, and two sinks: the serving table and the hourly files. One worker: with two, 0.21.1 crashed on
confluent-kafka 2.16.1 (PyThreadState_Get without the GIL).
"""

import argparse
import datetime as dt
import signal
import socket
import threading
from collections.abc import Iterable

import bytewax.operators as op
from batch_recommender import BatchRecommender
from bytewax.connectors.kafka import KafkaSource, KafkaSourceMessage
from bytewax.dataflow import Dataflow
from bytewax.inputs import StatefulSourcePartition
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from bytewax.run import cli_main
from command_line import parser
from hourly_files import HourlyFiles
from records import Served
from shop_events import Event, Fields, Message, Refused, dead_letter, parse
from store import connect, write

_Record = KafkaSourceMessage[bytes | None, bytes | None]
_Keyed = tuple[str, Event | bytes]


class _Draining(StatefulSourcePartition[_Record, int | None]):
    """A partition that ends when it is told to, so that the flow finishes what it holds."""

    def __init__(
        self, partition: StatefulSourcePartition[_Record, int | None], stop: threading.Event
    ) -> None:
        self._partition, self._stop = partition, stop

    def next_batch(self) -> Iterable[_Record]:
        if self._stop.is_set():
            raise StopIteration
        return self._partition.next_batch()

    def snapshot(self) -> int | None:
        return self._partition.snapshot()

    def close(self) -> None:
        self._partition.close()


class _Source(KafkaSource):
    """Bytewax's Kafka source, until SIGTERM."""

    def __init__(self, values: argparse.Namespace, stop: threading.Event) -> None:
        super().__init__([values.bootstrap], [values.topic], batch_size=values.batch)
        self._stop = stop

    def build_part(self, step_id: str, for_part: str, resume_state: int | None) -> _Draining:  # type: ignore[override]
        return _Draining(super().build_part(step_id, for_part, resume_state), self._stop)


class _ServingTable(DynamicSink[list[Served]]):
    def __init__(self, values: argparse.Namespace) -> None:
        self._values = values

    def build(self, step_id: str, worker_index: int, worker_count: int) -> "_ServingTablePart":
        return _ServingTablePart(self._values)


class _ServingTablePart(StatelessSinkPartition[list[Served]]):
    def __init__(self, values: argparse.Namespace) -> None:
        self._connection, self._log = connect(values.vector_db), values.log

    def write_batch(self, items: list[list[Served]]) -> None:
        for batch in items:
            write(self._connection, batch, self._log)

    def close(self) -> None:
        self._connection.close()


class _Files(DynamicSink[list[tuple[dt.datetime, bytes]]]):
    def __init__(self, values: argparse.Namespace, folder: str) -> None:
        self._folder = values.output / folder

    def build(self, step_id: str, worker_index: int, worker_count: int) -> "_FilesPart":
        return _FilesPart(HourlyFiles(self._folder))


class _FilesPart(StatelessSinkPartition[list[tuple[dt.datetime, bytes]]]):
    def __init__(self, files: HourlyFiles) -> None:
        self._files = files

    def write_batch(self, items: list[list[tuple[dt.datetime, bytes]]]) -> None:
        for lines in items:
            self._files.write(lines)

    def close(self) -> None:
        self._files.close()


def build(values: argparse.Namespace, stop: threading.Event) -> Dataflow:
    """The dataflow: source to sinks."""
    fields = Fields.of_shop(values.shop)
    flow = Dataflow("recommend")
    records = op.input("events", flow, _Source(values, stop))
    parsed = op.map("parse", records, lambda record: _parse(record, fields))
    sorted_out = op.branch("refused", parsed, lambda keyed: isinstance(keyed[1], bytes))
    batches = op.collect("batch", sorted_out.falses, dt.timedelta(seconds=values.wait), values.batch)
    recommender = BatchRecommender(connect(values.vector_db), fields, values.items, values.remember)
    served = op.map("serve", op.key_rm("unkey", batches), recommender.serve)
    op.output("table", served, _ServingTable(values))
    op.output("files", op.map("lines", served, _lines), _Files(values, "recommendations"))
    refused = op.map("letters", sorted_out.trues, lambda keyed: [(dt.datetime.now(dt.UTC), keyed[1])])
    op.output("errors", refused, _Files(values, "errors/parse"))
    return flow


def _parse(record: _Record, fields: Fields) -> _Keyed:
    """The event, or a line for a record that is none, by partition."""
    place = f"{record.topic}/{record.partition}/{record.offset}"
    message = Message(record.value or b"", place, record.timestamp[1] if record.timestamp else 0)
    try:
        return str(record.partition), parse(message, fields)
    except Refused as error:
        return str(record.partition), dead_letter(message, error)


def _lines(served: list[Served]) -> list[tuple[dt.datetime, bytes]]:
    return [(row.event.event_time, row.line()) for row in served]


def _when_told(stop: threading.Event) -> None:
    """Sets `stop` at SIGTERM. A thread waits for it: the main one is inside Bytewax's engine."""
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    signal.set_wakeup_fd(writer.fileno())
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    threading.Thread(target=_wait, args=(reader, writer, stop), daemon=True).start()


def _wait(reader: socket.socket, writer: socket.socket, stop: threading.Event) -> None:
    with reader, writer:
        reader.recv(1)
        stop.set()


def main() -> None:
    """Runs the flow until SIGTERM."""
    options = parser(__doc__ or "")
    options.add_argument("--batch", type=int, default=500, help="most messages a batch")
    options.add_argument("--wait", type=float, default=0.02, help="longest time to fill a batch [s]")
    options.add_argument("--remember", action="store_true", help="keep neighbours that were looked up")
    values = options.parse_args()
    stop = threading.Event()
    _when_told(stop)
    cli_main(build(values, stop))


if __name__ == "__main__":
    main()
