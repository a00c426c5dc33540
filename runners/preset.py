"""What a runner preset is, and the registry of presets."""

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence

from beamrec.schemas.errors import UsageError

__all__ = [
    "PRESETS",
    "Check",
    "Job",
    "Password",
    "Preset",
    "ReadSettings",
    "Say",
    "check_runner",
    "find_preset",
    "launch",
    "register",
]


Say = Callable[[str], None]
_LOGGER = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class ReadSettings:
    """How an unbounded source is polled; Beam's defaults (1 s, 10 s) would cost a second of p99.

    Attributes:
      poll_interval: seconds until a source without data is asked again.
      max_read_time_seconds: seconds after which a busy source ends its bundle.
      hold_seconds: how long a bundle waits for data, asking each `poll_interval`, where ending one is dear.
    """

    poll_interval: float = 0.05
    max_read_time_seconds: float = 0.1
    hold_seconds: float = 0.0

    @property
    def parts(self) -> tuple[float, float, float]:
        """As `io.events.ReadEvents` takes them."""
        return self.poll_interval, self.max_read_time_seconds, self.hold_seconds


@dataclasses.dataclass(frozen=True)
class Password:
    """Where the password of a place comes from; the password itself is nowhere in it.

    Attributes:
      secret: URI of a secret, if one was given.
      variable: the environment variable of this process that holds it, if one does.
      remedy: the option that takes a secret's URI.
    """

    secret: str | None
    variable: str | None
    remedy: str


@dataclasses.dataclass(frozen=True)
class Job:
    """What a preset is told of a pipeline.

    Attributes:
      verb: `batch` or `stream`.
      places: what workers must reach, by the option that named it: URIs and paths.
      passwords: of those places that take one, by the same options.
    """

    verb: str
    places: Mapping[str, str] = dataclasses.field(default_factory=dict)
    passwords: Mapping[str, Password] = dataclasses.field(default_factory=dict)

    @property
    def streaming(self) -> bool:
        """Whether the input has no end."""
        return self.verb == "stream"


Check = Callable[[Job, Sequence[str]], str]
"""Given the job and the user's Beam flags, says what was found; raises BeamrecError with the remedy."""


def _runs_here(beam_args: Sequence[str]) -> str | None:
    return None


@dataclasses.dataclass(frozen=True)
class Preset:
    """A runner by our name.

    Attributes:
      name: value of `--runner`.
      start: given the job, the user's Beam flags and somebody to tell what takes long, starts what the runner
        needs and yields the flags to run with; what it started ends with the `with` block.
      read: how unbounded sources are polled on it.
      streams: whether it emits before its input ends.
      checks: by name, what must hold before anything is started; cheap ones first.
      template: given Beam flags, the file that the job is written to instead of being run, if there is one.
      replaces: given Beam flags, whether the job takes the place of one that is still running.
      is_own: whether its process is started for the job and ends with it, so that nobody else's work is lost
        when it is started again.
    """

    name: str
    start: Callable[[Job, Sequence[str], Say], contextlib.AbstractContextManager[list[str]]]
    read: ReadSettings = ReadSettings()
    streams: bool = True
    checks: Mapping[str, Check] = dataclasses.field(default_factory=dict)
    template: Callable[[Sequence[str]], str | None] = _runs_here
    replaces: Callable[[Sequence[str]], bool] = lambda beam_args: False
    is_own: bool = False


PRESETS: dict[str, Preset] = {}


def register(preset: Preset) -> Preset:
    """Adds a preset to the registry."""
    PRESETS[preset.name] = preset
    return preset


def find_preset(name: str) -> Preset:
    """The preset `name`; a name that is none is one of Beam's own runners, which is passed on as it is."""
    # Imported here: presets register themselves, and nobody needs them before a pipeline runs.
    import beamrec.runners.dataflow
    import beamrec.runners.direct
    import beamrec.runners.flink
    import beamrec.runners.prism  # noqa: F401

    return PRESETS.get(name) or Preset(name, lambda job, args, say: _as_given(name, args))


def check_runner(name: str, job: Job, beam_args: Sequence[str]) -> None:
    """Runs the checks of a preset, before anything is started or written.

    Raises:
      BeamrecError: of the first check that fails, with the remedy.
    """
    for check in find_preset(name).checks.values():
        check(job, beam_args)


@contextlib.contextmanager
def launch(
    name: str, beam_args: Sequence[str], say: Say = _LOGGER.warning, job: Job | None = None
) -> Iterator[tuple[Preset, list[str]]]:
    """Starts the preset `name` and yields it with the flags for `PipelineOptions`.

    A name that is no preset is one of Beam's own runners and is passed on as it is.
    """
    preset = find_preset(name)
    with preset.start(job or Job("stream"), beam_args, say) as args:
        yield preset, args


@contextlib.contextmanager
def _as_given(name: str, beam_args: Sequence[str]) -> Iterator[list[str]]:
    from apache_beam.runners.runner import create_runner

    try:
        create_runner(name)
    except (ValueError, ImportError, AttributeError) as error:
        known = ", ".join(sorted(PRESETS))
        raise UsageError(f"--runner {name}: expected {known} or one of Beam's own runners; {error}") from None
    yield [f"--runner={name}", *beam_args]
