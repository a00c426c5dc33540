"""`beamrec stream` with other read settings than the preset's: `stream.py POLL,READ,HOLD OPTION…` [s]."""

import dataclasses
import sys

from beamrec.pipelines.cli import entry
from beamrec.runners.flink import FLINK
from beamrec.runners.preset import ReadSettings, register


def main() -> None:
    """Runs the verb with the preset `flink` changed."""
    register(dataclasses.replace(FLINK, read=ReadSettings(*map(float, sys.argv[1].split(",")))))
    entry(["stream", *sys.argv[2:]])


if __name__ == "__main__":
    main()
