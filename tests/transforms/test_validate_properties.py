"""Whatever the tables hold, each row has exactly one fate, the same in any order and any cut of ranges."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from beamrec.schemas.ranges import MalformedRow, RatingsRange
from beamrec.schemas.shop import Feature, RatingsTable, Shop, Table
from beamrec.transforms.rejects import canonical_json
from beamrec.transforms.validate import validate_ratings

SHOP = Shop(
    "films",
    customers=Table("viewers", "viewer", "string", (Feature("age", "number", min=0, max=2),)),
    products=Table("films", "film", "int", (Feature("genre", values=("noir", "war"), nullable=False),)),
    ratings=RatingsTable("stars", "who", "what", "stars", 0.5, 2),
)
SCHEMAS = {
    "customers": pa.schema([("viewer", pa.string()), ("age", pa.int16())]),
    "products": pa.schema([("film", pa.int64()), ("genre", pa.string())]),
    "ratings": pa.schema([("who", pa.string()), ("what", pa.int32()), ("stars", pa.float64())]),
}
NAMES = {"customers": "viewers", "products": "films", "ratings": "stars"}

Row = dict[str, Any]
Tables = dict[str, list[Row]]

# Mostly what is valid, or hardly a rating would be.
VIEWERS = st.sampled_from(["a", "A", "b", "ü"]) | st.sampled_from([None, "", "gone", "a"])
FILMS = st.sampled_from([0, 1, 2]) | st.sampled_from([None, -1, 0])
TABLES = st.fixed_dictionaries(
    {
        "customers": st.lists(
            st.fixed_dictionaries({"viewer": VIEWERS, "age": st.sampled_from([None, 0, 1, 2, -1, 3])}),
            max_size=8,
        ),
        "products": st.lists(
            st.fixed_dictionaries(
                {"film": FILMS, "genre": st.sampled_from(["noir", "war ", "war", None, "x"])}
            ),
            max_size=8,
        ),
        "ratings": st.lists(
            st.fixed_dictionaries(
                {
                    "who": VIEWERS,
                    "what": FILMS,
                    "stars": st.sampled_from([0.5, 1.0, 1.5, 2.0])
                    | st.sampled_from([None, 0.0, -0.0, 0.5, 2.5, float("nan")]),
                }
            ),
            max_size=25,
        ),
    }
)
BAD = st.lists(
    st.sampled_from(
        [
            MalformedRow("viewers", "age", "int16", {"viewer": "b", "age": "old"}),
            MalformedRow("films", "film", "int64", {"film": "one", "genre": "war"}),
            MalformedRow("films", "genre", "string", {"film": 2, "genre": b"\xff"}),
            MalformedRow("stars", "stars", "double", {"who": "a", "what": 1, "stars": "good"}),
        ]
    ),
    max_size=3,
)


def as_range(tables: Tables, malformed: Sequence[MalformedRow] = ()) -> RatingsRange:
    """The tables as one range that accounts for all of them."""
    batches = {name: pa.RecordBatch.from_pylist(rows, schema=SCHEMAS[name]) for name, rows in tables.items()}
    return RatingsRange(
        **batches, taken_at="2026-11-22T07:00:00Z", malformed=tuple(malformed), counts_products=True
    )


@dataclasses.dataclass
class Fates:
    """All rows of a source as JSON, by table and by rule; the rule `valid` is none."""

    rows: Counter[tuple[str, str, bytes]]
    valid_entities: Counter[str]

    @classmethod
    def of(cls, ranges: Sequence[RatingsRange]) -> "Fates":
        """What becomes of ranges that are validated one by one."""
        rows: Counter[tuple[str, str, bytes]] = Counter()
        tallies: Counter[str] = Counter()
        for range_ in ranges:
            validated = validate_ratings(range_, SHOP, "sqlite")
            valid = {"stars": validated.valid.ratings}
            if range_.counts_customers:
                valid["viewers"] = validated.valid.customers
            if range_.counts_products:
                valid["films"] = validated.valid.products
            for table, batch in valid.items():
                rows.update((table, "valid", canonical_json(row)) for row in batch.to_pylist())
            for letters in validated.dead_letters:
                (table,) = {letter.source["name"] for letter in letters}
                rows.update((table, letter.error_type, letter.payload) for letter in letters)
            tallies.update({tally.table: tally.valid for tally in validated.tallies})
        return cls(rows, tallies)

    def count(self, table: str) -> Counter[bytes]:
        """Rows of one table, whatever became of them."""
        found: Counter[bytes] = Counter()
        for (name, _, payload), count in self.rows.items():
            if name == table:
                found[payload] += count
        return found


@given(TABLES, BAD)
@settings(max_examples=150, deadline=None)
def test_each_row_has_exactly_one_fate(tables: Tables, malformed: list[MalformedRow]) -> None:
    fates = Fates.of([as_range(tables, malformed)])
    for name, table in NAMES.items():
        rows = [*tables[name], *(bad.row for bad in malformed if bad.table == table)]
        assert fates.count(table) == Counter(canonical_json(row) for row in rows)
    valid = Counter(table for table, rule, _ in fates.rows.elements() if rule == "valid")
    assert fates.valid_entities["viewers"] == valid["viewers"]
    assert fates.valid_entities["films"] == valid["films"]


@given(TABLES)
@settings(max_examples=150, deadline=None)
def test_what_is_valid_keeps_every_rule_as_plain_python_says_it(tables: Tables) -> None:
    valid = validate_ratings(as_range(tables), SHOP, "sqlite").valid
    viewers = {row["viewer"] for row in tables["customers"] if row["age"] in (None, 0, 1, 2)} - {None, ""}
    films = {row["film"] for row in tables["products"] if row["genre"] in ("noir", "war", "war ")} - {None}
    assert valid.customers.column(0).to_pylist() == sorted(viewers, key=str.encode)
    assert valid.products.column(0).to_pylist() == sorted(films)
    lowest: dict[tuple[str, int], float] = {}
    for row in tables["ratings"]:
        key, stars = (row["who"], row["what"]), row["stars"]
        if row["who"] in viewers and row["what"] in films and stars is not None and 0.5 <= stars <= 2:
            lowest[key] = min(stars, lowest.get(key, stars))
    expected = sorted(lowest.items(), key=lambda item: (item[0][0].encode(), item[0][1]))
    assert [tuple(row.values()) for row in valid.ratings.to_pylist()] == [(*key, s) for key, s in expected]
    assert valid.customer_rows is not None
    assert valid.product_rows is not None
    assert valid.customers.column(0).take(valid.customer_rows).equals(valid.ratings.column(0))
    assert (
        valid.products.column(0).take(valid.product_rows).to_pylist() == valid.ratings.column(1).to_pylist()
    )


@given(TABLES, BAD, st.randoms(use_true_random=False))
@settings(max_examples=150, deadline=None)
def test_the_order_of_the_rows_changes_nothing(
    tables: Tables, malformed: list[MalformedRow], random: Any
) -> None:
    shuffled = {name: random.sample(rows, len(rows)) for name, rows in tables.items()}
    one = validate_ratings(as_range(tables, malformed), SHOP, "sqlite")
    other = validate_ratings(as_range(shuffled, random.sample(malformed, len(malformed))), SHOP, "sqlite")
    assert one.dead_letters == other.dead_letters
    assert one.tallies == other.tallies
    assert one.valid == other.valid


@given(TABLES, st.integers(1, 4), st.integers(0, 3))
@settings(max_examples=150, deadline=None)
def test_the_cut_of_the_ranges_changes_nothing(tables: Tables, ranges: int, salt: int) -> None:
    """Also one customer's ratings in several ranges, each of which then holds whole keys."""
    cut: list[list[Row]] = [[] for _ in range(ranges)]
    for row in tables["ratings"]:
        cut[
            (len(row["who"] or "") + ord((row["who"] or "-")[0]) + salt * (row["what"] or 0)) % ranges
        ].append(row)
    parts = [as_range({**tables, "ratings": rows}) for rows in cut]
    parts[1:] = [
        dataclasses.replace(part, counts_customers=False, counts_products=False) for part in parts[1:]
    ]
    assert Fates.of(parts) == Fates.of([as_range(tables)])
