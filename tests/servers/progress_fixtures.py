"""Waiting for a job by its ledger; a module of tests imports what it needs."""

import time
from typing import Any

from beamrec.io.ledger import account
from beamrec.io.store import LocalStore


def wait_for_more(job: Any, seconds: float = 900) -> None:
    """Until more is visible than now: cheaper than reading the files, of which there may be many."""
    store = LocalStore(job.output)
    now, deadline = account(store).counts.out, time.monotonic() + seconds
    while account(store).counts.out == now:
        assert job.running, job.log.read_text()[-3000:]
        assert time.monotonic() < deadline, job.log.read_text()[-3000:]
        time.sleep(0.5)
