"""Examples on the disk: exactly the data, whatever its order, in bounded memory, streamed by tf.data."""

import tracemalloc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from beamrec.io.manifest import open_training
from beamrec.model.batches import columns, in_order, shuffled
from beamrec.model.entities import EntityCollector
from beamrec.model.evaluation_data import entries, sampled_ratings
from beamrec.model.examples import EXAMPLE, Examples, ExampleWriter, open_examples
from beamrec.model.split import hash_keys, held_out
from beamrec.schemas.errors import UsageError
from beamrec.schemas.evaluation import SplitOptions

PARTS = ("training", "validation", "held")


def features(key: str, other: str) -> Any:
    """The key as text and one feature, as `build_features` would give them."""
    return lambda batch: pa.RecordBatch.from_arrays(
        [batch.column(key).cast(pa.string()), batch.column(other)], names=[key, other]
    )


def ratings(rows: int, users: int = 300, items: int = 200, seed: int = 0) -> pa.RecordBatch:
    """Distinct pairs with features that depend on the key, a rating and a time, in a drawn order."""
    rng = np.random.default_rng(seed)
    pairs = rng.choice(users * items, rows, replace=False)
    user, item = pairs // items, pairs % items
    return pa.RecordBatch.from_pydict(
        {
            "user": user,
            "city": np.char.add("city", (user % 7).astype(str)),
            "item": np.char.add("S", item.astype(str)),
            "line": np.char.add("line", (item % 5).astype(str)),
            "rating": ((pairs * 7919) % 5 / 4).astype(np.float32),
            "time": (pairs * 104_729 % 10_007).astype(np.float64),
        }
    )


def write(
    folder: Path,
    batches: Iterator[pa.RecordBatch] | list[pa.RecordBatch],
    rows: int,
    split: SplitOptions | None = None,
    rows_a_shard: int = 1_000,
) -> Examples:
    folder.mkdir()
    users, items = (EntityCollector(k, features(k, f)) for k, f in (("user", "city"), ("item", "line")))
    writer = ExampleWriter(folder, rows, users, items, split or SplitOptions(), 0.1, rows_a_shard)
    with writer.scattering() as add:
        for batch in batches:
            add(batch, batch.column("rating").to_numpy(), batch.column("time").to_numpy())
    return writer.finish()


def cut(batch: pa.RecordBatch, size: int) -> list[pa.RecordBatch]:
    return [batch.slice(start, size) for start in range(0, batch.num_rows, size)]


def content(examples: Examples, part: str) -> Counter[tuple[str, str, float]]:
    """(customer, product, rating) of a part."""
    return decoded(examples, np.concatenate(list(examples.read(part))))


def decoded(examples: Examples, rows: np.ndarray) -> Counter[tuple[str, str, float]]:
    users, items = (table.column(0).to_pylist() for table in (examples.users, examples.items))
    return Counter((users[u], items[i], float(r)) for u, i, r in rows.tolist())


def test_the_examples_are_the_published_training_files_exactly(films: str, examples: Examples) -> None:
    table = open_training(films).to_table().to_pylist()
    expected = Counter((r["person id"], str(r["film"]), float(np.float32(r["stars"] / 10))) for r in table)
    assert sum((content(examples, part) for part in PARTS), Counter()) == expected
    assert sum(examples.rows.values()) == len(table)
    regions = dict(zip(*(examples.users.column(n).to_pylist() for n in ("person id", "region")), strict=True))
    assert regions == {r["person id"]: r["region"] for r in table}
    budgets = dict(zip(*(examples.items.column(n).to_pylist() for n in ("film", "budget")), strict=True))
    assert budgets == {str(r["film"]): r["budget"] for r in table}
    counts = Counter(str(r["film"]) for r in table)
    keys = examples.items.column(0).to_pylist()
    assert dict(zip(keys, examples.item_counts.sum(1).tolist(), strict=True)) == counts
    for place, part in enumerate(PARTS):
        assert examples.item_counts[:, place].sum() == examples.rows[part]


def test_an_epoch_gives_every_training_example_once(tmp_path: Path) -> None:
    examples = write(tmp_path / "e", cut(ratings(9_000), 1_234), 9_000)
    files = examples.files("training")
    assert len(files) == 9
    epochs = [np.concatenate(list(shuffled(files, 1, 3, epoch).as_numpy_iterator())) for epoch in (0, 1)]
    for epoch in epochs:
        assert decoded(examples, as_examples(epoch)) == content(examples, "training")
    assert (epochs[0] != epochs[1]).any()
    validation = np.concatenate(list(in_order(examples.files("validation"), 64, 3).as_numpy_iterator()))
    assert decoded(examples, as_examples(validation)) == content(examples, "validation")


