"""`beamrec stream --runner flink` on a real local cluster: processes of this machine, no container."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from beamrec.runners.flink_cluster import Cluster, find_cluster, flink_down, flink_up
from beamrec.schemas.errors import UnavailableError

EVENTS = 1000

pytestmark = pytest.mark.faults  # no kill, but minutes: the first time, Flink and the job server are fetched


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """JobManager, two TaskManagers, job server and worker pool."""
    folder = tmp_path_factory.mktemp("flink")
    try:
        yield flink_up(folder)
    except UnavailableError as error:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(str(error))
    finally:
        flink_down(folder)


def test_a_thousand_events_are_accounted_for_and_visible_once(
    cluster: Cluster, trained: Any, command_line: Any, tmp_path: Path
) -> None:
    events, output = tmp_path / "in", tmp_path / "out"
    source = f"--source={trained.source}"
    command_line("generate", "events", source, f"--output={events}", f"--events={EVENTS}", home=trained.home)
    result = command_line(
        "stream",
        "--runner=flink",
        f"--job_endpoint={cluster.job_endpoint}",
        f"--environment_config={cluster.pool}",
        "--environment_type=EXTERNAL",
        "--parallelism=2",
        "--splits=2",
        f"--input={events}",
        f"--output={output}",
        "--stop-when-idle=5",
        home=trained.home,
        timeout=900,
    )
    assert result["ok"], result["stderr"][-3000:]
    assert result["in"] == EVENTS
    assert result["reconciled"]
    files = (output / "recommendations").rglob("*.jsonl")
    ids = [json.loads(line)["event_id"] for path in files for line in path.read_text().splitlines()]
    assert len(ids) == len(set(ids)) == result["out"]
    assert result["out"] + result["dead_letters"] + result["duplicates"] + result["expired"] == EVENTS


def test_the_cluster_is_found_and_ends_with_all_of_its_processes(cluster: Cluster) -> None:
    assert find_cluster(cluster.folder) == cluster
    assert flink_up(cluster.folder) == cluster, "one that runs is not started again"
    assert flink_down(cluster.folder)
    assert not any(map(cluster.alive, cluster.pids))
    assert find_cluster(cluster.folder) is None
    assert not flink_down(cluster.folder)
