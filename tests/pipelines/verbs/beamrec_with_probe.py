"""`beamrec` with one more verb, `probe`, for tests that need a process of its own."""

import sys
from pathlib import Path

from beamrec.pipelines import cli, commands

if __name__ == "__main__":
    commands.__path__.append(str(Path(__file__).parent))
    commands.VERBS["probe"] = commands.Verb("probe", recorded=True)
    sys.exit(cli.main())
