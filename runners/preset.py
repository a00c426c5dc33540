"""What a runner preset is, and the registry of presets."""

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence

from beamrec.schemas.errors import UsageError

__all__ = ["PRESETS", "Preset", "ReadSettings", "Say", "launch", "register"]


Say = Callable[[str], None]
_LOGGER = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class ReadSettings:
    """How an unbounded source is polled; Beam's defaults (1 s, 10 s) would cost a second of p99.

    Attributes:
      poll_interval: seconds until a source without data is asked again.
      max_read_time_seconds: seconds after which a busy source ends its bundle.
    """

    poll_interval: float = 0.05
    max_read_time_seconds: float = 0.1


@dataclasses.dataclass(frozen=True)
class Preset:
    """A runner by our name.

    Attributes:
      name: value of `--runner`.
      start: given the user's Beam flags and somebody to tell what takes long, checks and starts what the
        runner needs and yields the flags to run with; what it started ends with the `with` block.
      read: how unbounded sources are polled on it.
      streams: whether it emits before its input ends.
    """

    name: str
    start: Callable[[Sequence[str], Say], contextlib.AbstractContextManager[list[str]]]
    read: ReadSettings = ReadSettings()
    streams: bool = True


PRESETS: dict[str, Preset] = {}


def register(preset: Preset) -> Preset:
    """Adds a preset to the registry."""
    PRESETS[preset.name] = preset
    return preset


@contextlib.contextmanager
def launch(
    name: str, beam_args: Sequence[str], say: Say = _LOGGER.warning
) -> Iterator[tuple[Preset, list[str]]]:
    """Starts the preset `name` and yields it with the flags for `PipelineOptions`.

    A name that is no preset is one of Beam's own runners and is passed on as it is.
    """
    # Imported here: presets register themselves, and nobody needs them before a pipeline runs.
    import beamrec.runners.direct
    import beamrec.runners.prism  # noqa: F401

    preset = PRESETS.get(name) or Preset(name, lambda args, _: _as_given(name, args))
    with preset.start(beam_args, say) as args:
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
