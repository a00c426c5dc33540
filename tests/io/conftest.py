"""A real embedded PostgreSQL with pgvector for the tests of this folder."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from beamrec.io import embedded
from beamrec.io.pgvector import ReleaseStore
from beamrec.io.postgres import connect
from beamrec.schemas.releases import ReleaseContents, ReleaseManifest


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The data folder of a running server, stopped at the end."""
    folder = tmp_path_factory.mktemp("embedded") / "pg"
    embedded.ensure_running(folder)
    yield folder
    embedded.stop_server(folder)


@pytest.fixture
def database(server: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """URI of the server with none of our tables in it."""
    uri = f"embedded:{server}"
    _drop_everything(uri)
    yield uri
    _drop_everything(uri)


@pytest.fixture
def store(database: str) -> Iterator[ReleaseStore]:
    """An empty store."""
    made = ReleaseStore(database)
    made.ensure_schema()
    yield made
    made.close()


def _drop_everything(uri: str) -> None:
    connection = connect(uri)
    with connection, connection.cursor() as cursor:
        cursor.execute("DROP SCHEMA IF EXISTS beamrec CASCADE; DROP TABLE IF EXISTS public.item_emb CASCADE")
    connection.close()


@pytest.fixture
def make_release() -> Callable[..., ReleaseContents]:
    """Makes up the contents of a release."""
    return _made_up


def _made_up(
    release: str = "20261122T1200-00000001",
    items: int = 60,
    users: int = 7,
    dim: int = 8,
    seed: int = 0,
    normalized: bool = True,
    distance: str = "<->",
) -> ReleaseContents:
    """Ids are of several lengths, some with characters that need quoting."""
    rng = np.random.default_rng(seed)
    vectors = [rng.normal(size=(n, dim)).astype(np.float32) for n in (items, users)]
    if normalized:
        vectors = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in vectors]
    odd = ["S10_1678", 'quote"d', "back\\slash", "tab\there", "new\nline", "naïve ☃", "{brace,comma}", "N"]
    ids = tuple((odd + [f"P{i}" for i in range(items)])[:items])
    manifest = ReleaseManifest(
        id=release, created_at="2026-11-22T12:00:00Z", code_version="0", shop="test",
        user_key_type="int", item_key_type="string", dim=dim, items=items, users=users, files=(),
        normalized=normalized, distance=distance,
    )  # fmt: skip
    checksum = hashlib.sha256(manifest.to_json() + vectors[0].tobytes()).hexdigest()
    popular = tuple(rng.permutation(np.array(ids, object)))
    user_ids = tuple(str(100 + u) for u in range(users))
    return ReleaseContents(manifest, "/a/folder", checksum, ids, vectors[0], user_ids, vectors[1], popular)
