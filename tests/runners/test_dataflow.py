"""Dataflow up to the service's door: what Beam submits, field by field, and a stand-in that takes it."""

import base64
import bz2
import dataclasses
import hashlib
import json
import os
import re
import subprocess
import sys
import tomllib
import urllib.parse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
import requests

from beamrec.io.pgvector import ReleaseStore
from beamrec.schemas.releases import ReleaseContents, ReleaseManifest

ROOT = Path(__file__).resolve().parents[2]
EXPECTED = ROOT / "deploy" / "dataflow" / "job.toml"
STEPS = ROOT / "deploy" / "dataflow" / "steps.toml"
PASSWORD = "s€cret pass:word/@%"  # noqa: S105  (of the server's user)
VARIABLE = "BEAMREC_VECTOR_DB_PASSWORD"
SERVICE = ("--json", "--runner=dataflow", "--project=shop-project", "--region=europe-west1")
WORKERS = (
    "--temp_location=gs://temp/tmp",
    "--sdk_container_image=example/beamrec-worker:1",
    "--service_account_email=worker@shop-project.example",
    "--subnetwork=regions/europe-west1/subnetworks/shop",
)
# Runs command lines one after another in one process; each prints its object.
SUBMIT = """
import json, sys
from beamrec.pipelines import cli
for argv in json.loads(sys.stdin.read()):
    cli.main(argv)
"""


@dataclasses.dataclass(frozen=True)
class Submitted:
    """What a process submitted to the service.

    Attributes:
      results: the `--json` objects, by what was asked for.
      jobs: the requests for jobs, likewise.
      staged: what was put into the bucket for temporary files, by its name.
      log: standard error.
    """

    results: Mapping[str, dict[str, Any]]
    jobs: Mapping[str, dict[str, Any]]
    staged: Mapping[str, bytes]
    log: str


def elsewhere(url: str) -> str:
    """An address of this machine that does not say so, as that of a server in a private network would."""
    return url.replace("127.0.0.1", "127.1")


@pytest.fixture(scope="module")
def secret(s3_endpoint: str) -> str:
    """URI of the servers' password in a secret manager."""
    login = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
    client = boto3.client("secretsmanager", endpoint_url=s3_endpoint, region_name="eu-west-1", **login)
    client.create_secret(Name="dataflow", SecretString=PASSWORD)
    return f"aws-secretsmanager://dataflow?region=eu-west-1&endpoint={elsewhere(s3_endpoint)}"


@pytest.fixture(scope="module")
def vector_db(postgresql: Any) -> str:
    """URI of a store whose active release is in a bucket."""
    postgresql.create_database("dataflow")
    grants = ("CREATE EXTENSION vector", "GRANT CREATE ON DATABASE dataflow TO shop")
    postgresql.execute(*grants, "GRANT CREATE ON SCHEMA public TO shop", database="dataflow")
    uri = f"postgresql://shop@127.1:{postgresql.port}/dataflow?sslmode=disable"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, PASSWORD)
        store = ReleaseStore(uri)
        store.load(_release())
        store.promote("20261122T1200-00000001", "test")
        store.close()
    return uri


def _release() -> ReleaseContents:
    vectors = np.eye(4, dtype=np.float32)
    manifest = ReleaseManifest(
        id="20261122T1200-00000001", created_at="2026-11-22T12:00:00Z", code_version="0",
        shop="classicmodels", user_key_type="int", item_key_type="string", dim=4, items=4, users=4, files=(),
    )  # fmt: skip
    checksum = hashlib.sha256(manifest.to_json()).hexdigest()
    items, users = ("P1", "P2", "P3", "P4"), ("1", "2", "3", "4")
    folder = f"gs://lake/releases/{manifest.id}"
    return ReleaseContents(manifest, folder, checksum, items, vectors, users, vectors, items)


