"""The search report: its recall is true, the served tables stay as they were, nothing is left behind."""

import xml.etree.ElementTree as ET
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from beamrec.io import release_report
from beamrec.io.pgvector import ReleaseStore
from beamrec.io.pgvector_index import IndexOptions
from beamrec.io.postgres import connect
from beamrec.io.release_report import ReportOptions, measure_release
from beamrec.io.release_report_page import HEADINGS, render, table_rows
from beamrec.schemas.errors import UsageError
from beamrec.schemas.releases import ReleaseContents
from beamrec.schemas.search_report import MeasuredSearch, SearchReport, recommend
from beamrec.schemas.serving import SearchSetting


def tables(uri: str) -> set[Any]:
    connection = connect(uri)
    with connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT c.relname, c.relfilenode FROM pg_class c WHERE c.relnamespace = 'beamrec'::regnamespace"
        )
        found = set(cursor.fetchall())
    connection.close()
    return found


@pytest.mark.parametrize("normalized", [True, False])
def test_a_release_is_measured_and_left_as_it_was(
    store: ReleaseStore, database: str, make_release: Callable[..., Any], normalized: bool
) -> None:
    release = make_release(items=3_000, users=40, dim=16, normalized=normalized)
    store.load(release)
    before = tables(database)
    told: list[str] = []
    options = ReportOptions(queries=40, batch=16, seconds=60)  # at most: all of them, on a busy machine too
    report = measure_release(database, release.manifest.id, options, told.append)
    assert tables(database) == before
    assert (report.items, report.dim, report.index, report.queried_with) == (3_000, 16, "hnsw", "users")
    found = {measured.name: measured for measured in report.measured}
    assert found["exact, in the worker"].recall == found["exact, in PostgreSQL"].recall == 1.0
    assert len(found) == 2 + 7 + 3, "3,000 items are three lists: no more of them can be looked into"
    narrow, wide = found["hnsw, ef_search 20"], found["hnsw, ef_search 800"]
    assert narrow.recall < wide.recall
    assert found["ivfflat, probes 1"].recall < 0.9 < found["ivfflat, probes 3"].recall
    assert all(
        m.index_bytes and m.build_seconds for m in report.measured if "," in m.name and "exact" not in m.name
    )
    assert report.reached
    assert report.recommended.setting.index != "ivfflat", "the release was not loaded with that index"
    assert any("hnsw" in text for text in told)


def test_recall_is_what_a_second_count_says(
    store: ReleaseStore, database: str, make_release: Callable[..., Any]
) -> None:
    release = make_release(items=3_000, users=30, dim=16)
    store.load(release)
    options = ReportOptions(queries=30, batch=30, seconds=5)
    report = measure_release(database, release.manifest.id, options, lambda text: None)
    measured = next(m for m in report.measured if m.setting.index == "hnsw" and m.setting.ef_search == 40)
    # Two graphs of the same items differ, because the order of insertion draws their levels.
    assert abs(measured.recall - served_recall(store, release, SearchSetting(ef_search=40))) < 0.1


def served_recall(store: ReleaseStore, release: ReleaseContents, setting: SearchSetting) -> float:
    """The share of the ten best items that a stream's search finds for each user."""
    truth = np.argsort(-(release.user_vectors @ release.item_vectors.T), axis=1)[:, :10]
    answers = store.search(release.manifest.id, release.user_vectors, 10, setting).to_pylist()
    hits = [
        len({release.item_ids[i] for i in best} & {entry["id"] for entry in answer})
        for best, answer in zip(truth, answers, strict=True)
    ]
    return float(np.mean(hits)) / 10


