"""The data report beside the manifest, as JSON and as a page, compared with that of the run before."""

import dataclasses
import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence

from beamrec.io.manifest import ExtraFile
from beamrec.io.report_page import render
from beamrec.io.store import Store
from beamrec.schemas.errors import BadDataError, UsageError
from beamrec.schemas.report import Report

__all__ = ["REPORT_JSON", "REPORT_PAGE", "DriftLimits", "read_report", "stage_report"]

REPORT_JSON = "_report.json"
REPORT_PAGE = "_report.html"

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class DriftLimits:
    """How far training data may move between two runs; picklable.

    Attributes:
      measure: (previous, current) → column → index (`transforms.drift.drift`).
      check: (indices, warn, fail) → warnings (`transforms.drift.check_drift`); raises BadDataError above
        `fail`.
      warn, fail: thresholds; None never.
    """

    measure: Callable[[Report, Report], Mapping[str, float]]
    check: Callable[[Mapping[str, float], float | None, float | None], Sequence[str]]
    warn: float | None = 0.2
    fail: float | None = None

    def enforce(self, indices: Mapping[str, float]) -> None:
        """Logs warnings. Raises BadDataError if a column moved too far."""
        for warning in self.check(indices, self.warn, self.fail):
            _log.warning("%s", warning)


def read_report(store: Store) -> Report | None:
    """The report in an output folder; None if there is none, or one that this version does not know."""
    try:
        return Report.from_json(store.read(REPORT_JSON), f"{store.uri}/{REPORT_JSON}")
    except FileNotFoundError:
        return None
    except UsageError as error:
        _log.warning("no comparison with the previous run: %s", error)
        return None


def stage_report(
    report: Report,
    dead_letters: Mapping[str, Mapping[str, int]],
    limits: DriftLimits | None,
    store: Store,
    folder: str,
    refused: str,
) -> tuple[tuple[ExtraFile, ...], dict[str, float]]:
    """Compares a run's report with that of the run before, and stages it as JSON and as a page.

    Args:
      report: of this run.
      dead_letters: table → rule → rows.
      limits: None for no comparison.
      store: the output, with the previous report in it.
      folder: the run's staging folder.
      refused: where the page is put for the user to look at, below the output, if a column moved too far.

    Returns:
      The files, with paths as they will be once published; and column → drift, empty for a first report.

    Raises:
      BadDataError: a column moved too far; says where the page is.
    """
    previous = read_report(store) if limits else None
    drift = dict(limits.measure(previous, report)) if limits and previous else None
    warn, fail = (limits.warn, limits.fail) if limits else (None, None)
    page = render(report, drift=drift, previous=previous, dead_letters=dead_letters, warn=warn, fail=fail)
    if limits and drift is not None:
        try:
            limits.enforce(drift)
        except BadDataError as error:
            store.put(refused, page.encode(), durable=True)
            raise BadDataError(f"{error}. The report: {store.uri}/{refused}") from None
    files = []
    for path, data in ((REPORT_JSON, report.to_json()), (REPORT_PAGE, page.encode())):
        store.put(f"{folder}/{path}", data)
        files.append(ExtraFile(path, len(data), hashlib.sha256(data).hexdigest()))
    return tuple(files), drift or {}
