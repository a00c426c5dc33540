"""Fifteen classes of bad input, each case a table of `bad_input.toml`.

Every case runs the command line, most of them over a good output that stands there already. A run ends
with dead letters that are all accounted for, or with an exit code and an error that says what to do, and
then every byte of the output is as it was. Neither shows a traceback, a password or a customer's data.
"""

import dataclasses
import json
import os
import re
import shutil
import string
import tomllib
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from beamrec.io import mysql_connection, postgres
from beamrec.io.data_report import REPORT_PAGE
from beamrec.io.manifest import MANIFEST, open_training, read_manifest
from beamrec.pipelines.cli import main as cli
from beamrec.schemas.shop import CLASSICMODELS

CLASSES = (
    "types",
    "encodings",
    "NULL keys",
    "dangling references",
    "duplicate keys",
    "hostile identifiers",
    "hostile values",
    "empty tables",
    "no rights",
    "wrong password",
    "wrong certificate",
    "server down",
    "disk full",
    "read-only output",
    "broken TOML",
)
PRIVATE = "PRIVATE-4711"  # of every customer of the small shop
PASSWORDS = ("s€cret pass:word/@%", "hunter2")
HOSTILE = (
    "a,\"b\"\r\n'c' \\n \\ `${x}` %s %(y)s {z}; DROP TABLE ratings; -- <script>alert(1)</script>\u2028🚗"
)
# What a table cannot hold in a readable way.
STAND_INS = {
    "<hostile>": HOSTILE,
    "<250 x>": "x" * 250,
    "<100 kB>": "x" * 100_000,
    "<5000 digits>": "9" * 5_000,
    "<5000 brackets>": "[" * 5_000,
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One kind of bad input, and what comes of it.

    Names of fixtures in braces are replaced in `source`, `options` and `output`; `{shop}` is the database.

    Attributes:
      name: what is bad.
      changes: statements on the small shop before the run.
      on: the system that the shop is in.
      database: options of the database.
      key: type of the customers' key in the database; if it is text, the shop says so.
      source: `--source`.
      shop: what `--shop` changes in classicmodels: dotted path → value.
      shop_file: the whole file of `--shop`, in Latin-1, instead.
      options: more of the command line.
      output: `--output`; a good output stands in a folder called `published`, nothing elsewhere.
      disk: mount options of the file system of `{tmp_path}/disk`, where a good output stands.
      password: of the source in the environment; empty for none.
      exit: the exit code.
      error: what the error says, as a regular expression.
      letters: table → rule → dead letters.
      holds: (column, value) that some training row has.
    """

    name: str
    changes: Sequence[str] = ()
    on: str = "sqlite"
    database: str = ""
    key: str = "int"
    source: str = "{shop}"
    shop: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    shop_file: str | None = None
    options: Sequence[str] = ()
    output: str = "{tmp_path}/published"
    disk: str = ""
    password: str = PASSWORDS[0]
    exit: int = 0
    error: str = ""
    letters: Mapping[str, Mapping[str, int]] = dataclasses.field(default_factory=dict)
    holds: Sequence[Sequence[Any]] = ()


with open(Path(__file__).with_name("bad_input.toml"), "rb") as _file:
    TABLE = {kind: [Case(**case) for case in cases] for kind, cases in tomllib.load(_file).items()}
CASES = [pytest.param(case, id=f"{kind}: {case.name}") for kind, cases in TABLE.items() for case in cases]


def test_the_table_has_every_class() -> None:
    assert tuple(TABLE) == CLASSES
    assert min(map(len, TABLE.values())) >= 3
    assert len(CASES) >= 50
    for case in (case for cases in TABLE.values() for case in cases):
        assert case.exit in (0, 2, 3, 4)
        assert bool(case.error) == bool(case.exit)


def toml(value: Any) -> str:
    """A value as TOML on one line."""
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{key} = {toml(each)}' for key, each in value.items())} }}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml, value))}]"
    return json.dumps(value, ensure_ascii=False)


def changed_shop(changes: Mapping[str, Any]) -> str:
    """The built-in shop as TOML, with changes."""
    plain = dataclasses.asdict(
        CLASSICMODELS, dict_factory=lambda pairs: {name: value for name, value in pairs if value is not None}
    )
    shop = json.loads(json.dumps(plain))
    for path, value in changes.items():
        *way, last = path.split(".")
        where = shop
        for step in way:
            where = where[int(step) if isinstance(where, list) else step]
        where[last] = value
    return "".join(f"{key} = {toml(value)}\n" for key, value in shop.items())


def shop_option(case: Case, folder: Path) -> list[str]:
    """`--shop`, if the case has a shop of its own."""
    text = {"customers.key_type": "string"} if case.key != "int" else {}
    path = folder / "shop.toml"
    if case.shop_file is not None:
        path.write_bytes(_stood_in(case.shop_file).encode("latin-1"))
    elif case.shop or text:
        path.write_text(changed_shop({**text, **case.shop}), encoding="utf-8")
    else:
        return []
    return ["--shop", str(path)]


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="session")
def published(small_shop: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good output of the small shop, with its integer keys; tests must not change it."""
    folder = tmp_path_factory.mktemp("published")
    argv = ["batch", f"--source={small_shop(folder)}", f"--output={folder}/out", f"--home={folder}/home"]
    assert cli(argv) == 0
    return folder / "out"


@pytest.fixture
def empty_file(tmp_path: Path) -> Path:
    """A file of no bytes."""
    path = tmp_path / "empty"
    path.touch()
    return path


@pytest.fixture
def not_utf_8(tmp_path: Path) -> Path:
    """A file that is no text, and no certificate."""
    path = tmp_path / "not_utf_8"
    path.write_bytes(b"K\xf6ln")
    return path


@pytest.fixture
def odd_config(tmp_path: Path) -> Path:
    """A configuration with an option that no verb has."""
    path = tmp_path / "odd.toml"
    path.write_text('[batch]\nsauce = "sqlite:///x"\n')
    return path


@dataclasses.dataclass(frozen=True)
class Run:
    """A run of the command line and what it found."""

    code: int
    result: dict[str, Any]
    shown: str
    errors: str
    output: Path
    before: dict[str, bytes]


@pytest.fixture
def run_case(
    request: pytest.FixtureRequest,
    small_shop: Callable[..., str],
    published: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Callable[[Case], Run]:
    """Makes what a case says and runs `beamrec batch`."""
    monkeypatch.setenv("BEAMREC_SOURCE_PASSWORD", PASSWORDS[0])
    # A server that says nothing is given up after ten seconds; two show the same.
    monkeypatch.setattr(mysql_connection, "_CONNECT_SECONDS", 2)
    monkeypatch.setitem(postgres.NETWORK_OPTIONS, "connect_timeout", 2)

    def filled(text: str, shop: str = "") -> str:
        names = [name for _, name, *_ in string.Formatter().parse(text) if name]
        found = {name.partition(".")[0] for name in names} - {"shop"}
        return text.format(shop=shop, **{name: request.getfixturevalue(name) for name in found})

    def run(case: Case) -> Run:
        shop = small_shop(
            tmp_path, case.on, [_stood_in(each) for each in case.changes], case.database, case.key
        )
        output = Path(filled(case.output))
        if case.disk:
            _make_disk(request.getfixturevalue("disk"), case.disk, published)
        elif output.name == "published":
            shutil.copytree(published, output)
        before = content(output)
        monkeypatch.setenv("BEAMREC_SOURCE_PASSWORD", case.password)
        argv = ["batch", "--json", f"--source={filled(case.source, shop)}", f"--output={output}"]
        argv += [f"--home={tmp_path}/home", *shop_option(case, tmp_path), *map(filled, case.options)]
        argv += ["--max-bad-fraction=0.5"] if case.letters else []
        capfd.readouterr()
        code = cli(argv)
        printed = capfd.readouterr()
        return Run(code, json.loads(printed.out), printed.out + printed.err, printed.err, output, before)

    return run


def _stood_in(statement: str) -> str:
    for name, value in STAND_INS.items():
        statement = statement.replace(name, value.replace("'", "''"))
    return statement


def _make_disk(disk: Callable[[str], Path], options: str, published: Path) -> None:
    """Mounts a file system with a good output on it; after `=+` stands what is left beside that."""
    folder = disk("size=8m")
    shutil.copytree(published, folder / "published")
    held = os.statvfs(folder)
    used = {
        "size": (held.f_blocks - held.f_bfree) * held.f_frsize // 1024,
        "nr_inodes": held.f_files - held.f_ffree,
    }
    name, limited, left = options.partition("=+")
    disk(f"{name}={used[name] + int(left.rstrip('k'))}{'k' * left.endswith('k')}" if limited else options)


@pytest.mark.parametrize("case", CASES)
def test_bad_input(case: Case, run_case: Callable[[Case], Run], tmp_path: Path) -> None:
    run = run_case(case)
    assert run.code == case.exit, run.shown
    reveals_nothing(run, tmp_path / "home")
    if case.exit:
        assert re.search(case.error, run.result["error"]), run.result["error"]
        assert run.result["error"] in run.errors
        assert content(run.output) == run.before
    else:
        is_accounted_for(run, case)


def test_once_there_is_room_the_same_command_succeeds(
    run_case: Callable[[Case], Run], disk: Callable[[str], Path], tmp_path: Path
) -> None:
    (case,) = (case for case in TABLE["disk full"] if case.name == "full while partitions are staged")
    assert run_case(case).code == case.exit
    output = disk("size=8m") / "published"
    argv = [
        "batch",
        f"--source=sqlite:///{tmp_path}/shop.db",
        f"--output={output}",
        f"--home={tmp_path}/home",
    ]
    assert cli(argv) == 0
    assert open_training(str(output)).count_rows() == 20


def reveals_nothing(run: Run, home: Path) -> None:
    """No traceback and no secret on the terminal, and no secret in the log."""
    assert "Traceback" not in run.shown
    logs = "".join(log.read_text() for log in home.rglob("log"))
    for secret in (PRIVATE, *PASSWORDS):
        assert secret not in run.shown + logs


def is_accounted_for(run: Run, case: Case) -> None:
    """Every row is a training row, may be referred to by one, or is the dead letter expected."""
    manifest = read_manifest(str(run.output))
    assert manifest is not None
    assert run.result["reconciled"] is True
    accounts = run.result["accounts"]
    assert {table: each["dead_letters"] for table, each in accounts.items()} == {
        table: sum(case.letters.get(table, {}).values()) for table in accounts
    }
    for account in accounts.values():
        assert account["in"] == account["out"] + account["dead_letters"]
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for file in manifest.dead_letters:
        for line in (run.output / file.path).read_text(encoding="utf-8").splitlines():
            letter = json.loads(line)
            found[letter["source"]["name"]][letter["error_type"]] += 1
    assert {table: dict(rules) for table, rules in found.items()} == case.letters
    assert set(content(run.output)) == manifest.paths | {MANIFEST}
    training = open_training(str(run.output)).to_table()
    assert training.num_rows == run.result["out"]
    assert training.num_rows + found["ratings"].total() == run.result["in"]
    for column, value in case.holds:
        assert STAND_INS.get(value, value) in training.column(column).to_pylist()
    assert HOSTILE not in (run.output / REPORT_PAGE).read_text(encoding="utf-8")
