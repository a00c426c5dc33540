"""The streaming job on a Kinesis that is resharded and refuses calls, killed and started again on Prism."""

import collections
import json
import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from progress_fixtures import wait_for_more

from beamrec.io.ledger import account, missing_segments
from beamrec.io.store import LocalStore

pytestmark = pytest.mark.faults

SHORT = os.environ.get("BEAMREC_FAULTS") == "short"
RECORDS = 4_000 if SHORT else 100_000
KILLS = 2 if SHORT else 5
STEPS = 20
RESHARDINGS = 5  # split, merge, split, merge, split
SECONDS = 15 if SHORT else 120  # that the producer takes


class Producer(threading.Thread):
    """Events by keys, by explicit hash keys and in aggregates, a third each, while shards split and merge."""

    def __init__(self, server: Any, pack: Callable[[Sequence[bytes]], bytes]) -> None:
        super().__init__(daemon=True)
        self._server, self._pack, self._random = server, pack, random.Random(11)
        self.sent = 0
        self.put = {"by key": 0, "by explicit hash key": 0, "in aggregates": 0}
        self.reshardings: list[str] = []

    def run(self) -> None:
        for step in range(STEPS):
            self._put(RECORDS // STEPS)
            if step % 4 == 1 and len(self.reshardings) < RESHARDINGS:
                self._reshard()
            time.sleep(SECONDS / STEPS)

    def _put(self, count: int) -> None:
        events = [self._event(self.sent + i) for i in range(count)]
        third = count // 3
        self._server.put(*events[:third])
        for first in range(third, 2 * third, 100):
            keyed = events[first : min(first + 100, 2 * third)]
            self._server.put(*keyed, hash_key=str(self._random.getrandbits(128)))
        packed = events[2 * third :]
        self._server.put(*(self._pack(packed[first : first + 50]) for first in range(0, len(packed), 50)))
        self.sent += count
        for kind, put in zip(self.put, (third, third, count - 2 * third), strict=True):
            self.put[kind] += put

    def _event(self, number: int) -> bytes:
        customer = self._random.choice([103, 112, 999_999])
        event = {"session_id": f"s{number}", "event_id": f"e{number}", "customer_number": customer}
        more = {"city": "Nantes", "country": "France", "credit_limit": 21000, "browse_history": []}
        return json.dumps(event | more).encode()

    def _reshard(self) -> None:
        shards = self._server.open_shards()
        if len(self.reshardings) % 2:
            at = self._random.randrange(len(shards) - 1)
            self._server.merge(shards[at], shards[at + 1])
        else:
            self._server.split(self._random.choice(shards))
        self.reshardings.append("merge" if len(self.reshardings) % 2 else "split")


def test_killed_while_kinesis_is_resharded_and_refuses_calls(
    kinesis: Any,
    stream_job: Callable[..., Any],
    kpl_aggregate: Callable[[Sequence[bytes]], bytes],
    figures: Callable[..., None],
) -> None:
    job = stream_job("--splits=2", "--window-seconds=2", "--max-delay=1")
    job.input = kinesis.uri()
    draw, producer = random.Random(7), Producer(kinesis, kpl_aggregate)
    store, before = LocalStore(job.output), kinesis.report()["kinds"]
    producer.start()
    with kinesis.faults(0.1):
        for kill in range(KILLS):
            job.start()
            if kill % 2 == 0:
                wait_for_more(job)
            time.sleep(draw.uniform(0, 8))
            job.kill()
        producer.join()
        result = job.start("--stop-when-idle=6").finish(timeout=900)
    assert result["ok"], result
    assert producer.reshardings == ["split", "merge", "split", "merge", "split"]
    after = kinesis.report()["kinds"]
    injected = {kind: count - before.get(kind, 0) for kind, count in after.items()}
    for kind in ("ExpiredIteratorException", "ProvisionedThroughputExceededException"):
        assert injected.get(kind), f"no {kind}: the test has shown nothing"
    counted = collections.Counter(record["session_id"] for _, record in job.visible())
    sent = {f"s{number}" for number in range(producer.sent)}
    assert counted.keys() == sent, f"{len(sent - counted.keys())} lost"
    assert set(counted.values()) == {1}, "visible twice"
    found = account(store)
    assert found.reconciled, found
    assert found.counts.out == found.counts.records_in == RECORDS
    assert missing_segments(store) == []
    figures(
        records=producer.sent,
        by_kind=producer.put,
        kills=KILLS,
        reshardings=producer.reshardings,
        injected=injected,
        lost=len(sent - counted.keys()),
        visible_twice=sum(times > 1 for times in counted.values()),
        counts=found.counts.to_dict(),
    )
