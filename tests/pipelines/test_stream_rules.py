"""Business rules and reasons, end to end: from a shop's own database into files and serving table."""

import collections
import contextlib
import json
import sqlite3
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from beamrec.io.ledger import fix_settings
from beamrec.io.postgres import connect
from beamrec.io.store import open_store
from beamrec.pipelines.stream_options import StreamConfig
from beamrec.pipelines.stream_rules import load_rules
from beamrec.schemas.errors import UsageError
from beamrec.schemas.rules import RuleSet
from beamrec.schemas.shop import CLASSICMODELS

ITEMS = 5
RULES = """
refresh_seconds = 0.5
candidates = 6

[[rules]]
kind = "in_stock"
column = "quantityInStock"

[[rules]]
kind = "diversity"
column = "productLine"
most = 2

[[rules]]
kind = "already_bought"
"""


class Shop:
    """A copy of the shop's database, with stock and purchases as tests say."""

    def __init__(self, source: str, folder: Path) -> None:
        self.path = folder / "shop.db"
        self.path.write_bytes(Path(source.removeprefix("sqlite:///")).read_bytes())
        self.uri = f"sqlite:///{self.path}"
        self.execute("UPDATE products SET quantityInStock = 100")

    def execute(self, statement: str, *values: Any) -> list[Any]:
        with contextlib.closing(sqlite3.connect(self.path, isolation_level=None)) as connection:
            return connection.execute(statement, values).fetchall()

    @property
    def lines(self) -> dict[str, str]:
        return dict(self.execute("SELECT productCode, productLine FROM products"))

    def bought(self, customer: int) -> set[str]:
        found = self.execute("SELECT productCode FROM ratings WHERE customerNumber = ?", customer)
        return {product for (product,) in found}

    def customer(self, most: int) -> int:
        """One who has bought something, and no more than that."""
        found = self.execute(
            "SELECT customerNumber FROM ratings GROUP BY 1 HAVING COUNT(*) BETWEEN 1 AND ? ORDER BY 1", most
        )
        return int(found[0][0])


@pytest.fixture
def shop(trained: Any, tmp_path: Path) -> Shop:
    """The database of the shop that the release is of."""
    return Shop(trained.source, tmp_path)


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    """The file of the rules."""
    path = tmp_path / "rules.toml"
    path.write_text(RULES)
    return path


def send(job: Any, name: str, count: int, **fields: Any) -> None:
    """Events in a file that appears whole."""
    events = [
        {
            "event_id": f"{name}{number}",
            "session_id": "s",
            "customer_number": None,
            "city": "Nantes",
            "country": "France",
            "credit_limit": 21_000,
            "browse_history": [],
            **fields,
        }
        for number in range(count)
    ]
    partial = job.input / f"{name}.tmp"
    partial.write_text("".join(json.dumps(event) + "\n" for event in events))
    partial.rename(job.input / f"{name}.jsonl")


def served(job: Any, name: str) -> list[list[str]]:
    """Ids of the recommended items of each event of a file."""
    return [
        [item["id"] for item in record["recommended_items"]]
        for _, record in job.visible()
        if record["event_id"].startswith(name)
    ]


