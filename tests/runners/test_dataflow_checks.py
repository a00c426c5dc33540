"""What is wrong with a job for Dataflow is said before anything is started, each with its remedy."""

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from beamrec.pipelines.placement import place_job
from beamrec.runners.dataflow import DATAFLOW, job_name
from beamrec.runners.preset import Job, Password, check_runner, launch
from beamrec.schemas.errors import UsageError

GOOD = (
    "--project=shop-project",
    "--region=europe-west1",
    "--temp_location=gs://temp/tmp",
    "--sdk_container_image=example/worker:1",
)
PLACES = {
    "--input": "kafka://shop@broker.example:9092/clicks?secret=gcp-secretmanager://projects/p/secrets/k",
    "--output": "gs://lake/out",
    "--vector-db": "postgresql://shop@db.example/db?secret=gcp-secretmanager%3A%2F%2Fprojects%2Fp%2Fsecrets%2Fv",
}


def problem(beam_args: Sequence[str] = GOOD, job: Job | None = None) -> str:
    """The message of the check that fails."""
    with pytest.raises(UsageError) as raised:
        check_runner("dataflow", job or place_job("stream", PLACES), beam_args)
    return str(raised.value)


def without(option: str) -> list[str]:
    return [argument for argument in GOOD if not argument.startswith(f"--{option}=")]


def test_a_sound_job_passes_and_each_check_says_what_it_found() -> None:
    job = place_job("stream", PLACES)
    check_runner("dataflow", job, GOOD)
    said = {name: check(job, GOOD) for name, check in DATAFLOW.checks.items()}
    assert said["project"] == "shop-project in europe-west1"
    assert said["job name"] == job_name(job)
    assert said["passwords"] == "--input, --vector-db from a secret manager"
    assert all(said.values())


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("project", "--project is missing: expected the id of the Google Cloud project"),
        ("region", "--region is missing: expected the region of the data, such as europe-west1"),
        ("temp_location", "--temp_location: expected gs://bucket/folder .*; it is missing"),
        (
            "sdk_container_image",
            "the workers would not have beamrec: give --sdk_container_image=.*--setup_file",
        ),
    ],
)
def test_what_is_missing(option: str, message: str) -> None:
    assert re.match(message, problem(without(option)))


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--project=123456", "expected a project's id, not its number"),
        ("--temp_location=/tmp/x", "--temp_location: expected gs://bucket/folder in the region of"),
        ("--staging_location=s3://a/b", "--staging_location: expected gs://bucket/folder"),
        ("--job_name=Shop_1", "--job_name Shop_1: expected small letters, digits and dashes"),
        ("--setup_file=/nowhere/setup.py", "--setup_file /nowhere/setup.py: expected the path of"),
        ("--experiments=disable_streaming_engine", "its Streaming Engine; take it out"),
        ("--experiments=disable_runner_v2_until_v2.50", "need Dataflow's portable runner"),
        ("--experiments=disable_portable_runner", "need Dataflow's portable runner"),
        ('--transform_name_mapping={"a": "b"}', "only --update uses it"),
        ("--template_location=gs://temp/t", "make the flex template of deploy/dataflow"),
        ("--service_account_email=worker", "expected the account's e-mail address"),
        ("--s3_secret_access_key=hunter2", "--s3_secret_access_key: a job's options can be read by"),
    ],
)  # fmt: skip
def test_what_is_wrong(argument: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLEX_TEMPLATE_PYTHON_PY_FILE", raising=False)
    found = problem([*GOOD, argument])
    assert message in found
    assert "hunter2" not in found


def test_another_projects_setup_file_is_refused(tmp_path: Path) -> None:
    setup = tmp_path / "setup.py"
    setup.write_text('from setuptools import setup\nsetup(name="else")\n')
    assert "the setup.py of another project" in problem(
        [*without("sdk_container_image"), f"--setup_file={setup}"]
    )
    ours = Path(__file__).resolve().parents[2] / "setup.py"
    check_runner("dataflow", Job("stream"), [*without("sdk_container_image"), f"--setup_file={ours}"])


@pytest.mark.parametrize(
    ("option", "uri", "what"),
    [
        ("--input", "/data/clicks", "a path of this machine; give an s3:// or gs:// URI"),
        ("--input", "clicks", "a path of this machine"),
        ("--output", "file:///data/out", "a path of this machine"),
        ("--source", "sqlite:///shop.db", "a file of this machine; give a mysql:// or postgresql:// URI"),
        ("--vector-db", "embedded:/home/ann/.beamrec/pg", "a server of this machine; give a"),
        ("--vector-db", "postgresql://shop@localhost/db", "localhost, which is this machine there"),
        ("--vector-db", "postgresql://shop@/db?host=/run/postgresql", "/run/postgresql, which is"),
        ("--source", "mysql://shop@127.0.0.1:3306/db", "127.0.0.1, which is this machine there"),
        ("--source", "mysql://shop@[::1]:3306/db", "::1, which is this machine there"),
        ("--input", "kafka://far.example:9092,localhost:9092/clicks", "localhost, which is this machine"),
        ("--input", "kinesis://clicks?endpoint=http://localhost:4567", "localhost, which is this machine"),
    ],
)  # fmt: skip
def test_places_that_no_worker_can_reach(option: str, uri: str, what: str) -> None:
    found = problem(job=place_job("stream", {**PLACES, option: uri}))
    assert found.startswith(f"{option}: workers are other machines and cannot reach {what}")


def test_a_password_of_this_environment_is_not_there_on_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEAMREC_SOURCE_PASSWORD", "hunter2")
    source = {"--source": "mysql://shop@db.example/shop", "--output": "gs://lake/training"}
    found = problem(job=place_job("batch", source))
    assert "--source: its password is in $BEAMREC_SOURCE_PASSWORD, which is not there on the workers" in found
    assert "give --source-secret=gcp-secretmanager://" in found
    assert "hunter2" not in found
    secret = "gcp-secretmanager://projects/p/secrets/s"  # noqa: S105
    check_runner("dataflow", place_job("batch", source, secret), GOOD)


@pytest.mark.parametrize("secret", ["env:SHOP_PASSWORD", "file:///run/secrets/shop"])
def test_a_secret_of_this_machine_is_not_there_either(secret: str) -> None:
    job = Job("batch", {}, {"--source": Password(secret, None, "--source-secret")})
    assert f"its password is in {secret.partition(':')[0]}:" in problem(job=job)


def test_a_batch_job_cannot_be_updated() -> None:
    assert "only a streaming job can be replaced" in problem([*GOOD, "--update"], Job("batch"))


def test_one_name_for_an_output_folder_whatever_its_endpoint() -> None:
    names = {
        job_name(Job("stream", {"--output": uri}))
        for uri in ("gs://lake/out", "gs://lake/out/", "gs://lake/out?endpoint=http://gcs.example")
    }
    assert len(names) == 1
    assert job_name(Job("stream", {"--output": "gs://lake/other"})) not in names
    assert job_name(Job("batch", {"--output": "gs://lake/out"})) not in names


def test_the_users_word_counts_over_the_presets() -> None:
    from apache_beam.options.pipeline_options import PipelineOptions, WorkerOptions

    given = [*GOOD, "--use_public_ips", "--max_num_workers=30", "--machine_type=n2-highmem-8"]
    with launch("dataflow", given, job=Job("stream")) as (preset, args):
        workers = PipelineOptions(args).view_as(WorkerOptions)
    assert (workers.use_public_ips, workers.max_num_workers) == (True, 30)
    assert workers.machine_type == "n2-highmem-8"
    assert preset.streams
