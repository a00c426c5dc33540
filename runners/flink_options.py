"""The options of Beam's Flink job server that the preset sets, so that a user can set them too.

Beam's Python SDK learns of them only from a running job server, and our command line refuses what it does not
know.
"""

from argparse import ArgumentParser

from apache_beam.options.pipeline_options import PipelineOptions

__all__ = ["FlinkJobOptions"]


class FlinkJobOptions(PipelineOptions):  # type: ignore[misc]
    """None by default: the job server's own default, on the other runners nothing."""

    @classmethod
    def _add_argparse_args(cls, parser: ArgumentParser) -> None:
        add = parser.add_argument
        add("--max_bundle_size", type=int, help="Flink: most elements (here: batches) of a bundle")
        add("--max_bundle_time_mills", type=int, help="Flink: longest time of a bundle [ms]")
        add("--checkpointing_interval", type=int, help="Flink: time between checkpoints [ms]")
        add("--min_pause_between_checkpoints", type=int, help="Flink: least time between two [ms]")
        add("--checkpoint_timeout_millis", type=int, help="Flink: a checkpoint that takes longer fails [ms]")
        add(
            "--no_fail_on_checkpointing_errors",
            dest="fail_on_checkpointing_errors",
            action="store_false",
            default=None,
            help="Flink: a checkpoint that fails does not restart the job",
        )
        add("--number_of_execution_retries", type=int, help="Flink: restarts of a job that fails")
        add("--execution_retry_delay", type=int, help="Flink: before such a restart [ms]")
        add("--shutdown_sources_after_idle_ms", type=int, help="Flink: end a quiet source after this [ms]")
        add("--state_backend", help="Flink: hashmap or rocksdb; the cluster's if not given")
        add("--state_backend_storage_path", help="Flink: where checkpoints are kept [URI]")
        add("--savepoint_path", help="Flink: checkpoint or savepoint to resume from [URI]")
        add("--allow_non_restored_state", action="store_true", default=None, help="Flink: leave state out")
        add(
            "--externalized_checkpoints_enabled",
            action="store_true",
            default=None,
            help="Flink: keep checkpoints outside of the job",
        )
        add(
            "--retain_externalized_checkpoints_on_cancellation",
            action="store_true",
            default=None,
            help="Flink: keep the last one after a cancel",
        )
