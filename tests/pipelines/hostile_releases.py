"""Broken releases: each case breaks a good one in one way, and says what the refusal must say."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

from hostile_changes import (
    ITEMS,
    PICKLE,
    POPULAR,
    USER_TOWER,
    USERS,
    VOCABULARY,
    added,
    cut,
    edited,
    flipped,
    instead,
    keras_metadata,
    listed,
    manifest,
    manifest_text,
    move_asset,
    name_class,
    printing,
    python,
    reading,
    replaced,
    saving,
    tower,
)

TOWER = USER_TOWER.rpartition("/")[0]


@dataclasses.dataclass(frozen=True)
class Case:
    """One way to break a release.

    Attributes:
      kind: class of the issue.
      name: what was done.
      change: does it to the release's folder.
      message: what the refusal says, as a regular expression.
    """

    kind: str
    name: str
    change: Callable[[Path], None]
    message: str


_CHANGED, _UNLISTED, _PICKLES = "changed bytes", "unlisted files", "pickles and .h5"
_LAYERS, _PATHS, _DIMENSIONS = "Lambda or custom layers", "path tricks", "wrong dimensions"
_NUMBERS, _TWICE, _UNKNOWN, _SHORT = "NaN and infinities", "duplicate ids", "unknown ids", "truncated files"

CASES = (
    Case(_CHANGED, "a number of an item", flipped(ITEMS, -4), "item_embeddings.csv is not what the manifest"),
    Case(
        _CHANGED, "a byte of the tower", flipped(USER_TOWER, 100), "saved_model.pb is not what the manifest"
    ),
    Case(_CHANGED, "a word of the vocabulary", flipped(VOCABULARY, 0), "vocabulary_user_id is not what"),
    Case(
        _CHANGED,
        "a weight",
        flipped(f"{TOWER}/variables/variables.data-00000-of-00001", 8),
        "variables.data-00000-of-00001 is not what the manifest",
    ),
    Case(_CHANGED, "more rows", added(POPULAR, b"id,ratings\nS2,5\nS1,3\nS3,0\nS4,0\n"), "expected 26 bytes"),
    Case(_UNLISTED, "a text", added("README.md", b"x"), "'README.md' is not in the manifest"),
    Case(_UNLISTED, "a hidden file", added(".env", b"x"), "'.env' is not in the manifest"),
    Case(_UNLISTED, "an asset", added(f"{TOWER}/assets/x", b"x"), "assets/x' is not in the"),
    Case(_UNLISTED, "one less", lambda r: (r / VOCABULARY).unlink(), "is in the manifest but not there"),
    Case(_PICKLES, "best_model.pth", added("model/best_model.pth", PICKLE, True), "is a PyTorch model"),
    Case(_PICKLES, "a scaler", added("scalers/item_ohe.pkl", PICKLE, True), "item_ohe.pkl' is a pickle"),
    Case(_PICKLES, "unlisted joblib", added("scalers/user.joblib", PICKLE), "user.joblib' is a pickle"),
    Case(_PICKLES, "weights.h5", added("model/weights.h5", b"\x89HDF", True), "weights.h5' is an HDF5 model"),
    Case(_PICKLES, "a pickle called text", added("scalers/notes.txt", PICKLE, True), "notes.txt is a pickle"),
    Case(
        _PICKLES,
        "an HDF5 called pb",
        added("scalers/graph.pb", b"\x89HDF\r\n\x1a\n", True),
        "graph.pb is an",
    ),
    Case(
        _PICKLES, "a zip called csv", added("embeddings/more.csv", b"PK\x03\x04", True), "more.csv is a zip"
    ),
    Case(_LAYERS, "a Python function", tower(python), "saved_model.pb: function .*'EagerPyFunc'"),
    Case(_LAYERS, "a file read", tower(reading), "saved_model.pb: function .*'ReadFile'"),
    Case(_LAYERS, "a checkpoint written", tower(saving), "saved_model.pb: function .*SaveV2 while serving"),
    Case(_LAYERS, "a file printed to", tower(printing), "saved_model.pb: function .*'PrintV2'"),
    Case(_LAYERS, "a Lambda layer", keras_metadata("Lambda"), "keras_metadata.pb: .*a Lambda layer"),
    Case(_LAYERS, "a layer of one's own", keras_metadata("Own"), "keras_metadata.pb: .*a custom layer"),
    Case(_LAYERS, "a registered class", edited(name_class), "object 0: 'Package>Tower' is a custom class"),
    Case(
        _LAYERS,
        "a tower in text",
        added(f"{TOWER}/saved_model.pbtxt", b"x", True),
        "saved_model.pbtxt' is a SavedModel in a form that is not inspected",
    ),
    Case(_LAYERS, "a Keras archive", added("model/tower.keras", b"PK\x03\x04", True), "is a Keras archive"),
    Case(_PATHS, "upwards", manifest(files=listed(["../../../etc/passwd"])), "expected a relative path"),
    Case(_PATHS, "absolute", manifest(files=listed(["/etc/passwd"])), "expected a relative path"),
    Case(_PATHS, "backslashes", manifest(files=listed(["model\\..\\x"])), "expected a relative path"),
    Case(_PATHS, "a drive", manifest(files=listed(["C:/x"])), "expected a relative path"),
    Case(_PATHS, "NUL", manifest(files=listed(["popularity.csv\0.txt"])), r"relative path.*\\x00"),
    Case(_PATHS, "look-alike", manifest(files=listed(["p\u043epularity.csv"])), r"relative path.*\\u043e"),
    Case(_PATHS, "case clash", manifest(files=listed(["Popularity.csv", "popularity.csv"])), "listed twice"),
    Case(
        _PATHS,
        "a link",
        instead(POPULAR, lambda place: place.symlink_to("/etc/passwd")),
        "popularity.csv is neither file nor folder",
    ),
    Case(
        _PATHS,
        "a linked folder",
        instead("scalers", lambda place: place.symlink_to("/etc")),
        "scalers is neither file nor folder",
    ),
    Case(_PATHS, "a pipe", instead(POPULAR, os.mkfifo), "popularity.csv is neither file nor folder"),
    Case(_PATHS, "an asset elsewhere", edited(move_asset), "expected a plain name of an asset, got '../../"),
    Case(
        _PATHS,
        "two lists of files",
        manifest_text('"files":', '"files": [], "files":'),
        "'files' stands there",
    ),
    Case(_PATHS, "another id", manifest(id="../x"), "release id: expected"),
    Case(
        _DIMENSIONS,
        "of all",
        manifest(dim=8),
        "saved_model.pb: outputs: expected vector: float32\\[-1, 8\\]",
    ),
    Case(
        _DIMENSIONS, "of one item", replaced(ITEMS, "[1.0,0.0,", "[1.0,"), "csv:2: expected 4 numbers, got 3"
    ),
    Case(
        _DIMENSIONS,
        "of one customer",
        replaced(USERS, "[0.0,1.0,", "[0.0,0.0,1.0,"),
        "user_embeddings.csv:3: expected 4 numbers, got 5",
    ),
    Case(_DIMENSIONS, "of the tower", tower(dim=3), "outputs: expected .*-1, 4.*; got vector: float32"),
    Case(_DIMENSIONS, "too many", manifest(dim=100_000), "dim: at most 2000"),
    Case(
        _DIMENSIONS,
        "no vector",
        replaced(ITEMS, "[1.0,0.0,0.0,0.0]", "[]"),
        "csv:2: expected 4 numbers, got 0",
    ),
    Case(
        _NUMBERS, "NaN", replaced(ITEMS, "[1.0,", "[NaN,"), "item_embeddings.csv:2: expected finite numbers"
    ),
    Case(
        _NUMBERS,
        "Infinity",
        replaced(USERS, "[0.0,1.0", "[0.0,Infinity"),
        "user_embeddings.csv:3: expected fin",
    ),
    Case(
        _NUMBERS,
        "beyond float32",
        replaced(ITEMS, "1.0,0.0]", "1e39,0.0]"),
        "csv:4: expected finite numbers",
    ),
    Case(_NUMBERS, "null", replaced(ITEMS, "[1.0,", "[null,"), "csv:2: expected finite numbers"),
    Case(_NUMBERS, "in the metrics", manifest(metrics={"rmse": float("nan")}), "NaN is no number"),
    Case(
        _NUMBERS,
        "no length one",
        replaced(ITEMS, "[1.0,", "[0.5,"),
        "csv:2: expected a vector of length one",
    ),
    Case(
        _TWICE,
        "items",
        replaced(ITEMS, "S2,", "S1,"),
        "item_embeddings.csv:3: expected a new id, got 'S1' again",
    ),
    Case(_TWICE, "customers", replaced(USERS, "112,", "103,"), "user_embeddings.csv:3: .*got '103' again"),
    Case(_TWICE, "in the popularity list", replaced(POPULAR, "S3,", "S2,"), "popularity.csv:4: .*'S2' again"),
    Case(
        _UNKNOWN,
        "in the popularity list",
        replaced(POPULAR, "S1,", "S9,"),
        "popularity.csv:3: 'S9' is unknown",
    ),
    Case(
        _UNKNOWN,
        "no integer",
        replaced(USERS, "112,", "S112,"),
        "user_embeddings.csv:3: expected an integer id",
    ),
    Case(_UNKNOWN, "another spelling", replaced(USERS, "112,", "0112,"), "csv:3: expected an integer id"),
    Case(_UNKNOWN, "none", replaced(ITEMS, "S2,", ","), "item_embeddings.csv:3: expected a new id, got ''"),
    Case(
        _UNKNOWN,
        "NUL",
        replaced(ITEMS, "S2,", "S2\0,"),
        "item_embeddings.csv:3: expected an id .* without NUL",
    ),
    Case(_SHORT, "inside a row", cut(ITEMS, -12), "item_embeddings.csv:4: "),
    Case(_SHORT, "between rows", cut(USERS, 37), "user_embeddings.csv:3: expected 2 rows, .* got 1"),
    Case(_SHORT, "and not even listed so", cut(ITEMS, 20, listed=False), "item_embeddings.csv is not what"),
    Case(_SHORT, "the tower", cut(USER_TOWER, 2_000), "saved_model.pb: .*damaged or cut short"),
    Case(_SHORT, "an empty tower", cut(USER_TOWER, 0), "saved_model.pb: .*cut short"),
    Case(_SHORT, "the manifest", cut("manifest.json", 300, listed=False), "manifest: not valid JSON"),
    Case(
        _SHORT,
        "a quote without end",
        replaced(ITEMS, 'S3,"', 'S3,"' + " " * 200_000 + '"'),
        "item_embeddings.csv:4: ",
    ),
)
