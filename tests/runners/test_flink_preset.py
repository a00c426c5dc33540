"""The preset `flink`: options that the user can change, and what is wrong said before anything is started."""

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from apache_beam.options.pipeline_options import PipelineOptions, PortableOptions, StandardOptions

from beamrec.pipelines.arguments import check_beam_flags
from beamrec.pipelines.placement import place_job
from beamrec.runners.flink_cluster import find_cluster, flink_down
from beamrec.runners.flink_options import FlinkJobOptions
from beamrec.runners.preset import Job, check_runner, launch
from beamrec.schemas.errors import UsageError

FAR = ("--flink_master=http://jobmanager.example:8081",)
STREAM = place_job("stream", {"--output": "s3://lake/out"})


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with no cluster in it."""
    monkeypatch.setenv("BEAMREC_HOME", str(tmp_path))
    return tmp_path


def flags(job: Job, *beam_args: str) -> list[str]:
    with launch("flink", beam_args, job=job) as (_, args):
        return args


def problem(beam_args: Sequence[str], job: Job = STREAM) -> str:
    with pytest.raises(UsageError) as raised:
        check_runner("flink", job, beam_args)
    return str(raised.value)


def test_without_a_cluster_the_message_says_how_to_get_one() -> None:
    assert "no Flink: `make flink-up` starts one here; else give --flink_master=HOST:8081" in problem([])


@pytest.mark.parametrize(
    ("beam_args", "message"),
    [
        ((*FAR, "--environment_type=LOOPBACK"), "run a worker pool beside each"),
        ((*FAR, "--environment_type=DOCKER"), "the workers would not have beamrec"),
        ((*FAR, "--parallelism=0"), "--parallelism: expected at least 1, got 0"),
        ((*FAR, "--s3_secret_access_key=hunter2"), "a job's options can be read by everybody"),
    ],
)
def test_what_is_wrong(beam_args: Sequence[str], message: str) -> None:
    assert message in problem(beam_args)


def test_a_far_cluster_reaches_no_place_of_this_machine() -> None:
    job = place_job("stream", {"--input": "clicks", "--output": "s3://lake/out"})
    assert problem(FAR, job).startswith("--input: workers are other machines")
    check_runner("flink", job, ["--job_endpoint=localhost:8099"])


def test_a_stream_checkpoints_keeps_its_checkpoints_and_has_small_bundles() -> None:
    args = flags(STREAM, *FAR)
    options = PipelineOptions(args)
    flink = options.view_as(FlinkJobOptions)
    assert args[0] == "--runner=FlinkRunner"
    assert options.view_as(StandardOptions).streaming
    assert flink.max_bundle_time_mills <= 100
    assert flink.checkpointing_interval == 10_000
    assert flink.externalized_checkpoints_enabled
    assert flink.fail_on_checkpointing_errors is False
    assert flink.retain_externalized_checkpoints_on_cancellation
    assert options.view_as(PortableOptions).environment_type == "EXTERNAL"


def test_a_batch_run_takes_no_checkpoints() -> None:
    options = PipelineOptions(flags(place_job("batch", {"--output": "s3://lake/t"}), *FAR))
    assert options.view_as(FlinkJobOptions).checkpointing_interval is None
    assert not options.view_as(StandardOptions).streaming


def test_the_users_word_counts_over_the_presets_and_the_command_line_knows_it() -> None:
    given = ["--max_bundle_time_mills=20", "--checkpointing_interval=1000", "--environment_type=DOCKER"]
    check_beam_flags("stream", given)
    options = PipelineOptions(flags(STREAM, *FAR, *given))
    assert options.view_as(FlinkJobOptions).max_bundle_time_mills == 20
    assert options.view_as(FlinkJobOptions).checkpointing_interval == 1000
    assert options.view_as(PortableOptions).environment_type == "DOCKER"


def test_other_runners_are_not_given_flinks_options() -> None:
    everything = PipelineOptions(["--runner=DataflowRunner"]).get_all_options()
    own = PipelineOptions([]).view_as(FlinkJobOptions).get_all_options(current_only=True)
    assert own
    assert {everything[name] for name in own} == {None}


def test_a_job_server_that_runs_is_used_as_it_is() -> None:
    args = flags(STREAM, "--job_endpoint=jobs.example:8099")
    assert args[0] == "--runner=PortableRunner"
    assert PipelineOptions(args).view_as(PortableOptions).job_endpoint == "jobs.example:8099"


def test_a_state_file_whose_processes_are_gone_is_no_cluster(home: Path) -> None:
    folder = home / "flink"
    folder.mkdir()
    # This process is alive, but it is none of the cluster's: its command line names another folder.
    (folder / "cluster.json").write_text(f'{{"ports": {{}}, "pids": {{"jobmanager": {os.getpid()}}}}}')
    assert find_cluster(folder) is None
    assert flink_down(folder) is False
    assert not (folder / "cluster.json").exists()
