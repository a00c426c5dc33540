"""Options of `beamrec stream`, and the frozen configuration that they become."""

import dataclasses
import json
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence

import beamrec.transforms.coders  # noqa: F401  (registers the batch coder)
from beamrec.io.events import SourceOptions, identity
from beamrec.io.ledger import Settings
from beamrec.io.postgres import resolve_uri, with_secret
from beamrec.io.registry import Kind, known_schemes, scheme_of
from beamrec.io.retrieval import Retrieval
from beamrec.io.ruled_search import SearchRules
from beamrec.io.segment_files import FORMATS, FileFormat, SegmentFormat
from beamrec.io.store import open_store, with_beam_options
from beamrec.pipelines.console import Console
from beamrec.pipelines.environment import default
from beamrec.pipelines.placement import place_job
from beamrec.pipelines.stream_rules import RULE_OPTIONS, add_rule_options, load_rules
from beamrec.pipelines.verb_options import VerbOptions, port
from beamrec.runners.preset import Job, Preset
from beamrec.schemas.errors import UsageError
from beamrec.schemas.events import event_schema
from beamrec.schemas.paths import PartitionStyle
from beamrec.schemas.records import record_schema
from beamrec.schemas.shop import Shop, load_shop
from beamrec.transforms.recommend import OutputShape

__all__ = ["StreamConfig", "StreamOptions", "make_config"]

# Half the work of a stage does not depend on how many events there are: of 500 each takes 72 µs, of 5,000 43.
_BATCH_ROWS = 4000


class StreamOptions(VerbOptions):
    """Flags of `beamrec stream`."""

    @classmethod
    def _add_argparse_args(cls, parser: ArgumentParser) -> None:
        add = parser.add_argument
        add("--input", default=default("input"), help="folder or prefix of JSONL files, or a stream [URI]")
        add("--output", default=default("output"), help="output folder, or s3:// or gs:// prefix [URI]")
        add(
            "--also",
            action="append",
            help="a stream to write the recommendations to as well; repeatable [URI]",
        )
        add("--vector-db", default=default("vector_db"), help="release and serving store [URI]")
        add("--vector-db-secret", help="where its password is, if not in the environment [URI]")
        add("--shop", default=default("shop"), help="shop TOML; classicmodels if not given [file]")
        add("--runner", default="prism", help="prism, direct, flink, dataflow, or a Beam runner's own name")
        add(
            "--window-seconds",
            type=int,
            default=default("window_seconds"),
            help="event-time windows; divides 3600 [s]",
        )
        add(
            "--allowed-lateness",
            type=float,
            default=default("allowed_lateness"),
            help="after a window's end [s]",
        )
        add("--max-delay", type=float, default=default("max_delay"), help="watermark behind arrival [s]")
        add("--future-tolerance", type=float, default=300.0, help="event time beyond arrival [s]")
        add("--dedupe-key", help="payload field that identifies an event without event_id")
        add(
            "--dedupe-horizon",
            type=int,
            default=default("dedupe_horizon"),
            help="how far back ids are known [h]",
        )
        add("--items", type=int, default=default("items"), help="items a list")
        add("--seed", type=int, default=default("seed"), help="of --output-shape=course")
        add("--shards", type=int, default=default("shards"), help="output shards; fixed for an output folder")
        add("--splits", type=int, default=1, help="readers of the input")
        add(
            "--output-shape",
            choices=("full", "course"),
            default="full",
            help="all fields, or those of the course",
        )
        add(
            "--format",
            choices=FORMATS,
            default="jsonl",
            help="of recommendations; fixed for an output folder",
        )
        add("--max-file-mb", type=int, default=64, help="most data of one file before compression [MiB]")
        add("--partition-style", choices=("hive", "plain"), default="hive", help="hour=07 or 07")
        add("--metrics-port", type=port, help="tell Prometheus the metrics here; 0: any that is free [port]")
        add("--metrics-host", default="127.0.0.1", help="address of this machine that --metrics-port is on")
        add(
            "--retrieval",
            choices=("auto", "exact", "index"),
            default="auto",
            help="multiplies all, or asks pgvector",
        )
        add_rule_options(parser)
        add("--max-in-flight-mb", type=int, default=256, help="most read and not yet written, a split [MiB]")
        add("--patience", type=float, default=300.0, help="for an output that is away, before failing [s]")
        add("--stop-when-idle", type=float, help="drain and end after this long without input [s]")


