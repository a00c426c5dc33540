"""Inference for RunInference: one record batch in, the same batch with a column `user_vector` out."""

import atexit
import gc
import logging
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from apache_beam.ml.inference.base import ModelHandler
from apache_beam.utils import shared

from beamrec.model.embeddings import read_embeddings
from beamrec.model.preprocessing import FeatureSpec, raw_arrays, read_vocabulary
from beamrec.model.release import SCALERS, USER_EMBEDDINGS, USER_TOWER, local_folder, verify_release
from beamrec.schemas.errors import BadDataError, UsageError
from beamrec.schemas.events import RELEASE_CHECKSUM, RELEASE_URI, STORED_VECTOR
from beamrec.schemas.releases import ActiveRelease, ReleaseManifest
from beamrec.schemas.shop import Feature, Shop

__all__ = [
    "USER_VECTOR",
    "BuildFeatures",
    "FetchRelease",
    "ReleaseCache",
    "ServedRelease",
    "TwoTowerHandler",
    "quiet_tensorflow",
]

USER_VECTOR = "user_vector"
BuildFeatures = Callable[[pa.RecordBatch, str, Sequence[Feature]], pa.RecordBatch]
FetchRelease = Callable[[str, str], Path]
Told = Callable[[float], None]

_KEPT_RELEASES = 3

_log = logging.getLogger(__name__)

# `prepare` and RunInference, which keeps what `load_model` returns, mean the same cache.
_caches = shared.Shared()


