"""`dataflow`: Google Cloud Dataflow. What is started here is the service's job, not a process.

What cannot be checked without the service is not guessed: roles of the service account, quotas and routes of
the network show in the job's log.
"""

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from types import MappingProxyType
from typing import Any

from beamrec.runners.preset import Job, Preset, ReadSettings, Say, register
from beamrec.runners.remote import beam_options, check_credentials, check_passwords, check_places, setup_file
from beamrec.schemas.errors import UsageError

__all__ = ["DATAFLOW", "job_name"]

_OPTIONS = (
    # Data and models go between workers, stores and the database: nobody has to reach a worker from outside.
    "--no_use_public_ips",
    # Workers follow the backlog; without a bound so does the bill. Eight is the default of --shards, and more
    # workers than shards have nothing to write.
    "--autoscaling_algorithm=THROUGHPUT_BASED",
    "--max_num_workers=8",
    # One process a core, as Python needs it, each with TensorFlow and up to three releases: 4 GB for each.
    "--worker_machine_type=n2-standard-4",
    # The image with TensorFlow is 3 GB before it is unpacked, and releases are cached beside it.
    "--disk_size_gb=50",
    # Beam saves `__main__` on Dataflow unless told not to: with it whatever the launching process holds.
    "--no_save_main_session",
)
# Unbounded sources in Python run on Streaming Engine and the portable runner only.
_NEEDED = ("streaming_engine", "windmill_service", "runner_v2", "portable_runner", "unified_worker")
_SWITCHED_OFF = re.compile(rf"(disable|no_use|no_enable)_({'|'.join(_NEEDED)})")
_PROJECT = re.compile(r"[a-z][-a-z0-9:.]+[a-z0-9]")
_JOB_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_BUCKET = re.compile(r"gs://[a-z0-9][-_.a-z0-9]+[a-z0-9](/.*)?")
# Set in the image of the template, and nowhere else.
_LAUNCHER = "FLEX_TEMPLATE_PYTHON_PY_FILE"


def job_name(job: Job) -> str:
    """One name for each output folder: the service refuses a second active job of a name.

    `--update` finds the running job by it.
    """
    folder = job.places.get("--output", "").partition("?")[0].rstrip("/")
    digest = hashlib.sha256(folder.encode()).hexdigest()[:8]
    return f"beamrec-{job.verb}-{digest}"


def _check_project(job: Job, beam_args: Sequence[str]) -> str:
    options = beam_options(beam_args)
    project, region = options["project"], options["region"]
    if not project:
        raise UsageError(
            "--project is missing: expected the id of the Google Cloud project that runs the job"
        )
    if not _PROJECT.fullmatch(project):
        raise UsageError(f"--project {project}: expected a project's id, not its number or its title")
    if not region:
        raise UsageError("--region is missing: expected the region of the data, such as europe-west1")
    return f"{project} in {region}"


def _check_locations(job: Job, beam_args: Sequence[str]) -> str:
    options = beam_options(beam_args)
    for name in ("temp_location", "staging_location"):
        given = options[name]
        if given is None and name == "staging_location":
            continue  # Beam takes the other one
        if not given or not _BUCKET.fullmatch(given):
            got = f"got {given}" if given else "it is missing"
            raise UsageError(f"--{name}: expected gs://bucket/folder in the region of the job; {got}")
    return str(options["temp_location"])


def _check_name(job: Job, beam_args: Sequence[str]) -> str:
    name = beam_options(beam_args)["job_name"] or job_name(job)
    if not _JOB_NAME.fullmatch(name):
        raise UsageError(
            f"--job_name {name}: expected small letters, digits and dashes, a letter first; without the "
            "option the name is made from --output, so that the service refuses a second job there"
        )
    return name


def _check_code(job: Job, beam_args: Sequence[str]) -> str:
    image = beam_options(beam_args)["sdk_container_image"]
    setup = setup_file(beam_args)
    if not image and not setup:
        raise UsageError(
            "the workers would not have beamrec: give --sdk_container_image=IMAGE, built from deploy/worker "
            "(deploy/README.md), or --setup_file=…/setup.py of a checkout, which every worker then installs "
            "with TensorFlow when it starts"
        )
    return str(image or setup)


def _check_streaming(job: Job, beam_args: Sequence[str]) -> str:
    experiments = beam_options(beam_args)["experiments"] or []
    off = [name for name in experiments if _SWITCHED_OFF.match(name)]
    if off:
        raise UsageError(
            f"--experiments={off[0]}: Python pipelines need Dataflow's portable runner, and unbounded "
            "sources its Streaming Engine; take it out"
        )
    return "Streaming Engine" if job.streaming else "batch, portable runner"


def _check_update(job: Job, beam_args: Sequence[str]) -> str:
    options = beam_options(beam_args)
    if options["update"] and not job.streaming:
        raise UsageError("--update: only a streaming job can be replaced while it runs; run `batch` anew")
    if options["transform_name_mapping"] and not options["update"]:
        raise UsageError("--transform_name_mapping: only --update uses it")
    return "replaces the running job" if options["update"] else "a new job"


def _check_template(job: Job, beam_args: Sequence[str]) -> str:
    if beam_options(beam_args)["template_location"] and not os.environ.get(_LAUNCHER):
        raise UsageError(
            "--template_location: a classic template would start the same run, with the same id, twice; make "
            "the flex template of deploy/dataflow, which builds the graph at each launch"
        )
    return "launched as a flex template" if os.environ.get(_LAUNCHER) else "not a template"


def _check_account(job: Job, beam_args: Sequence[str]) -> str:
    account = beam_options(beam_args)["service_account_email"]
    if account and "@" not in account:
        raise UsageError(f"--service_account_email {account}: expected the account's e-mail address")
    return account or (
        "workers run as the project's default account, which may do far more than they need; better give "
        "--service_account_email"
    )


_CHECKS = MappingProxyType(
    {
        "project": _check_project,
        "locations": _check_locations,
        "job name": _check_name,
        "code on workers": _check_code,
        "worker account": _check_account,
        "streaming": _check_streaming,
        "update": _check_update,
        "template": _check_template,
        "credentials": check_credentials,
        "places": check_places,
        "passwords": check_passwords,
    }
)


@contextlib.contextmanager
def _start(job: Job, beam_args: Sequence[str], say: Say) -> Iterator[list[str]]:
    name = f"--job_name={job_name(job)}"
    streaming = ["--streaming"] if job.streaming else []
    # What is given twice counts as given last: the user's word.
    yield ["--runner=DataflowRunner", *_OPTIONS, name, *streaming, *beam_args]


def _template(beam_args: Sequence[str]) -> str | None:
    found: Any = beam_options(beam_args)["template_location"]
    return str(found) if found else None


def _replaces(beam_args: Sequence[str]) -> bool:
    return bool(beam_options(beam_args)["update"])


DATAFLOW = register(
    Preset(
        "dataflow",
        _start,
        # The state of a read is committed to the service at the end of each: fewer, longer reads.
        ReadSettings(poll_interval=0.2, max_read_time_seconds=1.0),
        checks=_CHECKS,
        template=_template,
        replaces=_replaces,
    )
)
