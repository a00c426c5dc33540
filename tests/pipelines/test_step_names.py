"""The names of the steps, by which a service finds the state of a job that an update replaces."""

import tomllib
from collections.abc import Callable
from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from beamrec.pipelines import batch_training, streaming_recommend
from beamrec.pipelines.batch_options import BatchConfig
from beamrec.pipelines.stream_options import StreamConfig
from beamrec.schemas.shop import CLASSICMODELS, load_shop

ROOT = Path(__file__).resolve().parents[2]
WRITTEN = ROOT / "deploy" / "dataflow" / "steps.toml"


def step_names(build: Callable[[beam.Pipeline], object]) -> list[str]:
    """Full names of a pipeline's steps that are no composites."""
    pipeline = beam.Pipeline(options=PipelineOptions([]))
    build(pipeline)
    transforms = pipeline.to_runner_api().components.transforms.values()
    return sorted(step.unique_name for step in transforms if step.unique_name and not step.subtransforms)


def stream_of(folder: Path, shop_file: str | None = None) -> list[str]:
    config = StreamConfig(
        input=str(folder),
        output=str(folder / "out"),
        vector_db="embedded:/nowhere",
        shop=load_shop(shop_file) if shop_file else CLASSICMODELS,
        run="run",
    )
    return step_names(lambda pipeline: streaming_recommend.build(pipeline, config))


def batch_of(folder: Path) -> list[str]:
    config = BatchConfig(f"sqlite:///{folder}/shop.db", str(folder / "lake"), CLASSICMODELS, "run")
    return step_names(lambda pipeline: batch_training.build(pipeline, config))


def clicks_of(folder: Path) -> list[str]:
    """What a shop of single clicks has beyond the others."""
    clicks = stream_of(folder, str(Path(__file__).with_name("films.toml")))
    return sorted(set(clicks) - set(stream_of(folder)))


@pytest.mark.parametrize(
    ("name", "found"), [("stream", stream_of), ("clicks", clicks_of), ("batch", batch_of)]
)
def test_no_step_was_renamed(name: str, found: Callable[[Path], list[str]], tmp_path: Path) -> None:
    written = sorted(tomllib.loads(WRITTEN.read_text())[name])
    steps = found(tmp_path)
    gone, new = sorted(set(written) - set(steps)), sorted(set(steps) - set(written))
    assert not gone + new, (
        f"steps that are gone: {gone}; new: {new}. A service that replaces a running job by another "
        "(Dataflow's --update, a savepoint) finds a step's state by its name: after a rename it refuses the "
        "update, or the state is lost (nothing else: a restart from the ledger loses no record). If the name "
        f"must change, mend {WRITTEN.relative_to(ROOT)} and put the pair into CHANGELOG.md as a "
        "--transform_name_mapping"
    )


def test_names_are_the_same_for_another_run_and_another_output(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    assert stream_of(tmp_path / "a") == stream_of(tmp_path / "b")
