"""Compares what the peers answer with what `beamrec stream` answers, before any time counts.

    agree.py --bootstrap HOST:PORT --vector-db postgresql://… --source SHOP --output FOLDER

1,000 events of the shop, some of them dirty, go into a topic of their own. `beamrec stream` serves it twice,
by the exact product and by the index, then each peer, all into the same database, whose serving table is
emptied before each. Lines and rows are compared: the same events, the same fields, the same lists in the
same order. Items whose scores or distances differ by less than 1e-5 may change places. A difference ends it
with 1.
"""

import argparse
import datetime as dt
import json
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

from beamrec.io.postgres import connect
from beamrec.pipelines.generate_events import Dirt, EventGenerator, read_catalogue
from beamrec.schemas.shop import load_shop

__all__ = ["PEERS", "check"]

Record = dict[str, Any]

_HERE = Path(__file__).resolve().parent
_BEAMREC = _HERE.parents[2] / ".venv" / "bin" / "beamrec"
_PEER_PYTHON = _HERE.parents[1] / ".venv" / "bin" / "python"
_EVENTS = 1_000
_SEED = 7
_TOLERANCE = 1e-5
_PATIENCE_SECONDS = 900.0  # a busy machine loads TensorFlow in minutes
_SHOWN = 5

PEERS = {
    "loop": ("exact", ["loop.py"]),
    "loop, remembering": ("exact", ["loop.py", "--remember"]),
    "bytewax": ("exact", ["bytewax_flow.py"]),
    "function, warm": ("index", ["function.py", "--connect", "warm"]),
    "function, connecting": ("index", ["function.py", "--connect", "per-event"]),
}
"""Of each peer how it finds items, and its command."""

_VISITORS: list[Record] = [
    {},
    {"browse_history": []},
    {"browse_history": [{"product_code": "no such product", "in_shopping_cart": True}]},
    {"customer_number": None, "city": "", "country": " ", "credit_limit": None},
    {"customer_number": 987654321, "browse_history": None},
    {"city": "Nantes", "extra": {"nested": [1, "é", None]}},
    {"credit_limit": "21000.5"},
    {"served_by": "somebody else", "release": "another", "country": "France"},
]
"""Events that the generator does not make: without a customer, without anything to go by, with our names."""


def check(
    bootstrap: str,
    uri: str,
    source: str,
    output: Path,
    python: Path = _PEER_PYTHON,
    peers: Sequence[str] = tuple(PEERS),
) -> dict[str, int]:
    """Runs all and compares; returns how many lines of each peer were compared.

    Args:
      bootstrap: a broker.
      uri: of PostgreSQL with an active release; its serving table is emptied.
      source: the database of the shop that the release was trained for.
      output: a folder that is not there yet.
      python: has what the peers need.

    Raises:
      SystemExit: something differs; it says what.
    """
    topic, customers = _fill(bootstrap, source)
    expected = {}
    for retrieval in {PEERS[peer][0] for peer in peers}:
        _empty(uri)
        lines = _beamrec(bootstrap, topic, uri, output / f"beamrec-{retrieval}", retrieval)
        expected[retrieval] = lines, _rows(uri, customers)
    compared = {}
    for number, peer in enumerate(peers):
        retrieval, command = PEERS[peer]
        _empty(uri)
        folder = output / f"peer-{number}"
        options = [f"--bootstrap={bootstrap}", f"--topic={topic}", f"--vector-db={uri}", f"--output={folder}"]
        wanted_lines, wanted_rows = expected[retrieval]
        ids = {line["event_id"] for line in wanted_lines}
        lines = _run([str(python), str(_HERE / command[0]), *command[1:], *options], folder, ids)
        _compare(f"{peer}: lines", lines, wanted_lines, "event_id")
        _compare(f"{peer}: serving table", _rows(uri, customers), wanted_rows, "customer_id")
        compared[peer] = len(lines)
    return compared


def _fill(bootstrap: str, source: str) -> tuple[str, list[str]]:
    """A new topic with the events; its name, and the customers in it."""
    topic, shop, now = f"agree-{uuid.uuid4().hex[:12]}", load_shop(None), dt.datetime.now(dt.UTC)
    admin = AdminClient({"bootstrap.servers": bootstrap})  # what it was asked is answered while it lives
    admin.create_topics([NewTopic(topic, 2, 1)])[topic].result(60)
    generator = EventGenerator(shop, read_catalogue(source, shop), _SEED, Dirt(expired=0))
    payloads = [generator.line(now) for _ in range(_EVENTS)]
    for number, visitor in enumerate(_VISITORS):
        own = {"event_id": f"visitor-{number}", "event_time": now.isoformat(), **visitor}
        payloads.append(json.dumps(own).encode())
    producer = Producer({"bootstrap.servers": bootstrap})
    for number, payload in enumerate(payloads):
        producer.produce(topic, payload, partition=number % 2)
    if producer.flush(60):
        raise SystemExit(f"{bootstrap} does not take the events")
    return topic, sorted(set(_customers(payloads)))


def _customers(payloads: Sequence[bytes]) -> Iterator[str]:
    for payload in payloads:
        try:
            customer = json.loads(payload).get("customer_number")
        except (ValueError, AttributeError):
            continue
        if customer is not None:
            yield str(customer)


