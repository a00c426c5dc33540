"""The command line as a shell sees it: what stands on which stream, exit codes, secrets, signals."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from beamrec.pipelines import cli, commands
from beamrec.pipelines.runs import KILLED, list_runs
from beamrec.schemas.version import __version__

VERBS = Path(__file__).parent / "verbs"
PROGRAM = (sys.executable, str(VERBS / "beamrec_with_probe.py"))


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Adds the verb `probe` to this process; returns the home it runs in."""
    monkeypatch.setattr(commands, "__path__", [*commands.__path__, str(VERBS)])
    monkeypatch.setitem(commands.VERBS, "probe", commands.Verb("probe", recorded=True))
    monkeypatch.setenv("BEAMREC_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def beamrec(*argv: str, home: Path) -> subprocess.CompletedProcess[str]:
    """Runs the command line in a process of its own."""
    return subprocess.run(
        [*PROGRAM, *argv, f"--home={home}"], capture_output=True, text=True, timeout=300, check=False
    )


def json_of(out: str) -> dict[str, Any]:
    """The object on the only line of standard output."""
    [line] = out.splitlines()
    values: dict[str, Any] = json.loads(line)
    return values


def test_help_names_every_verb_with_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    shown = capsys.readouterr().out
    for verb in commands.available():
        assert f"  {verb:<10} {commands.load(verb).HELP}" in shown


@pytest.mark.parametrize(
    "argv", [["--help"], ["--version"], ["runs", "list"], ["nonsense"], ["init", "--help"]]
)
def test_cheap_calls_import_neither_beam_nor_tensorflow(argv: Sequence[str], tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from beamrec.pipelines.cli import main\n"
        f"main({[*argv]!r})\n"
        "heavy = {'apache_beam', 'tensorflow', 'pyarrow', 'numpy', 'rich'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr


def test_version_and_no_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"beamrec {__version__}\n"
    assert cli.main([]) == 2


def test_an_unknown_verb_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bacth", "--json"]) == 2
    shown = capsys.readouterr()
    assert json_of(shown.out)["error"].startswith("there is no verb 'bacth'; known are ")


def test_a_verb_without_its_module_breaks_no_other(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(commands.VERBS, "later", commands.Verb("not_written_yet"))
    assert cli.main(["--help"]) == 0
    assert "later" not in capsys.readouterr().out
    assert cli.main(["later"]) == 2


def test_an_unknown_flag_is_wrong_usage_and_a_near_one_is_named(
    probe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["probe", "echo", "--windw-seconds=3"]) == 2
    assert "--windw-seconds=3 (did you mean --window-seconds?)" in capsys.readouterr().err
    assert cli.main(["probe", "echo", "--window=3"]) == 2, "an abbreviation is unknown too"


def test_json_is_the_only_line_of_standard_output(tmp_path: Path) -> None:
    done = beamrec("probe", "noise", "--json", home=tmp_path)
    values = json_of(done.stdout)
    assert (values["ok"], values["in"], values["out"], values["dead_letters"]) == (True, 2, 1, 1)
    assert values["seconds"] > 0
    assert "done" in done.stderr


def test_without_json_only_what_the_verb_prints_is_on_standard_output(tmp_path: Path) -> None:
    done = beamrec("probe", "noise", home=tmp_path)
    assert done.stdout == "done\n"
    assert "working" in done.stderr


def test_noise_goes_to_the_log_of_the_run_and_our_warnings_to_both(tmp_path: Path) -> None:
    done = beamrec("probe", "noise", "--json", home=tmp_path)
    log = (tmp_path / "runs" / json_of(done.stdout)["run"] / "log").read_text()
    for line in ("print", "stderr", "descriptor 1", "descriptor 2", "a child", "a library"):
        assert f"noise of {line}" in log
    assert "information of a library" in log
    assert "noise" not in done.stderr
    assert "information" not in done.stderr
    assert "warning of ours" in done.stderr
    assert "warning of ours" in log


def test_debug_shows_the_noise(tmp_path: Path) -> None:
    done = beamrec("probe", "noise", "--json", "--debug", home=tmp_path)
    assert json_of(done.stdout)["ok"]
    assert "noise of a library" in done.stderr
    assert "noise of descriptor 1" in done.stderr


@pytest.mark.parametrize(
    ("how", "code", "message"),
    [
        ("usage", 2, "--x: expected a, got b"),
        ("bad_data", 3, "9 of 10 rows are bad"),
        ("unavailable", 4, "the database is away"),
        ("worker", 4, "the store is away"),
        ("cause", 3, "9 of 10 rows are bad"),
        ("bug", 1, "KeyError: 'a bug'"),
        ("exit", 2, "wrong usage, as said above"),
    ],
)
def test_each_failure_has_its_exit_code_message_and_record(
    probe: Path, capsys: pytest.CaptureFixture[str], how: str, code: int, message: str
) -> None:
    assert cli.main(["probe", "fail", f"--how={how}", "--json"]) == code
    shown = capsys.readouterr()
    values = json_of(shown.out)
    assert (values["ok"], values["exit_code"], values["error"]) == (False, code, message)
    assert f"beamrec probe: {message}" in shown.err
    assert "Traceback" not in shown.err
    [record] = list_runs(probe)
    assert (record.id, record.state, record.error) == (values["run"], "FAILED", message)
    assert "Traceback" in (probe / "runs" / record.id / "log").read_text()


def test_a_traceback_is_shown_with_debug(probe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["probe", "fail", "--how=bug", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_help_of_a_verb_leaves_no_run(probe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["probe", "echo", "--help"]) == 0
    assert "--window-seconds" in capsys.readouterr().out
    assert not list_runs(probe)


def test_global_flags_may_stand_anywhere(
    probe: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert cli.main(["--json", "--home", str(tmp_path / "a"), "probe", "echo", "--tag=x"]) == 0
    first = json_of(capsys.readouterr().out)
    assert cli.main(["probe", "--json", "echo", f"--home={tmp_path / 'a'}", "--tag", "x"]) == 0
    second = json_of(capsys.readouterr().out)
    assert first["home"] == second["home"] == str(tmp_path / "a")
    assert first["options"] == second["options"]


def test_the_home_is_dot_beamrec_where_nothing_says_otherwise(
    probe: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BEAMREC_HOME")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["probe", "echo", "--json"]) == 0
    assert json_of(capsys.readouterr().out)["home"] == str(tmp_path / ".beamrec")


def test_a_home_that_cannot_be_written_is_wrong_usage(
    probe: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    assert cli.main(["probe", "echo", f"--home={tmp_path / 'file'}"]) == 2
    assert f"--home {tmp_path / 'file'}: cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv",
    [
        ["--how=mysql://shop:hunter2@db/x"],
        ["--how", "postgresql://shop:hunter2@db/x"],
        ["--how=mysql://shop:hunter2/with/slash@db/x"],
        ["--how=mysql://shop@db/x?password=hunter2"],
        ["--how", "host=db password=hunter2 user=shop"],
        ["--s3_secret_access_key=hunter2"],
        ["--db-password", "hunter2"],
    ],
)
def test_a_secret_on_the_command_line_is_refused_and_not_repeated(
    probe: Path, capsys: pytest.CaptureFixture[str], argv: list[str]
) -> None:
    assert cli.main(["probe", "echo", *argv, "--json"]) == 2
    shown = capsys.readouterr()
    assert "hunter2" not in shown.out + shown.err
    assert not list_runs(probe), "nothing was recorded"


def test_a_secret_in_the_configuration_is_refused(
    probe: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "c.toml").write_text('[probe]\nhow = "mysql://shop:hunter2@db/x"\n')
    assert cli.main(["probe", "echo", f"--config={tmp_path / 'c.toml'}"]) == 2
    assert "hunter2" not in capsys.readouterr().err


def _started(home: Path, *argv: str) -> subprocess.Popen[str]:
    """A `probe wait` that has begun to wait, in a process group of its own."""
    process = subprocess.Popen(
        [*PROGRAM, "probe", "wait", f"--home={home}", *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    while (line := process.stderr.readline()) != "waiting\n":
        assert line, "it ended before it waited"
    return process


def test_ctrl_c_ends_with_130_and_a_json_object(tmp_path: Path) -> None:
    process = _started(tmp_path, "--json")
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130
    values = json_of(out)
    assert (values["ok"], values["exit_code"], values["error"]) == (False, 130, "interrupted")
    assert "Traceback" not in err
    [record] = list_runs(tmp_path)
    assert (record.state, record.error, record.counts) == ("FAILED", "interrupted", {"in": 7})


def test_a_running_run_is_shown_as_running_and_a_killed_one_as_failed(tmp_path: Path) -> None:
    process = _started(tmp_path)
    [record] = list_runs(tmp_path)
    assert (record.state, record.counts, record.pid) == ("RUNNING", {"in": 7}, process.pid)
    process.kill()
    deadline = time.monotonic() + 120
    while list_runs(tmp_path)[0].state == "RUNNING":  # killed, but not yet waited for: a zombie
        assert time.monotonic() < deadline
    [record] = list_runs(tmp_path)
    assert (record.state, record.error) == ("FAILED", KILLED)
    process.communicate(timeout=120)
    assert list_runs(tmp_path)[0].state == "FAILED"


def test_a_reader_that_leaves_early_is_no_error(tmp_path: Path) -> None:
    for _ in range(3):
        assert beamrec("probe", "echo", home=tmp_path).returncode == 0
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [*PROGRAM, "runs", "list", f"--home={tmp_path}"], stdout=writer, stderr=subprocess.PIPE, check=False
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")
