"""The options that all peers take, and SIGTERM."""

import argparse
import signal
from pathlib import Path
from types import FrameType

__all__ = ["Stop", "parser"]


def parser(description: str) -> argparse.ArgumentParser:
    """A parser with the options of every peer."""
    made = argparse.ArgumentParser(description=description)
    add = made.add_argument
    add("--bootstrap", required=True, help="a broker, HOST:PORT")
    add("--topic", required=True)
    add("--vector-db", required=True, help="postgresql://…; password in BEAMREC_VECTOR_DB_PASSWORD")
    add("--output", required=True, type=Path, help="folder of the hourly files")
    add("--shop", type=Path, help="shop TOML; classicmodels if not given")
    add("--items", type=int, default=5, help="items a list")
    add("--log", action="store_true", help="also write each event to beamrec.recommendations_log")
    return made


class Stop:
    """Whether SIGTERM or SIGINT has come; what is in hand is still finished."""

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
