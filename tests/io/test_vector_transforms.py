"""Search and upsert in tables that are not ours, on a real PostgreSQL, compared with plain NumPy."""

import dataclasses
import datetime as dt
import itertools
import pickle
import threading
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import apache_beam as beam
import numpy as np
import psycopg2
import pyarrow as pa
import pytest
from apache_beam.testing.test_pipeline import TestPipeline as Pipeline
from apache_beam.testing.util import assert_that, equal_to
from psycopg2.extras import execute_values

from beamrec.io.postgres import Database, connect
from beamrec.io.vector_transforms import (
    Condition,
    Limits,
    SearchPgvector,
    UpsertPgvector,
    VectorSearch,
    VectorUpsert,
    _SearchDoFn,
    _UpsertDoFn,
)
from beamrec.io.vector_upsert import newest_rows, upsert
from beamrec.schemas.errors import BadDataError, UsageError

DIM, ROWS = 6, 400
NOON = dt.datetime(2026, 11, 22, 12, tzinfo=dt.UTC)
VECTORS = np.random.default_rng(1).normal(size=(ROWS, DIM)).astype(np.float32)
LANGUAGES = [None if n % 7 == 0 else "de" if n % 5 == 0 else "en" for n in range(ROWS)]
LIMITS = Limits(connections=2, statement_seconds=30)
OPERATORS: list[Any] = ["<->", "<=>", "<#>"]


@pytest.fixture
def documents(database: str) -> Iterator[str]:
    """URI of a server with somebody's table."""
    ask(
        database,
        "DROP SCHEMA IF EXISTS app CASCADE; CREATE EXTENSION IF NOT EXISTS vector; CREATE SCHEMA app;"
        f'CREATE TABLE app.documents (id bigint PRIMARY KEY, "the ""title""" text, lang text, stars int, '
        f"public boolean, tags jsonb, weights real[], vec vector({DIM}), updated_at timestamptz)",
    )
    values = [
        (n, f"a, \"{n}\"\n'", LANGUAGES[n], n % 10, n % 2 == 0, f'{{"n": {n % 3}}}', [0.5, n],
         str(VECTORS[n].tolist()), NOON)
        for n in range(ROWS)
    ]  # fmt: skip
    connection = connect(database)
    with connection, connection.cursor() as cursor:
        execute_values(cursor, "INSERT INTO app.documents VALUES %s", values, page_size=ROWS)
    connection.close()
    yield database
    ask(database, "DROP SCHEMA app CASCADE")


def ask(uri: str, statement: str) -> list[tuple[Any, ...]]:
    connection = connect(uri)
    with connection, connection.cursor() as cursor:
        cursor.execute(statement)
        rows: list[tuple[Any, ...]] = cursor.fetchall() if cursor.description else []
    connection.close()
    return rows


def queries(*vectors: Any, type_: pa.DataType | None = None) -> pa.RecordBatch:
    column = pa.array(list(vectors), type_ or pa.list_(pa.float32(), DIM))
    return pa.RecordBatch.from_arrays([pa.array(range(len(vectors))), column], ["n", "vector"])


def search(uri: str, batch: pa.RecordBatch, limits: Limits = LIMITS, **options: Any) -> list[Any]:
    """What one batch finds, by the DoFn that a worker runs."""
    wanted = VectorSearch(**{"table": "app.documents", "vector_column": "vec"} | options)
    worker = pickle.loads(pickle.dumps(_SearchDoFn((uri, limits, None), wanted, "vector", "found")))  # noqa: S301
    worker.setup()
    (answer,) = worker.process(batch)
    assert answer.column("n").equals(batch.column("n"))
    return list(answer.column("found").to_pylist())


def distances(query: np.ndarray, operator: str) -> np.ndarray:
    a, b = VECTORS.astype(np.float64), query.astype(np.float64)
    if operator == "<->":
        return np.linalg.norm(a - b, axis=1)
    products = a @ b
    return -products if operator == "<#>" else 1 - products / np.linalg.norm(a, axis=1) / np.linalg.norm(b)


