"""Foreign folders to releases: only the CSVs and SavedModels are opened, the rest is listed."""

import builtins
import dataclasses
import io
import math
import os
import shutil
from collections.abc import Callable
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from beamrec.model import release as folders
from beamrec.model.foreign_embeddings import read_foreign_embeddings
from beamrec.model.release_import import ImportOptions, import_release
from beamrec.schemas.errors import BadDataError, UsageError
from beamrec.schemas.shop import CLASSICMODELS, Shop

ITEMS = 'id,embedding\nS10_1678,"[3.0,4.0]"\nS10_1949,"[0.25,-1e-3]"\n'
USERS = 'id,embedding\n103,"[1.0, 2.0]"\n112,"[0, 0.5]"\n'
PICKLE = b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94."


@pytest.fixture
def course(tmp_path: Path) -> Path:
    """A folder with the course's exact names."""
    folder = tmp_path / "course"
    for name, data in {
        "embeddings/item_embeddings.csv": ITEMS.encode(),
        "embeddings/user_embeddings.csv": USERS.encode(),
        "model/best_model.pth": b"PK\x03\x04" + PICKLE,
        "scalers/item_ohe.pkl": PICKLE,
        "scalers/user_std_scaler.pkl": PICKLE,
        "scalers/ratings.h5": b"\x89HDF\r\n\x1a\n",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of the files that Python opens."""
    names: set[str] = set()

    def noting(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *args: Any, **options: Any) -> Any:
            names.add(os.path.basename(str(path)))
            return function(path, *args, **options)

        return call

    for module, name in ((builtins, "open"), (io, "open"), (os, "open")):
        monkeypatch.setattr(module, name, noting(getattr(module, name)))
    return names


def test_the_courses_folder_becomes_a_release_and_pickles_are_never_opened(
    course: Path, tmp_path: Path, opened: set[str]
) -> None:
    made = import_release(
        course, tmp_path / "releases", CLASSICMODELS, {"S10_1949": 7, "S10_1678": 2, "x": 1}
    )
    assert {"item_embeddings.csv", "user_embeddings.csv"} <= opened
    assert not {name for name in opened if name.endswith((".pth", ".pkl", ".h5"))}
    contents = folders.read_release(made.folder)
    assert contents.item_ids == ("S10_1678", "S10_1949")
    assert contents.user_ids == ("103", "112")
    np.testing.assert_array_equal(contents.item_vectors, np.array([[3, 4], [0.25, -1e-3]], np.float32))
    assert contents.popular == ("S10_1949", "S10_1678")
    manifest = contents.manifest
    assert (manifest.origin, manifest.dim, manifest.normalized, manifest.has_user_tower) == (
        "import", 2, False, False,
    )  # fmt: skip
    assert manifest.skipped == (
        "model/best_model.pth", "scalers/item_ohe.pkl", "scalers/ratings.h5", "scalers/user_std_scaler.pkl",
    )  # fmt: skip
    assert manifest.item_norms == pytest.approx((0.250002, 5))
    assert any("1 rated products are not among the items" in warning for warning in made.warnings)


class Clock:
    """Stands at a second of one minute."""

    def __init__(self, second: int) -> None:
        self._second = second

    def now(self, zone: tzinfo) -> datetime:
        return datetime(2026, 11, 22, 12, 0, self._second, tzinfo=zone)


def test_the_same_import_again_within_a_minute_changes_nothing(
    course: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    releases = tmp_path / "releases"
    monkeypatch.setattr(folders, "datetime", Clock(1))
    first = import_release(course, releases, CLASSICMODELS)
    manifest = (first.folder / folders.MANIFEST).read_bytes()
    monkeypatch.setattr(folders, "datetime", Clock(2))
    again = import_release(course, releases, CLASSICMODELS)
    assert (first.is_new, again.is_new) == (True, False)
    assert (again.folder, again.manifest) == (first.folder, first.manifest)
    with pytest.raises(UsageError, match="with other options within this minute"):
        import_release(course, releases, CLASSICMODELS, options=ImportOptions("<#>"))
    assert (first.folder / folders.MANIFEST).read_bytes() == manifest
    assert os.listdir(releases) == [first.folder.name]


def test_without_ratings_and_customers_it_says_so(course: Path, tmp_path: Path) -> None:
    (course / folders.USER_EMBEDDINGS).unlink()
    made = import_release(course, tmp_path / "releases", CLASSICMODELS)
    assert "without --ratings" in made.warnings[0]
    assert "every customer is unknown" in made.warnings[1]
    contents = folders.read_release(made.folder)
    assert contents.popular == ("S10_1678", "S10_1949")
    assert contents.user_vectors.shape == (0, 2)


HEADER = "id,embedding\n"


@pytest.mark.parametrize(
    "text",
    [
        HEADER + '1,"[1.0, -2.5]"\n2,"[3,4e0]"\n',
        "\ufeff" + HEADER + '1,"[1.0,-2.5]"\n2,"[3,4]"\n',
        ' ID , Embedding\n1,"[1.0,-2.5]"\n2,"[3,4]"\n',
        '1,"[1.0,-2.5]"\n2,"[3,4]"\n',
        HEADER + "1,[1.0,-2.5]\n2,[3,4]\n",
        HEADER + '1,"[ 1.  -2.5]"\n2,"[3. \n 4.]"\n',
        HEADER + '1,"{1,-2.5}"\n2,"{3,4}"\n',
        ',id,embedding\n0,1.0,"[1,-2.5]"\n1,2.0,"[3,4]"\n',
        'embedding,id\n"[1,-2.5]",01\n"[3,4]", 2\n',
        HEADER + '1,"[1,-2.5]"\r\n2,"[3,4]"\r\n\r\n',
    ],
)
def test_common_spellings_are_understood(tmp_path: Path, text: str) -> None:
    path = tmp_path / "e.csv"
    path.write_bytes(text.encode())
    ids, vectors = read_foreign_embeddings(path, "int")
    assert ids == ["1", "2"]
    np.testing.assert_array_equal(vectors, np.array([[1, -2.5], [3, 4]], np.float32))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEADER + '1,"[1,2]"\n2,"[1,nan]"\n', "csv:3: expected finite numbers"),
        (HEADER + '1,"[1,2]"\n2,"[1,inf]"\n', "csv:3: expected finite numbers"),
        (HEADER + '1,"[1,2]"\n2,"[1,2,3]"\n', "csv:3: expected 2 numbers, as in the first row; got 3"),
        (HEADER + '1,"[1,2]"\n1.0,"[1,2]"\n', "csv:3: expected a new id"),
        (HEADER + '1,"[1,2]"\nS10,"[1,2]"\n', "csv:3: expected an integer id"),
        (HEADER + '1,"[0.1 0.2 ... 0.3]"\n', "csv:2: the vector is cut short"),
        (HEADER + '1,"[1,2]"\n2,"[1,2"\n', r"csv:3: expected a vector as \[0.1"),
        (HEADER + '1,"[1,2]"\n2\n', "csv:3: expected an id and a vector"),
        ("id,id,embedding\n1,1,[1]\n", "csv:1: expected the header"),
        (HEADER + '1,"[1,2]"\n2,"[1,', "csv:3"),
    ],
)
def test_what_is_not_usable_names_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "e.csv"
    path.write_text(text)
    with pytest.raises(BadDataError, match=message):
        read_foreign_embeddings(path, "int")


def test_a_folder_without_item_embeddings_is_wrong_usage(course: Path, tmp_path: Path) -> None:
    for path in (course / "model", tmp_path / "nowhere"):
        with pytest.raises(UsageError, match=r"expected a folder with embeddings|no such folder"):
            import_release(path, tmp_path / "releases", CLASSICMODELS)
    assert not (tmp_path / "releases").exists()


def test_links_are_left_out(course: Path, tmp_path: Path) -> None:
    (course / folders.USER_EMBEDDINGS).unlink()
    (course / folders.USER_EMBEDDINGS).symlink_to("/etc/passwd")
    (course / "linked").symlink_to("/etc")
    made = import_release(course, tmp_path / "releases", CLASSICMODELS)
    assert {"linked", folders.USER_EMBEDDINGS} <= set(made.manifest.skipped)
    assert made.manifest.users == 0


def test_customers_of_another_dimension_are_refused(course: Path, tmp_path: Path) -> None:
    (course / folders.USER_EMBEDDINGS).write_text(HEADER + '103,"[1,2,3]"\n')
    with pytest.raises(BadDataError, match="expected vectors of 2 numbers, as the items have; got 3"):
        import_release(course, tmp_path / "releases", CLASSICMODELS)


@pytest.mark.parametrize(
    ("items", "distance", "message"),
    [
        (
            HEADER + f'S1,"[{",".join(["0.1"] * 2001)}]"\n',
            "<->",
            "item_embeddings.csv: expected vectors of at most 2000 numbers, .* got 2001",
        ),
        ('1,"[1,2]"\n2,[0 0]\n', "<=>", "item_embeddings.csv:2: expected a vector of a length above 0"),
        ('\ufeff1,"[1,2]"\n2,[1e30 2]\n', "<->", "item_embeddings.csv:2: .* at most 1e.18, got length 1e.30"),
        (HEADER + 'S1,"[1,0]"\n"S\n2","[0,1]"\nS3,"[3e38,3e38]"\n', "<#>", "item_embeddings.csv:5: .*4.24"),
    ],
)
def test_vectors_that_no_release_could_hold_are_refused(
    items: str, distance: str, message: str, course: Path, tmp_path: Path
) -> None:
    (course / folders.ITEM_EMBEDDINGS).write_text(items)
    (course / folders.USER_EMBEDDINGS).unlink()
    with pytest.raises(BadDataError, match=message) as caught:
        import_release(
            course, tmp_path / "releases", CLASSICMODELS, options=ImportOptions(distance), ratings={}
        )
    assert str(course) in str(caught.value)
    assert not list(tmp_path.glob("releases/*"))


def test_a_customer_without_direction_is_refused_where_directions_are_compared(
    course: Path, tmp_path: Path
) -> None:
    (course / folders.USER_EMBEDDINGS).write_text(HEADER + '103,"[1,2]"\n112,"[0,0]"\n')
    with pytest.raises(BadDataError, match=r"user_embeddings.csv:3: expected a vector of a length above 0"):
        import_release(course, tmp_path / "releases", CLASSICMODELS, options=ImportOptions("<=>"))
    made = import_release(course, tmp_path / "others", CLASSICMODELS, options=ImportOptions("<->"))
    assert folders.read_release(made.folder).user_ids == ("103", "112")


def _unknown_in_the_list(staging: Path) -> None:
    folders.write_popularity(staging / folders.POPULARITY, ["a", "c"], [1, 0])


def _strange_name(staging: Path) -> None:
    (staging / "model").mkdir()
    (staging / "model/a b.txt").touch()


@pytest.mark.parametrize(
    ("change", "values", "message"),
    [
        (_unknown_in_the_list, {}, r"popularity.csv:3: 'c' is unknown"),
        (_strange_name, {}, r"files: expected a relative path .* got 'model/a b.txt'"),
        (lambda staging: None, {"dim": 2001}, "manifest: dim: at most 2000"),
        (lambda staging: None, {"metrics": {"rmse": math.nan}}, "metrics: rmse: expected a finite number"),
    ],
)
def test_what_a_load_would_refuse_is_not_published(
    change: Callable[[Path], None], values: dict[str, Any], message: str, tmp_path: Path
) -> None:
    good: dict[str, Any] = {
        "shop": "s", "user_key_type": "int", "item_key_type": "string", "dim": 2, "items": 2, "users": 0,
        "item_norms": (1.0, 1.0), "user_norms": None,
    }  # fmt: skip
    with folders.staged_release(tmp_path / "releases") as staging:
        vectors = np.eye(2, dtype=np.float32)
        folders.write_embeddings(staging / folders.ITEM_EMBEDDINGS, ["a", "b"], vectors)
        folders.write_embeddings(staging / folders.USER_EMBEDDINGS, [], vectors[:0])
        folders.write_popularity(staging / folders.POPULARITY, ["a", "b"], [1, 0])
        change(staging)
        with pytest.raises(BadDataError, match=message):
            folders.publish_release(staging, tmp_path / "releases", good | values, verify=True)
    assert not list((tmp_path / "releases").iterdir())


def test_a_tower_comes_along_if_it_is_a_saved_model_of_this_shop(trained: Any, tmp_path: Path) -> None:
    source = tmp_path / "foreign"
    original = trained.release.folder
    for name in ("embeddings", "model", "scalers"):
        (source / name).parent.mkdir(exist_ok=True)
        shutil.copytree(original / name, source / name)
    made = import_release(source, tmp_path / "releases", trained.shop)
    assert made.manifest.has_user_tower
    assert made.manifest.has_item_tower
    assert made.manifest.user_inputs == trained.release.manifest.user_inputs
    assert all(path.startswith("scalers/") for path in made.manifest.skipped)
    assert folders.read_release(made.folder).item_ids == folders.read_release(original).item_ids
    with pytest.raises(BadDataError, match=r"foreign.*saved_model.pb: inputs: expected .* Give --no-towers"):
        import_release(source, tmp_path / "other", _with_one_feature(trained.shop))
    alone = import_release(source, tmp_path / "alone", trained.shop, options=ImportOptions(towers=False))
    assert not alone.manifest.has_user_tower
    assert "model/user_tower/saved_model.pb" in alone.manifest.skipped


def _with_one_feature(shop: Shop) -> Shop:
    customers = dataclasses.replace(shop.customers, features=shop.customers.features[:1])
    return dataclasses.replace(shop, customers=customers)
