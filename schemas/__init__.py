"""The contract between stages: Arrow schemas and frozen dataclasses. No Beam, no I/O."""
