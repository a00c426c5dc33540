"""Errors that a user can act on, each with the exit code of the command line.

0 done, 1 anything else, 2 wrong usage or configuration, 3 too much bad data, 4 an outside system is
unavailable. Messages say where, what was expected, what came and what to do next, and carry no secret.
"""

__all__ = [
    "BadDataError",
    "BeamrecError",
    "ConnectionLostError",
    "RefusedError",
    "UnavailableError",
    "UsageError",
]


class BeamrecError(Exception):
    """Base of every error that is shown to the user without a traceback."""

    exit_code = 1


class UsageError(BeamrecError, ValueError):
    """Wrong usage or configuration; raised while a configuration or a graph is built."""

    exit_code = 2


class BadDataError(BeamrecError):
    """More bad records than the run accepts, or an account that does not add up."""

    exit_code = 3


class UnavailableError(BeamrecError):
    """An outside system did not answer, refused the login or lacks a privilege."""

    exit_code = 4


class RefusedError(UnavailableError):
    """An outside system answers and says no: waiting mends nothing."""


class ConnectionLostError(UnavailableError):
    """A connection broke or could not be made for a reason that may pass; reading is tried again."""
