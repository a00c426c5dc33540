"""What a test has measured, printed when all are through; with `-n` too, where a worker prints nothing."""

from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture
def figures(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """`figures(name=value, …)`: what is to be printed of this test."""

    def record(**values: object) -> None:
        for name, value in values.items():
            record_property(name, value)

    return record


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """A line for each test that has passed and measured something, with the seconds that it took."""
    measured = [report for report in terminalreporter.getreports("passed") if report.user_properties]
    if measured:
        terminalreporter.section("figures")
    for report in measured:
        told = ", ".join(
            f"{name.replace('_', ' ')} {_readable(value)}" for name, value in report.user_properties
        )
        terminalreporter.write_line(f"{report.nodeid}: {told}, seconds {report.duration:.0f}")


def _readable(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)