def write(uri: str, batch: pa.RecordBatch, **options: Any) -> int:
    worker = _UpsertDoFn((uri, LIMITS, None), VectorUpsert(**{"table": "app.documents"} | options))
    worker.setup()
    (written,) = worker.process(batch)
    return written


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("type_", [pa.list_(pa.float32(), DIM), pa.list_(pa.float64())])
def test_search_equals_brute_force(documents: str, operator: str, type_: pa.DataType) -> None:
    asked = np.random.default_rng(2).normal(size=(5, DIM)).astype(np.float32)
    rows = [asked[0], None, *asked[1:]]
    found = search(documents, queries(*rows, type_=type_), k=4, operator=operator)
    assert found[1] is None
    for query, answer in zip(asked, found[:1] + found[2:], strict=True):
        expected = distances(query, operator)
        order = np.argsort(expected)[:4]
        assert [entry["id"] for entry in answer] == order.tolist()
        np.testing.assert_allclose([entry["distance"] for entry in answer], expected[order], atol=1e-5)


def test_further_columns_come_as_numbers_or_as_text(documents: str) -> None:
    columns = ('the "title"', "stars", "public", "tags", "weights", "updated_at", "lang")
    ((row,),) = search(documents, queries(VECTORS[7]), k=1, columns=columns)
    assert row == {
        "id": 7, "distance": 0.0, 'the "title"': "a, \"7\"\n'", "stars": 7, "public": False,
        "tags": '{"n": 1}', "weights": "{0.5,7}", "updated_at": "2026-11-22 12:00:00+00", "lang": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("conditions", "keeps"),
    [
        ([Condition("lang", "=", "en")], lambda n: LANGUAGES[n] == "en"),
        ([Condition("lang", "in", ("de", "fr"))], lambda n: LANGUAGES[n] == "de"),
        ([Condition("lang", "is null")], lambda n: LANGUAGES[n] is None),
        ([Condition("stars", ">=", 3), Condition("stars", "<", 5)], lambda n: n % 10 in (3, 4)),
        ([Condition("stars", "not in", [1, 2, 3])], lambda n: n % 10 not in (1, 2, 3)),
        ([Condition("public", "=", True), Condition("tags", "@>", {"n": 2})], lambda n: n % 6 == 2),
        ([Condition("updated_at", "<=", NOON)], lambda n: True),
        ([Condition("stars", "in", [])], lambda n: False),
        ([Condition("tags", "@>", '{"n": 1}')], lambda n: n % 3 == 1),
        ([Condition("weights", "@>", "{7}")], lambda n: n == 7),
    ],
)
def test_filters_keep_what_they_say(documents: str, conditions: list[Condition], keeps: Any) -> None:
    (found,) = search(documents, queries(VECTORS[0]), k=ROWS, where=tuple(conditions))
    assert sorted(entry["id"] for entry in found) == [n for n in range(ROWS) if keeps(n)]


def test_names_and_values_are_never_taken_for_sql(documents: str) -> None:
    evil = "x' OR 1=1; DROP TABLE app.documents; --"
    assert search(documents, queries(VECTORS[0]), where=(Condition("lang", "=", evil),)) == [[]]
    with pytest.raises(UsageError, match="does not exist"):
        search(documents, queries(VECTORS[0]), where=(Condition('lang" OR 1=1 --', "=", "en"),))
    with pytest.raises(UsageError, match="does not exist"):
        search(documents, queries(VECTORS[0]), id_column="id; DROP TABLE app.documents")
    with pytest.raises(UsageError, match="does not exist"):
        write(documents, pa.RecordBatch.from_pydict({"id": [1], 'lang") --': ["x"]}))
    assert ask(documents, "SELECT count(*) FROM app.documents") == [(ROWS,)]


