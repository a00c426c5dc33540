"""Log lines: JSON objects where they are asked for, and no values of rows or events in either form."""

import io
import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psycopg2
import pyarrow as pa
import pymysql
import pytest

from beamrec.pipelines.log_lines import formatter, log_format, without_values
from beamrec.schemas.errors import UsageError

MARKER = "Mârker'street 7"
RFC3339 = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"


def logged(form: Any, error: BaseException | None = None) -> str:
    """One line as a handler writes it."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter(form, "stream-1"))
    record = logging.LogRecord("beamrec.io", logging.ERROR, "", 0, "it failed: %s", (error,), None)
    if error is not None:
        record.exc_info = (type(error), error, error.__traceback__)
    handler.emit(record)
    return stream.getvalue()


def raised(work: Any) -> Exception:
    """What `work()` raises."""
    try:
        work()
    except Exception as error:  # noqa: BLE001  (whatever a library makes of it)
        return error
    pytest.fail("nothing was raised")


def test_a_json_line_tells_time_level_logger_message_run_and_the_exception() -> None:
    line = logged("json", raised(lambda: 1 / 0))
    assert line.count("\n") == 1
    found = json.loads(line)
    assert found["message"] == "it failed: division by zero"
    assert (found["level"], found["logger"], found["run"]) == ("ERROR", "beamrec.io", "stream-1")
    assert found["exception"]["type"] == "builtins.ZeroDivisionError"
    assert "test_log_lines.py" in found["exception"]["traceback"]
    assert re.fullmatch(RFC3339, found["time"])


@pytest.mark.parametrize("form", ["json", "text"])
@pytest.mark.parametrize(
    "work",
    [
        lambda: pa.array([1.0, MARKER]),
        lambda: pa.array([MARKER], pa.int64()),
        lambda: pa.array([MARKER]).cast(pa.float64()),
        lambda: float(MARKER),
        lambda: int(MARKER),
        lambda: np.array([MARKER]).astype(np.float64),
    ],
)
def test_what_libraries_say_of_a_value_is_said_without_it(work: Any, form: Any) -> None:
    error = raised(work)
    assert "street 7" in str(error)
    line = logged(form, error)
    assert type(error).__name__ in line
    assert "street 7" not in line


@pytest.mark.parametrize(
    ("statement", "kept"),
    [
        ("INSERT INTO t (a, b) VALUES (%(m)s, NULL)", 'null value in column "b"'),
        ("INSERT INTO t (a, b) VALUES (%(m)s, -1)", "violates check constraint"),
        ("SELECT %(m)s::int", "invalid input syntax for type integer"),
        ("SELECT %(m)s::jsonb", "invalid input syntax for type json"),
    ],
)
def test_what_postgresql_says_of_a_row_is_said_without_it(postgresql: Any, statement: str, kept: str) -> None:
    postgresql.create_database("scratch")
    connection = psycopg2.connect(
        host=str(postgresql.folder), port=postgresql.port, user="postgres", dbname="scratch"
    )
    with connection, connection.cursor() as cursor:
        cursor.execute("CREATE TEMP TABLE t (a text, b int NOT NULL CHECK (b > 0))")
        error = raised(lambda: cursor.execute(statement, {"m": MARKER}))
    connection.close()
    assert "street 7" in str(error)
    found = without_values(str(error))
    assert kept in found
    assert "street 7" not in found


@pytest.mark.parametrize(
    ("statement", "kept"),
    [
        ("INSERT INTO t (b) VALUES (%s)", "for column"),
        ("INSERT INTO t (a) VALUES (%s), (%s)", "for key"),
    ],
)
def test_what_mysql_says_of_a_row_is_said_without_it(mariadb: Any, statement: str, kept: str) -> None:
    mariadb.execute("CREATE DATABASE IF NOT EXISTS values_in_errors")
    with (
        pymysql.connect(
            unix_socket=str(mariadb.socket), user="root", database="values_in_errors", charset="utf8mb4"
        ) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute("CREATE TEMPORARY TABLE t (a varchar(50) UNIQUE, b int)")
        error = raised(lambda: cursor.execute(statement, [MARKER] * statement.count("%s")))
    assert "street 7" in str(error)
    found = without_values(str(error))
    assert kept in found
    assert "street 7" not in found


def test_ids_and_our_own_messages_stay() -> None:
    for text in (
        "release r-1 is active but cannot serve here (no such file); r-0 goes on serving",
        'duplicate key violates unique constraint "t_pkey"\nDETAIL:  Key (customer_id)=(103) already exists.',
        "deadlock detected\nDETAIL:  Process 7 waits for ShareLock on transaction 9; blocked by process 8.",
        "--window-seconds: expected a divisor of 3600 (a window lies in one hour), got 7",
    ):
        assert without_values(text) == text


def test_an_unknown_format_is_wrong_usage() -> None:
    with pytest.raises(UsageError, match="expected text or json"):
        log_format("xml")


def beamrec(home: Path, *argv: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own."""
    command = [sys.executable, "-m", "beamrec.pipelines.cli", *argv, f"--home={home}"]
    environment = {**os.environ, **variables}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.mark.parametrize("by_variable", [False, True])
def test_with_json_lines_all_of_standard_error_and_of_the_log_are_objects(
    tmp_path: Path, by_variable: bool
) -> None:
    argv = ["batch", f"--source=sqlite:///{tmp_path}/none.db", f"--output={tmp_path}/out"]
    if by_variable:
        done = beamrec(tmp_path, *argv, BEAMREC_LOG_FORMAT="json")
    else:
        done = beamrec(tmp_path, *argv, "--log-format=json")
    assert done.returncode != 0
    shown = [json.loads(line) for line in done.stderr.splitlines()]
    assert any(line["level"] == "ERROR" and "beamrec batch" in line["message"] for line in shown)
    (run,) = (tmp_path / "runs").iterdir()
    lines = [json.loads(line) for line in (run / "log").read_text().splitlines()]
    assert {line["run"] for line in [*shown, *lines]} == {run.name}
    assert "Traceback" in lines[-1]["exception"]["traceback"]
