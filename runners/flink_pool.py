"""The pool of Python workers of a local Flink cluster, which serves several TaskManagers.

Each TaskManager counts its workers from one, so that two have the same id, and a request to stop one of them
may mean the other's: Beam's own pool then ended a worker in its work, and the job waited for it for ever.
Here a worker ends by itself, when the TaskManager takes back what it listens on for it (`flink_worker`).
"""

import argparse
import threading
from typing import Any

from apache_beam.portability.api import beam_fn_api_pb2
from apache_beam.runners.worker.worker_pool_main import BeamFnExternalWorkerPoolServicer

__all__ = ["main"]


class _Pool(BeamFnExternalWorkerPoolServicer):  # type: ignore[misc]
    def StopWorker(self, request: Any, context: Any) -> Any:  # noqa: N802
        return beam_fn_api_pb2.StopWorkerResponse()


def main() -> None:
    """`python -m beamrec.runners.flink_pool --port=N --executable=PROGRAM`: serves until it is killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--executable", required=True, help="what starts a worker")
    args = parser.parse_args()
    _, server = _Pool.start(use_process=True, port=args.port, container_executable=args.executable)
    try:
        threading.Event().wait()
    finally:
        server.stop(0)


if __name__ == "__main__":
    main()
