"""Jobs of a Flink cluster through its REST interface: savepoints, stops, checkpoints.

    python -m beamrec.runners.flink_jobs list | checkpoint JOB | savepoint JOB | stop JOB | cancel JOB

in front of which `--url=http://jobmanager:8081` names a cluster that is not the local one. What `checkpoint`
and `savepoint` print is for `--savepoint_path` of `beamrec stream`.
"""

import argparse
import json
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

from beamrec.runners.flink_cluster import default_folder, find_cluster
from beamrec.schemas.errors import UnavailableError, UsageError

__all__ = ["FlinkJobs", "end_lost_jobs", "ends_by_itself"]

_ENDED = ("CANCELED", "FAILED", "FINISHED")


class FlinkJobs:
    """What a JobManager says and does.

    Args:
      url: of its REST interface.
      patience_seconds: how long a savepoint or a stop may take, and a JobManager may be away.

    Raises:
      UnavailableError: from each method, if it does not answer in that time, or refuses.
    """

    def __init__(self, url: str, patience_seconds: float = 300.0) -> None:
        self.url = url.rstrip("/")
        self._patience = patience_seconds

    def states(self) -> dict[str, str]:
        """State of each job that the cluster knows, by its id."""
        return {job["id"]: job["status"] for job in self._ask("/jobs")["jobs"]}

    def named(self, name: str) -> list[str]:
        """Ids of the jobs of a name that have not ended."""
        jobs = self._ask("/jobs/overview")["jobs"]
        return [job["jid"] for job in jobs if job["name"] == name and job["state"] not in _ENDED]

    def running(self) -> list[str]:
        """Ids of the jobs that have not ended."""
        return [job for job, state in self.states().items() if state not in _ENDED]

    def checkpoints(self, job: str) -> dict[str, Any]:
        """Flink's own statistics: `counts`, `latest`, `history` (bytes, milliseconds)."""
        found: dict[str, Any] = self._ask(f"/jobs/{job}/checkpoints")
        return found

    def last_checkpoint(self, job: str) -> str | None:
        """URI of the newest checkpoint that was completed, which outlives the job."""
        completed = self.checkpoints(job)["latest"]["completed"]
        return str(completed["external_path"]) if completed else None

    def savepoint(self, job: str, target: str | None = None) -> str:
        """Writes a savepoint below `target` (the cluster's folder if None); the job goes on. Its URI."""
        request = {"target-directory": target, "cancel-job": False}
        return self._triggered(job, self._ask(f"/jobs/{job}/savepoints", request)["request-id"])

    def cancel(self, job: str) -> None:
        """Ends a job at once, and waits until it has: nothing is lost, the next goes on from the ledger."""
        self._ask(f"/jobs/{job}", method="PATCH")
        self._wait(lambda: self.states().get(job, "CANCELED") in _ENDED, f"job {job} does not end")

    def stop(self, job: str, target: str | None = None) -> str:
        """Writes a savepoint and ends the job; the savepoint's URI. To drain it, see `beamrec stream`."""
        path = self.savepoint(job, target)
        self.cancel(job)
        return path

    def _triggered(self, job: str, request: str) -> str:
        answers: list[dict[str, Any]] = []

        def done() -> bool:
            answers[:] = [self._ask(f"/jobs/{job}/savepoints/{request}")]
            return bool(answers[0]["status"]["id"] == "COMPLETED")

        self._wait(done, f"the savepoint of job {job} is not completed")
        operation = answers[0]["operation"]
        if "location" not in operation:
            said = str(operation.get("failure-cause", {}).get("stack-trace", operation))
            raise UnavailableError(f"no savepoint of job {job}: {said.splitlines()[0][:500]}")
        return str(operation["location"])

    def _wait(self, condition: Any, what: str) -> None:
        deadline = time.monotonic() + self._patience
        while not condition():
            if time.monotonic() > deadline:
                raise UnavailableError(f"{what} after {self._patience:.0f} s: see {self.url}")
            time.sleep(0.2)

    def _ask(self, path: str, body: object = None, method: str | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        deadline = time.monotonic() + self._patience
        while True:
            request = urllib.request.Request(  # noqa: S310
                f"{self.url}{path}", data, {"Content-Type": "application/json"}, method=method
            )
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
                    return json.loads(answer.read() or b"{}")
            except urllib.error.HTTPError as error:
                said = error.read().decode(errors="replace")[:500]
                # A JobManager that has just begun, or has not yet the leadership, says 503; of a job that
                # was submitted just now 500.
                busy = error.code == 503 or "while the JobManager is initializing" in said
                if not busy or time.monotonic() > deadline:
                    raise UnavailableError(f"{self.url}{path}: {error.code}: {said}") from None
            except OSError as error:
                if time.monotonic() > deadline:
                    raise UnavailableError(f"no JobManager at {self.url}: {error}") from None
            time.sleep(0.5)


def ends_by_itself(beam_options: Mapping[str, Any]) -> bool:
    """Whether a job ends when its sources have: on Flink not one that takes checkpoints.

    There the impulse that begins each read stays. Were it to end (`--shutdown_sources_after_idle_ms`), Beam's
    Flink runner would hold the read's task in its `finish` until nothing comes any more, and no checkpoint or
    savepoint would ever be completed.
    """
    given = beam_options.get
    return not given("checkpointing_interval") or given("shutdown_sources_after_idle_ms") is not None


def end_lost_jobs(beam_options: Mapping[str, Any]) -> bool:
    """After a JobManager was lost, and the job with it: waits for the next one, where it is known.

    With Flink's high availability that one finds the job again, and the job server does not: it is cancelled,
    since it will be submitted anew. Whether there is a JobManager, and nothing left of the job.
    """
    master, name = beam_options.get("flink_master"), beam_options.get("job_name")
    if not master or master.startswith("[") or not name:
        return False
    jobs = FlinkJobs(master if "//" in master else f"http://{master}")
    try:
        for job in jobs.named(name):
            jobs.cancel(job)
    except UnavailableError:
        return False
    return True


def _local() -> str:
    cluster = find_cluster(default_folder())
    if cluster is None:
        raise UsageError("no local Flink cluster: give --url=http://JOBMANAGER:8081")
    return cluster.dashboard


def main(argv: Sequence[str] | None = None) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m beamrec.runners.flink_jobs")
    parser.add_argument("--url", help="of a JobManager; that of the local cluster if not given")
    parser.add_argument("verb", choices=["list", "checkpoint", "savepoint", "stop", "cancel"])
    parser.add_argument("job", nargs="?", help="id; the only one that runs if not given")
    parser.add_argument("--target", help="URI of the folder of savepoints; the cluster's own if not given")
    args = parser.parse_args(argv)
    jobs = FlinkJobs(args.url or _local())
    if args.verb == "list":
        for job, state in jobs.states().items():
            print(job, state)
        return 0
    job = args.job or _only(jobs)
    if args.verb == "checkpoint":
        print(jobs.last_checkpoint(job) or "none yet")
    elif args.verb == "cancel":
        jobs.cancel(job)
    else:
        print(jobs.stop(job, args.target) if args.verb == "stop" else jobs.savepoint(job, args.target))
    return 0


def _only(jobs: FlinkJobs) -> str:
    running = jobs.running()
    if len(running) != 1:
        raise UsageError(f"{len(running)} jobs run there: name one ({', '.join(running) or 'none'})")
    return running[0]


if __name__ == "__main__":
    sys.exit(main())
