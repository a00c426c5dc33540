"""The manifest for Flink's operator: what it names exists, and its parts fit together."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from beamrec.pipelines.arguments import leaf_parsers
from beamrec.pipelines.commands import load
from beamrec.pipelines.environment import PASSWORDS
from beamrec.pipelines.placement import place_job
from beamrec.runners.preset import check_runner

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
MANIFEST = DEPLOY / "flink" / "kubernetes.yaml"


@pytest.fixture(scope="module")
def objects() -> dict[str, dict[str, Any]]:
    """The manifest's objects, by their kinds and names."""
    listed = list(yaml.safe_load_all(MANIFEST.read_text()))
    return {f"{entry['kind']}/{entry['metadata']['name']}": entry for entry in listed}


def command(objects: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The command line's container."""
    [container] = objects["Job/beamrec-stream"]["spec"]["template"]["spec"]["containers"]
    return container


def pool(objects: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The worker pool beside each TaskManager."""
    template = objects["FlinkDeployment/beamrec"]["spec"]["taskManager"]["podTemplate"]
    [container] = [c for c in template["spec"]["containers"] if c["name"] == "worker-pool"]
    return container


def filled(argument: str) -> str:
    """With an example in place of each <…>."""
    return re.sub(r"<[a-z]+>", "example", argument)


def test_the_command_line_takes_the_arguments_and_the_preset_passes_them(objects: dict[str, Any]) -> None:
    verb, *argv = map(filled, command(objects)["args"])
    [parser] = leaf_parsers(load(verb).parser()).values()
    values = vars(parser.parse_args([word for word in argv if word != "--json"]))
    assert values["runner"] == "flink"
    places = {f"--{name}": values[name.replace("-", "_")] for name in ("input", "output", "vector-db")}
    beam = [word for word in argv if re.match(r"--(job_|artifact_|environment_|parallelism)", word)]
    check_runner("flink", place_job("stream", places), beam)


def test_the_workers_are_found_where_the_pool_listens(objects: dict[str, Any]) -> None:
    [port] = [entry["containerPort"] for entry in pool(objects)["ports"]]
    assert f"--environment_config=localhost:{port}" in command(objects)["args"]
    # What Beam's boot program calls it, and the port that it then listens on.
    assert pool(objects)["args"] == ["--worker_pool"]
    assert port == 50000


def test_the_job_server_is_where_the_job_goes_and_finds_the_cluster(objects: dict[str, Any]) -> None:
    [server] = objects["Deployment/beamrec-job-server"]["spec"]["template"]["spec"]["containers"]
    given = dict(argument.removeprefix("--").split("=", 1) for argument in server["args"])
    ports = {entry["name"]: entry["port"] for entry in objects["Service/beamrec-job-server"]["spec"]["ports"]}
    assert f"--job_endpoint=beamrec-job-server:{given['job-port']}" in command(objects)["args"]
    assert f"--artifact_endpoint=beamrec-job-server:{given['artifact-port']}" in command(objects)["args"]
    assert ports == {"jobs": int(given["job-port"]), "artifacts": int(given["artifact-port"])}
    assert given["flink-master"] == "beamrec-rest:8081", "the operator's service of the cluster `beamrec`"
    labels = objects["Deployment/beamrec-job-server"]["spec"]["template"]["metadata"]["labels"]
    assert objects["Service/beamrec-job-server"]["spec"]["selector"] == labels


def test_state_and_staged_files_are_on_the_volume_that_all_see(objects: dict[str, Any]) -> None:
    settings = objects["FlinkDeployment/beamrec"]["spec"]["flinkConfiguration"]
    kept = [value for name, value in settings.items() if name.endswith((".dir", "storageDir"))]
    assert len(kept) == 3
    assert all(value.startswith("file:///flink/") for value in kept)
    assert all(isinstance(value, str) for value in settings.values()), "the operator takes text only"
    mounts = [mount["mountPath"] for mount in pool(objects)["volumeMounts"]]
    assert mounts == ["/flink"]


def test_versions_are_those_of_the_project(objects: dict[str, Any]) -> None:
    deployment = objects["FlinkDeployment/beamrec"]["spec"]
    assert (deployment["image"], deployment["flinkVersion"]) == ("flink:1.19", "v1_19")
    [server] = objects["Deployment/beamrec-job-server"]["spec"]["template"]["spec"]["containers"]
    requirements = (DEPLOY.parent / "requirements.in").read_text()
    [beam] = re.findall(r"^apache-beam\[.*\]==(.+)$", requirements, re.MULTILINE)
    assert server["image"] == f"apache/beam_flink1.19_job_server:{beam}"


def test_passwords_come_from_a_secret_on_both_sides_and_nobody_is_root(objects: dict[str, Any]) -> None:
    for container in (command(objects), pool(objects)):
        [variable] = container["env"]
        assert variable["name"] in PASSWORDS["vector_db"]
        assert variable["valueFrom"]["secretKeyRef"]["name"] == "beamrec"
        assert container["securityContext"] == {"runAsNonRoot": True, "allowPrivilegeEscalation": False}
