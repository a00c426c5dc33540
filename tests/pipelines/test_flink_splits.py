"""Where the splits of a source run on a real Flink cluster, by the counts of its own REST interface."""

import json
import os
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.io.unbounded_source import ReadFromUnboundedSource
from apache_beam.options.pipeline_options import PipelineOptions

import beamrec.runners.flink_options  # noqa: F401  (its flags are known once it is imported)
from beamrec.io.event_files import EventFiles
from beamrec.io.events import ReadEvents, SourceOptions
from beamrec.runners.flink_cluster import Cluster, flink_down, flink_up
from beamrec.schemas.errors import UnavailableError

SPLITS = 4
FILES, EVENTS = 60, 10

pytestmark = pytest.mark.faults  # no kill, but a minute or two: a cluster, and a job on it


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two TaskManagers of two slots each."""
    folder = tmp_path_factory.mktemp("flink")
    try:
        yield flink_up(folder)
    except UnavailableError as error:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(str(error))
    finally:
        flink_down(folder)


class OneRead(EventFiles):
    """All splits of a folder in one source, as Beam means it."""

    def split(self, desired_num_splits: int, options: Any = None) -> list[EventFiles]:  # type: ignore[override]
        return sources(Path(self.folder), self.options)


def sources(folder: Path, options: SourceOptions) -> list[EventFiles]:
    return [EventFiles(str(folder), options, number) for number in range(SPLITS)]


def run(cluster: Cluster, parallelism: int, begin: beam.PTransform, name: str) -> list[list[int]]:
    """Runs a job to its end, with workers in this process; batches that each subtask of each read gave."""
    args = [
        "--runner=PortableRunner",
        f"--job_endpoint={cluster.job_endpoint}",
        "--environment_type=LOOPBACK",
        "--streaming",
        f"--parallelism={parallelism}",
        "--max_parallelism=128",
        "--max_bundle_time_mills=100",
        "--shutdown_sources_after_idle_ms=1000",
        f"--job_name={name}",
    ]
    with beam.Pipeline(options=PipelineOptions(args)) as pipeline:
        rows = pipeline | begin | "Rows" >> beam.FlatMap(lambda batch: range(batch.num_rows))
        _ = rows | beam.Reshuffle() | beam.Map(lambda row: None)
    job = next(job["jid"] for job in ask(cluster, "/jobs/overview")["jobs"] if job["name"] == name)
    stages = [stage["id"] for stage in ask(cluster, f"/jobs/{job}")["vertices"] if "Rows" in stage["name"]]
    details = [ask(cluster, f"/jobs/{job}/vertices/{stage}") for stage in stages]
    return [[subtask["metrics"]["write-records"] for subtask in each["subtasks"]] for each in details]


def ask(cluster: Cluster, path: str) -> Any:
    with urllib.request.urlopen(f"{cluster.dashboard}{path}", timeout=60) as answer:  # noqa: S310
        return json.load(answer)


@pytest.mark.parametrize("parallelism", [2, 4])
def test_each_subtask_reads_as_many_splits_as_the_others(
    cluster: Cluster, parallelism: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(FILES):
        (folder / f"{number}.jsonl").write_text("{}\n" * EVENTS)
    options = SourceOptions(str(tmp_path / "out"), "run", splits=SPLITS, stop_when_idle_seconds=3)
    reads = run(
        cluster, parallelism, ReadEvents(sources(folder, options), 0.1, 1.0, 1.0), f"each-{parallelism}"
    )
    once = SourceOptions(str(tmp_path / "once"), "run", splits=SPLITS, stop_when_idle_seconds=3)
    read = run(
        cluster, parallelism, ReadFromUnboundedSource(OneRead(str(folder), once), 0.1), f"once-{parallelism}"
    )
    with capsys.disabled():
        print(
            f"\nrows by subtask of {parallelism}: {SPLITS} Reads {reads}; one Read of {SPLITS} splits {read}"
        )
    assert sum(map(sum, reads)) == sum(map(sum, read)) == FILES * EVENTS
    busy = Counter(subtask for rows in reads for subtask, count in enumerate(rows) if count)
    assert busy == dict.fromkeys(range(parallelism), SPLITS // parallelism)
    assert len([count for rows in read for count in rows if count]) == 1, "else one Read would do"
