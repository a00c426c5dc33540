"""What a runner preset is, and the registry of presets."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence

__all__ = ["PRESETS", "Preset", "ReadSettings", "launch", "register"]


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
      start: given the user's Beam flags, checks and starts what the runner needs and yields the flags to
        run with; what it started ends with the `with` block.
      read: how unbounded sources are polled on it.
      streams: whether it emits before its input ends.
    """

    name: str
    start: Callable[[Sequence[str]], contextlib.AbstractContextManager[list[str]]]
    read: ReadSettings = ReadSettings()
    streams: bool = True


PRESETS: dict[str, Preset] = {}


def register(preset: Preset) -> Preset:
    """Adds a preset to the registry."""
    PRESETS[preset.name] = preset
    return preset


@contextlib.contextmanager
def launch(name: str, beam_args: Sequence[str]) -> Iterator[tuple[Preset, list[str]]]:
    """Starts the preset `name` and yields it with the flags for `PipelineOptions`.

    A name that is no preset is one of Beam's own runners and is passed on as it is.
    """
    # Imported here: presets register themselves, and nobody needs them before a pipeline runs.
    import beamrec.runners.direct
    import beamrec.runners.prism  # noqa: F401

    preset = PRESETS.get(name) or Preset(name, lambda args: _as_given(name, args))
    with preset.start(beam_args) as args:
        yield preset, args


@contextlib.contextmanager
def _as_given(name: str, beam_args: Sequence[str]) -> Iterator[list[str]]:
    yield [f"--runner={name}", *beam_args]
