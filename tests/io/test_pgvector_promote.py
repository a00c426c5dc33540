"""Guards of a promote, what the audit table keeps of it, and readers while the pointer moves."""

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import psycopg2
import pyarrow as pa
import pytest

from beamrec.io.pgvector import ReleaseStore
from beamrec.io.pgvector_guards import Guards
from beamrec.io.postgres import connect
from beamrec.schemas.errors import BeamrecError, UsageError
from beamrec.schemas.releases import ReleaseContents
from beamrec.schemas.serving import SearchSetting

Make = Callable[..., ReleaseContents]
READERS, PROMOTES = 8, 50


def changed(release: ReleaseContents, **fields: object) -> ReleaseContents:
    """The release with other fields in its manifest."""
    return dataclasses.replace(release, manifest=dataclasses.replace(release.manifest, **fields))


@pytest.mark.parametrize(
    ("recall", "guards", "refused"),
    [
        (0.50, Guards(), False),
        (0.36, Guards(), False),
        (0.35, Guards(), True),
        (0.35, Guards(max_drop=0.2), False),
        (0.90, Guards(metric="rmse"), False),
        (0.90, Guards(metric="rmse", max_drop=0.01), True),
    ],
)
def test_a_worse_metric_is_refused_beyond_the_bound(
    store: ReleaseStore, make_release: Make, recall: float, guards: Guards, refused: bool
) -> None:
    store.load(changed(make_release("first"), metrics={"recall_at_10": 0.4, "rmse": 0.85}))
    store.load(changed(make_release("second"), metrics={"recall_at_10": recall, "rmse": 0.9}))
    store.promote("first", "a start", guards)
    expected = pytest.raises(UsageError, match="max-drop") if refused else contextlib.nullcontext()
    with expected:
        store.promote("second", "better", guards)
    active = store.active()
    assert active is not None
    assert active.id == ("first" if refused else "second")


def test_a_metric_that_neither_has_is_a_mistake_and_the_usual_one_is_not_asked_of_imports(
    store: ReleaseStore, make_release: Make
) -> None:
    store.load(changed(make_release("first"), metrics={"rmse": 0.85}))
    store.load(changed(make_release("second"), metrics={"coverage": 0.9}))
    store.promote("first", "a start", Guards())
    with pytest.raises(UsageError, match="has a metric 'recal_at_10': they have coverage, rmse"):
        store.promote("second", "a typo", Guards(metric="recal_at_10"))
    store.promote("second", "neither was measured", Guards())
    store.promote("first", "only it has that", Guards(metric="rmse"))
    store.promote("second", "never mind", Guards(metric="recal_at_10", force=True))
    assert "recal_at_10" in store.show("second")["history"][-1]["forced"][0]


def test_fewer_items_another_dimension_and_another_shop_are_refused(
    store: ReleaseStore, make_release: Make
) -> None:
    store.load(make_release("first"))
    store.promote("first", "a start", Guards())
    store.load(make_release("fewer", items=50))
    store.load(make_release("longer", dim=9))
    store.load(changed(make_release("other"), shop="films", item_key_type="string", user_key_type="string"))
    for release, message in (
        ("fewer", r"83\.3% of the active release's items, expected at least 90\.0%"),
        ("longer", "9 numbers, those of the active release 8 .--allow-dimension-change"),
        ("other", "its shop is 'films'.*; its user_key_type"),
    ):
        with pytest.raises(UsageError, match=message):
            store.promote(release, "why not", Guards())
    store.promote("fewer", "smaller", Guards(min_coverage=0.8))
    store.promote("longer", "longer", Guards(allow_dimension_change=True))
    store.promote("other", "moved", Guards(force=True, max_drop=0))
    history = store.show("other")["history"]
    assert [(h["action"], h["from"], h["why"]) for h in history[1:]] == [("promote", "longer", "moved")]
    assert [guard.split(":")[0] for guard in history[-1]["forced"]] == [
        "shop", "user_key_type", "dimension"
    ]  # fmt: skip
    assert "@" in history[-1]["who"]
    # Nobody has to argue with a rollback.
    assert store.rollback("worse").active.id == "longer"
    assert store.show("longer")["history"][-1]["forced"] == []


def test_promoting_an_empty_id_is_refused_and_is_no_rollback(store: ReleaseStore, make_release: Make) -> None:
    for release in ("first", "second"):
        store.load(make_release(release))
        store.promote(release, "in turn")
    with pytest.raises(UsageError, match=r"an empty id.* is not loaded"):
        store.promote("", "a variable that was not set", Guards())
    active = store.active()
    assert active is not None
    assert active.id == "second"


def test_guards_are_fractions() -> None:
    for wrong in ({"max_drop": 1.5}, {"min_coverage": -0.1}):
        with pytest.raises(UsageError, match="expected a fraction from 0 to 1"):
            Guards(**wrong)


