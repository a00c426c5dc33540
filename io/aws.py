"""Clients of AWS services other than S3, and what their refusals mean to a user."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError, NoRegionError

from beamrec.schemas.errors import UnavailableError, UsageError

__all__ = ["error_code", "explained", "open_client"]

_ATTEMPTS = 8


def open_client(service: str, region: str | None, endpoint: str | None, where: str) -> Any:
    """A boto3 client; credentials come from boto3's own chain (environment, profile, role of the machine).

    Args:
      service: boto3's name of it.
      region, endpoint: None for what the environment or the profile says.
      where: option and URI, for messages.

    Raises:
      UsageError: there is no region, or the endpoint is no URL.
    """
    import boto3.session  # here, since few runs need it and it takes a quarter of a second
    from botocore.config import Config

    try:
        # Sessions are not thread-safe, and the default one is shared.
        return boto3.session.Session().client(
            service,
            # The other tools of AWS know both variables, boto3 only AWS_DEFAULT_REGION.
            region_name=region or os.environ.get("AWS_REGION"),
            endpoint_url=endpoint,
            config=Config(retries={"mode": "standard", "max_attempts": _ATTEMPTS}),
        )
    except NoRegionError:
        raise UsageError(f"{where}: no AWS region; add ?region=… or set AWS_REGION") from None
    except ValueError:
        raise UsageError(f"{where}: expected ?endpoint= to be a URL such as http://host:port") from None
    except BotoCoreError as error:
        raise UnavailableError(f"{where}: {error}") from None


@contextlib.contextmanager
def explained(where: str) -> Iterator[None]:
    """Turns what boto3 raises into an UnavailableError that names the operation and the reason."""
    try:
        yield
    except ClientError as error:
        message = error.response["Error"].get("Message", "")
        raise UnavailableError(
            f"{where}: AWS refused {error.operation_name}: {error_code(error)}: {message}"
        ) from None
    except BotoCoreError as error:
        raise UnavailableError(f"{where}: {error}") from None


def error_code(error: ClientError) -> str:
    """The name of the refusal, such as `AccessDeniedException`."""
    code: str = error.response["Error"].get("Code", "unknown")
    return code
