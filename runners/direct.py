"""`direct`: Beam's FnApi runner, in this process.

By its full name, since `DirectRunner` is a switch between three engines that changes its mind by what a
pipeline contains. It emits everything at the end of its input: right for bounded runs and tests.
"""

import contextlib
from collections.abc import Iterator, Sequence

from beamrec.runners.preset import Job, Preset, Say, register

__all__ = ["DIRECT"]

_FN_API_RUNNER = "apache_beam.runners.portability.fn_api_runner.fn_runner.FnApiRunner"


@contextlib.contextmanager
def _start(job: Job, beam_args: Sequence[str], say: Say) -> Iterator[list[str]]:
    yield [f"--runner={_FN_API_RUNNER}", *beam_args]


DIRECT = register(Preset("direct", _start, streams=False))
