"""Checkpoints: restored exactly; what is garbled is discarded with a message; a full disk is an error."""

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from beamrec.model.checkpoints import Checkpoints, Progress
from beamrec.model.handler import quiet_tensorflow

tf = quiet_tensorflow()


def variables(value: float) -> list[tf.Variable]:
    return [tf.Variable(tf.fill([300, 4], value)), tf.Variable(int(value), dtype=tf.int64)]


def saved(folder: Path, numbers: tuple[int, ...] = (1, 2, 3), best: int = -1) -> None:
    kept = variables(0)
    checkpoints = Checkpoints(folder, kept, pytest.fail)
    for number in numbers:
        for variable in kept:
            variable.assign(tf.fill(variable.shape, tf.cast(number, variable.dtype)))
        checkpoints.save(number, Progress(number, 5, (0.5,), (0.25, 0.125), best))


def restored(folder: Path) -> tuple[float, Progress, list[str]]:
    """Value of the variables after restoring, where training stood, and the messages."""
    told: list[str] = []
    kept = variables(-1)
    progress = Checkpoints(folder, kept, told.append).restore_latest()
    values = {float(tf.reduce_max(kept[0])), float(tf.reduce_min(kept[0])), float(kept[1])}
    assert len(values) == 1
    return values.pop(), progress, told


def test_the_newest_is_restored_and_the_last_two_and_the_best_are_kept(tmp_path: Path) -> None:
    saved(tmp_path, (1, 2, 3, 4), best=1)
    assert restored(tmp_path) == (4.0, Progress(4, 5, (0.5,), (0.25, 0.125), 1), [])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "3", "4"]
    kept = variables(-1)
    Checkpoints(tmp_path, kept, pytest.fail).restore(1)
    assert float(kept[1]) == 1


def test_nothing_saved_is_the_beginning(tmp_path: Path) -> None:
    assert restored(tmp_path / "none") == (-1.0, Progress(), [])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: _flip(folder / "variables.data-00000-of-00001"),
        lambda folder: _flip(folder / "variables.index"),
        lambda folder: (folder / "variables.data-00000-of-00001").write_bytes(b""),
        lambda folder: (folder / "variables.index").unlink(),
        lambda folder: (folder / "progress.json").unlink(),
        lambda folder: (folder / "progress.json").write_text("{"),
        lambda folder: (folder / "progress.json").write_text("[]"),
        lambda folder: (folder / "progress.json").write_text('{"files": {}}'),
    ],
)
def test_a_garbled_checkpoint_is_discarded_and_the_one_before_is_used(
    tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    saved(tmp_path)
    spoil(tmp_path / "3")
    value, progress, told = restored(tmp_path)
    assert (value, progress.epoch) == (2.0, 2)
    (message,) = told
    assert "3: checkpoint discarded: " in message
    assert not (tmp_path / "3").exists()


def test_a_checkpoint_is_no_use_without_the_best_one_that_it_names(tmp_path: Path) -> None:
    saved(tmp_path, (1, 2, 3), best=1)
    _flip(tmp_path / "1" / "variables.index")
    value, progress, told = restored(tmp_path)
    assert (value, progress, len(told)) == (-1.0, Progress(), 3)
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_of_another_model_is_discarded(tmp_path: Path) -> None:
    saved(tmp_path, (1,))
    told: list[str] = []
    other = [tf.Variable(tf.zeros([7, 7])), tf.Variable(0, dtype=tf.int64)]
    assert Checkpoints(tmp_path, other, told.append).restore_latest() == Progress()
    assert len(told) == 1


def test_a_half_written_checkpoint_is_not_seen(tmp_path: Path) -> None:
    saved(tmp_path, (1,))
    (tmp_path / ".2").mkdir()
    (tmp_path / ".2" / "variables.index").write_bytes(b"x")
    assert restored(tmp_path)[0] == 1.0
    saved(tmp_path, (2,))
    assert restored(tmp_path)[0] == 2.0


def test_a_full_disk_is_said(disk: Callable[[str], Path]) -> None:
    folder = disk("size=1m")
    many = [tf.Variable(tf.zeros([1_000_000]))]
    with pytest.raises(OSError, match="No space left") as caught:
        Checkpoints(folder, many, pytest.fail).save(1, Progress())
    assert caught.value.errno == errno.ENOSPC
