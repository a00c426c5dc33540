"""Compaction: one file an hour, whole or not at all, that neither hides nor doubles a row."""

import collections
import contextlib
import gzip
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

from beamrec.io.compact import Hour, compact_hour, hours_of
from beamrec.io.segment_files import SegmentFormat
from beamrec.io.shard_log import ShardLog
from beamrec.io.store import LocalStore, Store, open_store
from beamrec.pipelines.commands import compact
from beamrec.pipelines.console import Console
from beamrec.schemas.errors import BeamrecError, UsageError
from beamrec.schemas.events import OUTCOMES
from beamrec.schemas.paths import hour_folder
from beamrec.schemas.records import record_schema
from beamrec.schemas.shop import CLASSICMODELS

HOUR = datetime(2026, 11, 22, 7, tzinfo=UTC)
FORMS = {
    "jsonl": SegmentFormat(),
    "jsonl.gz": SegmentFormat("jsonl.gz"),
    "parquet": SegmentFormat("parquet", record_schema(CLASSICMODELS)),
}
OTHERS = {
    "explained": SegmentFormat("parquet", record_schema(CLASSICMODELS, explain=True)),
    "course": SegmentFormat("parquet", record_schema(CLASSICMODELS, course=True)),
}


def commit(
    store: Store, *ids: str, form: str = "jsonl", hour: datetime = HOUR, style: Any = "hive", shard: int = 0
) -> None:
    """One segment of the hour."""
    rows = [
        {
            "source": "file:a",
            "after": 0,
            "position": int(event_id),
            "event_id": event_id,
            "fate": "visible",
            "folder": hour_folder("recommendations", hour, style),
            "hour": hour,
            "line": json.dumps({"session_id": event_id}).encode(),
        }
        for event_id in ids
    ]
    log = ShardLog(store, shard, 24, (FORMS | OTHERS)[form])
    log.commit(pa.Table.from_pylist(rows, schema=OUTCOMES))


def ids_in(root: Path, folder: str) -> list[str]:
    """What a reader finds that lists a folder and knows nothing else."""
    found = []
    for path in sorted((root / folder).rglob("*")):
        if path.name.endswith(".jsonl"):
            found += path.read_text().splitlines()
        elif path.name.endswith(".jsonl.gz"):
            found += gzip.decompress(path.read_bytes()).decode().splitlines()
        elif path.name.endswith(".parquet"):
            found += [json.dumps(row) for row in pq.read_table(path, columns=["session_id"]).to_pylist()]
    return sorted(json.loads(line)["session_id"] for line in found)


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path)


@pytest.mark.parametrize("form", sorted(FORMS))
def test_an_hour_becomes_one_file_and_later_rows_are_added(store, form):
    commit(store, "1", "2", form=form)
    commit(store, "3", form=form, shard=1)
    (hour,) = hours_of(store)
    first = compact_hour(store, hour)
    assert first is not None
    assert (first.rows, first.added, first.segments) == (3, 3, 2)
    assert first.path == f"compacted/recommendations/year=2026/month=11/day=22/hour=07/part-0000.{form}"
    assert ids_in(store.root, "compacted") == ["1", "2", "3"]
    again = compact_hour(store, hour)
    assert again is not None
    assert (again.rows, again.added, again.segments) == (3, 0, 2)
    commit(store, "4", form=form)
    late = compact_hour(store, hour)
    assert late is not None
    assert (late.rows, late.added, late.segments) == (4, 1, 3)
    assert ids_in(store.root, "compacted") == ids_in(store.root, "recommendations") == ["1", "2", "3", "4"]
    assert [path.name for path in (store.root / "compacted").rglob("part*")] == [f"part-0000.{form}"]
    assert late.bytes == (store.root / late.path).stat().st_size


