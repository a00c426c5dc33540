"""A shop of another domain runs from one TOML file, on SQLite and on MariaDB, and equals the SQL join."""

import collections
import contextlib
import datetime as dt
import decimal
import json
import random
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from beamrec.io.postgres import connect, resolve_uri
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


OWN_RULE = """
import pyarrow as pa
import pyarrow.compute as pc


class LongestFirst:
    def __init__(self, column):
        self.columns = (column,)

    def __call__(self, candidates):
        minutes = candidates.column(self.columns[0]).fill_null(0)
        return pc.array_sort_indices(minutes, order="descending")
"""
RULES = """
[[rules]]
kind = "already_bought"

[[rules]]
kind = "python"
name = "longest first"
factory = "films_rules:LongestFirst"
options = { column = "minutes" }

[[rules]]
kind = "diversity"
column = "genre"
most = 2
"""


def test_a_rule_of_its_own_ranks_by_toml_alone(
    stream_job: Callable[..., Any], film_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "films_rules.py").write_text(OWN_RULE)
    (tmp_path / "rules.toml").write_text(RULES)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    path = film_home / "films.db"
    options = (f"--shop={SHOP}", f"--rules={tmp_path}/rules.toml", f"--source=sqlite:///{path}", "--explain")
    job = stream_job(*options, "--runner=direct", "--stop-when-idle=2", home=film_home)
    append(job, "a", clicks(60))
    result = job.start().finish()
    assert (result["ok"], result["out"]) == (True, 60), result
    with contextlib.closing(sqlite3.connect(path)) as connection:
        films = {str(film): (genre, minutes or 0) for film, genre, minutes in connection.execute(
            "SELECT film_no, genre, minutes FROM films")}  # fmt: skip
        starred = {(who, str(film)) for who, film in connection.execute("SELECT who, film FROM stars")}
    moved = set()
    for _, record in job.visible():
        items = [item["id"] for item in record["recommended_items"]]
        assert len(set(items)) == 5
        minutes = [films[item][1] for item in items]
        assert minutes == sorted(minutes, reverse=True)
        assert max(collections.Counter(films[item][0] for item in items).values()) <= 2
        assert not {(record["viewer"], item) for item in items} & starred
        moved |= {move["rule"] for item in record["recommended_items"] for move in item["reason"]["rules"]}
    assert {"already_bought", "longest first"} <= moved


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


class Visits:
    """Clicks of a few visits in lots, out of order within a lot and across lots, one in ten sent twice."""

    def __init__(self, seed: int) -> None:
        self._draw, self._number = random.Random(seed), 0
        self._kept: dict[str, list[tuple[str, str, int]]] = collections.defaultdict(list)
        self._last: list[dict[str, Any]] = []
        self.before: dict[str, list[int]] = {}
        self.films: dict[str, int] = {}

    def lot(self, count: int) -> list[dict[str, Any]]:
        """The next clicks, of the last minute; what each is served with is known then."""
        clicks = [self._click() for _ in range(count)]
        again = self._draw.sample([*clicks, *self._last], count // 10)
        self._last = clicks
        for click in clicks:
            self._kept[click["visit"]].append((click["event_time"], click["event_id"], click["film"]))
        length = Shop.from_toml(SHOP).events.history_length
        for click in clicks:
            now = click["event_time"], click["event_id"]
            earlier = [film for *when, film in sorted(self._kept[click["visit"]]) if tuple(when) < now]
            self.before[click["event_id"]] = earlier[-length:]
            self.films[click["event_id"]] = click["film"]
        return self._draw.sample([*clicks, *again], len(clicks) + len(again))

    def _click(self) -> dict[str, Any]:
        self._number += 1
        when = dt.datetime.now(dt.UTC) - dt.timedelta(milliseconds=self._draw.randrange(60_000))
        return {
            "event_id": f"{self._draw.getrandbits(32):08x}-{self._number}",
            "event_time": when.isoformat(timespec="microseconds"),
            "visit": f"order-{self._draw.randrange(6)}",
            "viewer": "viewer 7",
            "town": "Oslo",
            "film": self._draw.randrange(1, 46),
        }


def kept_clicks(home: Path) -> dict[str, list[int]]:
    """What the store says that each click of those visits was served with."""
    with (
        contextlib.closing(connect(resolve_uri("embedded:", home))) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute("SELECT event_id, products FROM beamrec.session_clicks WHERE session LIKE 'order-%'")
        return {event_id: [int(product) for product in products] for event_id, products in cursor}


@pytest.mark.faults
def test_clicks_out_of_order_have_the_history_of_a_plain_answer_over_kills(
    stream_job: Callable[..., Any], film_home: Path
) -> None:
    visits, draw = Visits(seed=8), random.Random(9)
    job = stream_job(f"--shop={SHOP}", "--window-seconds=2", "--max-delay=1", home=film_home).start()
    for number in range(6):
        append(job, f"{number}", visits.lot(80))
        if number in (1, 3):
            # Before, while or after it keeps the clicks; what comes next is sent when these are visible.
            time.sleep(draw.uniform(0, 3))
            job.kill()
            job.start()
        job.wait_for(len(visits.before))
    result = job.interrupt()
    assert (result["in"], result["out"], result["duplicates"]) == (6 * 88, 6 * 80, 6 * 8), result
    assert kept_clicks(film_home) == visits.before
    for _, record in job.visible():
        event_id = record["event_id"]
        served = dict.fromkeys([*visits.before[event_id], visits.films[event_id]])
        known = [str(film) for film in served if 4 <= film <= 40]
        assert [similar["product_code"] for similar in record["similar_items"]] == known, record
