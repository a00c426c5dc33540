"""Runs: their records, and `beamrec runs list|show|logs`."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from beamrec.io.processes import process_start
from beamrec.pipelines import cli
from beamrec.pipelines.runs import KILLED, Run, list_runs, load_run, start_run
from beamrec.schemas.errors import UsageError


def _rewrite(run: Run, **changes: object) -> None:
    path = run.folder / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_run_begins_running_and_ends_with_counts_and_result(tmp_path: Path) -> None:
    run = start_run(tmp_path, "batch", ["--source=sqlite:///x"])
    assert load_run(tmp_path, run.record.id).state == "RUNNING"
    run.finish("SUCCEEDED", {"in": 5, "out": 4, "dead_letters": 1, "partitions": 2})
    record = load_run(tmp_path, run.record.id)
    assert record.state == "SUCCEEDED"
    assert record.argv == ("--source=sqlite:///x",)
    assert record.counts == {"in": 5, "out": 4, "dead_letters": 1}
    assert record.result["partitions"] == 2
    assert record.ended is not None
    assert record.started <= record.ended


def test_the_counts_of_a_demo_are_those_of_its_stages(tmp_path: Path) -> None:
    run = start_run(tmp_path, "demo", [])
    run.finish("SUCCEEDED", {"stages": {"batch": {"in": 2, "out": 2, "seconds": 1}, "release": {"id": "r"}}})
    assert load_run(tmp_path, run.record.id).counts == {"batch": {"in": 2, "out": 2}}


def test_counts_so_far_outlive_a_failure(tmp_path: Path) -> None:
    run = start_run(tmp_path, "stream", [])
    run.update({"in": 3})
    run.finish("FAILED", error="the store is away")
    record = load_run(tmp_path, run.record.id)
    assert (record.counts, record.error) == ({"in": 3}, "the store is away")


def test_ids_of_runs_started_at_once_differ(tmp_path: Path) -> None:
    ids = {start_run(tmp_path, "batch", []).record.id for _ in range(20)}
    assert len(ids) == 20
    assert {record.id for record in list_runs(tmp_path)} == ids


def test_runs_are_listed_newest_first_and_broken_records_left_out(tmp_path: Path) -> None:
    runs = [start_run(tmp_path, verb, []) for verb in ("train", "batch")]
    for run, started in zip(runs, ("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"), strict=True):
        _rewrite(run, started=started)
    broken = start_run(tmp_path, "stream", [])
    (broken.folder / "run.json").write_text("{")
    assert [record.verb for record in list_runs(tmp_path)] == ["batch", "train"]


def test_another_process_with_the_same_pid_is_not_the_run(tmp_path: Path) -> None:
    run = start_run(tmp_path, "batch", [])
    assert not run.record.lost
    _rewrite(run, pid_start="an earlier boot:1")
    record = load_run(tmp_path, run.record.id)
    assert (record.state, record.error) == ("FAILED", KILLED)


def test_a_run_of_another_host_is_left_as_it_says(tmp_path: Path) -> None:
    run = start_run(tmp_path, "batch", [])
    _rewrite(run, host="elsewhere", pid=1, pid_start="x")
    assert load_run(tmp_path, run.record.id).state == "RUNNING"


def test_a_process_that_is_gone_or_a_zombie_has_no_start() -> None:
    assert process_start(os.getpid()) == process_start(os.getpid()) is not None
    process = subprocess.Popen([sys.executable, "-c", ""], stdin=subprocess.PIPE)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert process_start(process.pid) is None, "a zombie"
    process.wait()
    assert process_start(process.pid) is None, "gone"


@pytest.mark.parametrize("run_id", ["none", "../runs", "a/b", ""])
def test_an_unknown_run_is_wrong_usage(tmp_path: Path, run_id: str) -> None:
    start_run(tmp_path, "batch", [])
    with pytest.raises(UsageError, match="there is no run"):
        load_run(tmp_path, run_id)


def test_a_reader_never_sees_half_a_record(tmp_path: Path) -> None:
    run = start_run(tmp_path, "batch", [])
    reader = (
        "import json, pathlib, sys\n"
        "path = pathlib.Path(sys.argv[1])\n"
        "print('ready', flush=True)\n"
        "seen = 0\n"
        "while json.loads(path.read_text())['state'] == 'RUNNING': seen += 1\n"
        "print(seen)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", reader, str(run.folder / "run.json")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    for number in range(500):
        run.update({"in": number, "padding": "x" * (number * 10)})
    run.finish("SUCCEEDED")
    assert process.wait(300) == 0


def test_list_show_and_logs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = start_run(tmp_path, "batch", ["--x=1"])
    run.log.write_text("first\nsecond\nthird\n")
    run.finish("SUCCEEDED", {"in": 5, "out": 5})
    run_id, home = run.record.id, f"--home={tmp_path}"

    assert cli.main(["runs", "list", home]) == 0
    shown = capsys.readouterr().out
    assert run_id in shown
    assert "SUCCEEDED" in shown
    assert "in 5, out 5" in shown

    assert cli.main(["runs", "show", run_id, home, "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    record = dataclasses.asdict(run.record)
    assert {name: values[name] for name in record} == {**record, "argv": ["--x=1"]}

    assert cli.main(["runs", "logs", "last", "--tail=2", home]) == 0
    assert capsys.readouterr().out == "second\nthird\n"


def test_a_run_of_release_is_listed_with_its_action_and_release(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for argv, result in (
        (["promote", "r1"], {"release": "r1"}),
        (["load", "/a/r2"], {"release": "r2", "in": 5, "out": 5}),
        (["gc"], {"dropped": []}),
    ):
        start_run(tmp_path, "release", argv).finish("SUCCEEDED", result)
    start_run(tmp_path, "release", ["promote", "r3"]).finish("FAILED", error="r3 is not loaded")
    assert cli.main(["runs", "list", f"--home={tmp_path}"]) == 0
    details = {" ".join(line.split()[3:]) for line in capsys.readouterr().out.splitlines()}
    assert details == {"promote r1", "load r2, in 5, out 5", "gc", "r3 is not loaded"}


def test_list_takes_a_limit_and_an_empty_home(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = f"--home={tmp_path}"
    assert cli.main(["runs", "list", home]) == 0
    assert "no runs under" in capsys.readouterr().out
    assert cli.main(["runs", "show", "last", home]) == 2
    for _ in range(3):
        start_run(tmp_path, "batch", [])
    assert cli.main(["runs", "list", "--limit=2", home, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out.splitlines()[-1])["runs"]) == 2
    assert cli.main(["runs", "list", "--limit=0", home]) == 2
