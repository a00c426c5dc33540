"""TFRecord parts: TensorFlow reads them, values equal; the same bytes for the same rows."""

import datetime as dt
import decimal
import gzip
import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from beamrec.io.tfrecord_files import TfrecordCompression, encode_examples, encode_tfrecord
from beamrec.schemas.errors import BadDataError

ROWS = pa.RecordBatch.from_pydict(
    {
        "customer": pa.array([103, 103, 2**31 - 1], pa.int32()),
        "city": ["Nantes", "", None],
        "größe": ["ß🚗" * 100, "x", "y" * 20_000],
        "credit": pa.array(
            [decimal.Decimal("21000.07"), None, decimal.Decimal("-0.01")], pa.decimal128(10, 2)
        ),
        "share": pa.array([0.1, float("inf"), None], pa.float64()),
        "small": pa.array([-5, None, 7], pa.int8()),
        "day": [dt.date(2004, 2, 29), None, dt.date(1, 1, 1)],
        "time": pa.array([None, dt.datetime(2004, 2, 29, 1, 2, 3), None], pa.timestamp("us")),  # noqa: DTZ001
        "raw": pa.array([b"\x00\xff", None, b""], pa.binary()),
        "flag": [True, False, None],
        "nothing": pa.array([None, None, None], pa.null()),
    }
)
# What a feature holds: no value for NULL, one for everything else.
EXPECTED: dict[str, list[list[Any]]] = {
    "customer": [[103], [103], [2**31 - 1]],
    "city": [[b"Nantes"], [b""], []],
    "größe": [["ß🚗".encode() * 100], [b"x"], [b"y" * 20_000]],
    "credit": [[np.float32(21000.07)], [], [np.float32(-0.01)]],
    "share": [[np.float32(0.1)], [np.float32("inf")], []],
    "small": [[-5], [], [7]],
    "day": [[b"2004-02-29"], [], [b"0001-01-01"]],
    "time": [[], [b"2004-02-29T01:02:03"], []],
    "raw": [[b"\x00\xff"], [], [b""]],
    "flag": [[1], [0], []],
    "nothing": [[], [], []],
}


@pytest.fixture(scope="module")
def tf() -> Any:
    """TensorFlow, imported once it is needed."""
    return pytest.importorskip("tensorflow")


@pytest.mark.parametrize(("compression", "kind"), [("none", ""), ("gzip", "GZIP")])
def test_tf_data_reads_every_value(
    tf: Any, tmp_path: Path, compression: TfrecordCompression, kind: str
) -> None:
    path = tmp_path / "part.tfrecord"
    path.write_bytes(encode_tfrecord(ROWS, compression))
    examples = [
        tf.train.Example.FromString(record.numpy())
        for record in tf.data.TFRecordDataset(str(path), compression_type=kind)
    ]
    assert len(examples) == 3
    for name, values in EXPECTED.items():
        found = [example.features.feature[name] for example in examples]
        lists = [getattr(each, each.WhichOneof("kind") or "bytes_list").value for each in found]
        assert [list(each) for each in lists] == values, name
        assert [each.WhichOneof("kind") is None for each in found] == [not value for value in values]


def test_tf_io_parses_a_batch_with_defaults_for_null(tf: Any) -> None:
    """How a model's input pipeline sees it: `FixedLenFeature` gives its default, `VarLenFeature` nothing."""
    parsed = tf.io.parse_example(
        tf.constant(encode_examples(ROWS).to_pylist()),
        {
            "customer": tf.io.FixedLenFeature([], tf.int64),
            "credit": tf.io.FixedLenFeature([], tf.float32, default_value=-1.0),
            "city": tf.io.VarLenFeature(tf.string),
        },
    )
    assert parsed["customer"].numpy().tolist() == [103, 103, 2**31 - 1]
    assert parsed["credit"].numpy().tolist() == [np.float32(21000.07), -1.0, np.float32(-0.01)]
    assert tf.sparse.to_dense(parsed["city"], default_value=b"?").numpy().tolist() == [
        [b"Nantes"],
        [b""],
        [b"?"],
    ]


def test_decimals_are_the_nearest_float32() -> None:
    """Arrow's own cast of a decimal to a float is off by one unit for some; these must not be."""
    cents = range(1, 40_000, 7)
    numbers = [decimal.Decimal(cent) / 100 for cent in cents]
    rows = pa.RecordBatch.from_pydict({"x": pa.array(numbers, pa.decimal128(10, 2))})
    tails = [np.frombuffer(example[-4:], "<f4")[0] for example in encode_examples(rows).to_pylist()]
    assert tails == [np.float32(float(number)) for number in numbers]


def test_equal_rows_give_equal_bytes_in_any_process() -> None:
    """tfx_bsl by itself lays the features of an Example in an order of chance."""
    program = (
        "import hashlib, pyarrow as pa; from beamrec.io.tfrecord_files import encode_tfrecord as encode\n"
        "rows = pa.RecordBatch.from_pydict({c * 3: [c, None, c * 2] for c in 'abcdefghijkl'})\n"
        "for kind in ('none', 'gzip'): print(hashlib.sha256(encode(rows, kind)).hexdigest())"
    )
    runs = [
        subprocess.run([sys.executable, "-c", program], env={**os.environ, "PYTHONHASHSEED": str(seed)},
                       check=True, capture_output=True, text=True).stdout.split()
        for seed in range(2)
    ]  # fmt: skip
    assert runs[0] == runs[1]
    rows = pa.RecordBatch.from_pydict({c * 3: [c, None, c * 2] for c in "abcdefghijkl"})
    copies = [encode_tfrecord(part) for part in (rows, pa.concat_batches([rows, rows]).slice(3))]
    assert {hashlib.sha256(copy).hexdigest() for copy in copies} == {runs[0][0]}


def test_gzip_holds_the_plain_file() -> None:
    assert gzip.decompress(encode_tfrecord(ROWS, "gzip")) == encode_tfrecord(ROWS, "none")


def test_an_integer_beyond_int64_is_bad_data() -> None:
    rows = pa.RecordBatch.from_pydict({"n": pa.array([2**63], pa.uint64())})
    with pytest.raises(BadDataError, match="column n: an integer does not fit the int64"):
        encode_tfrecord(rows)
