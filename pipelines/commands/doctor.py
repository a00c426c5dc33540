"""`beamrec doctor`: checks versions, folders, connections and privileges, and says how to mend each.

With `--runner` also what that runner's preset asks of a job, given as `batch` or `stream` would be.
"""

import argparse
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

from beamrec.pipelines import checks
from beamrec.pipelines.arguments import VerbParser, check_beam_flags
from beamrec.pipelines.console import Console
from beamrec.pipelines.environment import default
from beamrec.pipelines.failures import explain
from beamrec.schemas.shop import load_shop

__all__ = ["HELP", "parser", "run"]

HELP = "checks configuration, connections, versions and privileges, and says how to mend each"


@dataclasses.dataclass(frozen=True)
class _Finding:
    """What one check found; `exit_code` 0 is good."""

    check: str
    detail: str
    exit_code: int = 0


def parser() -> argparse.ArgumentParser:
    """The options of the verb."""
    options = VerbParser(prog="beamrec doctor", description=HELP)
    options.add_argument(
        "--source", default=default("source"), help="the shop's database, if it is used [URI]"
    )
    options.add_argument("--vector-db", default=default("vector_db"), help="release and serving store [URI]")
    options.add_argument(
        "--shop", default=default("shop"), help="shop TOML; classicmodels if not given [file]"
    )
    options.add_argument("--prism_location", help="Prism binary; found or made if not given [file]")
    options.add_argument("--runner", help="check what a job on this runner needs: flink, dataflow")
    options.add_argument("--input", default=default("input"), help="of that job, if it is a stream [URI]")
    options.add_argument("--output", default=default("output"), help="of that job [URI]")
    options.add_argument("--source-secret", help="where the password of --source is [URI]")
    options.add_argument("--vector-db-secret", help="where the password of --vector-db is [URI]")
    return options


def run(argv: Sequence[str], console: Console) -> dict[str, Any]:
    """Runs every check, whatever the others found; the exit code is that of the worst."""
    options, beam_args = parser().parse_known_args(argv)
    if options.runner:
        check_beam_flags("doctor", beam_args)
    elif beam_args:
        parser().parse_args(argv)
    findings = []
    for name, check in {**_checks(options, console), **_runner_checks(options, beam_args)}.items():
        console.status(f"checking {name} …")
        finding = _find(name, check)
        console.print(f"{'failed' if finding.exit_code else 'ok':<7} {name}: {finding.detail}")
        findings.append(finding)
    worst = max(finding.exit_code for finding in findings)
    failed = [finding.check for finding in findings if finding.exit_code]
    return {
        "checks": [{**dataclasses.asdict(finding), "ok": not finding.exit_code} for finding in findings],
        "exit_code": worst,
        **(
            {"error": f"{len(failed)} of {len(findings)} checks failed: {', '.join(failed)}"}
            if failed
            else {}
        ),
    }


def _checks(options: argparse.Namespace, console: Console) -> dict[str, Callable[[], str]]:
    """Checks by name, cheap ones first."""
    found: dict[str, Callable[[], str]] = {
        "python": checks.check_python,
        "packages": checks.check_packages,
        "home": lambda: checks.check_home(console.home),
        "disk": lambda: checks.check_disk(console.home),
        "go": checks.check_go,
        "prism": lambda: checks.check_prism(options.prism_location),
        "shop": lambda: load_shop(options.shop).name,
        "vector-db": lambda: _check_vector_db(options, console),
    }
    if options.runner not in (None, "prism"):
        del found["go"], found["prism"]
    if options.source:
        found["source"] = lambda: checks.check_source(
            options.source, load_shop(options.shop), options.source_secret
        )
    return found


def _check_vector_db(options: argparse.Namespace, console: Console) -> str:
    uri = _vector_db(options, console)
    found = f"{checks.check_vector_db(uri)}; {checks.active_release(uri)}"
    if uri.startswith("embedded:"):
        found += "; the embedded server stays up until `beamrec down`"
    return found


def _vector_db(options: argparse.Namespace, console: Console) -> str:
    from beamrec.io.postgres import resolve_uri, with_secret

    return with_secret(resolve_uri(options.vector_db, console.home), options.vector_db_secret)


def _runner_checks(options: argparse.Namespace, beam_args: Sequence[str]) -> dict[str, Callable[[], str]]:
    """What the preset asks for: of a stream if there is an input or nothing that a batch run reads."""
    if not options.runner:
        return {}
    from beamrec.io.postgres import with_secret
    from beamrec.pipelines.placement import place_job
    from beamrec.runners.preset import find_preset

    places = {"--source": options.source, "--output": options.output}
    streams = bool(options.input) or not options.source
    if streams:
        vector_db = with_secret(options.vector_db, options.vector_db_secret)
        places = {"--input": options.input, "--output": options.output, "--vector-db": vector_db}
    job = place_job("stream" if streams else "batch", places, options.source_secret)
    preset = find_preset(options.runner)
    return {
        f"{options.runner}: {name}": functools.partial(check, job, beam_args)
        for name, check in preset.checks.items()
    }


def _find(name: str, check: Callable[[], str]) -> _Finding:
    try:
        return _Finding(name, check())
    except Exception as error:  # noqa: BLE001 (a check that breaks is a finding too)
        message, code = explain(error)
        return _Finding(name, message, code)