def quiet_tensorflow(threads: int | None = None) -> Any:
    """Imports TensorFlow, without its greetings on standard error.

    Args:
      threads: how many threads an operation may use; small batches are slower on more. It has effect only
        before TensorFlow's first operation in the process.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    if threads is not None:
        try:
            tf.config.threading.set_intra_op_parallelism_threads(threads)
            tf.config.threading.set_inter_op_parallelism_threads(threads)
        except RuntimeError:
            _log.debug("TensorFlow is running already; its thread counts stay as they are")
    return tf


class ServedRelease:
    """A verified release, loaded: the user tower and the customers that it knows."""

    def __init__(self, folder: Path, checksum: str, spec: FeatureSpec) -> None:
        """Raises BadDataError if the folder is not what the stamp says, UsageError for another shop."""
        self.manifest = verify_release(folder, checksum)
        self._tower = None
        if not self.manifest.has_user_tower:
            return
        if self.manifest.user_inputs != spec.user:
            raise UsageError(
                f"release {self.manifest.id} was trained for shop {self.manifest.shop} with the inputs "
                f"{[i.column for i in self.manifest.user_inputs]}; this shop's are "
                f"{[i.column for i in spec.user]}: give the same --shop, or train a release for this one"
            )
        self._known = {value.encode() for value in _known_customers(folder, self.manifest)}
        # The loaded object must live as long as its signature: it owns the tables and weights.
        self._model = quiet_tensorflow().saved_model.load(str(folder / USER_TOWER))
        self._tower = self._model.signatures["serving_default"]

    def vectors(self, features: pa.RecordBatch) -> pa.FixedSizeListArray:
        """Vectors fixed_size_list<float32>[dim] of rows of features; null where nothing is usable.

        Usable is a customer that the release knows, or any feature that is neither NULL nor blank.
        """
        dim, rows = self.manifest.dim, features.num_rows
        usable, raw = np.zeros(rows, bool), {}
        if self._tower is not None and rows:
            raw = raw_arrays(features, self.manifest.user_inputs)
            usable = self._usable(raw)
        vectors = np.zeros((rows, dim), np.float32)
        if usable.any() and self._tower is not None:
            import tensorflow as tf

            answer = self._tower(**{name: tf.constant(values[usable]) for name, values in raw.items()})
            vectors[usable] = answer["vector"].numpy()
        return pa.FixedSizeListArray.from_arrays(
            pa.array(vectors.ravel(), pa.float32()), dim, mask=pa.array(~usable)
        )

    def _usable(self, raw: dict[str, np.ndarray]) -> np.ndarray:
        identity, *features = self.manifest.user_inputs
        usable = np.array([value in self._known for value in raw[identity.name]], bool)
        for entry in features:
            values = raw[entry.name]
            if entry.kind == "number":
                usable |= np.isfinite(values)
            else:
                usable |= np.array([bool(value.strip()) for value in values], bool)
        return usable


def _known_customers(folder: Path, manifest: ReleaseManifest) -> Sequence[str]:
    """Those that the tower has an identity for: of an imported one only its embeddings tell."""
    if manifest.origin == "import":
        return read_embeddings(folder / USER_EMBEDDINGS, manifest.dim)[0]
    return read_vocabulary(folder / SCALERS, manifest.user_inputs[0].name)


def local_release(uri: str, checksum: str) -> Path:
    """The folder of a release on this machine; ServedRelease checks it against the checksum."""
    return local_folder(uri, "release")


def _freeze_heap() -> None:
    """Takes what is loaded by now out of the garbage collector's sight.

    TensorFlow and Beam are half a million objects, and each batch makes enough of them to have all looked
    through again: that was half the time of a batch of 5,000 events.
    """
    gc.collect()
    gc.freeze()
    atexit.register(gc.unfreeze)  # else libraries complain at the end of what was never freed


def _not_told(seconds: float) -> None:
    """Nobody wants to know."""


class ReleaseCache:
    """Up to three loaded releases, the least recently used one goes; safe for threads.

    A stream sees two at a promote, and the third is the one that a rollback goes back to.
    """

    def __init__(
        self, spec: FeatureSpec, fetch: FetchRelease = local_release, size: int = _KEPT_RELEASES
    ) -> None:
        self._spec, self._fetch, self._size = spec, fetch, size
        self._releases: OrderedDict[tuple[str, str], ServedRelease] = OrderedDict()
        self._lock, self._loading = threading.Lock(), threading.Lock()

    def get(self, uri: str, checksum: str) -> ServedRelease:
        """The release of a folder, loaded once; threads that hold a loaded one do not wait for another.

        Raises:
          UsageError: the folder is not there, or of another shop.
          BadDataError: the folder was changed since it was loaded into the store.
        """
        key = (uri, checksum)
        found = self._cached(key)
        if found is None:
            with self._loading:
                found = self._cached(key)
                if found is None:
                    found = ServedRelease(self._fetch(uri, checksum), checksum, self._spec)
                    _freeze_heap()
                    with self._lock:
                        self._releases[key] = found
                        while len(self._releases) > self._size:
                            self._releases.popitem(last=False)
        return found

    def _cached(self, key: tuple[str, str]) -> ServedRelease | None:
        with self._lock:
            if key in self._releases:
                self._releases.move_to_end(key)
            return self._releases.get(key)

    def __len__(self) -> int:
        return len(self._releases)


class TwoTowerHandler(ModelHandler[pa.RecordBatch, pa.RecordBatch, ReleaseCache]):  # type: ignore[misc]
    """Adds the user tower's vectors to a batch, by the release that the batch is stamped with.

    An element is a batch already, so that RunInference does not batch again. The stamp is the schema
    metadata `release_uri` and `release_checksum` (SHA-256 of the release's manifest); it is kept. A batch
    that brings stored vectors is of a release without a user tower, whose folder is not needed then.

    Args:
      shop: says which columns of the batch are the customer and the user tower's features.
      build_features: the function that makes features on the batch side too.
      fetch: (URI, checksum) → the release's folder on this machine; picklable.
      told: is told how many seconds each batch took; picklable.
    """

    def __init__(
        self,
        shop: Shop,
        build_features: BuildFeatures,
        fetch: FetchRelease = local_release,
        told: Told = _not_told,
    ) -> None:
        super().__init__()
        self._told = told
        self._shop = shop
        self._build_features = build_features
        self._fetch = fetch

    def load_model(self) -> ReleaseCache:
        """The worker's cache; TensorFlow is imported now, on the worker, and not at the first batch."""
        quiet_tensorflow(threads=1)
        spec = FeatureSpec.from_shop(self._shop)
        cache: ReleaseCache = _caches.acquire(
            lambda: ReleaseCache(spec, self._fetch), tag=(self._shop, self._fetch)
        )
        return cache

    def prepare(self, release: ActiveRelease) -> None:
        """Loads a release on this worker before a batch is stamped with it.

        Raises:
          UsageError: the folder is not there, or of another shop.
          BadDataError: the folder is not what was loaded into the store.
        """
        if release.has_user_tower:
            self.load_model().get(release.uri, release.checksum)

    def run_inference(
        self, batch: pa.RecordBatch, model: ReleaseCache, inference_args: dict[str, Any] | None = None
    ) -> Iterable[pa.RecordBatch]:
        """Yields the batch with `user_vector`, null where the popularity list must serve.

        Raises:
          BadDataError: the batch has no stamp, or the release is not what the stamp says.
        """
        if STORED_VECTOR in batch.schema.names:
            renamed = batch.rename_columns({STORED_VECTOR: USER_VECTOR})
            yield renamed.replace_schema_metadata(batch.schema.metadata)
            return
        stamp = batch.schema.metadata or {}
        if RELEASE_URI not in stamp or RELEASE_CHECKSUM not in stamp:
            raise BadDataError(
                "user tower: the batch is not stamped with a release (release_uri, …_checksum)"
            )
        release = model.get(stamp[RELEASE_URI].decode(), stamp[RELEASE_CHECKSUM].decode())
        began = time.perf_counter()
        features = self._build_features(batch, self._shop.customers.key, self._shop.user_features)
        vectors = release.vectors(features)
        self._told(time.perf_counter() - began)
        yield batch.append_column(USER_VECTOR, vectors)

    def get_num_bytes(self, batch: pa.RecordBatch) -> int:
        """Bytes of the batch's columns."""
        return int(batch.nbytes)

    def get_metrics_namespace(self) -> str:
        """Where RunInference's metrics appear."""
        return "BeamML_TwoTower"

    def should_skip_batching(self) -> bool:
        """Elements are batches."""
        return True
