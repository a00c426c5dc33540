"""What an exception means to the user."""

import psycopg2.errors
import pytest

from beamrec.pipelines.failures import explain
from beamrec.schemas.errors import BadDataError, UnavailableError, UsageError


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (UsageError("a"), ("a", 2)),
        (BadDataError("b"), ("b", 3)),
        (UnavailableError("c"), ("c", 4)),
        (KeyboardInterrupt(), ("interrupted", 130)),
        (ValueError("d"), ("ValueError: d", 1)),
        (ValueError(), ("ValueError: no message", 1)),
        (UnavailableError("e [while running 'Load/ParDo(x)']"), ("e", 4)),
        (RuntimeError("x\nbeamrec.schemas.errors.BadDataError: f"), ("f", 3)),
        (RuntimeError("x\nbeamrec.schemas.errors.BadDataError: f [while running 'A']\n\ny"), ("f", 3)),
        (RuntimeError("in beamrec.schemas.errors.BadDataError: nothing"), None),
    ],
)
def test_message_and_exit_code(error: BaseException, expected: tuple[str, int] | None) -> None:
    assert explain(error) == (expected or (f"RuntimeError: {error}", 1))


def test_of_postgresql_the_first_line_counts_and_not_the_caret() -> None:
    text = 'relation "no.such" does not exist\nLINE 1: SELECT * FROM no.such\n                      ^\n'
    assert explain(psycopg2.errors.UndefinedTable(text)) == (
        'UndefinedTable: relation "no.such" does not exist',
        1,
    )


def test_the_last_worker_error_counts() -> None:
    text = "beamrec.schemas.errors.BadDataError: early\nbeamrec.schemas.errors.UnavailableError: late"
    assert explain(RuntimeError(text)) == ("late", 4)


def test_a_suppressed_context_is_not_looked_at() -> None:
    error = RuntimeError("plain")
    error.__context__, error.__suppress_context__ = UsageError("hidden"), True
    assert explain(error) == ("RuntimeError: plain", 1)


def test_a_password_in_a_message_of_a_library_is_hidden() -> None:
    message, _ = explain(OSError("cannot open postgresql://shop:hunter2@db:5432/x"))
    assert message == "OSError: cannot open postgresql://shop:***@db:5432/x"
