"""Dead letters: one record type for every stage of both pipelines (FORMATS, dead letters)."""

import base64
import dataclasses
import json
from typing import Any, Self

from beamrec.schemas.version import __version__

__all__ = ["DeadLetter"]


@dataclasses.dataclass(frozen=True)
class DeadLetter:
    """A record that cannot be processed, with everything needed to try it again.

    Attributes:
      stage: where it failed: `validate`, `parse`, `expired`, …; also its folder under `errors/`.
      error_type: a short stable name of the rule that it broke, such as `rating_out_of_range`.
      error_message: what was expected and what came; never a secret.
      payload: the exact bytes (a row of a table: its canonical JSON).
      source: system, shard or file, and position, as `{"system": …, "name": …, "position": …}`.
      first_seen: RFC 3339 arrival time (a bounded run: the time of the run's snapshot).
    """

    stage: str
    error_type: str
    error_message: str
    payload: bytes
    source: dict[str, Any]
    first_seen: str
    event_id: str | None = None
    attempt: int = 1
    release: str | None = None
    code_version: str = __version__

    def to_json(self) -> bytes:
        """One line of JSON without its newline."""
        record = dataclasses.asdict(self)
        record["payload"] = base64.b64encode(self.payload).decode("ascii")
        return json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode(
            "utf-8", "backslashreplace"
        )

    @classmethod
    def from_json(cls, line: bytes) -> Self:
        """The inverse of `to_json`; raises ValueError for anything else."""
        try:
            record = json.loads(line)
            record["payload"] = base64.b64decode(record["payload"], validate=True)
            letter = cls(**record)
        except (TypeError, KeyError) as error:
            raise ValueError(f"no dead letter: {error}") from None
        if not isinstance(letter.source, dict) or not isinstance(letter.attempt, int):
            raise ValueError("no dead letter: source or attempt is of another type")
        return letter