def test_a_filter_does_not_starve_an_index(documents: str) -> None:
    """Without going on, an index would find its few nearest, of which the filter leaves none."""
    more = np.random.default_rng(4).normal(size=(5_000, DIM)).astype(np.float32)
    batch = pa.RecordBatch.from_pydict(
        {
            "id": np.arange(1_000, 6_000),
            "lang": ["rare" if n % 250 == 0 else "en" for n in range(5_000)],
            "vec": pa.array(list(more), pa.list_(pa.float32(), DIM)),
        }
    )
    assert write(documents, batch) == 5_000
    ask(documents, "CREATE INDEX ON app.documents USING hnsw (vec vector_l2_ops); ANALYZE app.documents")
    # So small a table the planner would rather read whole; other limits make new connections, which see that.
    ask(documents, "ALTER ROLE CURRENT_USER SET enable_seqscan = off")
    new = dataclasses.replace(LIMITS, connections=LIMITS.connections + 1)
    try:
        wanted = {"where": (Condition("lang", "=", "rare"),), "k": 20, "ef_search": 20, "limits": new}
        (found,) = search(documents, queries(VECTORS[0]), **wanted)
        (few,) = search(documents, queries(VECTORS[0]), **wanted, iterative_scan="off")
    finally:
        ask(documents, "ALTER ROLE CURRENT_USER RESET enable_seqscan")
    assert sorted(entry["id"] for entry in found) == list(range(1_000, 6_000, 250))
    assert len(few) < len(found)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("embedded:", "^uri: expected embedded:/absolute/folder, for example embedded:/srv"),
        ("embedded:.beamrec/pg", "^uri: expected embedded:/absolute/folder"),
        ("mysql://user@host/db", "^uri: expected postgresql://"),
        ("postgresql://user:secret@host/db", "^uri: the URI holds a password"),
    ],
)
def test_a_wrong_uri_is_refused_while_the_pipeline_is_built(uri: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        SearchPgvector(uri, VectorSearch("app.documents"))
    with pytest.raises(UsageError, match=message):
        UpsertPgvector(uri, VectorUpsert("app.documents"))


@pytest.mark.parametrize(
    ("options", "batch", "message"),
    [
        ({"table": "app.gone"}, None, 'relation "app.gone" does not exist'),
        ({"vector_column": "gone"}, None, 'column "gone" does not exist'),
        ({"columns": ("gone",)}, None, 'column "gone" does not exist'),
        ({"vector_column": "stars"}, None, "operator does not exist"),
        ({}, queries(np.ones(3), type_=pa.list_(pa.float32())), "different vector dimensions 6 and 3"),
        ({}, queries(VECTORS[0]).rename_columns(["n", "other"]), "expected a column 'vector'"),
        ({}, queries(VECTORS[0]).append_column("found", pa.array([1])), "has a column 'found' already"),
    ],
)
def test_what_waiting_cannot_mend_fails_at_once(
    documents: str, options: dict[str, Any], batch: pa.RecordBatch | None, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        search(documents, batch or queries(VECTORS[0]), **options)


@pytest.mark.parametrize(
    ("vectors", "message"),
    [([[1.0] * DIM, [1.0]], "several lengths"), ([[1.0, None]], "NULL"), ([[1.0, float("nan")]], "NaN")],
)
def test_vectors_that_are_none_are_refused(documents: str, vectors: list[Any], message: str) -> None:
    with pytest.raises(BadDataError, match=message):
        search(documents, queries(*vectors, type_=pa.list_(pa.float64())))


def test_columns_that_hold_no_vectors_are_refused(documents: str) -> None:
    with pytest.raises(BadDataError, match="column vector: expected numbers: "):
        search(documents, queries(["a"] * DIM, type_=pa.list_(pa.string())))
    with pytest.raises(UsageError, match="column vector: expected lists of numbers, got string"):
        search(documents, queries("a", type_=pa.string()))


def test_batches_without_a_vector_have_no_neighbours(documents: str) -> None:
    assert search(documents, queries(None, None)) == [None, None]
    assert search(documents, queries()) == []


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VectorSearch("a.b.c"), "table"),
        (lambda: VectorSearch("t", k=0), "k: expected"),
        (lambda: VectorSearch("t", operator="<+>"), "operator: expected one of"),  # type: ignore[arg-type]
        (lambda: VectorSearch("t", columns=("id",)), "distinct names"),
        (lambda: Condition("c", "LIKE", "x"), "operator: expected one of"),  # type: ignore[arg-type]
        (lambda: Condition("c", "=", None), "is null"),
        (lambda: Condition("c", "in", "text"), "expected a list"),
        (lambda: Condition("c", "not in", [1, None]), "holds None"),
        (lambda: Condition("c", "=", "n\0l"), "holds NUL"),
        (lambda: Condition("c", "in", ["a", "n\0l"]), "holds NUL"),
        (lambda: VectorSearch("t", iterative_scan="on"), "iterative_scan: expected one of off"),  # type: ignore[arg-type]
        (lambda: VectorUpsert("t", key=()), "expected tuples"),
        (lambda: VectorUpsert("t", key=("a",), newer=("a",)), "twice"),
        (lambda: SearchPgvector("postgresql://ann:secret@h/d", VectorSearch("t")), "holds a password"),
    ],
)
def test_wrong_options_are_refused_while_the_graph_is_built(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def rows(*values: tuple[int, str, int | None]) -> pa.RecordBatch:
    times = [None if minute is None else NOON + dt.timedelta(minutes=minute) for _, _, minute in values]
    return pa.RecordBatch.from_pydict(
        {
            "id": pa.array([v[0] for v in values], pa.int64()),
            "lang": [v[1] for v in values],
            "updated_at": pa.array(times, pa.timestamp("us", "UTC")),
        }
    )


def languages(uri: str) -> list[str]:
    return [row[0] for row in ask(uri, "SELECT lang FROM app.documents WHERE id < 3 ORDER BY id")]


def test_the_last_row_of_a_key_stays_or_the_newest(documents: str) -> None:
    batch = rows((0, "b", 9), (1, "x", 1), (0, "a", 5), (0, "c", 5))
    assert newest_rows(batch, ["id"]).column("lang").to_pylist() == ["c", "x"]
    assert newest_rows(batch, ["id"], ["updated_at"]).column("lang").to_pylist() == ["b", "x"]
    assert write(documents, batch) == 2
    assert languages(documents) == ["c", "x", "en"]


def test_in_any_order_and_repetition_the_newest_stays(documents: str) -> None:
    parts = [rows((0, "old", -5), (1, "none", None)), rows((0, "b", 2), (2, "z", 1)), rows((0, "c", 3))]
    for order in itertools.permutations(parts + parts[1:2]):
        ask(
            documents,
            "UPDATE app.documents SET lang = 'en', updated_at = "
            "CASE WHEN id < 2 THEN timestamptz '2026-11-22 12:00Z' END WHERE id < 3",
        )
        for batch in order:
            write(documents, batch, newer=("updated_at",))
        assert languages(documents) == ["c", "en", "z"]


def test_not_a_number_is_the_newest_as_in_postgresql(documents: str) -> None:
    ask(documents, "ALTER TABLE app.documents ADD COLUMN version float8")
    parts = [
        pa.RecordBatch.from_pydict(
            {"id": [0, 0], "lang": [f"{a}", f"{b}"], "version": pa.array([a, b], pa.float64())}
        )
        for a, b in ((float("nan"), 2.0), (None, 1.0), (3.0, None))
    ]
    assert [newest_rows(part, ["id"], ["version"]).column("lang").to_pylist() for part in parts] == [
        ["nan"], ["1.0"], ["3.0"]
    ]  # fmt: skip
    for order in itertools.permutations(parts):
        ask(documents, "UPDATE app.documents SET version = NULL WHERE id = 0")
        for part in order:
            write(documents, part, newer=("version",))
        assert languages(documents)[0] == "nan"


def test_a_row_without_a_vector_is_nobodys_neighbour(documents: str) -> None:
    ask(documents, "INSERT INTO app.documents (id) VALUES (-1)")
    (found,) = search(documents, queries(VECTORS[0]), k=ROWS + 5)
    assert len(found) == ROWS
    assert all(entry["distance"] is not None for entry in found)


def test_integers_beyond_those_of_float32_are_rounded(documents: str) -> None:
    asked = [2**24 + 1, 0, 0, 0, 0, 0]
    (found,) = search(documents, queries(asked, type_=pa.list_(pa.int64())), k=1, operator="<#>")
    assert found[0]["id"] == int(np.argmax(VECTORS[:, 0]))
    assert found[0]["distance"] == pytest.approx(-(2.0**24) * VECTORS[:, 0].max())


def test_an_exact_search_reads_no_index_of_vectors(documents: str) -> None:
    ask(documents, "CREATE INDEX ON app.documents USING ivfflat (vec vector_l2_ops) WITH (lists = 40)")
    ask(documents, "ALTER ROLE CURRENT_USER SET enable_seqscan = off")  # else so small a table is read whole
    new = dataclasses.replace(LIMITS, connections=LIMITS.connections + 2)
    try:
        (few,) = search(documents, queries(VECTORS[0]), k=100, probes=1, limits=new)
        (all_of_them,) = search(documents, queries(VECTORS[0]), k=100, probes=1, exact=True, limits=new)
    finally:
        ask(documents, "ALTER ROLE CURRENT_USER RESET enable_seqscan")
    assert len(few) < 100
    expected = np.argsort(distances(VECTORS[0], "<->"))[:100].tolist()
    assert [entry["id"] for entry in all_of_them] == expected


def test_decimals_in_json_keep_their_digits(documents: str) -> None:
    price = Decimal("12345678901234567.89")
    tags = pa.array([{"price": price}], pa.struct([("price", pa.decimal128(20, 2))]))
    assert write(documents, pa.RecordBatch.from_arrays([pa.array([5]), tags], ["id", "tags"])) == 1
    assert ask(documents, "SELECT tags->>'price' FROM app.documents WHERE id = 5") == [(str(price),)]


def test_vectors_arrays_and_json_are_written_exactly(documents: str) -> None:
    vectors = np.random.default_rng(3).normal(size=(2, DIM)).astype(np.float32)
    batch = pa.RecordBatch.from_pydict(
        {
            "id": [5, 1000],
            "vec": pa.array(list(vectors), pa.list_(pa.float32(), DIM)),
            "weights": [[0.25], None],
            "tags": [{"a": "ü'"}, {"a": None}],
        }
    )
    assert write(documents, batch) == 2
    found = ask(
        documents,
        "SELECT id, vec::real[], weights, tags FROM app.documents WHERE id IN (5, 1000) ORDER BY id",
    )
    np.testing.assert_array_equal(np.array([row[1] for row in found], np.float32), vectors)
    assert [row[2:] for row in found] == [([0.25], {"a": "ü'"}), (None, {"a": None})]


def test_maps_are_objects_in_jsonb(documents: str) -> None:
    counts = pa.map_(pa.string(), pa.int64())
    nested = pa.struct([("by_day", pa.map_(pa.int64(), counts))])
    values = [{"by_day": [(7, [("k", 1)])]}, None, {"by_day": []}]
    batch = pa.RecordBatch.from_pydict({"id": [5, 6, 7], "tags": pa.array(values, nested)})
    assert write(documents, batch) == 3
    found = ask(documents, "SELECT tags FROM app.documents WHERE id IN (5, 6, 7) ORDER BY id")
    assert [row[0] for row in found] == [{"by_day": {"7": {"k": 1}}}, None, {"by_day": {}}]


@pytest.mark.parametrize(
    ("values", "type_"),
    [
        ([{"a": [{"b": float("nan")}]}], pa.struct([("a", pa.list_(pa.struct([("b", pa.float64())])))])),
        ([[("k", float("inf"))]], pa.map_(pa.string(), pa.float32())),
        ([[1.0, float("-inf")]], pa.list_(pa.float32(), 2)),
        ([[("k", 1), ("k", 2)]], pa.map_(pa.string(), pa.int64())),
    ],
)
def test_what_json_cannot_hold_is_refused_and_never_stored_as_null(
    documents: str, values: list[Any], type_: pa.DataType
) -> None:
    before = ask(documents, "SELECT tags FROM app.documents WHERE id = 5")
    batch = pa.RecordBatch.from_pydict({"id": [5], "tags": pa.array(values, type_)})
    with pytest.raises(BadDataError, match=r"column tags: a (nested value holds NaN|value has no JSON)"):
        write(documents, batch)
    assert ask(documents, "SELECT tags FROM app.documents WHERE id = 5") == before


def test_names_with_a_percent_sign_are_names(documents: str) -> None:
    ask(documents, 'CREATE TABLE app."100%s" (id bigint PRIMARY KEY, "%" text, "a%(b)s" text)')
    batch = pa.RecordBatch.from_pydict({"id": [1], "%": ["5 %"], "a%(b)s": ["%s"]})
    assert write(documents, batch, table=("app", "100%s"), newer=("%",)) == 1
    assert ask(documents, 'SELECT * FROM app."100%s"') == [(1, "5 %", "%s")]


def test_dictionary_encoded_keys_and_values_are_taken(documents: str) -> None:
    ask(documents, "CREATE TABLE app.words (word text PRIMARY KEY, kind text)")
    batch = pa.RecordBatch.from_pydict(
        {"word": pa.array(["b", "a", "b"]).dictionary_encode(), "kind": pa.array(["x", "y", "z"])}
    )
    assert write(documents, batch, table="app.words", key=("word",)) == 2
    assert ask(documents, "SELECT * FROM app.words ORDER BY word") == [("a", "y"), ("b", "z")]


def test_rows_that_do_not_fit_are_refused_whole(documents: str) -> None:
    with pytest.raises(BadDataError, match="column id is part of the key, and NULL"):
        write(documents, pa.RecordBatch.from_pydict({"id": pa.array([1, None]), "lang": ["x", "y"]}))
    with pytest.raises(UsageError, match="expected 6 dimensions, not 2"):
        write(documents, pa.RecordBatch.from_pydict({"id": [1, 2], "vec": [[1.0] * DIM, [1.0, 2.0]]}))
    with pytest.raises(UsageError, match="no unique or exclusion constraint"):
        write(documents, pa.RecordBatch.from_pydict({"lang": ["x"], "stars": [1]}), key=("lang",))
    with pytest.raises(UsageError, match="expected a column 'id'"):
        write(documents, pa.RecordBatch.from_pydict({"lang": ["x"]}))
    with pytest.raises(BadDataError, match="NUL"):
        write(documents, pa.RecordBatch.from_pydict({"id": [1], "lang": ["n\0l"]}))
    with pytest.raises(BadDataError, match=r"column tags: a value has no JSON: .* bytes"):
        write(documents, pa.RecordBatch.from_pydict({"id": [1], "tags": [{"a": b"x"}]}))
    ((kept,),) = ask(documents, "SELECT vec::real[] FROM app.documents WHERE id = 1")
    np.testing.assert_array_equal(np.array(kept, np.float32), VECTORS[1])


def test_writers_of_the_same_keys_do_not_deadlock(documents: str) -> None:
    target, failures = VectorUpsert("app.documents"), []

    def run(seed: int) -> None:
        draw, database = np.random.default_rng(seed), Database(documents)
        try:
            for _ in range(15):
                keys = draw.permutation(300)
                batch = pa.RecordBatch.from_pydict({"id": keys, "stars": draw.integers(0, 9, 300)})
                database.transaction(lambda cursor, batch=batch: upsert(cursor, target, batch))
        except (psycopg2.Error, Exception) as error:  # noqa: BLE001
            failures.append(error)
        database.close()

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_both_are_transforms_of_batches(documents: str) -> None:
    target = VectorUpsert("app.documents", newer=("updated_at",))
    with Pipeline() as pipeline:
        written = (
            pipeline
            | beam.Create([rows((0, "pt", 1)), rows((1, "pt", 1))])
            | UpsertPgvector(documents, target)
        )
        assert_that(written, equal_to([1, 1]))
    with Pipeline() as pipeline:
        found = (
            pipeline
            | beam.Create([queries(VECTORS[0]), queries(VECTORS[1])])
            | SearchPgvector(
                documents, VectorSearch("app.documents", k=1, vector_column="vec", columns=("lang",))
            )
            | beam.FlatMap(lambda batch: batch.column("neighbours").flatten().to_pylist())
        )
        assert_that(found, equal_to([{"id": n, "distance": 0.0, "lang": "pt"} for n in (0, 1)]))
