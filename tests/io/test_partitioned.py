"""The sink: rows and letters are published together, or not at all; every row has one fate."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.util import assert_that, equal_to

from beamrec.io.data_report import DriftLimits
from beamrec.io.formats import FileOptions
from beamrec.io.glue import check_types
from beamrec.io.local import LocalStore
from beamrec.io.manifest import (
    MANIFEST,
    TRAINING_FOLDER,
    Manifest,
    count_published,
    open_training,
    read_manifest,
)
from beamrec.io.partitioned import WriteTrainingFiles
from beamrec.schemas.deadletters import DeadLetter
from beamrec.schemas.errors import BadDataError, UnavailableError, UsageError
from beamrec.schemas.ranges import EntityTally, SourceSnapshot, Verified
from beamrec.schemas.report import Categories, ColumnProfile, EntityProfile, Report
from beamrec.schemas.shop import Feature, RatingsTable, Shop, Table
from beamrec.transforms.drift import check_drift, drift

SHOP = Shop(
    name="films",
    customers=Table("viewers", "k", "int", (Feature("town"),)),
    products=Table("films", "film", "string", ()),
    ratings=RatingsTable("stars", "who", "film", "v"),
)
TYPES = {"k": "int32", "town": "string", "film": "string", "v": "int8"}
NANOSECONDS = pa.timestamp("ns")
VIEWERS, FILMS = 10, 3
TALLIES = (EntityTally("viewers", 4), EntityTally("viewers", 6), EntityTally("films", 3))


def snapshot(rows: int, types: dict[str, str] = TYPES) -> SourceSnapshot:
    """A snapshot of a table `stars` with so many rows, ten viewers and three films."""
    counts = {"stars": rows, "viewers": VIEWERS, "films": FILMS}
    return SourceSnapshot("sqlite", "one", "2026-11-22T07:59:59.999+00:00", counts, types)


def letter(table: str = "stars") -> DeadLetter:
    """A dead letter with a payload that is not UTF-8."""
    source = {"system": "sqlite", "name": table, "position": 1}
    time = "2026-11-22T07:59:59.999+00:00"
    return DeadLetter("validate", "null_key", "expected é, got NULL", b"\xff\n", source, time)


def batch(viewers: Sequence[int], town: Any = "T") -> pa.RecordBatch:
    """One rating by each viewer."""
    towns = [town(viewer) if callable(town) else town for viewer in viewers]
    columns = {
        "k": pa.array(viewers, pa.int32()),
        "town": pa.array(towns, pa.string()),
        "film": pa.array([f"film {viewer % 3}" for viewer in viewers]),
        "v": pa.array([viewer % 5 for viewer in viewers], pa.int8()),
    }
    return pa.RecordBatch.from_pydict(columns)


def write(
    output: Path | str,
    batches: Sequence[pa.RecordBatch],
    rows: int,
    letters: Sequence[list[DeadLetter]] = (),
    tallies: Sequence[EntityTally] = TALLIES,
    checks: Sequence[str] = (),
    reports: Sequence[Report] = (),
    types: dict[str, str] = TYPES,
    **sink: Any,
) -> Manifest:
    """Runs the sink and returns what it published."""
    options = {"run": "run", "shop": SHOP, "max_bad_fraction": 1, **sink}
    with TestPipeline() as pipeline:
        _ = {
            "examples": pipeline | "b" >> beam.Create(batches, reshuffle=False),
            "dead_letters": pipeline | "l" >> beam.Create(letters),
            "tallies": pipeline | "t" >> beam.Create(tallies),
            "checks": pipeline | "c" >> beam.Create(checks),
            "report": pipeline | "r" >> beam.Create(reports),
            "snapshot": pipeline | "s" >> beam.Create([snapshot(rows, types)]),
        } | WriteTrainingFiles(str(output), **options)
    manifest = read_manifest(str(output))
    assert manifest is not None
    return manifest


def published(output: Path | str) -> list[tuple[Any, ...]]:
    """The training rows, by viewer."""
    table = open_training(str(output)).to_table().select(list(TYPES))
    return sorted(zip(*(column.to_pylist() for column in table.columns), strict=True))


def expected(viewers: Sequence[int], town: Any = "T") -> list[tuple[Any, ...]]:
    """What `published` gives of a batch."""
    return sorted(tuple(row.values()) for row in batch(viewers, town).to_pylist())


def test_the_sink_publishes_rows_and_letters_with_their_account(tmp_path: Path) -> None:
    batches = [batch([1, 2]), batch([3])]
    manifest = write(tmp_path, batches, 4, [[letter()]], options={"shop": "films"})
    assert (manifest.records_in, manifest.rows, manifest.letters, manifest.partitions) == (4, 3, 1, 3)
    assert manifest.options == {"shop": "films"}
    assert manifest.accounts == {
        "stars": {"in": 4, "out": 3, "dead_letters": 1},
        "viewers": {"in": 10, "out": 10, "dead_letters": 0},
        "films": {"in": 3, "out": 3, "dead_letters": 0},
    }
    assert count_published(str(tmp_path)) == (3, {"stars": 1})
    assert open_training(str(tmp_path)).schema.field("k").type == pa.int32()
    assert published(tmp_path) == expected([1, 2, 3])


@pytest.mark.parametrize("rows", [2, 4])
def test_a_rating_without_a_fate_is_an_error_and_nothing_is_published(tmp_path: Path, rows: int) -> None:
    with pytest.raises(
        BadDataError, match=f"table stars does not add up: the snapshot holds {rows} rows, 3 are"
    ):
        write(tmp_path, [batch([1, 2, 3])], rows)
    assert read_manifest(str(tmp_path)) is None
    assert not (tmp_path / TRAINING_FOLDER).exists()


@pytest.mark.parametrize(
    ("tallies", "letters", "message"),
    [
        ([EntityTally("films", 3)], [], "table viewers .* holds 10 rows, 0 are good and 0 dead"),
        (
            [EntityTally("viewers", 10), EntityTally("films", 4)],
            [],
            "table films .* holds 3 rows, 4 are good",
        ),
        ([EntityTally("viewers", 10), EntityTally("films", 3)], [[letter("films")]], "3 are good and 1 dead"),
        ([EntityTally("viewers", 10), EntityTally("films", 3)], [[letter("ghosts")]], "table ghosts"),
    ],
)
def test_a_customer_or_product_without_a_fate_is_an_error(
    tmp_path: Path, tallies: list[EntityTally], letters: list[list[DeadLetter]], message: str
) -> None:
    with pytest.raises(BadDataError, match=message):
        write(tmp_path, [batch([1])], 1, letters, tallies)
    assert not (tmp_path / TRAINING_FOLDER).exists()


def test_too_many_dead_letters_publish_nothing(tmp_path: Path) -> None:
    with pytest.raises(BadDataError, match=r"1 of 4 stars are bad \(25.00%; null_key 1\).*at most 24.00%"):
        write(tmp_path, [batch([1, 2, 3])], 4, [[letter()]], max_bad_fraction=0.24)
    assert not (tmp_path / TRAINING_FOLDER).exists()
    write(tmp_path, [batch([1, 2, 3])], 4, [[letter()]], max_bad_fraction=0.25)


def test_the_bad_fraction_holds_for_each_table_by_itself(tmp_path: Path) -> None:
    """One of three films is many, though one of all rows would be few."""
    tallies = [EntityTally("viewers", 10), EntityTally("films", 2)]
    with pytest.raises(BadDataError, match=r"1 of 3 films are bad \(33.33%"):
        write(tmp_path, [batch([1, 2, 3])], 3, [[letter("films")]], tallies, max_bad_fraction=0.1)


def _compare(_: SourceSnapshot, checks: Sequence[Any]) -> Verified:
    if sorted(checks) != ["a", "b"]:
        raise BadDataError(f"expected a and b, got {sorted(checks)}")
    return Verified(f"compared {len(checks)}")


def test_a_check_before_publishing_sees_all_its_parts_and_says_how_it_went(tmp_path: Path) -> None:
    manifest = write(tmp_path, [batch([1])], 1, checks=["b", "a"], before_publish=_compare)
    assert manifest.verification == "compared 2"


def test_a_check_that_fails_leaves_what_stood_there(tmp_path: Path) -> None:
    write(tmp_path, [batch([1, 2])], 2)
    with pytest.raises(BadDataError, match="got \\['b'\\]"):
        write(tmp_path, [batch([1])], 1, checks=["b"], before_publish=_compare, run="second")
    assert published(tmp_path) == expected([1, 2])


def _refuse(*_: Any) -> Verified:
    raise UnavailableError("stars was changed while it was read")


def _accept(*_: Any) -> Verified:
    return Verified("changes in stars accepted", {"stars": 3})


def test_rows_that_came_while_it_was_read_are_told_as_such_not_as_a_wrong_account(tmp_path: Path) -> None:
    """COUNT(*) said 2, and 3 were read."""
    with pytest.raises(UnavailableError, match="was changed while it was read"):
        write(tmp_path, [batch([1, 2, 3])], 2, before_publish=_refuse)
    assert not (tmp_path / TRAINING_FOLDER).exists()
    manifest = write(tmp_path, [batch([1, 2, 3])], 2, before_publish=_accept)
    assert manifest.verification == "changes in stars accepted"
    assert manifest.accounts["stars"] == {"in": 3, "out": 3, "dead_letters": 0}
    assert (manifest.records_in, manifest.counts["stars"]) == (3, 2)


def test_of_a_table_that_changed_too_every_row_that_was_read_has_a_fate(tmp_path: Path) -> None:
    with pytest.raises(BadDataError, match="table stars does not add up: 3 rows were read, 2 are good"):
        write(tmp_path, [batch([1, 2])], 2, before_publish=_accept)
    with pytest.raises(BadDataError, match="table viewers does not add up"):
        write(tmp_path, [batch([1, 2, 3])], 2, tallies=TALLIES[1:], before_publish=_accept)


def test_a_step_that_died_while_publishing_is_finished_as_it_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A runner calls it again: the report that is in place by then is this run's own."""
    limits = DriftLimits(drift, check_drift)
    again: dict[str, Any] = {"reports": [report(100, 2)], "drift": limits, "run": "second"}
    write(tmp_path, [batch([1])], 1, reports=[report(100, 20)], drift=limits)
    put = LocalStore.put

    def dying(store: LocalStore, path: str, *args: Any, **options: Any) -> None:
        if path == MANIFEST:
            monkeypatch.setattr(LocalStore, "put", put)
            raise UnavailableError("the worker died")
        put(store, path, *args, **options)

    monkeypatch.setattr(LocalStore, "put", dying)
    with pytest.raises(UnavailableError, match="the worker died"):
        write(tmp_path, [batch([2])], 1, **again)
    assert (tmp_path / "_staging" / "second" / "intent.json").exists()
    manifest = write(tmp_path, [batch([2])], 1, **again)
    assert manifest.run == "second"
    assert manifest.drift["town"] > 1
    assert count_published(str(tmp_path)) == (1, {})
    assert published(tmp_path) == expected([2])


