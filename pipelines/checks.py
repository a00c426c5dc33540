"""The checks behind `beamrec doctor`: each returns what it found, or raises what is wrong and the mend."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from beamrec.schemas.errors import UnavailableError, UsageError
from beamrec.schemas.shop import Shop

__all__ = [
    "active_release",
    "check_disk",
    "check_go",
    "check_home",
    "check_packages",
    "check_prism",
    "check_python",
    "check_source",
    "check_vector_db",
]

_PYTHON = (3, 11)
_MIN_FREE_BYTES = 2 * 10**9
_LOCK = Path(__file__).resolve().parents[1] / "requirements.lock"


def check_python() -> str:
    """Python is the version that the locked packages are for."""
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] != _PYTHON:
        wanted = ".".join(map(str, _PYTHON))
        raise UsageError(f"expected Python {wanted}, got {version}; make a venv with python{wanted}")
    return f"{version} ({sys.executable})"


def check_packages(lock: Path = _LOCK) -> str:
    """Installed packages are those of the lock; without a lock (a wheel), those that the project requires."""
    if lock.is_file():
        wanted, origin = list(_locked(lock)), lock.name
    else:
        wanted, origin = metadata.requires("beamrec") or [], "what beamrec requires"
    wrong = [problem for line in wanted if (problem := _mismatch(line))]
    if wrong:
        rest = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise UsageError(f"{'; '.join(wrong[:5])}{rest}: not as {origin} says; run `make install`")
    return f"{len(wanted)} packages as {origin} says"


def _locked(lock: Path) -> Iterator[str]:
    for line in lock.read_text(encoding="utf-8").splitlines():
        if re.match(r"[A-Za-z0-9]", line):
            yield line.rstrip("\\ ")


def _mismatch(line: str) -> str | None:
    from packaging.requirements import Requirement

    wanted = Requirement(line)
    if wanted.marker and not wanted.marker.evaluate({"extra": ""}):
        return None
    try:
        version = metadata.version(wanted.name)
    except metadata.PackageNotFoundError:
        return f"{wanted.name} is missing"
    if wanted.specifier.contains(version, prereleases=True):
        return None
    return f"{wanted.name} {version} is not {wanted.specifier}"


def check_home(home: Path) -> str:
    """The home can be written."""
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=home):
            return str(home)
    except OSError as error:
        raise UsageError(f"{home}: cannot be written ({error.strerror}); give another --home") from None


def check_disk(home: Path, needed_bytes: int = _MIN_FREE_BYTES) -> str:
    """The disk of the home has room for the embedded server, releases and caches."""
    existing = next(path for path in (home, *home.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < needed_bytes:
        raise UsageError(
            f"{existing}: {free / 1e9:.1f} GB free, expected at least {needed_bytes / 1e9:.1f} GB; make room "
            "or give a --home on another disk"
        )
    return f"{free / 1e9:.1f} GB free"


def check_go() -> str:
    """Whether Go is there; never a failure, as only building Prism needs it."""
    go = shutil.which("go")
    if not go:
        return "not found; needed only where Prism has to be built (https://go.dev/doc/install)"
    answer = subprocess.run([go, "version"], check=False, capture_output=True, text=True)  # noqa: S603
    return answer.stdout.strip() or f"{go} does not answer"


def check_prism(location: str | None) -> str:
    """Prism, which streaming runs on, is there or can be had."""
    from beamrec.runners.prism import find_prism

    path = find_prism(location)
    if not os.access(path, os.X_OK):
        raise UsageError(f"{path}: not executable; `chmod +x` it")
    return path


def check_source(uri: str, shop: Shop, secret: str | None = None) -> str:
    """The shop's database answers, has the tables and columns of the shop, and lets us read them."""
    from beamrec.io.arrow_types import check_key_type, refuse_unknown
    from beamrec.io.registry import backend

    module = backend("tables", uri, "--source")
    with module.connect(uri, secret) as connection:
        for table, columns in _wanted(shop):
            types = {name.lower(): kind for name, kind in module.column_types(connection, table).items()}
            missing = [column for column in columns if column.lower() not in types]
            if missing:
                raise UsageError(
                    f"--source: table {table}: expected the column {missing[0]}, found "
                    f"{', '.join(types)}; name the right one in --shop"
                )
            refuse_unknown({column: types[column.lower()] for column in columns}, table)
            _read_one(module, connection, table, [name for name in columns if name.lower() in types])
        for entity in (shop.customers, shop.products):
            types = {n.lower(): t for n, t in module.column_types(connection, entity.name).items()}
            check_key_type(types[entity.key.lower()], entity.key_type, f"{entity.name}.{entity.key}")
    return f"{shop.customers.name}, {shop.products.name} and {shop.ratings.name} can be read"


def _wanted(shop: Shop) -> list[tuple[str, Sequence[str]]]:
    ratings = shop.ratings
    return [
        *((table.name, (table.key, *table.columns)) for table in (shop.customers, shop.products)),
        (ratings.name, ratings.columns),
    ]


def _read_one(module: Any, connection: Any, table: str, columns: Sequence[str]) -> None:
    """Reads one row: a privilege may be granted for some columns only."""
    names = ", ".join(module.quote(column) for column in columns)
    sql = f"SELECT {names} FROM {module.quote(table)} LIMIT 1"  # noqa: S608 (quoted identifiers)
    for _ in module.fetch(connection, sql):
        pass


def check_vector_db(uri: str) -> str:
    """The vector store answers (an embedded one is started), has pgvector, and lets us make our tables."""
    from beamrec.io.postgres import Database

    database = Database(uri)
    try:
        return database.transaction(_check_privileges)
    finally:
        database.close()


def active_release(uri: str) -> str:
    """Which release serves; never a failure, as a new set-up has none."""
    from beamrec.io.pgvector import ReleaseStore

    active = ReleaseStore(uri).active()
    return "no release is active" if active is None else f"release {active.id} is active"


_PRIVILEGES = """
SELECT current_setting('server_version'), current_user, current_database(),
  (SELECT extversion FROM pg_extension WHERE extname = 'vector'),
  (SELECT default_version FROM pg_available_extensions WHERE name = 'vector'),
  has_database_privilege(current_database(), 'CREATE'),
  (SELECT has_schema_privilege(oid, 'CREATE') FROM pg_namespace WHERE nspname = 'beamrec'),
  has_schema_privilege('public', 'CREATE'),
  (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)
"""


def _check_privileges(cursor: Any) -> str:
    cursor.execute(_PRIVILEGES)
    server, user, database, installed, offered, create, ours, public, superuser = cursor.fetchone()
    if not installed and not offered:
        raise UnavailableError(
            "--vector-db: pgvector is not installed on that server; install the package of its PostgreSQL "
            "version (Debian: postgresql-NN-pgvector)"
        )
    if not installed and not superuser:
        raise UnavailableError(
            f"--vector-db: the extension `vector` is missing in {database}; an administrator must run "
            "CREATE EXTENSION vector there"
        )
    if not (create if ours is None else ours):
        what = f"CREATE ON DATABASE {database}" if ours is None else "USAGE, CREATE ON SCHEMA beamrec"
        raise UnavailableError(f"--vector-db: {user} may not make tables; run GRANT {what} TO {user}")
    if not public:
        raise UnavailableError(
            f"--vector-db: {user} may not make the views item_emb and user_emb; run "
            f"GRANT CREATE ON SCHEMA public TO {user}"
        )
    vector = installed or f"{offered}, to be installed at the first load"
    return f"PostgreSQL {server}, pgvector {vector}, as {user}"
