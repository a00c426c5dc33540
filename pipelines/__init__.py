"""The two pipelines and the command line: options, frozen config, `build`, run. No logic."""
