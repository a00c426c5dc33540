"""Release folders: written whole, and refused when anything is amiss. No TensorFlow is needed here."""

import hashlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from beamrec.model import release as folders
from beamrec.schemas.errors import BadDataError, BeamrecError, UsageError
from beamrec.schemas.releases import ReleaseFile, ReleaseManifest, TowerInput, check_release_id

DIM = 4
ITEMS = ("S10_1678", 'a "quoted", one', "naïve\nlines")
VECTORS = np.array([[1, 0, 0, 0], [0.6, 0.8, 0, 0], [0, 0, 0.1, np.sqrt(0.99)]], np.float32)


def publish(root: Path, **changes: Any) -> Path:
    with folders.staged_release(root) as staging:
        folders.write_embeddings(staging / folders.ITEM_EMBEDDINGS, ITEMS, VECTORS)
        folders.write_embeddings(staging / folders.USER_EMBEDDINGS, ["103"], VECTORS[:1])
        folders.write_popularity(staging / folders.POPULARITY, ITEMS[::-1], [5, 3, 0])
        (staging / folders.SCALERS / "empty").mkdir(parents=True)
        (staging / folders.SCALERS / "graph.pb").write_bytes(b"graph")
        values: dict[str, Any] = {
            "shop": "s",
            "user_key_type": "int",
            "item_key_type": "string",
            "dim": DIM,
            "items": 3,
            "users": 1,
            "metrics": {"rmse": 0.5},
        }
        return folders.publish_release(staging, root, values | changes)[1]


@pytest.fixture
def release(tmp_path: Path) -> Path:
    return publish(tmp_path)


def test_a_release_reads_back_bit_by_bit(release: Path) -> None:
    contents = folders.read_release(release)
    assert contents.item_ids == ITEMS
    assert contents.popular == ITEMS[::-1]
    np.testing.assert_array_equal(contents.item_vectors, VECTORS)
    assert contents.checksum == hashlib.sha256((release / "manifest.json").read_bytes()).hexdigest()
    assert contents.uri == str(release)
    assert [p.name for p in release.parent.iterdir()] == [release.name]
    first, second = (release / folders.ITEM_EMBEDDINGS).read_text().splitlines()[:2]
    assert (first, second) == ("id,embedding", 'S10_1678,"[1.0,0.0,0.0,0.0]"')


def test_random_float32s_survive_the_csv(tmp_path: Path) -> None:
    bits = np.random.default_rng(0).integers(0, 2**32, 4_000, dtype=np.uint64).astype(np.uint32)
    vectors = bits.view(np.float32)
    vectors = vectors[np.isfinite(vectors)][: 900 * DIM].reshape(-1, DIM)
    ids = [str(i) for i in range(len(vectors))]
    folders.write_embeddings(tmp_path / "x.csv", ids, vectors)
    found_ids, found = folders.read_embeddings(tmp_path / "x.csv", DIM)
    assert found_ids == ids
    np.testing.assert_array_equal(found.view(np.uint32), vectors.view(np.uint32))


def test_the_id_tells_time_and_content(tmp_path: Path) -> None:
    name = publish(tmp_path / "a").name
    assert len(name) == len("20261122T0431-1c2d3e4f")
    assert publish(tmp_path / "b").name.split("-")[1] == name.split("-")[1]
    assert check_release_id(name) == name


def test_a_failure_while_writing_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with folders.staged_release(tmp_path) as staging:
            (staging / "half").write_text("x")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []


def _append(path: str, data: bytes = b"x") -> Callable[[Path], None]:
    def change(release: Path) -> None:
        (release / path).parent.mkdir(exist_ok=True)
        with (release / path).open("ab") as file:
            file.write(data)

    return change


def _flip(release: Path) -> None:
    path = release / folders.ITEM_EMBEDDINGS
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def _manifest(**values: Any) -> Callable[[Path], None]:
    def change(release: Path) -> None:
        path = release / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_bytes()) | values))

    return change


def _link(release: Path) -> None:
    (release / "scalers/graph.pb").unlink()
    (release / "scalers/graph.pb").symlink_to("/etc/hostname")


def _link_folder(release: Path) -> None:
    (release / "scalers/linked").symlink_to("/etc")