def test_both_folders_are_one_table_each_for_a_reader_of_partitions(store):
    for event_id in ("1", "2"):
        commit(store, event_id, form="parquet")
    commit(store, "3", form="parquet", hour=HOUR + timedelta(hours=1))
    for hour in hours_of(store):
        compact_hour(store, hour)
    for folder in ("recommendations", "compacted/recommendations"):
        table = pa.dataset.dataset(store.root / folder, format="parquet", partitioning="hive").to_table()
        rows = zip(table["session_id"].to_pylist(), table["hour"].to_pylist(), strict=True)
        assert sorted(rows) == [("1", 7), ("2", 7), ("3", 8)]


def test_hours_are_found_in_both_partition_styles(store):
    commit(store, "1", style="plain")
    commit(store, "2", hour=HOUR + timedelta(hours=20))
    (store.root / "recommendations/_other/x/y/z").mkdir(parents=True)
    assert [hour.folder for hour in hours_of(store)] == [
        "recommendations/2026/11/22/07",
        "recommendations/year=2026/month=11/day=23/hour=03",
    ]


def test_rows_whose_own_files_went_stay_in_the_compacted_file(store):
    """A retention rule may remove the small files; a late row must not replace what they held."""
    commit(store, "1", "2")
    (hour,) = hours_of(store)
    compact_hour(store, hour)
    for path in (store.root / "recommendations").rglob("*.jsonl"):
        path.unlink()
    commit(store, "3")
    compact_hour(store, hour)
    assert ids_in(store.root, "compacted") == ["1", "2", "3"]


class _KilledError(BaseException):
    pass


class _KillAt:
    """A store whose process dies before, or right after, its n-th change."""

    def __init__(self, store: LocalStore, operation: int, after: bool) -> None:
        self._store, self._left, self._after = store, operation, after

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)
        if name not in ("put", "put_file", "move_all", "discard_tree", "flush"):
            return method

        def call(*args: Any, **options: Any) -> Any:
            self._left -= 1
            if self._left == 0 and not self._after:
                raise _KilledError
            result = method(*args, **options)
            if self._left == 0:
                raise _KilledError
            return result

        return call


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("operation", range(1, 6))
@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_killed_at_any_step_the_file_is_old_or_new_and_the_next_run_is_right(store, form, operation, after):
    commit(store, "1", form=form)
    (hour,) = hours_of(store)
    compact_hour(store, hour)
    commit(store, "2", form=form)
    with contextlib.suppress(_KilledError):
        compact_hour(_KillAt(store, operation, after), hour)
    assert ids_in(store.root, "compacted") in (["1"], ["1", "2"])
    commit(store, "3", form=form)
    result = compact_hour(store, hour)
    assert result is not None
    assert result.rows == 3
    assert ids_in(store.root, "compacted") == ["1", "2", "3"]
    assert not list((store.root / "_staging").rglob("part*"))


@pytest.mark.parametrize("operation", range(1, 6))
def test_killed_at_its_first_file_another_hour_does_not_come_with_it(store, operation):
    commit(store, "1")
    commit(store, "2", hour=HOUR + timedelta(hours=1))
    first, second = hours_of(store)
    with contextlib.suppress(_KilledError):
        compact_hour(_KillAt(store, operation, after=True), first)
    compact_hour(store, second)
    compact_hour(store, first)
    assert ids_in(store.root, "compacted") == ["1", "2"]


def test_a_file_that_something_else_wrote_is_not_replaced(store):
    commit(store, "1")
    (hour,) = hours_of(store)
    path = store.root / f"compacted/{hour.folder}/part-0000.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    with pytest.raises(BeamrecError, match="is not what compact wrote: remove"):
        compact_hour(store, hour)
    assert path.read_text() == "mine"


@pytest.mark.parametrize("form", ["jsonl.gz", "parquet"])
def test_a_damaged_segment_is_an_error_and_nothing_is_published(store, form):
    commit(store, "1", form=form)
    (segment,) = (store.root / "recommendations").rglob(f"*.{form}")
    segment.write_bytes(segment.read_bytes()[:-5])
    with pytest.raises(BeamrecError, match="cannot be read"):
        compact_hour(store, hours_of(store)[0])
    assert not (store.root / "compacted").exists()


