"""`release load` and `release promote` killed at random moments: the active release is always a whole one."""

import contextlib
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from beamrec.io import embedded
from beamrec.io.pgvector import ReleaseStore
from beamrec.io.pgvector_gc import Keep
from beamrec.io.postgres import connect
from beamrec.model import release as folders

pytestmark = pytest.mark.faults

SHORT = os.environ.get("BEAMREC_FAULTS") == "short"
KILLS = 4 if SHORT else 20
ITEMS, USERS, DIM = 4_000, 1_000, 16
READERS = 2

# A process that says when its work begins, so that kills fall into the work and not into its imports.
_CHILD = """
import sys
from beamrec.pipelines.commands import release
from beamrec.pipelines.console import Console
import beamrec.io.pgvector, beamrec.model.release, beamrec.io.release_folders
print("go", flush=True)
release.run(sys.argv[2:], Console(home=sys.argv[1], json=True))
"""


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A home whose embedded server is stopped at the end."""
    yield tmp_path
    embedded.stop_server(tmp_path / "pg")


def make_release(home: Path, seed: int) -> str:
    """A release folder whose every vector begins with the seed; returns its id."""
    rng = np.random.default_rng(seed)
    vectors = {"item": rng.normal(size=(ITEMS, DIM)), "user": rng.normal(size=(USERS, DIM))}
    ids = {"item": [f"P{n}" for n in range(ITEMS)], "user": [str(n) for n in range(USERS)]}
    with folders.staged_release(home / "releases") as staging:
        for side, file in (("item", folders.ITEM_EMBEDDINGS), ("user", folders.USER_EMBEDDINGS)):
            vectors[side][:, 0] = seed
            folders.write_embeddings(staging / file, ids[side], vectors[side].astype(np.float32))
        folders.write_popularity(staging / folders.POPULARITY, ids["item"], [1] * ITEMS)
        values = {
            "shop": "test",
            "user_key_type": "int",
            "item_key_type": "string",
            "dim": DIM,
            "items": ITEMS,
            "users": USERS,
            "normalized": False,
        }
        manifest, _ = folders.publish_release(staging, home / "releases", values)
    return manifest.id


@contextlib.contextmanager
def working(home: Path, *argv: str) -> Iterator[subprocess.Popen[str]]:
    """A process at work, killed at the end of the `with` block."""
    command = [sys.executable, "-c", _CHILD, str(home), *argv, "--vector-db", f"embedded:{home}/pg"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "go\n"
            yield process
        finally:
            process.kill()


def kill_at(moment: float, home: Path, *argv: str) -> bool:
    """Whether the process was still at work when it was killed."""
    with working(home, *argv) as process:
        time.sleep(moment)
        return process.poll() is None


def finish(home: Path, *argv: str) -> float:
    """Seconds that the work took."""
    with working(home, *argv) as process:
        began = time.monotonic()
        assert process.wait(120) == 0
        return time.monotonic() - began


def rows(uri: str, statement: str) -> list[tuple]:
    with contextlib.closing(connect(uri)) as connection, connection, connection.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchall()


# (items, users, items with neighbours, their marks), all in one statement.
_WHOLE = """
WITH active AS (SELECT release FROM beamrec.active_release)
SELECT (SELECT count(*) FROM item_emb), (SELECT count(*) FROM user_emb),
  (SELECT count(*) FROM beamrec.item_neighbours WHERE release = (SELECT release FROM active)
    AND cardinality(neighbour_ids) = 20),
  (SELECT count(DISTINCT (embedding::real[])[1]) FROM
    (SELECT embedding FROM item_emb UNION ALL SELECT embedding FROM user_emb) AS u)
"""


class Reader(threading.Thread):
    """Asks for the active release in a loop, by the views and by search; keeps what was not whole."""

    def __init__(self, uri: str) -> None:
        super().__init__(daemon=True)
        self._uri, self._stopped = uri, threading.Event()
        self.asked = 0
        self.wrong: list[object] = []

    def run(self) -> None:
        store = ReleaseStore(self._uri)
        while not self._stopped.wait(0.05):
            if (found := rows(self._uri, _WHOLE)[0]) != (ITEMS, USERS, ITEMS, 1):
                self.wrong.append(found)
            active = store.active()
            assert active is not None
            answer = store.search(active.id, np.ones((1, DIM), np.float32), 10)
            if len(answer[0]) != 10:
                self.wrong.append(answer)
            self.asked += 1
        store.close()

    def stop(self) -> None:
        self._stopped.set()
        self.join(60)


def check_nothing_is_left_over(uri: str, loaded: set[str]) -> None:
    names = rows(
        uri,
        "SELECT relname FROM pg_class WHERE relnamespace = 'beamrec'::regnamespace AND relkind = 'r' "
        "AND relname ~ '_20[0-9]{6}T'",
    )
    parents = ("item_embeddings", "user_embeddings", "item_neighbours")
    assert {name for (name,) in names} == {f"{parent}_{i}" for parent in parents for i in loaded}
    assert rows(uri, "SELECT count(*) FROM beamrec.release_loads") == [(0,)]
    assert rows(uri, "SELECT count(*) FROM pg_inherits WHERE inhdetachpending") == [(0,)]
    assert rows(uri, "SELECT count(*) FROM pg_index WHERE NOT indisvalid") == [(0,)]


def test_killed_loads_and_promotes_leave_the_active_release_whole(home: Path) -> None:
    uri, random_ = f"embedded:{home}/pg", random.Random(5)
    store = ReleaseStore(uri)
    first = make_release(home, 1)
    load_seconds = finish(home, "load", first)
    promote_seconds = finish(home, "promote", first)
    readers = [Reader(uri) for _ in range(READERS)]
    for reader in readers:
        reader.start()
    active, killed = first, {"load": 0, "promote": 0}
    for round_ in range(KILLS):
        release = make_release(home, round_ + 2)
        killed["load"] += kill_at(random_.uniform(0, 1.1) * load_seconds, home, "load", release)
        now = store.active()
        assert now is not None
        assert now.id == active
        finish(home, "load", release)
        killed["promote"] += kill_at(random_.uniform(0, 1.1) * promote_seconds, home, "promote", release)
        now = store.active()
        assert now is not None
        assert now.id in (active, release)
        finish(home, "promote", release)
        now = store.active()
        assert now is not None
        assert now.id == release
        found = store.collect(Keep(1))
        assert found.leftovers == ()
        check_nothing_is_left_over(uri, {active, release})
        active = release
    for reader in readers:
        reader.stop()
    assert [wrong for reader in readers for wrong in reader.wrong] == []
    assert not any(reader.is_alive() for reader in readers)
    assert all(reader.asked > KILLS for reader in readers)
    assert min(killed.values()) >= KILLS // 3, "most ended before they were killed"
    store.close()
