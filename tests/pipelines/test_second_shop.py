"""A shop of another domain runs from one TOML file, on SQLite and on MariaDB, and equals the SQL join."""

import collections
import contextlib
import datetime as dt
import decimal
import json
import random
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from beamrec.pipelines.batch_training import run
from beamrec.pipelines.console import Console
from beamrec.schemas.shop import Shop

SHOP = Path(__file__).with_name("films.toml")
SCHEMA = (
    """CREATE TABLE viewers (login varchar(20), town varchar(30), plan varchar(10), joined date,
                             budget decimal(12,2))""",
    """CREATE TABLE films (film_no bigint, genre varchar(10), title varchar(60), minutes smallint,
                           released date)""",
    "CREATE TABLE stars (who varchar(20), film bigint, given decimal(2,1))",
)
JOIN = (
    "SELECT v.town, v.plan, v.joined, v.budget, f.film_no, f.genre, f.title, f.minutes, f.released, s.given, "
    "v.login FROM stars s JOIN viewers v ON v.login = s.who JOIN films f ON f.film_no = s.film "
    "WHERE s.given BETWEEN 0.5 AND 5 AND v.login <> '' "
    "AND (v.plan IS NULL OR LOWER(TRIM(v.plan)) IN ('free', 'basic', 'premium')) "
    "AND (v.joined IS NULL OR v.joined BETWEEN '1990-01-01' AND '2026-11-22') "
    "AND (v.budget IS NULL OR v.budget >= 0) AND f.genre IS NOT NULL "
    "AND (f.minutes IS NULL OR f.minutes BETWEEN 1 AND 900) "
    "AND (f.released IS NULL OR f.released >= '1888-10-14')"
)
BAD_ROWS = (
    """INSERT INTO viewers VALUES
       ('gold', 'Oslo', 'gold', '2001-01-01', 1), ('early', 'Oslo', 'free', '1989-12-31', 1),
       ('late', 'Oslo', 'free', '2026-11-23', 1), ('debt', 'Oslo', 'free', NULL, -0.01),
       ('', 'Oslo', 'free', NULL, 1), (NULL, 'Oslo', 'free', NULL, 1)""",
    """INSERT INTO films VALUES
       (900, NULL, 'no genre', 90, NULL), (901, 'war', 'no end', 901, NULL),
       (902, 'war', 'too early', 1, '1888-10-13'), (NULL, 'war', 'no key', 1, NULL)""",
    """INSERT INTO stars VALUES
       ('gold', 1, 5), ('early', 1, 5), ('late', 1, 5), ('debt', 1, 5), ('', 1, 5), (NULL, 1, 5),
       ('nobody', 1, 5), ('a/b', 900, 5), ('a/b', 901, 5), ('a/b', 902, 5), ('a/b', NULL, 5),
       ('a/b', 77777, 5), ('a/b', 1, 0.4), ('a/b', 2, 5.5), ('a/b', 3, NULL)""",
)
BROKEN = {
    "viewers": {"not_allowed": 1, "out_of_range": 3, "empty_key": 1, "null_key": 1},
    "films": {"null_value": 1, "out_of_range": 2, "null_key": 1},
    "stars": {
        "invalid_customer": 4,
        "empty_key": 1,
        "null_key": 2,
        "unknown_customer": 1,
        "invalid_product": 3,
        "unknown_product": 1,
        "rating_out_of_range": 2,
        "null_rating": 1,
    },
}
TYPES = {
    "town": pa.string(),
    "plan": pa.string(),
    "joined": pa.date32(),
    "budget": pa.decimal128(12, 2),
    "film_no": pa.int64(),
    "genre": pa.string(),
    "title": pa.string(),
    "minutes": pa.int16(),
    "released": pa.date32(),
    "given": pa.decimal128(2, 1),
    "login": pa.string(),
}
Query = Callable[[str], Sequence[tuple[Any, ...]]]


