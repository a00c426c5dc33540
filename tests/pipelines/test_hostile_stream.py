"""The whole job on 10,000 hostile records: it ends well, each is accounted for, good ones are as without."""

import base64
import collections
import json
from collections.abc import Callable
from typing import Any

from beamrec.io.ledger import account
from beamrec.io.store import LocalStore

RECORDS = 10_000


def test_no_record_stops_the_stream_and_each_has_its_fate(
    stream_job: Callable[..., Any], hostile_events: Callable[..., Any]
) -> None:
    records = [r for r in hostile_events(RECORDS + 500) if b"\n" not in r.payload and r.payload.strip()][
        :RECORDS
    ]
    assert len(records) == RECORDS
    job = stream_job("--runner=direct", "--stop-when-idle=2")
    for number in range(4):
        lines = b"".join(record.payload + b"\n" for record in records[number::4])
        (job.input / f"{number}.jsonl").write_bytes(lines)
    result = job.start().finish()
    assert result["ok"], result
    found = account(LocalStore(job.output))
    assert found.reconciled
    assert result["in"] == RECORDS == sum(result[k] for k in ("out", "dead_letters", "expired", "duplicates"))
    visible = [record for _, record in job.visible()]
    plain = [json.loads(r.payload) for r in records if r.kind == "plain"]
    by_id = {record["event_id"]: record for record in visible}
    for event in plain:
        record = by_id[event.pop("event_id")]
        assert event.items() <= record.items()
        assert len(record["recommended_items"]) == 5
    letters = job.errors()
    broken = collections.Counter(
        r.payload.strip(b" \t\r") for r in records if r.expected in ("dead", "expired")
    )
    assert not broken - collections.Counter(base64.b64decode(letter["payload"]) for letter in letters)
    good = sum(r.expected == "visible" for r in records)
    assert good <= len(visible) <= good + sum(r.expected == "any" for r in records)
