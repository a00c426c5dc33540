import subprocess
import sys

import pytest

from beamrec.pipelines import beam_start


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], True),
        (["--runner", "direct", "--output=lake"], True),
        (["--runner=prism"], True),
        (["--source", "mysql://shop@127.0.0.1/db", "--output", "/data/gs/lake"], True),
        (["--runner", "DataflowRunner"], False),
        (["--runner=flink"], False),
        (["--runner"], False),
        (["--output", "s3://lake/training"], False),
        (["--temp_location=gs://bucket/tmp"], False),
    ],
)
def test_only_a_command_that_stays_here_does_without(argv: list[str], expected: bool) -> None:
    assert beam_start.stays_here(argv) is expected


_LIGHT = """
import sys
from beamrec.pipelines import beam_start
beam_start.import_beam([])
import beamrec.pipelines.batch_training
loaded = {"pandas", "boto3", "pymongo", "google.cloud.bigquery", "google.cloud.pubsub"} & set(sys.modules)
assert not loaded, loaded
"""
_AFTERWARDS = """
import apache_beam.io.gcp.gcsfilesystem
from apache_beam.io.filesystems import FileSystems
assert type(FileSystems.get_filesystem("gs://bucket/name")).__name__ == "GCSFileSystem"
from apache_beam.io.gcp.pubsub import ReadFromPubSub
import pandas, pyarrow
assert pyarrow.array([1, 2]).to_pandas().tolist() == [1, 2]
assert pyarrow.array(pandas.Series([1.5, None])).to_pylist() == [1.5, None]
"""


def test_what_was_left_out_can_still_be_imported() -> None:
    # In a process of its own: this one has imported all of Beam.
    done = subprocess.run(
        [sys.executable, "-c", _LIGHT + _AFTERWARDS], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
