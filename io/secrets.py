"""Secrets by URI: the environment, a file, AWS Secrets Manager, Google Secret Manager.

A secret is read where it is used, on the worker. What travels in a pipeline's graph is the URI; the value
stands in no message, and errors of the services are shown without what they were about.
"""

import dataclasses
import json
import os
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, unquote

from beamrec.io.registry import scheme_of
from beamrec.schemas.errors import UnavailableError, UsageError
from beamrec.schemas.paths import local_path

__all__ = ["check_secret", "read_secret"]

_EXPECTED = (
    "env:NAME, file:///path, aws-secretsmanager://name?region=&key= or "
    "gcp-secretmanager://projects/P/secrets/S/versions/latest"
)
_GCP_NAME = re.compile(r"projects/[^/]+/secrets/[^/]+(/versions/[^/]+)?")
_GCP_TIMEOUT_SECONDS = 60.0


@dataclasses.dataclass(frozen=True)
class _Address:
    """A secret's URI, taken apart; `where` is for messages."""

    scheme: str
    name: str
    query: dict[str, str]
    where: str


def check_secret(uri: str, option: str) -> None:
    """Checks the form of a secret's URI; fetches nothing.

    Raises:
      UsageError: it is none of the known forms. The message does not repeat what may be the secret itself.
    """
    _parse(uri, option)


def read_secret(uri: str, option: str) -> str:
    """The secret that a URI names.

    `env:NAME`; `file:///path`, without the line end at its end; `aws-secretsmanager://name` with `?region=`,
    `endpoint=` and, for a secret that is a JSON object, `key=`; `gcp-secretmanager://projects/P/secrets/S`
    with `/versions/V` (the latest if not given).

    Args:
      uri: where it is.
      option: the flag that the URI came from, for messages.

    Raises:
      UsageError: the URI is of no known form, or there is no such secret.
      UnavailableError: the service does not answer, or refuses.
    """
    address = _parse(uri, option)
    return _READERS[address.scheme](address)


def _parse(uri: str, option: str) -> _Address:
    if uri.startswith("env:"):
        name = uri.removeprefix("env:").removeprefix("//")
        return _Address("env", _not_empty(name, option), {}, f"{option} env:{name}")
    scheme = scheme_of(uri)
    if scheme not in _KEYS:
        # A password given in place of its URI must not be shown.
        raise UsageError(f"{option}: expected the URI of a secret: {_EXPECTED}")
    rest, _, query = uri.partition("://")[2].partition("?")
    values = {key: found[-1] for key, found in parse_qs(query, keep_blank_values=True).items()}
    unknown = sorted(values.keys() - _KEYS[scheme])
    if unknown:
        raise UsageError(
            f"{option}: {scheme}:// takes {', '.join(sorted(_KEYS[scheme])) or 'no parameters'}, "
            f"got {unknown[0]!r}"
        )
    name = _not_empty(unquote(rest), option)
    if scheme == "gcp-secretmanager" and not _GCP_NAME.fullmatch(name):
        raise UsageError(
            f"{option}: expected gcp-secretmanager://projects/P/secrets/S/versions/V, got {name}"
        )
    return _Address(scheme, name, values, f"{option} {scheme}://{name}")


def _not_empty(name: str, option: str) -> str:
    if not name:
        raise UsageError(f"{option}: expected the name of a secret: {_EXPECTED}")
    return name


def _from_environment(address: _Address) -> str:
    value = os.environ.get(address.name)
    if value is None:
        raise UsageError(f"{address.where}: no such environment variable on the worker; set it there")
    return value


def _from_file(address: _Address) -> str:
    path = local_path(address.name, address.where)
    try:
        with open(path, encoding="utf-8", newline="") as file:
            return file.read().removesuffix("\n").removesuffix("\r")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise UsageError(f"{address.where}: cannot be read on the worker: {reason}") from None


def _from_aws(address: _Address) -> str:
    from botocore.exceptions import ClientError

    from beamrec.io.aws import error_code, explained, open_client

    client = open_client(
        "secretsmanager", address.query.get("region"), address.query.get("endpoint"), address.where
    )
    with explained(address.where):
        try:
            answer = client.get_secret_value(SecretId=address.name)
        except ClientError as error:
            if error_code(error) == "ResourceNotFoundException":
                raise UsageError(
                    f"{address.where}: there is no such secret in {client.meta.region_name}"
                ) from None
            raise
    text = answer.get("SecretString")
    return _entry(text if text is not None else _text(answer["SecretBinary"], address), address)


def _from_gcp(address: _Address) -> str:
    from google.api_core.exceptions import GoogleAPICallError, NotFound, RetryError
    from google.auth.exceptions import GoogleAuthError

    name = address.name if "/versions/" in address.name else f"{address.name}/versions/latest"
    try:
        answer = _gcp_client(address).access_secret_version(
            request={"name": name}, timeout=_GCP_TIMEOUT_SECONDS
        )
    except NotFound:
        raise UsageError(f"{address.where}: there is no such secret") from None
    except (GoogleAPICallError, RetryError, GoogleAuthError) as error:
        reason = getattr(error, "message", None) or str(error)
        raise UnavailableError(f"{address.where}: Google Secret Manager: {reason}") from None
    return _entry(_text(answer.payload.data, address), address)


def _gcp_client(address: _Address) -> Any:
    from google.cloud import secretmanager

    endpoint = address.query.get("endpoint", "")
    if not endpoint.startswith("http://"):
        options = {"api_endpoint": endpoint} if endpoint else None
        return secretmanager.SecretManagerServiceClient(client_options=options)
    import grpc

    # A server without TLS, such as an emulator's, gets no credentials either.
    transport = secretmanager.SecretManagerServiceClient.get_transport_class("grpc")
    channel = grpc.insecure_channel(endpoint.removeprefix("http://"))
    return secretmanager.SecretManagerServiceClient(transport=transport(channel=channel))


def _text(data: bytes, address: _Address) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise UsageError(f"{address.where}: expected text in UTF-8, got other bytes") from None


def _entry(value: str, address: _Address) -> str:
    """The entry `key` of a secret that is a JSON object, as AWS keeps a database's login; else all of it."""
    key = address.query.get("key")
    if key is None:
        return value
    try:
        found = json.loads(value)[key]
    except (ValueError, KeyError, TypeError):
        found = None
    if not isinstance(found, str):
        raise UsageError(f"{address.where}: expected a JSON object with a text under {key!r}")
    return found


_KEYS: dict[str, frozenset[str]] = {
    "file": frozenset(),
    "aws-secretsmanager": frozenset({"region", "endpoint", "key"}),
    "gcp-secretmanager": frozenset({"endpoint", "key"}),
}
_READERS: dict[str, Callable[[_Address], str]] = {
    "env": _from_environment,
    "file": _from_file,
    "aws-secretsmanager": _from_aws,
    "gcp-secretmanager": _from_gcp,
}
