"""`beamrec doctor`: checks versions, folders, connections and privileges, and says how to mend each."""

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from beamrec.pipelines import checks
from beamrec.pipelines.arguments import VerbParser
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
    return options


def run(argv: Sequence[str], console: Console) -> dict[str, Any]:
    """Runs every check, whatever the others found; the exit code is that of the worst."""
    options = parser().parse_args(argv)
    findings = []
    for name, check in _checks(options, console).items():
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
        "vector-db": lambda: checks.check_vector_db(_vector_db(options.vector_db, console)),
    }
    if options.source:
        found["source"] = lambda: checks.check_source(options.source, load_shop(options.shop))
    return found


def _vector_db(uri: str, console: Console) -> str:
    from beamrec.io.postgres import resolve_uri

    return resolve_uri(uri, console.home)


def _find(name: str, check: Callable[[], str]) -> _Finding:
    try:
        return _Finding(name, check())
    except Exception as error:  # noqa: BLE001 (a check that breaks is a finding too)
        message, code = explain(error)
        return _Finding(name, message, code)
