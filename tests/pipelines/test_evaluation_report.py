"""What a release says of itself: on data that was made up, and on data with planted structure."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pytest

from beamrec.model.release import read_release, verify_release
from beamrec.model.split import SplitOptions, hash_keys, held_out
from beamrec.schemas.evaluation import Evaluation


@pytest.fixture(scope="module")
def honest(
    mariadb: Any,
    classicmodels: str,
    command_line: Callable[..., dict[str, Any]],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Any]:
    """`batch` and `train` on the real shop."""
    home = tmp_path_factory.mktemp("classicmodels")
    source = mariadb.uri(classicmodels, user="root")
    for argv in (("batch", f"--source={source}", f"--output={home}/lake"), ("train", f"--data={home}/lake")):
        result = command_line(*argv, home=home)
        assert result["ok"], result
    return result


def _real_ratings(folder: Path) -> tuple[pa.Array, pa.Array, np.ndarray]:
    table = pyarrow.csv.read_csv(folder / "ratings.csv").combine_chunks()
    customer, product, rating = (column.combine_chunks() for column in table.columns)
    return pc.cast(customer, pa.string()), product, rating.to_numpy()


def test_on_classicmodels_the_release_says_no_more_than_is_true(
    honest: dict[str, Any], real_data: Path
) -> None:
    """Recall of each customer again, with Python's own sets, and the differences by a paired t-interval."""
    folder = Path(honest["paths"]["release"])
    evaluation = Evaluation.from_json((folder / "evaluation.json").read_bytes())
    customer, product, rating = _real_ratings(real_data)
    held = held_out(hash_keys(customer), hash_keys(product), SplitOptions(0.1, seed=42))
    recalls = _recalls(read_release(folder), customer, product, rating, held)
    for system, mine in recalls.items():
        assert evaluation.systems[system]["recall@10"].value == pytest.approx(np.mean(mine))
    difference = np.array(recalls["model"]) - np.array(recalls["popularity"])
    margin = 1.96 * difference.std(ddof=1) / len(difference) ** 0.5
    found = evaluation.differences["popularity"]["recall@10"]
    assert (found.low, found.high) == pytest.approx(
        (difference.mean() - margin, difference.mean() + margin), abs=0.02
    )
    beaten = evaluation.verdict().partition(", but not")[0].partition(":")[0]
    for system, name in (("popularity", "popularity"), ("item_knn", "item-kNN"), ("als", "ALS")):
        assert (name in beaten) == (evaluation.differences[system]["recall@10"].low > 0)
    assert honest["verdict"] == evaluation.verdict()


def _recalls(
    contents: Any, customer: pa.Array, product: pa.Array, rating: np.ndarray, held: np.ndarray
) -> dict[str, list[float]]:
    rows = list(zip(customer.to_pylist(), product.to_pylist(), rating.tolist(), held.tolist(), strict=True))
    items = contents.item_ids
    counts = {i: [r for _, p, r, h in rows if p == i and not h] for i in items}
    popular = sorted(items, key=lambda i: (-len(counts[i]), -np.mean(counts[i]) if counts[i] else 0, i))
    found: dict[str, list[float]] = {"model": [], "popularity": []}
    for user, vector in zip(contents.user_ids, contents.user_vectors, strict=True):
        liked = {p for u, p, r, h in rows if u == user and h and r > 3}
        rated = {p for u, p, _, h in rows if u == user and not h}
        scores = dict(zip(items, (contents.item_vectors @ vector).tolist(), strict=True))
        by_model = sorted(popular, key=lambda i: -scores[i])
        for system, ranking in (("model", by_model), ("popularity", popular)):
            top = [i for i in ranking if i not in rated][:10]
            found[system] += [len(liked & set(top)) / min(10, len(liked))] if liked else []
    return found


def test_ratings_that_were_made_up_cannot_be_predicted(honest: dict[str, Any]) -> None:
    assert "as predictions of ratings it is better" not in honest["verdict"]


def test_the_release_holds_its_evaluation_and_the_page(honest: dict[str, Any]) -> None:
    folder = Path(honest["paths"]["release"])
    listed = {file.path for file in verify_release(folder).files}
    assert {"evaluation.json", "evaluation.html"} <= listed
    page = (folder / "evaluation.html").read_text(encoding="utf-8")
    evaluation = Evaluation.from_json((folder / "evaluation.json").read_bytes())
    assert evaluation.verdict()[1:] in page
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["metrics"] == evaluation.headline() == honest["metrics"]
