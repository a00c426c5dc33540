"""What Dataflow's template launcher runs: the verb that the template is of, on the preset `dataflow`.

The launcher passes the template's parameters, whose names have underscores, and options of its own, among
them `--runner=DataflowRunner` and the file to write the job to.
"""

import sys
from collections.abc import Sequence

VERBS = ("batch", "stream")


def arguments(given: Sequence[str]) -> list[str]:
    """The launcher's arguments as ours; raises SystemExit if they name no verb.

    Ours have dashes and Beam's have underscores, as everywhere.
    """
    from beamrec.pipelines.arguments import flag_name, leaf_parsers
    from beamrec.pipelines.commands import load

    verb = next((word.partition("=")[2] for word in given if word.startswith("--verb=")), "")
    if verb not in VERBS:
        sys.exit(f"the parameter `verb`: expected one of {', '.join(VERBS)}, got {verb!r}")
    [parser] = leaf_parsers(load(verb).parser()).values()
    ours = {flag_name(flag): flag for flag in parser._option_string_actions}
    rest = [word for word in given if not word.startswith(("--verb=", "--runner="))]
    named = [_spelled(word, ours) if word.startswith("--") else word for word in rest]
    return [verb, "--runner=dataflow", *named]


def _spelled(word: str, ours: dict[str, str]) -> str:
    from beamrec.pipelines.arguments import flag_name

    _, equals, value = word.partition("=")
    return f"{ours.get(flag_name(word), word.partition('=')[0])}{equals}{value}"


if __name__ == "__main__":
    from beamrec.pipelines.cli import entry

    entry(arguments(sys.argv[1:]))