def test_lists_keep_the_rules_stay_full_and_say_why(
    stream_job: Callable[..., Any], trained: Any, shop: Shop, rules: Path
) -> None:
    customer = shop.customer(20)
    lines, bought = shop.lines, shop.bought(customer)
    job = stream_job(
        "--runner=direct", "--stop-when-idle=2", f"--rules={rules}", f"--source={shop.uri}", "--explain"
    )
    history = [{"product_code": next(iter(bought)), "quantity": 1, "in_shopping_cart": True}]
    send(job, "known", 3, customer_number=customer, browse_history=history)
    send(job, "cold", 3)
    send(job, "popular", 3, city=None, country=None, credit_limit=None)
    gone = [
        code
        for (code,) in shop.execute(
            "SELECT productCode FROM ratings GROUP BY 1 ORDER BY COUNT(*) DESC, 1 LIMIT 30"
        )
    ]
    shop.execute(
        f"UPDATE products SET quantityInStock = 0 WHERE productCode IN ({','.join('?' * len(gone))})",  # noqa: S608
        *gone,
    )
    result = job.start().finish()
    assert (result["ok"], result["out"]) == (True, 9), result
    records = [record for _, record in job.visible()]
    for record in records:
        items = [item["id"] for item in record["recommended_items"]]
        assert len(set(items)) == ITEMS
        assert not {*items} & {*gone}
        assert max(collections.Counter(lines[item] for item in items).values()) <= 2
        if record["customer_number"] == customer:
            assert not {*items} & bought
        check_reasons(record)
        for entry in record["similar_items"]:
            assert not {item["id"] for item in entry["similar_items"]} & {*gone}
    assert {record["served_by"] for record in records} == {"known_customer", "cold_customer", "popular"}
    connection = connect(f"embedded:{trained.home}/pg")
    with connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT recommended_items FROM beamrec.recommendations_latest WHERE customer_id = %s",
            [str(customer)],
        )
        ((stored,),) = cursor.fetchall()
    connection.close()
    (same, *_) = [record for record in records if record["customer_number"] == customer]
    assert stored == same["recommended_items"]


def check_reasons(record: dict[str, Any]) -> None:
    """Each item says where it was found, and its places fit together."""
    path = "popular" if record["served_by"] == "popular" else "user_tower"
    ranks = [item["reason"]["rank"] for item in record["recommended_items"]]
    assert ranks == sorted(ranks)
    for place, item in enumerate(record["recommended_items"], 1):
        reason = item["reason"]
        assert list(reason) == ["path", "rank", "rules", "nearest_in_history"]
        assert reason["path"] == path
        at = reason["rank"]
        for move in reason["rules"]:
            assert move["from"] == at
            assert move["to"] < at
            at = move["to"]
        assert at == place
        nearest = reason["nearest_in_history"]
        if not record["browse_history"]:
            assert nearest is None
        elif nearest is not None:
            assert nearest["product_code"] == record["browse_history"][0]["product_code"]
            assert nearest["distance"] > 0


def test_what_goes_out_of_stock_is_gone_without_a_restart_and_an_outage_changes_nothing(
    stream_job: Callable[..., Any], shop: Shop, rules: Path
) -> None:
    job = stream_job("--window-seconds=1", "--max-delay=0.2", f"--rules={rules}", f"--source={shop.uri}")
    job.start()
    send(job, "before", 2)
    job.wait_for(2)
    first = served(job, "before")[0]
    sold = first[0]
    shop.execute("UPDATE products SET quantityInStock = 0 WHERE productCode = ?", sold)
    rounds = 0

    def next_round() -> list[str]:
        nonlocal rounds
        rounds += 1
        send(job, f"round{rounds}-", 1)
        deadline = time.monotonic() + 300
        while not served(job, f"round{rounds}-"):
            assert time.monotonic() < deadline, job.log.read_text()[-3000:]
            time.sleep(0.1)
        return served(job, f"round{rounds}-")[0]

    while sold in next_round():
        assert rounds < 30
    without = next_round()
    assert sold not in without
    assert len(without) == ITEMS
    hidden = shop.path.rename(shop.path.with_suffix(".away"))
    # Until the outage was noticed, and on.
    while "the last known facts hold" not in newest_log(job.home):
        assert next_round() == without
        assert rounds < 60
    assert next_round() == without
    hidden.rename(shop.path)
    shop.execute("UPDATE products SET quantityInStock = 9 WHERE productCode = ?", sold)
    while sold not in next_round():
        assert rounds < 120
    result = job.interrupt()
    assert (result["ok"], result["out"], result["dead_letters"]) == (True, rounds + 2, 0), result


def newest_log(home: Path) -> str:
    return max((home / "runs").glob("stream-*/log")).read_text()


OWN_RULE = """
def make(broken):
    def rule(candidates):
        if broken:
            raise KeyError("no such line")
        return [True] * candidates.num_rows
    return rule
"""