@pytest.mark.parametrize(
    "index",
    [IndexOptions(m=4, ef_construction=16), IndexOptions("ivfflat", lists=100), IndexOptions("none")],
    ids=lambda index: index.kind,
)
def test_what_a_release_can_use_finds_as_much_when_it_is_served(
    store: ReleaseStore,
    database: str,
    make_release: Callable[..., ReleaseContents],
    monkeypatch: pytest.MonkeyPatch,
    index: IndexOptions,
) -> None:
    """The indexes are poor ones on purpose: what is recommended must not rest on better ones."""
    monkeypatch.setattr(release_report, "_MOST_PRODUCT_BYTES", 0)
    monkeypatch.setattr(release_report, "_EF_SEARCH", (20, 100))
    monkeypatch.setattr(release_report, "_PROBES", (1, 8))
    release = make_release(items=4_000, users=40, dim=32)
    store.load(release, index)
    options = ReportOptions(queries=40, batch=40, seconds=5)
    report = measure_release(database, release.manifest.id, options, lambda text: None)
    usable = [m for m in report.measured if m.setting.index in (index.kind, "none")]
    served = {m.name: served_recall(store, release, m.setting) for m in usable}
    assert served["exact, in PostgreSQL"] == 1
    assert served == pytest.approx({m.name: m.recall for m in usable}, abs=0.12)
    assert report.recommended.name == "exact, in PostgreSQL", "nothing else that it has reaches the target"


def test_a_release_without_users_is_asked_with_its_items(
    store: ReleaseStore, database: str, make_release: Callable[..., Any]
) -> None:
    store.load(make_release(items=30, users=0))
    options = ReportOptions(queries=10, k=50, seconds=0.2)
    report = measure_release(database, make_release().manifest.id, options, lambda text: None)
    assert report.queried_with == "items"
    assert report.recommended.recall == 1.0


def test_unknown_releases_and_options_out_of_range_are_refused(store: ReleaseStore, database: str) -> None:
    with pytest.raises(UsageError, match="not loaded"):
        measure_release(database, "nothing", ReportOptions(), lambda text: None)
    with pytest.raises(ValueError, match="recall: expected"):
        ReportOptions(recall=1.5)
    with pytest.raises(ValueError, match="queries: expected at least 10"):
        ReportOptions(queries=1)


def measured(index: Any, recall: float, rate: float) -> MeasuredSearch:
    return MeasuredSearch(SearchSetting(index), recall, 1.0, 2.0, rate, 100)


@pytest.mark.parametrize(("recall", "note"), [(1.0, "every search finds everything"), (0.999, "")])
def test_where_everything_finds_everything_the_report_says_so(recall: float, note: str) -> None:
    found = (measured("none", 1.0, 10), measured("hnsw", recall, 500))
    report = SearchReport("r", "hnsw", 20, 4, "<->", "users", 10, 100, 0.99, found, found[1])
    assert report.note.startswith(note)
    assert bool(report.note) == bool(note) == ("Note: every search" in render(report))


def test_the_fastest_that_reaches_the_target_is_recommended_else_the_most_accurate() -> None:
    slow, fast, poor = measured("none", 1.0, 10), measured("hnsw", 0.99, 500), measured("ivfflat", 0.6, 9_000)
    assert recommend((slow, fast, poor), 0.99) == fast
    assert recommend((slow, fast, poor), 0.995) == slow
    assert recommend((fast, poor), 0.999) == fast
    with pytest.raises(ValueError, match="nothing was measured"):
        recommend((), 0.9)


def test_the_page_is_well_formed_and_holds_every_figure() -> None:
    searches = (measured("none", 1.0, 10), measured("hnsw", 0.991, 512), measured("ivfflat", 0.2, 9_000))
    report = SearchReport("r<1>&", "hnsw", 1_000, 8, "<->", "users", 10, 100, 0.99, searches, searches[1])
    page = ET.fromstring(render(report).removeprefix("<!DOCTYPE html>\n"))  # noqa: S314  (ours)
    assert len(page.findall(".//circle")) == 3
    cells = [[cell.text or "" for cell in row] for row in page.findall(".//tbody/tr")]
    assert cells == [list(row) for row in table_rows(report)]
    assert [heading.text for heading in page.findall(".//thead//th")] == list(HEADINGS)
    assert "http" not in render(report)