def test_the_search_setting_comes_with_the_active_release(store: ReleaseStore, make_release: Make) -> None:
    store.load(make_release("first"))
    assert store.promote("first", "a").active.search is None
    setting = SearchSetting("hnsw", ef_search=240, probes=3)
    store.set_search("first", setting)
    active = store.active()
    assert active is not None
    assert active.search == setting
    assert store.show("first")["search"] == setting.to_dict()
    with pytest.raises(UsageError, match="not loaded"):
        store.set_search("second", setting)


def marked(make_release: Make, release: str, mark: float, dim: int) -> ReleaseContents:
    """A release whose every vector begins with its mark, and whose ids begin with its name."""
    made = make_release(release, dim=dim, seed=int(mark), normalized=False)
    for vectors in (made.item_vectors, made.user_vectors):
        vectors[:, 0] = mark
    ids = tuple(f"{release}-{number}" for number in range(len(made.item_ids)))
    return dataclasses.replace(made, item_ids=ids, popular=ids)


class Reader(threading.Thread):
    """Asks in a loop and keeps what was wrong: errors, and answers that mix releases."""

    def __init__(self, uri: str, stopped: threading.Event) -> None:
        super().__init__(daemon=True)
        self._uri, self._stopped = uri, stopped
        self.wrong: list[str] = []
        self.seen: set[str] = set()
        self.asked = 0

    def run(self) -> None:
        store = ReleaseStore(self._uri)
        connection = connect(self._uri)
        connection.autocommit = True
        try:
            while not self._stopped.is_set():
                self._ask(store)
                with connection.cursor() as cursor:
                    self._ask_the_views(cursor)
                self.asked += 1
        except (psycopg2.Error, BeamrecError) as error:
            self.wrong.append(repr(error))
        finally:
            connection.close()
            store.close()

    def _ask(self, store: ReleaseStore) -> None:
        """As a stream does: one release is asked for, and named in all that follows."""
        active = store.active()
        if active is None:
            self.wrong.append("no release is active")
            return
        self.seen.add(active.id)
        queries = np.ones((2, active.dim), np.float32)
        found = store.search(active.id, queries, 5)
        ids = [entry["id"] for row in found.to_pylist() for entry in row]
        answer = store.lookup(active.id, pa.array([f"{active.id}-1"]), pa.array(["100"]))
        ids += [entry["id"] for row in answer.neighbours.to_pylist() for entry in row]
        if len(ids) != 2 * 5 + 20 or not all(item.startswith(f"{active.id}-") for item in ids):
            self.wrong.append(f"{active.id}: {ids}")

    def _ask_the_views(self, cursor: object) -> None:
        """As a dashboard does: items and users by the views, in one statement."""
        cursor.execute(  # type: ignore[attr-defined]
            "SELECT count(*), count(DISTINCT mark), count(DISTINCT dim) FROM ("
            "SELECT (embedding::real[])[1], vector_dims(embedding) FROM public.item_emb UNION ALL "
            "SELECT (embedding::real[])[1], vector_dims(embedding) FROM public.user_emb) AS u (mark, dim)"
        )
        if (row := cursor.fetchone()) != (67, 1, 1):  # type: ignore[attr-defined]
            self.wrong.append(f"views: {row}")


@contextlib.contextmanager
def reading(uri: str) -> Iterator[list[Reader]]:
    stopped = threading.Event()
    readers = [Reader(uri, stopped) for _ in range(READERS)]
    for reader in readers:
        reader.start()
    try:
        yield readers
    finally:
        stopped.set()
        for reader in readers:
            reader.join(300)


def let_them_ask(readers: list[Reader]) -> None:
    """Until half of them have asked once more, or one has found something wrong."""
    asked = [reader.asked for reader in readers]
    while sum(now.asked > then for now, then in zip(readers, asked, strict=True)) < READERS // 2:
        assert all(reader.is_alive() for reader in readers), [reader.wrong for reader in readers]
        time.sleep(0.001)


def test_readers_see_one_whole_release_while_the_pointer_moves(
    store: ReleaseStore, database: str, make_release: Make
) -> None:
    for release, mark, dim in (("a", 1.0, 8), ("b", 2.0, 8), ("c", 3.0, 12)):
        store.load(marked(make_release, release, mark, dim))
    store.promote("a", "a start")
    with reading(database) as readers:
        for number in range(PROMOTES):
            if number % 2:
                store.rollback("and back")
            else:
                store.promote("bc"[number // 2 % 2], "forth")
            let_them_ask(readers)
    assert [wrong for reader in readers for wrong in reader.wrong] == []
    assert not any(reader.is_alive() for reader in readers)
    assert all(reader.asked for reader in readers)
    assert {release for reader in readers for release in reader.seen} == {"a", "b", "c"}
