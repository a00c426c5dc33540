"""Waits for stores that are away, on their way to the metrics."""

import time
from pathlib import Path

import pytest

from beamrec.io.patience import patiently
from beamrec.io.store_waits import WAITS, StoreWaits
from beamrec.schemas.errors import UnavailableError


def test_waits_add_up_by_store_and_are_taken_once() -> None:
    waits = StoreWaits()
    waits.add("output", 0.5)
    waits.add("output", 1.0)
    waits.add("vector_db", 0.25)
    assert waits.take() == {"output": (2, 1.5), "vector_db": (1, 0.25)}
    assert waits.take() == {}


def test_an_outage_of_the_output_is_told(tmp_path: Path) -> None:
    WAITS.take()
    file = tmp_path / "there"

    def action() -> str:
        if not file.exists():
            file.touch()
            raise UnavailableError("away")
        return "done"

    began = time.monotonic()
    assert patiently(action, 60) == "done"
    retries, seconds = WAITS.take()["output"]
    assert retries == 1
    assert 0 < seconds <= time.monotonic() - began


def test_an_outage_that_lasts_is_an_error(tmp_path: Path) -> None:
    def action() -> None:
        raise UnavailableError("away")

    with pytest.raises(UnavailableError, match="away"):
        patiently(action, 0)
