"""PostgreSQL stopped and started again and again under load: right answers, no lost upsert, no help."""

import datetime as dt
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.timestamp import Timestamp

from beamrec.io import embedded
from beamrec.io.pgvector import ReleaseStore
from beamrec.io.postgres import connect
from beamrec.io.retrieval import SearchDoFn, _EnrichDoFn, _Releases
from beamrec.io.serving_sink import _UpsertDoFn as _ServingDoFn
from beamrec.io.vector_transforms import Limits, VectorSearch, VectorUpsert
from beamrec.io.vector_transforms import _SearchDoFn as _AnySearchDoFn
from beamrec.io.vector_transforms import _UpsertDoFn as _AnyUpsertDoFn
from beamrec.schemas.events import RELEASE_ID, SERVED, event_schema
from beamrec.schemas.releases import ReleaseContents
from beamrec.schemas.shop import CLASSICMODELS

pytestmark = pytest.mark.faults

SHORT = os.environ.get("BEAMREC_FAULTS") == "short"
RESTARTS = 3 if SHORT else 10
PATIENCE_SECONDS = 120
KEYS = 50
NOON = dt.datetime(2026, 11, 22, 12, tzinfo=dt.UTC)
LIMITS = Limits(connections=2, connect_seconds=5, statement_seconds=20)
HISTORY = event_schema(CLASSICMODELS).field("history").type


class Load(threading.Thread):
    """One worker's thread: does the same step with the next number until it is told to stop."""

    def __init__(self, name: str, step: Callable[[int], None]) -> None:
        super().__init__(name=name, daemon=True)
        self._step, self._stopped = step, threading.Event()
        self.done = 0
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            while not self._stopped.is_set():
                self._step(self.done)
                self.done += 1
        except BaseException as error:  # noqa: BLE001  (whatever ends a worker is the test's result)
            self.error = error

    def stop(self) -> None:
        self._stopped.set()
        self.join(PATIENCE_SECONDS)
        assert not self.is_alive(), f"{self.name} hangs"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """The data folder of a server of its own."""
    made = tmp_path / "pg"
    embedded.ensure_running(made)
    yield made
    embedded.stop_server(made)


@pytest.fixture
def release(folder: Path, make_release: Callable[..., Any]) -> ReleaseContents:
    """An active release, and tables of somebody else."""
    made: ReleaseContents = make_release(items=400)
    store = ReleaseStore(f"embedded:{folder}")
    store.load(made)
    store.promote(made.manifest.id, "test")
    store.close()
    connection = connect(f"embedded:{folder}")
    with connection, connection.cursor() as cursor:
        cursor.execute(
            "CREATE TABLE public.numbers (id int PRIMARY KEY, n bigint NOT NULL, vec vector(3) NOT NULL);"
            "CREATE TABLE public.points AS SELECT n AS id, ARRAY[n, 0, 0]::vector AS vec "
            "FROM generate_series(0, 99) AS n"
        )
    connection.close()
    return made


def stop(server: embedded.EmbeddedServer, how: str) -> None:
    """Stops by the recorded process id: `fast` disconnects, `immediate` is a crash that recovers."""
    os.kill(server.pid, {"fast": signal.SIGINT, "immediate": signal.SIGQUIT}[how])
    psutil.wait_procs([psutil.Process(server.pid)] if psutil.pid_exists(server.pid) else [], PATIENCE_SECONDS)


def searches(uri: str, release: ReleaseContents) -> Iterator[Load]:
    """Every way of asking, each answer compared with what NumPy says."""
    users = release.user_vectors
    products = users.astype(np.float64) @ release.item_vectors.T.astype(np.float64)
    best = [[release.item_ids[i] for i in row] for row in np.argsort(-products, axis=1)[:, :3]]
    events = pa.RecordBatch.from_arrays([pa.array([[]] * len(users), HISTORY)], ["history"]).append_column(
        "user_vector", pa.array(list(users), pa.list_(pa.float32(), users.shape[1]))
    )
    events = events.replace_schema_metadata({RELEASE_ID: release.manifest.id})

    def search(number: int) -> None:
        worker = SearchDoFn(uri, 3, "index")
        worker._releases = remembered
        (found,) = worker.process(events)
        got = [[entry["id"] for entry in row] for row in found.column("candidates").to_pylist()]
        assert got == best, got

    remembered = _Releases(uri)
    yield Load("search", search)

    points = _AnySearchDoFn((uri, LIMITS, None), VectorSearch("points", 2, vector_column="vec"), "v", "found")
    points.setup()

    def search_points(number: int) -> None:
        place = float(number % 98) + 0.25
        batch = pa.RecordBatch.from_arrays([pa.array([[place, 0.0, 0.0]])], ["v"])
        (answer,) = points.process(batch)
        assert [entry["id"] for entry in answer.column("found").to_pylist()[0]] == [
            number % 98,
            number % 98 + 1,
        ]

    yield Load("search points", search_points)

    def enrich(number: int) -> None:
        worker = _EnrichDoFn(uri, CLASSICMODELS)
        worker._releases = _Releases(uri)  # remembers nothing: every product is asked for
        worker._serving = worker._make_serving()
        history = pa.array(
            [[{"product": "N", "in_cart": True}, {"product": "gone", "in_cart": True}]], HISTORY
        )
        batch = pa.RecordBatch.from_arrays(
            [pa.array([100 + number % 9]), history], ["customerNumber", "history"]
        )
        (answer,) = worker.process(batch)
        assert answer.column("known").to_pylist() == [number % 9 < 7]
        assert [entry["product"] for entry in answer.column("similar").to_pylist()[0]] == ["N"]
        worker._releases.store.close()

    yield Load("enrich", enrich)