def good_rows() -> tuple[str, ...]:
    """Viewers, films and stars that keep every rule, as statements."""
    draw = random.Random(42)
    logins = ["a/b", "x=y", "ü %", "日本", "per.son@home", *(f"viewer {i}" for i in range(55))]
    viewers = [
        f"('{login}', {', '.join(draw.choice(values) for values in (TOWNS, PLANS, DAYS, BUDGETS))})"
        for login in logins
    ]
    films = [
        f"({film}, '{draw.choice(GENRES)}', 'The {draw.choice(WORDS)} {draw.choice(WORDS)}', "
        f"{draw.choice(['NULL', '1', '95', '900'])}, {draw.choice(DAYS)})"
        for film in range(1, 41)
    ]
    pairs = [(login, film) for login in logins for film in range(4, 41)]
    stars = [f"('{who}', {film}, {draw.randint(1, 10) / 2})" for who, film in draw.sample(pairs, 1_200)]
    tables = {"viewers": viewers, "films": films, "stars": stars}
    return tuple(f"INSERT INTO {name} VALUES {', '.join(rows)}" for name, rows in tables.items())  # noqa: S608


TOWNS = ("NULL", "''", "'Oslo'", "'Malmö  '", "'São Paulo'")
PLANS = ("NULL", "'free'", "' Basic '", "'PREMIUM'")
DAYS = ("NULL", "'1990-01-01'", "'2007-03-04'", "'2026-11-22'")
BUDGETS = ("NULL", "0", "0.01", "9999999999.99")
GENRES = ("noir", "war", "opera")
WORDS = ("Long", "Sleep", "Third", "River", "Night")


def on_sqlite(folder: Path) -> tuple[str, Query]:
    """The films in an SQLite file: its URI, and plain queries of it."""
    path = folder / "films.db"

    def query(sql: str) -> Sequence[tuple[Any, ...]]:
        with contextlib.closing(sqlite3.connect(path)) as connection, connection:
            return connection.execute(sql).fetchall()

    for statement in (*SCHEMA, *good_rows(), *BAD_ROWS):
        query(statement)
    return f"sqlite:///{path}", query


def on_mariadb(server: Any) -> tuple[str, Query]:
    """The films on a real server."""
    server.execute(
        "DROP DATABASE IF EXISTS films",
        "CREATE DATABASE films CHARACTER SET utf8mb4 COLLATE utf8mb4_nopad_bin",
    )
    server.execute(*SCHEMA, *good_rows(), *BAD_ROWS, database="films")
    return server.uri("films"), lambda sql: server.execute(sql, database="films")


@pytest.fixture(params=["sqlite", "mariadb"])
def films(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Query]:
    """The films in each kind of database."""
    if request.param == "sqlite":
        return on_sqlite(tmp_path)
    request.getfixturevalue("source_password")
    return on_mariadb(request.getfixturevalue("mariadb"))


def batch(source: str, output: Path, *options: str) -> dict[str, Any]:
    """`beamrec batch --shop films.toml`, in this process."""
    argv = ["--source", source, "--output", str(output), "--shop", str(SHOP), "--max-bad-fraction", "0.2"]
    return run([*argv, *options], Console(home=output / "home"))


def plain(value: Any) -> Any:
    """A value as any driver might give it: dates as text, decimals as numbers."""
    if isinstance(value, dt.date):
        return value.isoformat()
    return float(value) if isinstance(value, decimal.Decimal | int) else value


