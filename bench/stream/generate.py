"""An open-loop generator in a process of its own: sends each event when it is due, whoever keeps up.

The id of an event is `<run>-<number>`, and it is due at `start + number / rate`: who reads the ids knows when
each should have been sent. Each tenth event has a customer of its own, whose row in the serving table no
later event replaces. Prints a JSON object at the end; `behind` is how late an event was handed to the
client at most (seconds).
"""

import argparse
import datetime as dt
import json
import sys
import time
import zlib

from confluent_kafka import Producer

from beamrec.pipelines.generate_events import Dirt, EventGenerator, read_catalogue
from beamrec.schemas.shop import load_shop

_TEMPLATES = 20_000
_TICK_SECONDS = 0.001
PROBE_EVERY = 10
_CLEAN = Dirt(garbage=0, duplicates=0, late=0, expired=0)


def main() -> None:
    """Sends `--count` events at `--rate`."""
    values = _arguments()
    bodies = _bodies(values.source, values.seed)
    producer = Producer(
        {
            "bootstrap.servers": values.bootstrap,
            "linger.ms": 1,
            "queue.buffering.max.messages": 2_000_000,
            "queue.buffering.max.kbytes": 2_000_000,
            "acks": 1,
        }
    )
    start = values.start or time.time() + 0.2
    behind = _send(producer, values, bodies, start)
    left = producer.flush(60)
    print(json.dumps({"start": start, "count": values.count, "rate": values.rate, "behind": behind}))
    sys.exit(bool(left))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--bootstrap", required=True)
    add("--topic", required=True)
    add("--partitions", type=int, default=2)
    add("--source", required=True, help="shop to draw from")
    add("--run", required=True, help="prefix of the ids")
    add("--rate", type=float, help="events a second; as fast as possible if not given")
    add("--count", type=int, required=True)
    add("--start", type=float, help="when the first is due, seconds since the epoch")
    add("--seed", type=int, default=42)
    return parser.parse_args()


def _bodies(source: str, seed: int) -> list[bytes]:
    """Events without id and time, open at their end; the probes among them without a customer."""
    shop = load_shop(None)
    generator = EventGenerator(shop, read_catalogue(source, shop), seed, _CLEAN, event_time=False)
    now = dt.datetime.now(dt.UTC)
    bodies = []
    for number in range(_TEMPLATES):
        event = json.loads(generator.line(now))
        if number % PROBE_EVERY == 0:
            del event[shop.events.customer]
        bodies.append(json.dumps(event, ensure_ascii=False).encode()[:-1])
    return bodies


def _send(producer: Producer, values: argparse.Namespace, bodies: list[bytes], start: float) -> float:
    sent, behind, topic, partitions = 0, 0.0, values.topic, values.partitions
    rate = values.rate or float("inf")
    prefix = f', "event_id": "{values.run}-'.encode()
    # Customers that no catalogue has, and no other run.
    first_probe = 10**8 + zlib.crc32(values.run.encode()) % 10**3 * 10**6
    while sent < values.count:
        now = time.time()
        due = values.count if values.rate is None else min(values.count, int((now - start) * rate) + 1)
        if due > sent and now >= start:
            behind = max(behind, now - (start + sent / rate))
            for number in range(sent, due):
                # An event happens when it is due; the time of day is cheap to write, the date stays.
                line = b'%s%s%s%d", "event_time": "%s"}' % (
                    bodies[number % _TEMPLATES],
                    b"" if number % PROBE_EVERY else b', "customer_number": %d' % (first_probe + number),
                    prefix,
                    number,
                    _rfc3339(start + number / rate if values.rate else now),
                )
                while True:
                    try:
                        producer.produce(topic, line, partition=number % partitions)
                        break
                    except BufferError:
                        producer.poll(0.01)
            sent = due
        producer.poll(0)
        time.sleep(_TICK_SECONDS)
    return behind


_DAY = dt.datetime.now(dt.UTC).replace(hour=0, minute=0, second=0, microsecond=0)
_MIDNIGHT, _DATE = _DAY.timestamp(), _DAY.strftime("%Y-%m-%d").encode()


def _rfc3339(seconds: float) -> bytes:
    millis = int((seconds - _MIDNIGHT) * 1000)
    minutes, rest = divmod(millis, 60_000)
    days, minutes = divmod(minutes, 1440)
    date = _DATE if not days else (_DAY + dt.timedelta(days)).strftime("%Y-%m-%d").encode()
    return b"%sT%02d:%02d:%02d.%03dZ" % (date, *divmod(minutes, 60), *divmod(rest, 1000))


if __name__ == "__main__":
    main()
