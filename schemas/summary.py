"""What a stage reports: the counts behind `--json` and the summary on a terminal."""

import dataclasses

__all__ = ["StageSummary"]


@dataclasses.dataclass(frozen=True)
class StageSummary:
    """Records of one stage by fate, and its wall time.

    `records_in` is counted at the source, the fates at the sink; no figure is derived from the others.
    """

    records_in: int
    out: int
    dead_letters: int = 0
    duplicates: int = 0
    expired: int = 0
    seconds: float = 0.0

    @property
    def reconciled(self) -> bool:
        """Whether every record has exactly one fate."""
        return self.records_in == self.out + self.dead_letters + self.duplicates + self.expired

    def to_dict(self) -> dict[str, int | float]:
        """The keys of the `--json` object."""
        return {
            "in": self.records_in,
            "out": self.out,
            "dead_letters": self.dead_letters,
            "duplicates": self.duplicates,
            "expired": self.expired,
            "seconds": round(self.seconds, 3),
        }