def test_a_rule_that_raises_ends_the_job_by_its_name_and_nothing_is_lost(
    stream_job: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rules_of_this_test.py").write_text(OWN_RULE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    rule = '[[rules]]\nkind = "python"\nname = "mine"\nfactory = "rules_of_this_test:make"\n'
    path = tmp_path / "own.toml"
    path.write_text(f"{rule}options = {{ broken = true }}\n")
    job = stream_job("--runner=direct", "--stop-when-idle=2", f"--rules={path}")
    send(job, "event", 20)
    result = job.start().finish()
    assert (result["ok"], result["exit_code"]) == (False, 1)
    assert "rule 'mine' raised KeyError" in str(result), result
    assert job.visible() == job.errors() == []
    path.write_text(f"{rule}options = {{ broken = false }}\n")
    result = job.start().finish()
    assert (result["ok"], result["in"], result["out"]) == (True, 20, 20), result


def config(tmp_path: Path, **changes: Any) -> StreamConfig:
    """A job with its output below a folder."""
    places = {"input": str(tmp_path), "output": f"{tmp_path}/out", "vector_db": "embedded:"}
    return StreamConfig(**{**places, "shop": CLASSICMODELS, "run": "run", **changes})


def test_parquet_files_keep_their_columns_and_lines_may_change(tmp_path: Path) -> None:
    """Parquet files of a folder are one table, with reasons or without; lines of JSON may differ."""
    (tmp_path / "lines").mkdir()
    store = open_store(str(tmp_path / "lines"))
    for explain in (False, True, False):
        fix_settings(store, config(tmp_path, explain=explain).settings)
    (tmp_path / "columns").mkdir()
    store = open_store(str(tmp_path / "columns"))
    fix_settings(store, config(tmp_path, explain=True, format="parquet").settings)
    with pytest.raises(UsageError, match="begun with explain = True"):
        fix_settings(store, config(tmp_path, format="parquet").settings)


@pytest.mark.parametrize(
    ("rules", "source", "message"),
    [
        ('kind = "already_bought"', None, "--source is missing: the rules read ratings"),
        ('kind = "in_stock"\ncolumn = "quantityInStock"', None, "--source is missing: .* quantityInStock"),
        ('kind = "in_stock"\ncolumn = "x"', "mysql://u:p@h/d", "must not carry a password"),
        ('kind = "in_stock"\ncolumn = "x"', "ftp://h/d", "expected one of sqlite"),
        ('kind = "nosuch"', None, "rule 'nosuch': kind: expected one of in_stock"),
        ('kind = "python"\nfactory = "nosuch_module:x"', None, "cannot be imported"),
        ('kind = "python"\nfactory = "__main__:x"', None, "installed on the workers"),
        ('kind = "already_bought"\n[[rules]]\nkind = "already_bought"', None, "names must be distinct"),
        ('kind = "already_bought"\n[purchases]\ntable = "orders"', None, "expected exactly customer"),
    ],
)
def test_wrong_rules_are_refused_before_the_job_starts(
    tmp_path: Path, rules: str, source: str | None, message: str
) -> None:
    path = tmp_path / "rules.toml"
    path.write_text(f"[[rules]]\n{rules}\n")
    values = Namespace(rules=str(path), source=source, source_secret=None, items=5, explain=False)
    with pytest.raises(UsageError, match=message):
        load_rules(values, CLASSICMODELS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rules = 3", "at least one"),
        ("candidates = 0\n[[rules]]\nkind = 'already_bought'", "candidates: expected"),
        ("refresh_seconds = 0\n[[rules]]\nkind = 'already_bought'", "refresh_seconds: expected"),
        ("nosuch = 1\n[[rules]]\nkind = 'already_bought'", "unknown key 'nosuch'"),
        ("[[rules]]\nkind = 3", r"rules\[1\]"),
        ("[[rules]", "not valid TOML"),
    ],
)
def test_a_wrong_file_of_rules_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "rules.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        RuleSet.from_toml(path)
