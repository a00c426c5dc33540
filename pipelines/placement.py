"""What a runner preset is told of a pipeline: the places that its workers use, and where passwords are."""

import os
from collections.abc import Mapping
from urllib.parse import parse_qsl, urlsplit

from beamrec.io.kafka_client import PASSWORD_VARIABLE as KAFKA_PASSWORD
from beamrec.io.registry import scheme_of
from beamrec.pipelines.environment import PASSWORDS
from beamrec.runners.preset import Job, Password

__all__ = ["place_job"]


def place_job(verb: str, places: Mapping[str, str | None], source_secret: str | None = None) -> Job:
    """A pipeline for `check_runner`.

    Args:
      verb: `batch` or `stream`.
      places: by option, what workers must reach; an option that is not given is left out.
      source_secret: `--source-secret`.
    """
    given = {option: uri for option, uri in places.items() if uri}
    passwords = {option: _password(option, uri, source_secret) for option, uri in given.items()}
    return Job(verb, given, {option: found for option, found in passwords.items() if found})


def _password(option: str, uri: str, source_secret: str | None) -> Password | None:
    kind, in_uri = scheme_of(uri), dict(parse_qsl(urlsplit(uri).query)).get("secret")
    if option == "--source" and kind in ("mysql", "postgresql"):
        return Password(source_secret, _first_set(PASSWORDS["source"]), "--source-secret")
    if option == "--vector-db" and kind in ("postgresql", "postgres"):
        return Password(in_uri, _first_set(PASSWORDS["vector_db"]), "--vector-db-secret")
    if kind == "kafka" and "@" in urlsplit(uri).netloc:
        return Password(in_uri, _first_set((KAFKA_PASSWORD,)), "secret")
    return None


def _first_set(variables: tuple[str, ...]) -> str | None:
    return next((name for name in variables if os.environ.get(name)), None)
