"""What every store promises, on a file system and on real servers of both object stores' protocols."""

import pickle
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beamrec.io.store import Store, open_store, with_beam_options
from beamrec.schemas.errors import UsageError


@pytest.fixture(params=["local", "s3", "gcs"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty output."""
    if request.param == "local":
        return str(tmp_path / "lake é")
    found = request.getfixturevalue(request.param)
    return str(getattr(found, "uri", found))


@pytest.fixture
def store(uri: str) -> Store:
    """The store of an empty output."""
    made = open_store(uri)
    made.check()
    return made


def test_a_check_leaves_nothing_behind(store: Store) -> None:
    assert store.names("") == []


def test_of_many_who_create_an_object_one_wins(store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        for number in range(6):
            path = f"race/{number}"
            contents = [f"{number} {writer}".encode() for writer in range(8)]
            won = list(pool.map(lambda data, path=path: store.create(path, data), contents))
            assert won.count(True) == 1
            assert store.read(path) == contents[won.index(True)]


def test_a_staged_object_is_published_once(store: Store) -> None:
    first, second = store.stage(b"one"), store.stage(b"two")
    assert store.publish(first, "out/0")
    assert not store.publish(second, "out/0")
    assert store.read("out/0") == b"one"
    with pytest.raises(FileNotFoundError):
        store.publish(first, "out/1")
    assert store.names("_ledger/staged") == []


def test_putting_again_replaces(store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"from a file")
    for durable in (False, True):
        store.put("a/x", b"something long", durable)
        store.put("a/x", pa.py_buffer(b"short"), durable)
        assert store.read("a/x") == b"short"
    store.put_file("a/x", tmp_path / "file")
    assert store.read("a/x") == b"from a file"
    store.flush()
    assert store.sizes("a") == {"a/x": 11}


def test_what_is_not_there_is_not_found(store: Store) -> None:
    store.put("a/x", b"1")
    assert not store.exists("a")
    assert not store.exists("a/x/y")
    assert store.sizes_of(["a/x", "b", "a/x/y"]) == {"a/x": 1}
    assert store.names("b") == []
    assert store.sizes("b") == {}
    store.discard("b")
    store.discard_all(["b", "b/c"])
    store.discard_tree("b")
    with pytest.raises(FileNotFoundError):
        store.read("b")
    with pytest.raises(FileNotFoundError):
        store.age_seconds("b")


def test_a_folder_is_not_another_whose_name_begins_alike(store: Store) -> None:
    store.put_all([("a/x", b"1"), ("ab/x", b"2"), ("a/b/c", b"3")])
    assert store.sizes("a") == {"a/x": 1, "a/b/c": 1}
    assert store.names("a") == ["b", "x"]
    assert store.names("") == ["a", "ab"]
    assert store.sizes("") == {"a/x": 1, "a/b/c": 1, "ab/x": 1}
    store.discard_tree("a")
    assert store.names("") == ["ab"]


def test_objects_move_in_bulk_and_again_and_replace_what_is_there(store: Store) -> None:
    objects = {f"data/k={number % 9}/part-{number}": bytes([number]) * number for number in range(60)}
    store.put_all((f"_staging/run/{path}", data) for path, data in objects.items())
    store.put_all([("data/k=3/part-3", b"other"), ("data/k=3/mine", b"mine")])
    for _ in range(2):
        store.move_all("_staging/run", sorted(objects))
        assert {path: store.read(path) for path in objects} == objects
        assert store.sizes("_staging") == {}
    assert store.read("data/k=3/mine") == b"mine"
    with pytest.raises(FileNotFoundError):
        store.move_all("_staging/run", ["data/none"])


def test_some_may_have_been_moved_before(store: Store) -> None:
    store.put_all([("_staging/run/a/1", b"1"), ("a/2", b"2"), ("_staging/run/b/c/3", b"3")])
    store.move_all("_staging/run", ["a/1", "a/2", "b/c/3"])
    assert {**store.sizes("a"), **store.sizes("b")} == {"a/1": 1, "a/2": 1, "b/c/3": 1}


def test_folders_go_with_their_last_object(store: Store) -> None:
    store.put_all([("a/b/1", b""), ("a/b/2", b""), ("c", b"")])
    store.discard_all(["a/b/1"])
    assert store.names("a") == ["b"]
    store.discard_all(["a/b/2"])
    assert store.names("") == ["c"]
    store.discard_tree("c")
    assert store.names("") == []


def test_sizes_of_many_are_those_that_are_there(store: Store) -> None:
    store.put_all((f"a/{number}/x", b"1" * number) for number in range(30))
    asked = [f"a/{number}/x" for number in range(20, 40)]
    assert store.sizes_of(asked) == {f"a/{number}/x": number for number in range(20, 30)}


def test_ages_are_by_the_stores_clock(store: Store) -> None:
    store.put("x", b"")
    assert 0 <= store.age_seconds("x") < 60


@pytest.mark.parametrize(
    "name", ["ü/%", "a b", "x=y", "'q\"", "a&b#c?d+e", "ß🚗", "%41", "__HIVE_DEFAULT_PARTITION__"]
)
def test_names_are_taken_literally(store: Store, name: str) -> None:
    store.put(f"_staging/r/k={name}/x", b"1")
    store.move_all("_staging/r", [f"k={name}/x"])
    assert store.sizes(f"k={name}") == {f"k={name}/x": 1}
    assert store.read(f"k={name}/x") == b"1"
    store.discard_all([f"k={name}/x"])
    store.discard_tree("_staging/r")
    assert store.names("") == []


def test_arrow_reads_what_was_put(store: Store) -> None:
    table = pa.table({"n": list(range(1000))})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    store.put("t/part.parquet", sink.getvalue())
    files, base = pickle.loads(pickle.dumps(store.arrow()))  # noqa: S301
    assert pq.read_table(f"{base}/t/part.parquet", filesystem=files).equals(table)


def test_a_store_travels_to_a_worker(store: Store) -> None:
    store.put("x", b"1")
    assert pickle.loads(pickle.dumps(store)).read("x") == b"1"  # noqa: S301


def test_one_run_keeps_another_out_until_it_is_dead(uri: str, store: Store) -> None:
    with store.exclusive("one"), pytest.raises(UsageError, match="run"), store.exclusive("two"):
        pass
    code = f"store = open_store({uri!r}); held = store.exclusive('dead'); held.__enter__(); print('in')"
    code = f"import time; from beamrec.io.store import open_store; {code}; time.sleep(60)"
    with subprocess.Popen([sys.executable, "-uc", code], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "in\n"
        with pytest.raises(UsageError, match="run"), store.exclusive("three"):
            pass
        child.send_signal(signal.SIGKILL)
    with store.exclusive("four"):
        pass
    # A lease leaves two small objects, and not more with every run.
    assert len(store.sizes("_lease")) in (0, 2)


@pytest.mark.parametrize("uri", ["ftp://host/x", "kafka://host/x"])
def test_an_unknown_scheme_lists_the_known_ones(uri: str) -> None:
    with pytest.raises(UsageError, match=r"--data: expected one of a path, file://, s3://, gs://, got"):
        open_store(uri, "--data")
    with pytest.raises(UsageError, match="--output"):
        with_beam_options(uri, [])


def test_what_stands_at_the_emulators_address_travels_in_the_uri(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "localhost:1")
    assert with_beam_options("gs://bucket/x", []) == "gs://bucket/x?endpoint=http%3A%2F%2Flocalhost%3A1"
    monkeypatch.delenv("STORAGE_EMULATOR_HOST")
    assert with_beam_options("gs://bucket/x", []) == "gs://bucket/x"
