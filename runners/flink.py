"""`flink`: Beam's Flink runner on a cluster of its own, or on the local one of `make flink-up`."""

import contextlib
import urllib.parse
import uuid
from collections.abc import Iterator, Sequence
from types import MappingProxyType

# Its flags are known to the command line once it is imported.
import beamrec.runners.flink_options  # noqa: F401
from beamrec.runners.flink_cluster import Cluster, default_folder, find_cluster
from beamrec.runners.preset import Job, Preset, ReadSettings, Say, register
from beamrec.runners.remote import beam_options, check_credentials, check_places, setup_file
from beamrec.schemas.errors import UsageError

__all__ = ["FLINK"]

_POOL = "localhost:50000"
_STREAMING = (
    "--streaming",
    # An element is a batch of up to 1,000 events. Flink's defaults, 1,000 elements or a second, would be a
    # million events or a second of latency.
    "--max_bundle_size=100",
    "--max_bundle_time_mills=100",
    # A restart repeats what came since; the sink takes it out again, and the time to catch up is bounded.
    "--checkpointing_interval=10000",
    # Checkpoints grow until the job is restarted (docs/runners.md): a slow one must not crowd out the work.
    "--min_pause_between_checkpoints=5000",
    "--checkpoint_timeout_millis=300000",
    # On a starved machine the first checkpoint expired and restarted a job that was well; without any,
    # nothing is lost.
    "--no_fail_on_checkpointing_errors",
    # What `--savepoint_path` resumes from when the JobManager is lost with its memory.
    "--externalized_checkpoints_enabled",
    "--retain_externalized_checkpoints_on_cancellation",
    # No `--shutdown_sources_after_idle_ms`: once the impulse of a read has ended, no checkpoint is completed
    # (see `flink_jobs.ends_by_itself`). A drained job is cancelled when everything has its fate.
    # A worker that was killed comes back within seconds; an outage of a store is waited out without failing.
    "--number_of_execution_retries=100",
    "--execution_retry_delay=2000",
    # The number of key groups is part of the state: fixed, so that a job can be resumed with more workers.
    "--max_parallelism=128",
)


def _endpoint(beam_args: Sequence[str]) -> str | None:
    """Where the job goes, as far as the user says it: a job server, or a JobManager by Beam's own."""
    options = beam_options(beam_args)
    master = options["flink_master"]
    return options["job_endpoint"] or (master if master != "[auto]" else None)


def _cluster(beam_args: Sequence[str]) -> Cluster | None:
    return None if _endpoint(beam_args) else find_cluster(default_folder())


def _check_cluster(job: Job, beam_args: Sequence[str]) -> str:
    endpoint, cluster = _endpoint(beam_args), _cluster(beam_args)
    if endpoint:
        return endpoint
    if cluster is None:
        raise UsageError(
            "no Flink: `make flink-up` starts one here; else give --flink_master=HOST:8081 (Beam's own job "
            "server, which needs Java) or --job_endpoint=HOST:8099 of one that runs"
        )
    return f"local cluster, {cluster.dashboard}"


def _check_code(job: Job, beam_args: Sequence[str]) -> str:
    options = beam_options(beam_args)
    kind = options["environment_type"]
    setup = setup_file(beam_args)
    if kind == "LOOPBACK" and _is_elsewhere(_endpoint(beam_args)):
        raise UsageError(
            "--environment_type=LOOPBACK: TaskManagers elsewhere cannot reach this process; run a worker "
            "pool beside each (deploy/flink/kubernetes.yaml) and give --environment_type=EXTERNAL "
            f"--environment_config={_POOL}"
        )
    if kind == "DOCKER" and not (options["environment_config"] or options["sdk_container_image"] or setup):
        raise UsageError(
            "the workers would not have beamrec: give --environment_config=IMAGE, built from deploy/worker, "
            "or --setup_file=…/setup.py"
        )
    return f"{kind or 'EXTERNAL'} workers" + (f", with {setup}" if setup else "")


def _is_elsewhere(endpoint: str | None) -> bool:
    from beamrec.schemas.hosts import is_loopback

    if endpoint is None or endpoint.startswith("["):
        return False
    address = endpoint if "//" in endpoint else f"//{endpoint}"
    return not is_loopback(urllib.parse.urlsplit(address).hostname or "localhost")


def _check_places(job: Job, beam_args: Sequence[str]) -> str:
    """On the local cluster, workers are processes of this machine."""
    if _is_elsewhere(_endpoint(beam_args)):
        return check_places(job, beam_args)
    return "this machine"


def _check_passwords(job: Job, beam_args: Sequence[str]) -> str:
    """Worker pools are the user's own processes: their environment may hold what this one's does."""
    needed = [p.variable for p in job.passwords.values() if p.variable and not p.secret]
    if needed:
        return f"the worker pools need {', '.join(f'${name}' for name in needed)} in their environment too"
    return "none from the environment"


def _check_parallelism(job: Job, beam_args: Sequence[str]) -> str:
    parallelism = beam_options(beam_args)["parallelism"]
    if parallelism == 0 or parallelism < -1:
        raise UsageError(f"--parallelism: expected at least 1, got {parallelism}")
    return f"parallelism {parallelism}" if parallelism > 0 else "the cluster's own parallelism"


_CHECKS = MappingProxyType(
    {
        "cluster": _check_cluster,
        "code on workers": _check_code,
        "parallelism": _check_parallelism,
        "credentials": check_credentials,
        "places": _check_places,
        "passwords": _check_passwords,
    }
)


@contextlib.contextmanager
def _start(job: Job, beam_args: Sequence[str], say: Say) -> Iterator[list[str]]:
    options, cluster = beam_options(beam_args), _cluster(beam_args)
    preset = list(_STREAMING) if job.streaming else []
    if not options["environment_type"]:
        pool = cluster.pool if cluster else _POOL
        preset += ["--environment_type=EXTERNAL", f"--environment_config={pool}"]
    runner = "PortableRunner"
    if cluster:
        preset += [f"--job_endpoint={cluster.job_endpoint}", f"--flink_master={cluster.master}"]
    elif not options["job_endpoint"]:
        runner = "FlinkRunner"
    if not options["job_name"]:
        # By which it is found again after a JobManager was lost.
        preset += [f"--job_name=beamrec-{job.verb}-{uuid.uuid4().hex[:12]}"]
    # Beam's default of 300 s is the deadline of the state stream too: every job would end after it.
    preset += [f"--job_server_timeout={10 * 365 * 86_400}"]
    yield [f"--runner={runner}", *preset, *beam_args]


FLINK = register(
    Preset(
        "flink",
        _start,
        # Each bundle of a read leaves some kB of state behind until the job is restarted (apache/beam#27648),
        # and the runner takes the time to the next in whole seconds. So a bundle waits for data by itself:
        # what is fused with the read need not wait for its end, files and the watermark do.
        # Of a busy source the TaskManager keeps what a bundle emits until then: not for as long.
        ReadSettings(poll_interval=0.02, max_read_time_seconds=2.0, hold_seconds=5.0),
        checks=_CHECKS,
    )
)