def _beamrec(bootstrap: str, topic: str, uri: str, output: Path, retrieval: str) -> list[Record]:
    command = [str(_BEAMREC), "stream", f"--input=kafka://{bootstrap}/{topic}", f"--output={output}"]
    options = [f"--vector-db={uri}", f"--retrieval={retrieval}", "--stop-when-idle=5"]
    subprocess.run([*command, *options, f"--home={output}-home"], check=True)  # noqa: S603
    return _lines(output)


def _run(command: list[str], output: Path, ids: set[str]) -> list[Record]:
    """Runs a peer until it has served each event, then stops it as a user would."""
    process = subprocess.Popen(command)  # noqa: S603
    deadline = time.monotonic() + _PATIENCE_SECONDS
    try:
        while process.poll() is None and time.monotonic() < deadline:
            if {line["event_id"] for line in _lines(output)} >= ids:
                break
            time.sleep(0.5)
    finally:
        process.terminate()
        code = process.wait(_PATIENCE_SECONDS)
    if code:
        raise SystemExit(f"{' '.join(command[1:3])}: ended with {code}, and should with 0")
    return _lines(output)


def _lines(output: Path) -> list[Record]:
    """The whole lines below a folder; one that is still being written has no line end yet."""
    texts = [path.read_bytes() for path in output.glob("recommendations/**/*.jsonl")]
    whole = (text[: text.rfind(b"\n") + 1] for text in texts)
    return [json.loads(line) for text in whole for line in text.splitlines()]


def _empty(uri: str) -> None:
    connection = connect(uri)
    with connection, connection.cursor() as cursor:
        cursor.execute("TRUNCATE beamrec.recommendations_latest")
    connection.close()


def _rows(uri: str, customers: list[str]) -> list[Record]:
    connection = connect(uri)
    with connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT to_jsonb(r) FROM beamrec.recommendations_latest r WHERE customer_id = ANY(%s)",
            [customers],
        )
        rows = [row[0] for row in cursor.fetchall()]
    connection.close()
    return rows


def _compare(what: str, found: Sequence[Record], expected: Sequence[Record], key: str) -> None:
    """Each record found is one expected, and each expected one was found."""
    wanted = {record[key]: record for record in expected}
    problems = [f"{key} {record[key]}: not expected" for record in found if record[key] not in wanted]
    missing = wanted.keys() - {record[key] for record in found}
    problems += [f"{key} {name}: missing" for name in sorted(missing)]
    for record in found:
        if record[key] in wanted:
            different = _difference(record, wanted[record[key]])
            problems += [f"{key} {record[key]}: {different}"] if different else []
    if problems or not wanted:
        shown = "\n  ".join(problems[:_SHOWN] or ["nothing was expected"])
        raise SystemExit(f"{what}: {len(problems)} differences of {len(wanted)}\n  {shown}")


def _difference(found: Record, expected: Record) -> str | None:
    """What differs between two records, in words."""
    if found.keys() != expected.keys():
        return f"fields {sorted(found.keys() ^ expected.keys())} are in one of the two only"
    for name, value in expected.items():
        if name == "recommended_items":
            same = _same_list(found[name], value, "score")
        elif name == "similar_items":
            same = _same_similar(found[name], value)
        else:
            same = name == "processed_at" or found[name] == value
        if not same:
            return f"{name}: expected {value}, got {found[name]}"
    return None


def _same_similar(found: list[Record], expected: list[Record]) -> bool:
    if [entry["product_code"] for entry in found] != [entry["product_code"] for entry in expected]:
        return False
    pairs = zip(found, expected, strict=True)
    return all(_same_list(one["similar_items"], other["similar_items"], "distance") for one, other in pairs)


def _same_list(found: list[Record], expected: list[Record], name: str) -> bool:
    """The same values in the same order, of the same items; items of equal value may change places."""
    if len(found) != len(expected):
        return False
    if any(_apart(one[name], other[name]) for one, other in zip(found, expected, strict=True)):
        return False
    own = {entry["id"]: entry[name] for entry in found}
    others = {entry["id"]: entry[name] for entry in expected}
    if any(_apart(own[item], others[item]) for item in own.keys() & others.keys()):
        return False
    # An item that only one list has stands behind the end of the other by no more than the tolerance.
    last = expected[-1][name] if expected else 0
    alone = [{**own, **others}[item] for item in own.keys() ^ others.keys()]
    return len(own) == len(others) and not any(_apart(value, last) for value in alone)


def _apart(one: float, other: float) -> bool:
    return abs(one - other) > _TOLERANCE


def main() -> None:
    """Compares, and says what was compared."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add = parser.add_argument
    add("--bootstrap", required=True, help="a broker, HOST:PORT")
    add("--vector-db", required=True, help="its serving table is emptied")
    add("--source", required=True, help="the shop's database")
    add("--output", required=True, type=Path, help="a new folder")
    add("--peer-python", type=Path, default=_PEER_PYTHON, help="has what the peers need")
    add("--peer", action="append", choices=tuple(PEERS), help="only these; repeatable")
    values = parser.parse_args()
    if values.output.exists():
        raise SystemExit(f"--output {values.output}: expected a folder that is not there yet")
    peers = values.peer or tuple(PEERS)
    compared = check(
        values.bootstrap, values.vector_db, values.source, values.output, values.peer_python, peers
    )
    json.dump({"ok": True, "lines": compared}, sys.stdout)
    print()


if __name__ == "__main__":
    main()