def test_a_step_that_had_published_everything_may_be_called_again(tmp_path: Path) -> None:
    """By then the source may have changed; what is published was checked before."""
    first = write(tmp_path, [batch([1])], 1)
    assert write(tmp_path, [batch([1])], 1, before_publish=_refuse) == first
    with pytest.raises(UnavailableError, match="was changed"):
        write(tmp_path, [batch([1])], 1, before_publish=_refuse, run="another")


def test_columns_that_a_catalogue_cannot_hold_are_told_before_anything_is_published(tmp_path: Path) -> None:
    odd = pa.RecordBatch.from_pydict(
        {**{name: batch([1]).column(name) for name in ("k", "film", "v")}, "town": pa.array([0], NANOSECONDS)}
    )
    with pytest.raises(UsageError, match=r"column town: Hive has no type for timestamp\[ns\]"):
        write(tmp_path, [odd], 1, check_types=check_types, types={**TYPES, "town": "timestamp[ns]"})
    assert not (tmp_path / TRAINING_FOLDER).exists()


def report(rows: int, towns: int) -> Report:
    """A report of so many rows, half of them from each of so many towns."""
    top = tuple((f"T{number}", rows // towns) for number in range(towns))
    town = ColumnProfile("viewers", "town", rows, 0, 0, 0, Categories(towns, 1, top))
    viewers, films = (EntityProfile(t.name, 10, 5, 2, 1, 0.1, ()) for t in (SHOP.customers, SHOP.products))
    return Report("films", "2026-11-22T07:59:59.999+00:00", rows, ((1.0, rows),), viewers, films, (town,))


def test_the_report_is_published_with_the_data_and_compared_with_the_one_before(tmp_path: Path) -> None:
    limits = DriftLimits(drift, check_drift, warn=0.1, fail=0.5)
    first = write(tmp_path, [batch([1])], 1, reports=[report(100, 2)], drift=limits)
    assert {file.path for file in first.extras} == {"_report.json", "_report.html"}
    assert first.drift == {}
    assert Report.from_json((tmp_path / "_report.json").read_bytes(), "") == report(100, 2)
    with pytest.raises(BadDataError, match=r"column town drifted .* \(--drift-fail\)") as raised:
        write(tmp_path, [batch([2])], 1, reports=[report(100, 20)], drift=limits, run="second")
    refused = tmp_path / "errors" / "drift" / "second.html"
    assert str(refused) in str(raised.value)
    assert "town" in refused.read_text()
    assert published(tmp_path) == expected([1])
    assert Report.from_json((tmp_path / "_report.json").read_bytes(), "") == report(100, 2)
    third = write(tmp_path, [batch([2])], 1, [], reports=[report(120, 2)], drift=limits, run="third")
    assert third.drift == drift(report(100, 2), report(120, 2))
    assert Report.from_json((tmp_path / "_report.json").read_bytes(), "") == report(120, 2)
    assert not (tmp_path / "errors").exists()
    page = (tmp_path / "_report.html").read_text()
    assert "compared with" in page
    count_published(str(tmp_path))


def test_a_column_that_moved_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    limits = DriftLimits(drift, check_drift, warn=0.1)
    write(tmp_path, [batch([1])], 1, reports=[report(100, 2)], drift=limits)
    assert "drifted" not in caplog.text
    write(tmp_path, [batch([2])], 1, reports=[report(100, 20)], drift=limits, run="second")
    assert "column town drifted since the previous run" in caplog.text


def test_a_report_of_another_version_is_no_reason_not_to_publish(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "_report.json").write_text('{"format": 99}')
    limits = DriftLimits(drift, check_drift, fail=0)
    assert write(tmp_path, [batch([1])], 1, reports=[report(100, 2)], drift=limits).drift == {}
    assert "no comparison with the previous run" in caplog.text


def by_parity(viewer: int) -> str | None:
    """Two towns, and for every fifth viewer none."""
    return None if viewer % 5 == 0 else f"town/{viewer % 2}"


def test_another_partition_column_is_merged_from_all_ranges(tmp_path: Path) -> None:
    viewers = list(range(1, 31))
    batches = [batch(viewers[start : start + 7], by_parity) for start in range(0, 30, 7)]
    manifest = write(tmp_path, batches, 30, files=FileOptions(partition_by=("Town",)))
    assert {file.partition: file.rows for file in manifest.files} == {
        "town=town%2F0": 12,
        "town=town%2F1": 12,
        "town=__HIVE_DEFAULT_PARTITION__": 6,
    }
    assert manifest.partition_columns == ("town",)
    assert published(tmp_path) == sorted(expected(viewers, by_parity))


@pytest.mark.parametrize("files", [FileOptions(partition_by=("town", "v")), FileOptions(buckets=4)])
def test_merged_files_do_not_depend_on_how_the_ranges_were_cut_or_ordered(
    tmp_path: Path, files: FileOptions
) -> None:
    viewers = list(range(1, 31))
    whole = write(tmp_path / "1", [batch(viewers, by_parity)], 30, files=files)
    cut = [batch(viewers[start : start + 4], by_parity) for start in range(0, 30, 4)]
    pieces = write(tmp_path / "2", cut[::-1], 30, files=files)
    assert pieces.files == whole.files
    assert len({file.partition for file in whole.files}) == len(whole.files) > 3


def test_buckets_hold_whole_customers_whose_key_stays_in_the_files(tmp_path: Path) -> None:
    viewers = list(range(1, 31))
    manifest = write(tmp_path, [batch(viewers[:9]), batch(viewers[9:])], 30, files=FileOptions(buckets=4))
    assert {file.partition for file in manifest.files} == {f"bucket=00{number}" for number in range(4)}
    assert (manifest.buckets, manifest.partition_columns) == (4, ("bucket",))
    assert published(tmp_path) == expected(viewers)


@pytest.mark.parametrize("files", [FileOptions(), FileOptions(partition_by=("town",))])
def test_an_object_store_that_refuses_one_request_in_four_gets_the_same_files(
    tmp_path: Path, s3: Any, files: FileOptions
) -> None:
    viewers = list(range(1, 61))
    batches = [batch(viewers[start : start + 20], by_parity) for start in range(0, 60, 20)]
    local = write(tmp_path, batches, 60, files=files)
    with s3.faults(0.25):
        remote = write(s3.uri, batches, 60, files=files)
    assert remote.files == local.files
    found = s3.objects("lake/")
    assert found == {f"lake/{path}": size for path, size in remote.sizes.items()} | {
        "lake/_manifest.json": found["lake/_manifest.json"]
    }
    assert published(s3.uri) == expected(viewers, by_parity)


def test_no_partitions_are_flat_files_of_a_range_each(tmp_path: Path) -> None:
    manifest = write(tmp_path, [batch([1, 2]), batch([3])], 3, files=FileOptions(partition_by=()))
    assert sorted(file.rows for file in manifest.files) == [1, 2]
    assert {path.parent for path in tmp_path.rglob("*.parquet")} == {tmp_path / TRAINING_FOLDER}
    assert published(tmp_path) == expected([1, 2, 3])


def test_a_customer_in_slices_gets_a_file_for_each(tmp_path: Path) -> None:
    manifest = write(tmp_path, [batch([1, 1]), batch([1])], 3)
    assert [(file.partition, file.rows) for file in manifest.files] in (
        [("k=1", 1), ("k=1", 2)],
        [("k=1", 2), ("k=1", 1)],
    )


def test_incremental_stages_only_the_partitions_that_changed(tmp_path: Path) -> None:
    """What need not be written would not come back if it were removed: that is how it shows."""
    files = FileOptions(mode="incremental")
    first = write(tmp_path, [batch([1, 2, 3, 4])], 4, files=files)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}
    changed = write(tmp_path, [batch([1, 2]), batch([3], "U"), batch([5])], 4, files=files, run="second")
    assert changed.changes == {"added": 1, "rewritten": 1, "unchanged": 2, "removed": 1}
    assert set(first.files) & set(changed.files) == {f for f in first.files if f.partition in ("k=1", "k=2")}
    kept = {path for path in times if path.parent.name in ("k=1", "k=2")}
    assert {path: path.stat().st_mtime_ns for path in kept} == {path: times[path] for path in kept}
    assert published(tmp_path) == sorted(expected([1, 2, 5]) + expected([3], "U"))


def test_incremental_over_another_format_keeps_nothing_of_it(tmp_path: Path) -> None:
    write(tmp_path, [batch([1, 2])], 2)
    files = FileOptions(format="tfrecord", mode="incremental")
    manifest = write(tmp_path, [batch([1, 2])], 2, files=files, run="second")
    assert manifest.file_format == "tfrecord"
    assert {path.name for path in (tmp_path / TRAINING_FOLDER).rglob("part-*")} == {
        file.path.rpartition("/")[2] for file in manifest.files
    }
    with pytest.raises(UsageError, match="train reads Parquet"):
        open_training(str(tmp_path))


def test_a_published_file_that_is_cut_is_noticed(tmp_path: Path) -> None:
    write(tmp_path, [batch([1])], 1)
    (path,) = tmp_path.glob("**/*.parquet")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BadDataError, match=r"the manifest says \d+ bytes, found \d+"):
        count_published(str(tmp_path))


def test_training_files_that_are_not_there_say_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="run `beamrec batch` first"):
        open_training(str(tmp_path))


def test_a_manifest_of_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "_manifest.json").write_text('{"format": 99}')
    with pytest.raises(UsageError, match="expected a manifest of format 1 or 2: format 99"):
        read_manifest(str(tmp_path))


def test_the_sink_gives_the_manifest(tmp_path: Path) -> None:
    with TestPipeline() as pipeline:
        manifests = {
            "examples": pipeline | "b" >> beam.Create([batch([1])]),
            "dead_letters": pipeline | "l" >> beam.Create([]),
            "tallies": pipeline | "t" >> beam.Create(TALLIES),
            "snapshot": pipeline | "s" >> beam.Create([snapshot(1)]),
        } | WriteTrainingFiles(str(tmp_path), "run", SHOP, 0)
        assert_that(manifests | beam.Map(lambda each: (each.run, each.rows)), equal_to([("run", 1)]))