def ordered(rows: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Rows by login and film, in plain values."""
    return sorted((tuple(map(plain, row)) for row in rows), key=lambda row: (row[-1], row[4]))


@pytest.mark.parametrize("range_rows", ["50", "200000"])
def test_the_files_equal_the_sql_join_and_every_other_row_is_a_dead_letter(
    films: tuple[str, Query], tmp_path: Path, range_rows: str
) -> None:
    source, query = films
    result = batch(source, tmp_path / "out", "--range-rows", range_rows)
    table = ds.dataset(
        tmp_path / "out" / "ratings_ml_training",
        partitioning=ds.partitioning(pa.schema([("login", pa.string())]), flavor="hive"),
    ).to_table()
    assert dict(zip(table.schema.names, table.schema.types, strict=True)) == TYPES
    assert list(TYPES) == [*Shop.from_toml(SHOP).training_columns, "login"]
    expected = ordered(query(JOIN))
    assert len(expected) == 1_200
    assert ordered([tuple(row.values()) for row in table.to_pylist()]) == expected
    assert (result["in"], result["out"], result["dead_letters"]) == (1_215, 1_200, 15)
    found: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for path in (tmp_path / "out" / "errors").rglob("*.jsonl"):
        for line in path.read_text().splitlines():
            letter = json.loads(line)
            found[letter["source"]["name"]][letter["error_type"]] += 1
    assert found == BROKEN


@pytest.fixture(scope="module")
def film_home(command_line: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home whose embedded server has an active release of the films."""
    home = tmp_path_factory.mktemp("films")
    source, _ = on_sqlite(home)
    batch(source, home / "lake")
    trained = command_line("train", f"--data={home}/lake", f"--shop={SHOP}", home=home)
    assert trained["ok"], trained["stderr"]
    for verb in ("load", "promote"):
        assert command_line("release", verb, trained["release"], home=home)["ok"]
    yield home
    command_line("down", home=home)


def test_a_model_trains_on_it(film_home: Path) -> None:
    (folder,) = (film_home / "releases").glob("*/embeddings")
    items = (folder / "item_embeddings.csv").read_text().splitlines()[1:]
    assert {int(line.split(",")[0]) for line in items} == set(range(4, 41))
    users = (folder / "user_embeddings.csv").read_text()
    assert all(f"\n{login}," in users for login in ("a/b", "x=y", "日本", "viewer 7"))


def clicks(count: int, seed: int = 5) -> list[dict[str, Any]]:
    """Single clicks of a few visits at a time, ascending in time, of films that the release knows or not."""
    draw, now = random.Random(seed), dt.datetime.now(dt.UTC)
    return [
        {
            "event_id": f"c{number:04}",
            "event_time": (now - dt.timedelta(milliseconds=20 * (count - number))).isoformat(),
            "visit": None if draw.random() < 0.05 else f"v{number // 60}-{draw.randrange(5)}",
            "viewer": draw.choice(["viewer 7", "a/b", "a stranger", None]),
            "town": "Oslo",
            "film": draw.randrange(1, 46),
        }
        for number in range(count)
    ]


def check_clicks(job: Any, sent: list[dict[str, Any]]) -> None:
    """Each click is there once, served with the last clicks of its visit before it and itself."""
    length, visits = Shop.from_toml(SHOP).events.history_length, collections.defaultdict(list)
    found = [record for _, record in job.visible()]
    assert sorted(record["event_id"] for record in found) == [click["event_id"] for click in sent]
    for record in sorted(found, key=lambda record: record["event_id"]):
        before = visits[record["visit"]] if record["visit"] else []
        history = [*before[-length:], record["film"]]
        before.append(record["film"])
        known = [str(film) for film in dict.fromkeys(history) if 4 <= film <= 40]
        assert [similar["product_code"] for similar in record["similar_items"]] == known, record
        items = [item["id"] for item in record["recommended_items"]]
        assert len(items) == 5
        assert not {*items} & {*map(str, history)}
    assert max(map(len, visits.values())) > length + 1


def append(job: Any, name: str, sent: list[dict[str, Any]]) -> None:
    """A file appears whole."""
    partial = job.input / f"{name}.tmp"
    partial.write_text("".join(json.dumps(click) + "\n" for click in sent))
    partial.rename(job.input / f"{name}.jsonl")


def test_single_clicks_are_served_with_the_history_of_their_visit(
    stream_job: Callable[..., Any], film_home: Path
) -> None:
    sent = clicks(400)
    options = (f"--shop={SHOP}", "--runner=direct", "--stop-when-idle=2")
    job = stream_job(*options, home=film_home)
    append(job, "a", sent[:250])
    result = job.start().finish()
    assert result["ok"], result
    append(job, "b", sent[250:])
    result = job.start().finish()
    assert (result["in"], result["out"], result["reconciled"]) == (400, 400, True)
    check_clicks(job, sent)


@pytest.mark.faults
def test_the_history_of_a_visit_survives_a_kill_on_prism(
    stream_job: Callable[..., Any], film_home: Path
) -> None:
    sent = clicks(600, seed=6)
    job = stream_job(f"--shop={SHOP}", "--window-seconds=2", "--max-delay=1", home=film_home)
    for number in range(3):
        job.start()
        append(job, f"{number}", sent[200 * number : 200 * number + 150])
        # Once all are visible; and before any of what follows is.
        job.wait_for(200 * number + 100)
        append(job, f"{number}-rest", sent[200 * number + 150 : 200 * number + 200])
        job.kill()
    result = job.start("--stop-when-idle=4").finish()
    assert result["ok"], result
    check_clicks(job, sent)
