"""What a savepoint must fit, said before a job is submitted."""

from pathlib import Path

import pytest

from beamrec.io.begun import begin_run
from beamrec.io.events import SourceOptions
from beamrec.io.store import LocalStore
from beamrec.pipelines.resume import check_resume
from beamrec.runners.flink_jobs import end_lost_jobs, ends_by_itself, main
from beamrec.schemas.errors import UsageError

SAVEPOINT = ("--savepoint_path=file:///savepoints/1",)


def test_of_another_output_or_of_other_readers(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    check_resume(store, 2, ())
    with pytest.raises(UsageError, match=r"^--savepoint_path: no job has written to .* yet"):
        check_resume(store, 2, SAVEPOINT)
    begin_run(store, SourceOptions(str(tmp_path), "run", splits=2))
    check_resume(store, 2, SAVEPOINT)
    with pytest.raises(UsageError, match=r"^--splits: the savepoint is of a job with 2 readers, got 3; give"):
        check_resume(store, 3, SAVEPOINT)
    check_resume(store, 3, ())


def test_a_job_that_takes_checkpoints_does_not_end_by_itself() -> None:
    assert ends_by_itself({})
    assert ends_by_itself({"checkpointing_interval": None})
    assert not ends_by_itself({"checkpointing_interval": 10_000, "shutdown_sources_after_idle_ms": None})
    assert ends_by_itself({"checkpointing_interval": 10_000, "shutdown_sources_after_idle_ms": 1})


def test_without_a_cluster_the_verbs_say_what_to_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BEAMREC_HOME", str(tmp_path))
    with pytest.raises(UsageError, match="no local Flink cluster: give --url="):
        main(["savepoint"])


def test_a_job_whose_jobmanager_is_not_known_is_not_submitted_again() -> None:
    assert not end_lost_jobs({"flink_master": "[auto]", "job_name": "beamrec-stream-1"})
    assert not end_lost_jobs({"flink_master": "localhost:8081", "job_name": None})