def as_examples(batch: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(batch).view(EXAMPLE).ravel()


def test_batches_are_the_same_for_the_same_seed_and_go_on_where_they_were_left(tmp_path: Path) -> None:
    files = write(tmp_path / "e", [ratings(9_000)], 9_000).files("training")
    whole = list(shuffled(files, 64, 3, 5).as_numpy_iterator())
    assert {batch.shape for batch in whole} == {(64, 3)}
    for skip in (0, 1, 17, len(whole) - 1):
        rest = list(shuffled(files, 64, 3, 5, skip).as_numpy_iterator())
        np.testing.assert_array_equal(rest, whole[skip:])
    other = list(shuffled(files, 64, 4, 5).as_numpy_iterator())
    assert any((one != another).any() for one, another in zip(whole, other, strict=True))


def test_a_batch_mixes_all_of_a_shard(tmp_path: Path) -> None:
    """Files are sorted by customer: without a shuffle, a batch would hold a few customers only."""
    examples = write(tmp_path / "e", [ratings(9_000)], 9_000)
    user, item, rating = columns(next(iter(shuffled(examples.files("training"), 256, 1, 0))))
    assert len(set(user.numpy().tolist())) > 120
    assert len(set(item.numpy().tolist())) > 80
    assert set(rating.numpy().tolist()) == {0.0, 0.25, 0.5, 0.75, 1.0}


@pytest.mark.parametrize("by", ["interactions", "time"])
def test_the_order_of_files_and_rows_makes_no_difference(tmp_path: Path, by: Any) -> None:
    batch = ratings(9_000)
    other = batch.take(np.random.default_rng(9).permutation(9_000))
    split = SplitOptions(by=by)
    for name, batches in (("one", cut(batch, 1_000)), ("two", cut(other, 777))):
        write(tmp_path / name, batches, 9_000, split)
    files = [{p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("one", "two")]
    for found in files:
        found.pop("items.npz")  # a zip file holds the time of writing
    assert files[0] == files[1]
    one, two = (open_examples(tmp_path / name) for name in ("one", "two"))
    np.testing.assert_array_equal(one.item_counts, two.item_counts)
    np.testing.assert_array_equal(one.item_sums, two.item_sums)


def test_rows_that_disagree_on_a_feature_do_not_make_the_order_matter(tmp_path: Path) -> None:
    batch = ratings(9_000)
    cities = np.array([f"city{n}" for n in range(9_000)])
    batch = batch.set_column(1, "city", pa.array(cities))
    other = batch.take(np.random.default_rng(9).permutation(9_000))
    one, two = (
        write(tmp_path / name, cut(b, size), 9_000)
        for name, b, size in (("one", batch, 800), ("two", other, 1_500))
    )
    assert one.users.equals(two.users)
    first = dict(zip(batch.column("user").to_pylist()[::-1], cities[::-1].tolist(), strict=True))
    assert one.users.column("city").to_pylist() != [first[int(u)] for u in one.users.column(0).to_pylist()]


def test_a_split_by_interactions_holds_out_what_the_hash_says(tmp_path: Path) -> None:
    batch, split = ratings(9_000), SplitOptions(0.2, seed=5)
    examples = write(tmp_path / "e", [batch], 9_000, split)
    held = held_out(hash_keys(batch.column("user")), hash_keys(batch.column("item")), split)
    expected = {
        (str(u), i)
        for u, i in zip(
            batch.column("user").filter(pa.array(held)).to_pylist(),
            batch.column("item").filter(pa.array(held)).to_pylist(),
            strict=True,
        )
    }
    assert {(user, item) for user, item, _ in content(examples, "held")} == expected
    left = 9_000 - len(expected)
    assert 0.08 * left < examples.rows["validation"] < 0.12 * left


def test_a_split_by_time_holds_out_the_latest(tmp_path: Path) -> None:
    batch = ratings(9_000)
    examples = write(tmp_path / "e", [batch], 9_000, SplitOptions(0.1, "time"))
    times = {
        (str(u), i): t
        for u, i, t in zip(*(batch.column(n).to_pylist() for n in ("user", "item", "time")), strict=True)
    }
    held = [times[user, item] for user, item, _ in content(examples, "held")]
    kept = [times[u, i] for part in PARTS[:2] for u, i, _ in content(examples, part)]
    assert min(held) > max(kept)
    assert 900 <= len(held) <= 920
    same = batch.set_column(5, "time", pa.array(np.zeros(9_000)))
    with pytest.raises(UsageError, match="cannot be split by time"):
        write(tmp_path / "same", [same], 9_000, SplitOptions(0.1, "time"))


def test_memory_is_bounded_by_a_shard_and_not_by_the_ratings(tmp_path: Path) -> None:
    """Eight times the ratings of the same customers and products: the peak stays where it was."""
    peaks = []
    for name, batches in (("few", 4), ("many", 32)):
        stream = (ratings(5_000, seed=seed) for seed in range(batches))
        tracemalloc.start()
        write(tmp_path / name, stream, 5_000 * batches, rows_a_shard=5_000)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0]


def test_a_folder_that_is_not_whole_is_not_opened(tmp_path: Path) -> None:
    examples = write(tmp_path / "e", [ratings(3_000)], 3_000)
    assert open_examples(tmp_path / "e").rows == examples.rows
    shard = examples.files("training")[1]
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(FileNotFoundError, match="not whole"):
        open_examples(tmp_path / "e")
    (tmp_path / "e" / "examples.json").unlink()
    with pytest.raises(FileNotFoundError):
        open_examples(tmp_path / "e")


def test_the_evaluation_sees_all_ratings_or_whole_customers(tmp_path: Path) -> None:
    examples = write(tmp_path / "e", [ratings(9_000)], 9_000)
    everything = sampled_ratings(examples, 1)
    assert (everything.training.nnz, everything.held.nnz) == (
        examples.rows["training"] + examples.rows["validation"],
        examples.rows["held"],
    )
    user, item = entries(everything.held)
    rows = np.rec.fromarrays([everything.users[user], item, everything.held.data])
    assert decoded(examples, rows) == content(examples, "held")
    some = sampled_ratings(examples, 1, 3_000)
    assert 2_000 < some.training.nnz + some.held.nnz < 4_000
    for whole, part in ((everything.training, some.training), (everything.held, some.held)):
        assert (whole[some.users] != part).nnz == 0
