"""What `stream` refuses, before it starts or writes anything, and with which exit code."""

import dataclasses
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from apache_beam.options.pipeline_options import PipelineOptions, PortableOptions

from beamrec.pipelines import streaming_recommend
from beamrec.pipelines.console import Console
from beamrec.pipelines.failures import explain
from beamrec.pipelines.templates import shop_toml
from beamrec.runners.preset import launch
from beamrec.schemas.errors import UsageError
from beamrec.schemas.shop import CLASSICMODELS, Shop

FILMS = Shop.from_dict(
    {
        "name": "films",
        "customers": {
            "name": "users",
            "key": "user_id",
            "key_type": "string",
            "features": [{"column": "age_band", "event_field": "age"}],
        },
        "products": {"name": "films", "key": "film_id", "key_type": "string", "features": []},
        "ratings": {"name": "stars", "customer": "user_id", "product": "film_id", "rating": "score"},
    }
)


@pytest.fixture
def run(trained: Any, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Runs the verb in this process on `tmp_path/in` and `tmp_path/out`."""
    (tmp_path / "in").mkdir()

    def call(*argv: str) -> dict[str, Any]:
        defaults = [f"--input={tmp_path}/in", f"--output={tmp_path}/out"]
        return streaming_recommend.run([*defaults, *argv], Console(trained.home))

    return call


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--window-seconds=7"], "divisor of 3600"),
        (["--dedupe-horizon=1"], "less than --allowed-lateness"),
        (["--shards=0"], "at least 1"),
        (["--max-delay=-1"], "seconds from 0 on"),
        (["--input=redis://host/x"], "--input: expected one of"),
        (["--output=ftp://host/x"], "--output: expected one of"),
        (["--output=s3://Bucket_/x"], "--output: expected s3://bucket/prefix"),
        (["--output=s3://bucket/x", "--s3_secret_access_key=x"], "secrets|environment"),
        (["--max-file-mb=0"], "--max-file-mb: expected at least 1"),
        (["--runner=nosuch"], "expected dataflow, direct, flink, prism or one of Beam's own"),
        (["--explain", "--output-shape=course"], "no room for reasons"),
        (["--rules=nosuch.toml"], "--rules nosuch.toml: cannot be read"),
        (["--nosuch=1"], "nosuch"),
        (["--metrics-port=99999"], "--metrics-port: expected a port from 0 to 65535, got '99999'"),
        (["--metrics-port=-1"], "--metrics-port: expected a port from 0 to 65535, got '-1'"),
        (["--input="], "--input is missing: expected a path, file://, s3://, gs://, kinesis://, kafka://"),
        (["--vector-db=postgresql://u:p@h/db"], "holds a password"),
    ],
)
def test_wrong_usage_is_exit_2(run: Callable[..., dict[str, Any]], argv: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        run(*argv)


def test_a_mistyped_input_does_not_bind_the_output_folder(
    run: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        run(f"--input={tmp_path}/inn")
    (tmp_path / "file").write_bytes(b"{}")
    with pytest.raises(UsageError, match="is a file"):
        run(f"--input={tmp_path}/file")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("input_", "output", "how"),
    [("in", "in", "is"), ("in", "in/out", "lies below"), ("in/clicks", "in/../in", "lies above")],
)
def test_an_output_that_would_be_read_as_events_is_refused(
    run: Callable[..., dict[str, Any]], tmp_path: Path, input_: str, output: str, how: str
) -> None:
    (tmp_path / "in/clicks").mkdir()
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(UsageError, match=f"--output .*: {how} the --input .*: its own files would be read"):
        run(f"--input={tmp_path}/{input_}", f"--output={tmp_path}/link/{output}")
    assert [path.name for path in (tmp_path / "in").rglob("*")] == ["clicks"]


def test_a_release_of_a_shop_with_another_name_is_refused(
    run: Callable[..., dict[str, Any]], trained: Any, tmp_path: Path
) -> None:
    other = dataclasses.replace(CLASSICMODELS, name="other")
    (tmp_path / "other.toml").write_text(shop_toml(other))
    with pytest.raises(UsageError, match=rf"{trained.release} .* the shop 'classicmodels', not for 'other'"):
        run(f"--shop={tmp_path}/other.toml")
    assert not (tmp_path / "out").exists()


def test_a_start_that_is_refused_for_its_port_binds_no_folder_and_says_nothing_of_serving(
    run: Callable[..., dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(UsageError, match=r"--metrics-port \d+: cannot be opened"),
    ):
        run(f"--metrics-port={taken.getsockname()[1]}")
    assert not (tmp_path / "out").exists()
    assert "serving release" not in "".join(capsys.readouterr())


def test_a_release_with_other_inputs_is_refused_before_anything_is_written(
    run: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    films = dataclasses.replace(FILMS, name=CLASSICMODELS.name)
    (tmp_path / "films.toml").write_text(shop_toml(films))
    with pytest.raises(UsageError, match=r"was trained for a shop with the inputs .*customerNumber"):
        run(f"--shop={tmp_path}/films.toml")
    assert not (tmp_path / "out").exists()


def test_a_customer_column_with_a_name_of_ours_is_refused() -> None:
    from beamrec.schemas.events import event_schema

    data = {"column": "position", "event_field": "position"}
    customers = {"name": "c", "key": "id", "key_type": "int", "features": [data]}
    products = {"name": "p", "key": "pid", "key_type": "int", "features": []}
    ratings = {"name": "r", "customer": "id", "product": "pid", "rating": "stars"}
    shop = Shop.from_dict({"customers": customers, "products": products, "ratings": ratings})
    with pytest.raises(UsageError, match="'position' has the name of a column that the stream adds"):
        event_schema(shop)
    assert event_schema(CLASSICMODELS)


def test_an_output_that_cannot_be_written_is_exit_4(
    run: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    (tmp_path / "out").write_bytes(b"a file")
    with pytest.raises(Exception, match="cannot be written") as caught:
        run()
    assert explain(caught.value)[1] == 4


def test_a_job_may_run_longer_than_beams_default_deadline_of_300_seconds() -> None:
    """The deadline is that of the state stream: without the option every job ended after five minutes."""
    with launch("prism", []) as (_, args):
        assert PipelineOptions(args).view_as(PortableOptions).job_server_timeout > 365 * 86_400
