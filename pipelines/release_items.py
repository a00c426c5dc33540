"""`beamrec release upsert`: products that came after a release, into its catalogue."""

import argparse
import csv
import datetime as dt
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from pyarrow import csv as arrow_csv

from beamrec.model.embeddings import EMBEDDINGS_HEADER
from beamrec.pipelines.console import Console
from beamrec.pipelines.environment import default
from beamrec.schemas.embeddings import KeyType
from beamrec.schemas.errors import BadDataError, UsageError
from beamrec.schemas.shop import Shop, load_shop

if TYPE_CHECKING:
    from beamrec.io.pgvector import ReleaseStore
    from beamrec.schemas.releases import ActiveRelease

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `release upsert`."""
    add = parser.add_argument
    add(
        "--items",
        help="CSV file of products, with the shop's column names or the header id,embedding; those that the "
        "release knows get a new vector [file]",
    )
    add(
        "--source",
        default=default("source"),
        help="shop database, if --items is not given: its products that the release does not know [URI]",
    )
    add("--source-secret", help="where its password is, if not in the environment [URI]")
    add("--shop", default=default("shop"), help="the shop's tables and features; classicmodels [TOML file]")
    add("--release", help="id of a loaded release; the active one")
    add("--reason", default="upsert", help="why; kept in the audit table")


def run(values: argparse.Namespace, store_uri: str, console: Console) -> dict[str, Any]:
    """Makes the vectors by the release's item tower and upserts them."""
    from beamrec.io.pgvector import ReleaseStore

    if not values.items and not values.source:
        raise UsageError("--items or --source is missing: which products?")
    store, shop = ReleaseStore(store_uri), load_shop(values.shop)
    target = _target(store, values.release)
    if values.items and _holds_vectors(Path(values.items)):
        key_type = store.show(target.id)["manifest"]["item_key_type"]
        ids, vectors, skipped = *_given_vectors(Path(values.items), target, key_type), 0
        rows = len(ids)
    else:
        batch, skipped = _products(values, shop)
        rows = batch.num_rows + skipped
        if not values.items:
            batch = _unknown(batch, store, target)
        ids, vectors = _embed(batch, shop, target, console)
    done = store.upsert_items(target.id, ids, vectors, values.reason) if ids else None
    added, changed = (done.added, done.changed) if done else (0, 0)
    console.print(
        f"release {target.id}: {added} new and {changed} changed of {rows} products; {skipped} unusable ones "
        "skipped" + (f"; {done.lists} neighbour lists computed" if done else "")
    )
    return {
        "release": target.id,
        "in": rows,
        "out": added + changed,
        "added": added,
        "changed": changed,
        "skipped": skipped,
        "known": rows - skipped - added - changed,
        "lists": done.lists if done else 0,
        "items_version": done.items_version if done else target.items_version,
    }


def _target(store: "ReleaseStore", release_id: str | None) -> "ActiveRelease":
    if release_id:
        return store.release(release_id)
    active = store.active()
    if active is None:
        raise UsageError("no release is active; promote one, or give --release ID")
    return active


def _header(path: Path) -> list[str]:
    """The names in the first row, as they are written there."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return next(csv.reader(file), [])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"--items {path}: cannot be read: {error}") from None


def _holds_vectors(path: Path) -> bool:
    return {name.strip().lower() for name in _header(path)} >= set(EMBEDDINGS_HEADER)


def _given_vectors(path: Path, target: "ActiveRelease", key_type: KeyType) -> tuple[list[str], np.ndarray]:
    """Ids and vectors [rows, dim], in the spellings that an import takes too."""
    from beamrec.model.foreign_embeddings import read_foreign_embeddings

    ids, vectors = read_foreign_embeddings(path, key_type)
    if ids and vectors.shape[1] != target.dim:
        raise BadDataError(
            f"--items {path}: expected vectors of {target.dim} numbers, as release {target.id} has them; "
            f"got {vectors.shape[1]}"
        )
    return ids, vectors


def _products(values: argparse.Namespace, shop: Shop) -> tuple[pa.RecordBatch, int]:
    """Usable products, one a key, and the number of the others."""
    from beamrec.io.registry import scheme_of
    from beamrec.io.shop_table import read_table
    from beamrec.transforms.entities import check_table
    from beamrec.transforms.rejects import Rejects

    if values.items:
        return _one_a_key(_csv_products(Path(values.items), shop), shop)
    batch, malformed = read_table(values.source, shop.products, values.source_secret)
    now = dt.datetime.now(dt.UTC).isoformat()
    rejects = Rejects(scheme_of(values.source), shop.products.name, (shop.products.key,), now)
    checked = check_table(batch, shop.products, malformed, rejects)
    return checked.rows, len(checked.letters)


def _csv_products(path: Path, shop: Shop) -> pa.RecordBatch:
    """All columns as text; an empty field that is not quoted is NULL, as in the shop's own exports."""
    wanted = [shop.products.key, *(feature.column for feature in shop.item_features)]
    spelled = {name.lower(): name for name in _header(path)}
    missing = [column for column in wanted if column.lower() not in spelled]
    if missing:
        raise UsageError(
            f"--items {path}: expected the columns {', '.join(wanted)} (or id,embedding); "
            f"{missing[0]} is missing"
        )
    columns = [spelled[column.lower()] for column in wanted]
    options = arrow_csv.ConvertOptions(
        column_types=dict.fromkeys(columns, pa.string()),
        include_columns=columns,
        null_values=[""],
        strings_can_be_null=True,
        quoted_strings_can_be_null=False,
    )
    try:
        table = arrow_csv.read_csv(
            path, convert_options=options, parse_options=arrow_csv.ParseOptions(newlines_in_values=True)
        )
    except pa.ArrowInvalid as error:
        raise BadDataError(f"--items {path}: {error}") from None
    arrays = [column.combine_chunks() for column in table.columns]
    return pa.RecordBatch.from_arrays(arrays, names=wanted)


def _one_a_key(batch: pa.RecordBatch, shop: Shop) -> tuple[pa.RecordBatch, int]:
    """Rows with a key, the last one of each: it stands lowest in the file."""
    last = {key: row for row, key in enumerate(batch.column(0).to_pylist()) if key}
    return batch.take(pa.array(sorted(last.values()), pa.int64())), batch.num_rows - len(last)


def _unknown(batch: pa.RecordBatch, store: "ReleaseStore", target: "ActiveRelease") -> pa.RecordBatch:
    ids = [str(key) for key in batch.column(0).to_pylist()]
    unknown = set(store.unknown_items(target.id, ids))
    rows = [row for row, item in enumerate(ids) if item in unknown]
    return batch.take(pa.array(rows, pa.int64()))


def _embed(
    batch: pa.RecordBatch, shop: Shop, target: "ActiveRelease", console: Console
) -> tuple[list[str], np.ndarray]:
    """Ids and vectors [rows, dim] by the item tower of the release's folder."""
    from beamrec.io.release_folders import local_copy
    from beamrec.model.preprocessing import FeatureSpec
    from beamrec.transforms.features import build_features

    if not batch.num_rows:
        return [], np.zeros((0, target.dim), np.float32)
    try:
        features = build_features(batch, shop.products.key, shop.item_features)
    except ValueError as error:
        raise BadDataError(f"products: {error}") from None
    console.status(f"making the vectors of {batch.num_rows} products by the item tower of {target.id}")
    from beamrec.model.item_tower import embed_items

    folder = local_copy(target.uri, console.home / "cache" / "releases", target.checksum)
    vectors = embed_items(folder, target.checksum, FeatureSpec.from_shop(shop), features)
    return features.column(0).to_pylist(), vectors
