"""Gaps are kept once and are never quiet, whichever answer of the store is lost."""

import json
import logging
from pathlib import Path

import pytest

from beamrec.io.gaps import Gap, count_gaps, note_gap, read_gaps
from beamrec.io.patience import patient
from beamrec.io.store import LocalStore
from beamrec.schemas.errors import BeamrecError, UnavailableError

GAP = Gap("kafka:t/0", 5, 7, "offsets 5 to 99 are gone", 95)


class _Deaf(LocalStore):
    """A store whose first object is written, and the answer lost."""

    is_deaf = True

    def create(self, path: str, data: bytes) -> bool:
        created = super().create(path, data)
        if self.is_deaf:
            self.is_deaf = False
            raise UnavailableError("the answer was lost")
        return created


def test_a_gap_whose_answer_was_lost_is_told_and_counted_by_who_kept_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = patient(_Deaf(tmp_path), 60)
    with caplog.at_level(logging.WARNING, "beamrec.io.gaps"):
        assert note_gap(store, GAP)
    assert "kafka:t/0: records are missing after position 5: offsets 5 to 99 are gone" in caplog.messages
    assert read_gaps(store) == [GAP]


def test_a_gap_that_another_has_kept_is_told_and_not_kept_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The one that kept it may have been killed before it said so."""
    store = LocalStore(tmp_path)
    assert note_gap(store, GAP)
    caplog.clear()
    with caplog.at_level(logging.WARNING, "beamrec.io.gaps"):
        assert not note_gap(store, GAP)
    assert len(caplog.messages) == 1
    assert count_gaps(store) == 1


def test_a_gap_of_an_older_version_is_read_and_a_damaged_one_is_an_error(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    old = {"source": "kinesis:s/1", "after": 1, "since_us": 2, "reason": "retention", "at_most": None}
    store.create("_ledger/gaps/00.json", json.dumps(old).encode())
    assert read_gaps(store) == [Gap(**old)]
    store.create("_ledger/gaps/01.json", b"[]")
    with pytest.raises(BeamrecError, match=r"_ledger/gaps/01\.json is damaged"):
        read_gaps(store)