@dataclasses.dataclass(frozen=True)
class StreamConfig:
    """A validated job; what `build` needs and nothing else.

    Attributes:
      release: id of the release that scores; None takes the active one, whichever it is at the moment.
      serving: whether the serving table gets the recommendations.

    Raises:
      UsageError: at construction, for a value out of range.
    """

    input: str
    output: str
    vector_db: str
    shop: Shop
    run: str
    release: str | None = None
    serving: bool = True
    window_seconds: int = 60
    allowed_lateness: float = 3600.0
    max_delay: float = 2.0
    future_tolerance: float = 300.0
    dedupe_key: str | None = None
    dedupe_horizon: int = 24
    items: int = 5
    seed: int = 42
    shards: int = 8
    splits: int = 1
    output_shape: OutputShape = "full"
    partition_style: PartitionStyle = "hive"
    retrieval: Retrieval = "auto"
    rules: SearchRules | None = None
    explain: bool = False
    stop_when_idle: float | None = None
    cache: str = ""
    also: tuple[str, ...] = ()
    format: FileFormat = "jsonl"
    max_file_mb: int = 64
    max_in_flight_mb: int | None = 256
    patience: float = 300.0
    metrics_port: int | None = None
    metrics_host: str = "127.0.0.1"

    def __post_init__(self) -> None:
        places: dict[str, Kind] = {"input": "events", "output": "files"}
        for name, kind in places.items():
            if not getattr(self, name):
                raise UsageError(f"--{name} is missing: expected {', '.join(known_schemes(kind))}")
        if self.window_seconds < 1 or 3600 % self.window_seconds:
            raise UsageError(
                "--window-seconds: expected a divisor of 3600 (a window lies in one hour), "
                f"got {self.window_seconds}"
            )
        if self.explain and self.output_shape == "course":
            raise UsageError("--explain: the course's record has no room for reasons; take one of both")
        open_store(self.output)
        event_schema(self.shop)
        for name in ("items", "shards", "splits", "dedupe_horizon", "max_file_mb", "max_in_flight_mb"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise UsageError(f"--{name.replace('_', '-')}: expected at least 1, got {number}")
        if self.dedupe_horizon * 3600 < self.allowed_lateness + self.window_seconds:
            raise UsageError(
                f"--dedupe-horizon: {self.dedupe_horizon} h is less than --allowed-lateness with one window; "
                "a late event's own replay would no longer be recognised"
            )
        for name in ("allowed_lateness", "max_delay", "future_tolerance", "stop_when_idle", "patience"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1e9:
                raise UsageError(f"--{name.replace('_', '-')}: expected seconds from 0 on, got {value}")

    @property
    def settings(self) -> Settings:
        """What must not change in the output folder."""
        return self.settings_of(identity(self.input))

    def settings_of(self, events: str) -> Settings:
        """The settings of a folder whose events come from elsewhere than `input`."""
        return Settings(
            self.shards,
            events,
            self.dedupe_key,
            self.shop.name,
            self.event_mapping,
            self.format,
            # Other columns in the files of one table would be an error for its readers; lines may differ.
            self.explain and self.format == "parquet",
            self.output_shape,
            self.segments.columns,
        )

    @property
    def event_mapping(self) -> str:
        """How events map to ids and customers, as the output folder keeps it."""
        keys = (self.shop.customers.key_type, self.shop.products.key_type)
        # How many clicks a history holds changes no id.
        events = {k: v for k, v in dataclasses.asdict(self.shop.events).items() if k != "history_length"}
        return json.dumps([events, *keys])

    @property
    def clicks_before(self) -> int:
        """How many clicks of its session an event is given; 0 where events bring their history."""
        return self.shop.events.history_length if self.shop.events.shape == "click" else 0

    @property
    def job(self) -> Job:
        """What the runner's preset is told."""
        places = {"--input": self.input, "--output": self.output, "--vector-db": self.vector_db}
        more = {f"--also {number}": uri for number, uri in enumerate(self.also, start=1)}
        facts = self.rules.facts if self.rules is not None else None
        if facts is not None:
            more["--source"] = facts.uri
        return place_job("stream", {**places, **more}, facts.secret if facts is not None else None)

    def on(self, preset: Preset) -> "StreamConfig":
        """The job on a runner: where nothing is written before the input ends, no reader waits for it."""
        return self if preset.streams else dataclasses.replace(self, max_in_flight_mb=None)

    @property
    def segments(self) -> SegmentFormat:
        """How recommendations are written."""
        course = self.output_shape == "course"
        return SegmentFormat(self.format, record_schema(self.shop, course, self.explain))

    @property
    def source(self) -> SourceOptions:
        """What the source needs to know."""
        return SourceOptions(
            self.output,
            self.run,
            self.max_delay,
            self.stop_when_idle,
            self.splits,
            batch_rows=_BATCH_ROWS,
            window_seconds=self.window_seconds,
            max_in_flight_mb=self.max_in_flight_mb,
            patience_seconds=self.patience,
        )


def make_config(
    values: Namespace, beam_args: Sequence[str], console: Console, verb: str = "stream"
) -> StreamConfig:
    """The values of `StreamOptions` as a job of a verb; raises UsageError."""
    elsewhere = ("shop", "runner", "also", *RULE_OPTIONS)
    fields = {k: v for k, v in vars(values).items() if k not in elsewhere}
    secret = fields.pop("vector_db_secret")
    fields["vector_db"] = with_secret(resolve_uri(fields["vector_db"], console.home), secret)
    if scheme_of(fields["input"] or "") in ("s3", "gs"):
        fields["input"] = with_beam_options(fields["input"], beam_args, "--input")
    if fields["output"]:
        fields["output"] = with_beam_options(fields["output"], beam_args)
    fields["cache"] = str(console.home / "cache" / "releases")
    shop = load_shop(values.shop)
    return StreamConfig(
        shop=shop,
        rules=load_rules(values, shop),
        run=console.run_id(verb),
        also=tuple(values.also or ()),
        **fields,
    )
