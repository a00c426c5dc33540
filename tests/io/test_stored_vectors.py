"""A release without a user tower: known customers bring the vector that the release holds of them."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pyarrow as pa

from beamrec.io.neighbour_cache import NeighbourCache
from beamrec.io.pgvector import ReleaseStore
from beamrec.io.retrieval import enrich
from beamrec.model.handler import USER_VECTOR, TwoTowerHandler
from beamrec.schemas.events import STORED_VECTOR
from beamrec.schemas.releases import ReleaseContents, TowerInput
from beamrec.schemas.shop import CLASSICMODELS
from beamrec.transforms.features import build_features

HISTORY = pa.list_(pa.struct([("product", pa.string())]))
SCHEMA = pa.schema([(CLASSICMODELS.customers.key, pa.int64()), ("history", HISTORY)])


def batch_of(*customers: int | None) -> pa.RecordBatch:
    rows = [{CLASSICMODELS.customers.key: customer, "history": []} for customer in customers]
    return pa.RecordBatch.from_pylist(rows, schema=SCHEMA)


def test_they_become_user_vectors_without_the_releases_folder(
    store: ReleaseStore, make_release: Callable[..., ReleaseContents]
) -> None:
    release = make_release()
    store.load(release)
    store.promote(release.manifest.id, "test")
    active = store.active()
    assert active is not None
    enriched = enrich(batch_of(106, 999, None, 100, 106), CLASSICMODELS, NeighbourCache(store), active)
    handler = TwoTowerHandler(CLASSICMODELS, build_features)
    (served,) = handler.run_inference(enriched, handler.load_model())
    assert served.schema.metadata == enriched.schema.metadata
    assert STORED_VECTOR not in served.schema.names
    column = served.column(USER_VECTOR)
    assert column.is_valid().to_pylist() == [True, False, False, True, True]
    expected = release.user_vectors[[6, 0, 6]]
    np.testing.assert_array_equal(column.drop_null().flatten().to_numpy().reshape(3, -1), expected)
    assert served.column("known").to_pylist()[:2] == [True, False]


def test_nobody_known_is_no_vector(store: ReleaseStore, make_release: Callable[..., ReleaseContents]) -> None:
    release = make_release(users=0)
    store.load(release)
    active = store.release(release.manifest.id)
    for batch in (batch_of(1, 2), batch_of()):
        column = enrich(batch, CLASSICMODELS, NeighbourCache(store), active).column(STORED_VECTOR)
        assert (column.null_count, column.type.list_size) == (batch.num_rows, release.manifest.dim)


def test_with_a_user_tower_they_are_not_asked_for(
    store: ReleaseStore, make_release: Callable[..., ReleaseContents]
) -> None:
    release = make_release()
    manifest = dataclasses.replace(
        release.manifest, has_user_tower=True, user_inputs=(TowerInput("user_id", "x", "identity"),)
    )
    store.load(dataclasses.replace(release, manifest=manifest))
    enriched = enrich(batch_of(106), CLASSICMODELS, NeighbourCache(store), store.release(manifest.id))
    assert STORED_VECTOR not in enriched.schema.names
