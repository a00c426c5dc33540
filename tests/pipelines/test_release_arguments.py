"""Arguments of `beamrec release` that are out of every range are refused before a store is asked."""

import io
from collections.abc import Sequence
from pathlib import Path

import pytest

from beamrec.pipelines.commands import release
from beamrec.pipelines.console import Console
from beamrec.schemas.errors import UsageError

LONG = "x" * 300  # longer than any file system's names


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["load", LONG], "RELEASE: neither a folder nor an id: .*expected 1 to 40"),
        (["load", ""], "RELEASE: neither a folder nor an id: .*expected 1 to 40"),
        (["load", f"/tmp/{LONG}"], "there is no such folder"),  # noqa: S108
        (["gc", "--keep", "99999999999999999999"], "--keep: expected at least 1 and 1,000,000 at most"),
        (["report", "x", "--seconds", "nan"], "--seconds: expected a number above 0, got nan"),
        (["report", "x", "--seconds", "0"], "--seconds: expected a number above 0"),
        (["report", "x", "--seconds", "inf"], "--seconds: expected a number above 0"),
    ],
)
def test_what_no_command_could_use_is_wrong_usage(tmp_path: Path, argv: Sequence[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        release.run(argv, Console(tmp_path, err=io.StringIO(), out=io.StringIO()))
    assert not (tmp_path / "pg").exists()