def _file(path: str) -> list[dict[str, Any]]:
    return [{"path": path, "bytes": 1, "sha256": "0" * 64}]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_flip, "item_embeddings.csv is not what the manifest says"),
        (_append("scalers/graph.pb"), "expected 5 bytes .* got 6"),
        (_append("model/best_model.pth"), "best_model.pth' is a PyTorch model"),
        (_append("code.py"), "code.py' is a program"),
        (lambda r: (r / "scalers/graph.pb").unlink(), "graph.pb' is in the manifest but not there"),
        (_link, "neither file nor folder"),
        (_link_folder, "neither file nor folder"),
        (lambda r: os.mkfifo(r / "pipe"), "neither file nor folder"),
        (_manifest(files=_file("../../etc/passwd")), "relative path"),
        (_manifest(files=_file("/etc/passwd")), "relative path"),
        (_manifest(files=_file("a\\b")), "relative path"),
        (_manifest(files=_file("a//b")), "relative path"),
        (_manifest(files=_file("manifest.json")), "relative path"),
        (_manifest(files=_file("a") + _file("A")), "listed twice"),
        (_manifest(files=_file("a")), "manifest"),
        (_manifest(id="another"), "says that its id is another"),
        (_manifest(id="../x"), "release id"),
        (_manifest(dim=0), "dim"),
        (_manifest(dim=True), "dim"),
        (_manifest(dim=8), "expected 8 numbers, got 4"),
        (_manifest(items=4), "csv:6: expected 4 rows, as the manifest says; got 3"),
        (_manifest(distance="; DROP TABLE"), "distance"),
        (_manifest(metrics={"rmse": float("nan")}), "NaN is no number"),
        (_manifest(format_version=2), "format_version"),
        (_manifest(surprise=1), "surprise"),
        (_manifest(has_user_tower=True), "user_inputs"),
        (lambda r: (r / "manifest.json").write_text("{"), "not valid JSON"),
        (lambda r: (r / "manifest.json").write_text("[]"), "expected an object"),
    ],
)
def test_what_is_amiss_is_refused(release: Path, change: Callable[[Path], Any], message: str) -> None:
    change(release)
    with pytest.raises(BadDataError, match=message):
        folders.read_release(release)


def test_a_folder_without_a_manifest_is_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no manifest.json"):
        folders.verify_release(tmp_path)


GOOD = "id,embedding\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + 'a,"[1,0,0,0]"\nb,"[NaN,0,0,0]"\n', "csv:3: expected finite numbers"),
        (GOOD + 'a,"[1e39,0,0,0]"\n', "csv:2: expected finite numbers"),
        (GOOD + 'a,"[1,0,0]"\n', "csv:2: expected 4 numbers, got 3"),
        (GOOD + "a,\"[1,0,0,'0']\"\n", "csv:2"),
        (GOOD + 'a,"[1,0,0,null]"\n', "csv:2: expected finite"),
        (GOOD + 'a,"{}"\n', "got dict"),
        (GOOD + 'a,"[1,0,0,0]"\na,"[1,0,0,0]"\n', "csv:3: expected a new id, got 'a' again"),
        (GOOD + ',"[1,0,0,0]"\n', "csv:2: expected a new id"),
        (GOOD + "a,[1,0,0,0]\n", "csv:2: expected 2 columns, got 5"),
        ("key,embedding\n", "csv:1: expected the header"),
        ("", "csv:1: expected the header"),
        (GOOD + 'a,"[1,0', "csv:2"),
    ],
)
def test_broken_embeddings_name_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "e.csv"
    path.write_text(text)
    with pytest.raises(BadDataError, match=message):
        folders.read_embeddings(path, DIM)


@pytest.mark.parametrize(
    ("vectors", "changes", "message"),
    [
        (VECTORS * 2, {}, r"csv:2: expected a vector of length one.* got length 2"),
        (VECTORS * np.array([[1], [1], [0]]), {"normalized": False, "distance": "<=>"}, "csv:4: .* above 0"),
    ],
)
def test_lengths_must_be_as_the_manifest_says(
    tmp_path: Path,
    vectors: np.ndarray,
    changes: dict[str, Any],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "VECTORS", vectors.astype(np.float32))
    with pytest.raises(BadDataError, match=message):
        folders.read_release(publish(tmp_path, **changes))


def test_the_popularity_list_must_be_of_the_catalogue(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text("id,ratings\na,-1\n")
    with pytest.raises(BadDataError, match="csv:2: expected a number of ratings"):
        folders.read_popularity(path)


def test_a_manifest_survives_json() -> None:
    manifest = ReleaseManifest(
        "r", "2026-11-22T00:00:00Z", "1", "s", "int", "string", 2, 1, 0, (ReleaseFile("a/b", 1, "0" * 64),),
        user_inputs=(TowerInput("user_id", "id", "identity"),), metrics={"rmse": 0.1}, training={"seed": 1},
        vocabulary_sizes={"user_id": 3},
    )  # fmt: skip
    assert ReleaseManifest.from_json(manifest.to_json()) == manifest


@pytest.mark.parametrize("uri", ["s3://bucket/releases", "gs://b"])
def test_folders_elsewhere_are_not_there_yet(uri: str) -> None:
    with pytest.raises(BeamrecError, match="expected a local path"):
        folders.local_folder(uri)