@pytest.fixture(scope="module")
def submitted(
    dataflow_service: Any,
    gcs_endpoint: str,
    vector_db: str,
    secret: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Submitted:
    """Both pipelines as templates and as jobs, one whose name is taken, and one that replaces that."""
    for bucket in ("lake", "temp", "clicks"):
        requests.post(f"{gcs_endpoint}/storage/v1/b", json={"name": bucket}, timeout=30).raise_for_status()
    home = tmp_path_factory.mktemp("home")
    dataflow_service.add({"name": "taken", "clientRequestId": "another"}, "JOB_STATE_RUNNING")
    stream = ["stream", "--input=gs://clicks/events", "--output=gs://lake/out", f"--vector-db={vector_db}"]
    batch = ["batch", f"--source={vector_db}", f"--source-secret={secret}", "--output=gs://lake/training"]
    verbs = {"stream": [*stream, f"--vector-db-secret={secret}"], "batch": batch}
    endpoint = f"--dataflow_endpoint={dataflow_service.endpoint}"
    asked = {
        **{f"{name} template": (name, f"--template_location=gs://temp/templates/{name}") for name in verbs},
        **{name: (name, endpoint) for name in verbs},
        "taken": ("stream", endpoint, "--job_name=taken"),
        "update": ("stream", endpoint, "--job_name=taken", "--update"),
    }
    lines = [[*verbs[verb], *SERVICE, *WORKERS, f"--home={home}", *more] for verb, *more in asked.values()]
    done = subprocess.run(
        [sys.executable, "-c", SUBMIT],
        input=json.dumps(lines),
        capture_output=True,
        text=True,
        check=False,
        env=_environment(dataflow_service, gcs_endpoint),
    )
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(results) == len(asked), done.stderr[-3000:]
    staged = _objects(gcs_endpoint)
    _, by_stream, by_batch, updated = dataflow_service.jobs.values()
    return Submitted(
        dict(zip(asked, results, strict=True)),
        {
            **{f"{name} template": json.loads(staged[f"templates/{name}"]) for name in verbs},
            "stream": by_stream,
            "batch": by_batch,
            "update": updated,
        },
        staged,
        done.stderr,
    )


def _environment(service: Any, gcs_endpoint: str) -> dict[str, str]:
    """Of a process that submits: nothing in it leads off this machine, and no password is in it."""
    without = {
        name: value for name, value in os.environ.items() if not name.startswith(("BEAMREC", "VECTOR"))
    }
    return {
        **without,
        "GOOGLE_APPLICATION_CREDENTIALS": str(service.credentials),
        "STORAGE_EMULATOR_HOST": elsewhere(gcs_endpoint),
        "NO_GCE_CHECK": "true",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "hunter2-of-aws",
        "FLEX_TEMPLATE_PYTHON_PY_FILE": "launch.py",
    }


def _objects(gcs_endpoint: str) -> dict[str, bytes]:
    url = f"{gcs_endpoint}/storage/v1/b/temp/o"
    names = [item["name"] for item in requests.get(url, timeout=30).json()["items"]]
    return {
        name: requests.get(f"{url}/{urllib.parse.quote(name, safe='')}?alt=media", timeout=30).content
        for name in names
    }


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """A JSON value's leaves by their paths; lists of plain values are leaves."""
    if isinstance(value, dict) and value:
        for name, child in value.items():
            yield from _flat(child, f"{path}.{name}".lstrip("."))
    elif isinstance(value, list) and any(isinstance(child, dict) for child in value):
        for number, child in enumerate(value):
            yield from _flat(child, f"{path}[{number}]")
    else:
        yield path, value


def _fields(job: Mapping[str, Any]) -> dict[str, Any]:
    """A job's fields but for the display data, which says the options again."""
    return {path: value for path, value in _flat(dict(job)) if ".display_data[" not in path}


def _differences(found: Mapping[str, Any], expected: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    def same(one: Any, other: Any) -> bool:
        if isinstance(other, str) and other.startswith("~"):
            return isinstance(one, str) and re.fullmatch(other[1:], one) is not None
        return type(one) is type(other) and one == other

    paths = sorted({*found, *expected})
    pairs = {path: (found.get(path), expected.get(path)) for path in paths}
    return {path: pair for path, pair in pairs.items() if not same(*pair)}


@pytest.mark.parametrize("pipeline", ["stream", "batch"])
def test_the_job_is_field_by_field_as_it_is_written_down(submitted: Submitted, pipeline: str) -> None:
    lists = tomllib.loads(EXPECTED.read_text())
    sections = (*lists["both"].values(), *lists[pipeline].values())
    expected = {path: value for section in sections for path, value in section.items()}
    assert submitted.results[f"{pipeline} template"]["ok"], submitted.log[-3000:]
    assert _differences(_fields(submitted.jobs[f"{pipeline} template"]), expected) == {}


@pytest.mark.parametrize("pipeline", ["stream", "batch"])
def test_the_display_data_says_no_more_than_the_options(submitted: Submitted, pipeline: str) -> None:
    told = submitted.jobs[f"{pipeline} template"]["environment"]["sdkPipelineOptions"]
    assert {item["key"] for item in told["display_data"]} <= told["options"].keys()


@pytest.mark.parametrize("pipeline", ["stream", "batch"])
def test_what_the_service_is_sent_is_what_the_template_holds(submitted: Submitted, pipeline: str) -> None:
    """Beam's client marks a job that goes to `localhost` as a local one; nothing else may differ."""
    differ = _differences(_fields(submitted.jobs[pipeline]), _fields(submitted.jobs[f"{pipeline} template"]))
    ours = {path for path in differ if not re.search(r"[Ll]ocation|Prefix|pipeline(Url|ProtoHash)", path)}
    options = "environment.sdkPipelineOptions.options"
    pool = "environment.workerPools[0]"
    disk = {f"{pool}.dataDisks[0]", f"{pool}.dataDisks[0].diskType"} if pipeline == "stream" else set()
    service = {f"{pool}.kind", f"{pool}.taskrunnerSettings.parallelWorkerSettings.servicePath"}
    stamps = {"id", "currentState", "clientRequestId", f"{options}.dataflow_endpoint"}
    assert ours == disk | service | stamps
    assert submitted.jobs[pipeline]["environment"]["workerPools"][0]["kind"] == "local"


def test_the_steps_have_the_names_that_are_written_down(submitted: Submitted) -> None:
    from apache_beam.portability.api import beam_runner_api_pb2

    [graph, *_] = [d for n, d in submitted.staged.items() if "-stream-" in n and n.endswith(".pb")]
    transforms = beam_runner_api_pb2.Pipeline.FromString(graph).components.transforms.values()
    names = {step.unique_name for step in transforms if step.unique_name and not step.subtransforms}
    assert names == set(tomllib.loads(STEPS.read_text())["stream"])


def test_the_service_accepts_both(submitted: Submitted) -> None:
    stream, batch = submitted.results["stream"], submitted.results["batch"]
    assert (stream["ok"], stream["in"], stream["reconciled"]) == (True, 0, True)
    # The stand-in runs nothing, and a batch run whose files are not there afterwards has not succeeded.
    assert (batch["ok"], batch["exit_code"]) == (False, 3)
    assert "_manifest.json" in batch["error"]


def test_a_second_job_of_a_name_is_refused_and_an_update_takes_its_place(submitted: Submitted) -> None:
    assert not submitted.results["taken"]["ok"]
    assert "already active job named taken" in submitted.results["taken"]["error"]
    assert submitted.results["update"]["ok"], submitted.results["update"]
    assert submitted.jobs["update"]["replaceJobId"] == "2026-11-22_00_00_00-0"


def _packed(data: bytes) -> Iterator[bytes]:
    """What Beam packed inside: functions are pickled, compressed by bzip2 and written in base 64."""
    for match in re.finditer(rb"QlpoO[A-Za-z0-9+/]+={0,2}", data):
        text = match.group()
        yield bz2.decompress(base64.b64decode(text[: len(text) // 4 * 4]))


@pytest.mark.parametrize("forms", [PASSWORD, "hunter2-of-aws"])
def test_no_secret_is_anywhere_in_what_was_submitted(submitted: Submitted, forms: str) -> None:
    everything = {**submitted.staged, "jobs": json.dumps(dict(submitted.jobs)).encode()}
    everything["log"] = submitted.log.encode()
    graphs = [data for name, data in everything.items() if name.endswith("pipeline.pb")]
    inside = [part for data in graphs for part in _packed(data)]
    # That the search sees what is packed: the user's name travels with the URI, the password does not.
    assert any(b"shop@127.1" in part for part in inside)
    plain = forms.encode()
    spellings = {plain, urllib.parse.quote(forms, safe="").encode(), base64.b64encode(plain)}
    spellings |= {json.dumps(forms)[1:-1].encode()}
    for name, data in [*everything.items(), *(("part of a graph", part) for part in inside)]:
        assert not [spelling for spelling in spellings if spelling in data], name


def test_workers_read_the_password_where_the_job_says(submitted: Submitted, secret: str) -> None:
    """The launching process had no password either: it read the same secret."""
    graphs = [data for name, data in submitted.staged.items() if name.endswith("pipeline.pb")]
    quoted = urllib.parse.quote(secret, safe="").encode()
    assert any(quoted in part for data in graphs for part in _packed(data))
