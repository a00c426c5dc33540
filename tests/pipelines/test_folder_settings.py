"""What an output folder was begun with holds for every verb that writes there: stream and both replays."""

import dataclasses
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from beamrec.io.ledger import fix_settings, stored_settings
from beamrec.io.store import LocalStore
from beamrec.pipelines import replay_errors
from beamrec.pipelines.arguments import parse_pipeline
from beamrec.pipelines.console import Console
from beamrec.pipelines.replay_interval import IntervalReplay
from beamrec.pipelines.replay_options import ReplayOptions
from beamrec.pipelines.stream_options import StreamConfig
from beamrec.schemas.errors import UsageError
from beamrec.schemas.shop import CLASSICMODELS


def config(root: Path, **changes: Any) -> StreamConfig:
    """A job with its output below a folder."""
    places = {"input": str(root), "output": f"{root}/out", "vector_db": "embedded:"}
    return StreamConfig(**{**places, "shop": CLASSICMODELS, "run": "run", **changes})


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    (tmp_path / "out").mkdir()
    return LocalStore(tmp_path / "out")


def of_errors(output: str, *more: str) -> replay_errors.ErrorsReplay:
    """`replay --errors` with options."""
    argv: Sequence[str] = ["--errors", output, *more]
    return replay_errors.parse(*parse_pipeline("replay", ReplayOptions, argv), Console())


def forget(store: LocalStore, *names: str) -> None:
    """Settings as a version wrote them that did not have these."""
    settings = json.loads(store.read("_ledger/settings.json"))
    left = {name: value for name, value in settings.items() if name not in names}
    store.put("_ledger/settings.json", json.dumps(left).encode())


def other_feature(job: StreamConfig) -> StreamConfig:
    """The same job, where a feature of customers has another name in events."""
    customers = job.shop.customers
    features = tuple(
        dataclasses.replace(each, event_field="town") if each.event_field == "city" else each
        for each in customers.features
    )
    assert features != customers.features
    shop = dataclasses.replace(job.shop, customers=dataclasses.replace(customers, features=features))
    return dataclasses.replace(job, shop=shop)


@pytest.mark.parametrize("options", [{"explain": True}, {"output_shape": "course"}, {}])
def test_a_replay_of_errors_writes_the_columns_of_its_folder(
    tmp_path: Path, store: LocalStore, options: dict[str, Any]
) -> None:
    job = config(tmp_path, format="parquet", **options)
    fix_settings(store, job.settings)
    replay = of_errors(job.output)
    assert replay.stream.segments == job.segments
    assert replay_errors.dry_run(replay) == []


def test_a_replay_of_errors_cannot_bring_other_columns(tmp_path: Path, store: LocalStore) -> None:
    fix_settings(store, config(tmp_path, format="parquet").settings)
    with pytest.raises(UsageError, match="begun with explain = False"):
        replay_errors.dry_run(of_errors(f"{tmp_path}/out", "--explain"))
    replay = of_errors(f"{tmp_path}/out")
    other = dataclasses.replace(replay, stream=other_feature(replay.stream))
    with pytest.raises(UsageError, match=r"other columns .*city: string before, none now; town: none before"):
        replay_errors.dry_run(other)


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_the_record_of_a_folder_cannot_change(tmp_path: Path, store: LocalStore, form: Any) -> None:
    fix_settings(store, config(tmp_path, format=form).settings)
    with pytest.raises(UsageError, match="begun with output_shape = 'full'"):
        fix_settings(store, config(tmp_path, format=form, output_shape="course").settings)


def test_features_of_the_shop_are_columns_of_parquet_files_only(tmp_path: Path, store: LocalStore) -> None:
    job = config(tmp_path)
    fix_settings(store, job.settings)
    fix_settings(store, other_feature(job).settings)
    (tmp_path / "tables").mkdir()
    tables, job = LocalStore(tmp_path / "tables"), config(tmp_path, format="parquet")
    fix_settings(tables, job.settings)
    with pytest.raises(UsageError, match="city: string before, none now"):
        fix_settings(tables, other_feature(job).settings)


def test_a_replay_of_an_interval_that_goes_on_keeps_its_reasons(tmp_path: Path, store: LocalStore) -> None:
    hours = datetime(2026, 10, 22, 7, tzinfo=UTC), datetime(2026, 10, 22, 8, tzinfo=UTC)

    def settings(explain: bool) -> Any:
        job = config(tmp_path, format="parquet", release="r", serving=False, explain=explain)
        return IntervalReplay(job, *hours, None, True).settings

    fix_settings(store, settings(True))
    with pytest.raises(UsageError, match="begun with explain = True"):
        fix_settings(store, settings(False))


def test_a_folder_of_an_older_version_takes_what_the_first_job_gives(
    tmp_path: Path, store: LocalStore
) -> None:
    job = config(tmp_path, format="parquet", output_shape="course")
    fix_settings(store, job.settings)
    forget(store, "output_shape", "columns", "explain")
    replay = of_errors(job.output, "--output-shape=course")
    assert replay_errors.dry_run(replay) == []
    fix_settings(store, job.settings)
    assert stored_settings(store) == job.settings
    with pytest.raises(UsageError, match="begun with output_shape = 'course'"):
        fix_settings(store, dataclasses.replace(job, output_shape="full").settings)