def upserts(uri: str, acknowledged: dict[str, dict[str, int]]) -> Iterator[Load]:
    """Two writers of the same keys with rising numbers, and one of the serving table."""
    for name, step in (("even", 0), ("odd", 1)):
        target = VectorUpsert("numbers", newer=("n",))
        worker = _AnyUpsertDoFn((uri, LIMITS, None), target)
        worker.setup()
        kept = acknowledged.setdefault(name, {})

        def write(number: int, worker: Any = worker, step: int = step, kept: dict[str, int] = kept) -> None:
            keys = [(number * 7 + k) % KEYS for k in range(12)]
            value = 2 * number + step
            batch = pa.RecordBatch.from_pydict(
                {"id": keys, "n": [value] * len(keys), "vec": [[float(value % 1000), 1.0, 2.0]] * len(keys)}
            )
            list(worker.process(batch))
            kept.update({str(key): value for key in keys})

        yield Load(f"upsert {name}", write)

    serving, latest = _ServingDoFn(uri), acknowledged.setdefault("serving", {})
    serving.setup()

    def serve(number: int) -> None:
        customer, when = str(number % KEYS), NOON + dt.timedelta(seconds=number)
        row = [customer, f"e{number}", when, when, "r", "popular", "[]", "[]", when]
        batch = pa.RecordBatch.from_pylist([dict(zip(SERVED.names, row, strict=True))], SERVED)
        serving.start_bundle()
        assert list(serving.process(batch, Timestamp(0), GlobalWindow())) == []
        assert sum(output.value for output in serving.finish_bundle()) <= 1
        latest[customer] = number

    yield Load("upsert serving", serve)


def test_restarts_under_load(folder: Path, release: ReleaseContents) -> None:
    server = embedded.ensure_running(folder)  # by this URI no client starts the server itself
    acknowledged: dict[str, dict[str, int]] = {}
    loads = [*searches(server.uri, release), *upserts(server.uri, acknowledged)]
    for load in loads:
        load.start()
    draw = random.Random(5)
    for number in range(RESTARTS):
        time.sleep(draw.uniform(0.2, 1.0))
        stop(server, ("fast", "immediate")[number % 2])
        time.sleep(draw.uniform(0.0, 0.5))
        server = embedded.ensure_running(folder)
        before = {load: load.done for load in loads}
        deadline = time.monotonic() + PATIENCE_SECONDS
        while waiting := [load.name for load in loads if load.error is None and load.done < before[load] + 2]:
            assert time.monotonic() < deadline, f"after restart {number + 1} these did not go on: {waiting}"
            time.sleep(0.05)
        assert [(load.name, repr(load.error)) for load in loads if load.error] == []
    for load in loads:
        load.stop()
    assert [(load.name, repr(load.error)) for load in loads if load.error] == []
    check(server.uri, acknowledged)


def check(uri: str, acknowledged: dict[str, dict[str, int]]) -> None:
    """What was acknowledged is there, and the newest of it."""
    connection = connect(uri)
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT id, n, vec::real[] FROM numbers")
        numbers = {str(key): (n, vec[0]) for key, n, vec in cursor.fetchall()}
        cursor.execute("SELECT customer_id, event_id FROM beamrec.recommendations_latest")
        latest = {customer: int(event[1:]) for customer, event in cursor.fetchall()}
    connection.close()
    keys = set(acknowledged["even"]) | set(acknowledged["odd"])
    wanted = {
        key: max(kept.get(key, -1) for name, kept in acknowledged.items() if name != "serving")
        for key in keys
    }
    assert numbers == {key: (n, float(n % 1000)) for key, n in wanted.items()}
    assert latest == acknowledged["serving"]