@pytest.mark.parametrize("order", [("parquet", "explained"), ("explained", "parquet"), ("course", "parquet")])
def test_files_of_other_columns_are_not_joined(store, order):
    """With the first one's columns a file would lose what those do not have, and count as many rows."""
    for number, form in enumerate(order):
        commit(store, str(number + 1), form=form, shard=number)
    column = "similar_items" if "course" in order else "recommended_items"
    with pytest.raises(BeamrecError, match=f"part-0001-.* has other columns .*{column}: .* before"):
        compact_hour(store, hours_of(store)[0])
    assert not (store.root / "compacted").exists()


def test_the_order_of_columns_and_the_name_of_a_lists_entries_are_no_difference(store):
    """Who writes Parquet calls the entries of a list item or element."""
    commit(store, "1", "2", form="parquet")
    commit(store, "3", form="parquet", shard=1)
    (path,) = (store.root / "recommendations").rglob("part-0001-*")
    table = pq.read_table(path)
    names = table.schema.names
    assert "list<" in str(table.schema.field("recommended_items").type)
    pq.write_table(table.select(names[::-1]).replace_schema_metadata(None), path, store_schema=False)
    compact_hour(store, hours_of(store)[0])
    assert ids_in(store.root, "compacted") == ["1", "2", "3"]


def test_an_hour_is_closed_after_its_lateness():
    hour, lateness = Hour("", HOUR), timedelta(minutes=10)
    assert not hour.closed(HOUR + timedelta(minutes=69), lateness)
    assert hour.closed(HOUR + timedelta(minutes=70), lateness)


def test_the_verb_counts_what_it_did_and_refuses_an_open_hour(store, tmp_path):
    now = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    old, older = now - timedelta(hours=5), now - timedelta(hours=6)
    commit(store, "1", "2", hour=old)
    commit(store, "3", hour=older)
    commit(store, "4", hour=now)
    console = Console(tmp_path / "home")
    result = compact.run([f"--output={store.uri}", "--closed"], console)
    assert {name: result[name] for name in ("hours", "hours_changed", "rows", "rows_added", "segments")} == {
        "hours": 2,
        "hours_changed": 2,
        "rows": 3,
        "rows_added": 3,
        "segments": 2,
    }
    assert len(result["files"]) == 2
    assert compact.run([f"--output={store.uri}", "--closed"], console)["rows_added"] == 0
    assert compact.run([f"--output={store.uri}", f"--hour={old:%Y-%m-%dT%H}"], console)["rows"] == 2
    with pytest.raises(UsageError, match="is open until"):
        compact.run([f"--output={store.uri}", f"--hour={now:%Y-%m-%dT%H}"], console)
    with pytest.raises(UsageError, match="no recommendations of that hour"):
        compact.run([f"--output={store.uri}", "--hour=2020-01-01T00"], console)
    with pytest.raises(UsageError, match="expected YYYY-MM-DDTHH"):
        compact.run([f"--output={store.uri}", "--hour=today"], console)
    with pytest.raises(UsageError, match="expected what a stream wrote"):
        compact.run([f"--output={tmp_path}/none", "--closed"], console)


def test_on_an_object_store_that_refuses_requests(s3: Any) -> None:
    store = open_store(s3.uri)
    with s3.faults(0.1):
        for number in range(1, 7):
            commit(store, str(number), shard=number % 2)
        (hour,) = hours_of(store)
        assert compact_hour(store, hour).rows == 6
        commit(store, "7")
        assert compact_hour(store, hour).added == 1
    lines = store.read(f"compacted/{hour.folder}/part-0000.jsonl").splitlines()
    counted = collections.Counter(json.loads(line)["session_id"] for line in lines)
    assert counted == collections.Counter("1234567")
