"""Clients of AWS services other than S3, and what their refusals mean to a user."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError, NoRegionError

from beamrec.schemas.errors import UnavailableError, UsageError

__all__ = ["error_code", "explained", "open_client", "region_of"]

_ATTEMPTS = 8


def region_of(region: str | None) -> str | None:
    """The region that a client gets: as given, else what the environment or the profile says, if anything."""
    import boto3.session

    # The other tools of AWS know both variables, boto3 only AWS_DEFAULT_REGION.
    return region or os.environ.get("AWS_REGION") or boto3.session.Session().region_name


def open_client(
    service: str,
    region: str | None,
    endpoint: str | None,
    where: str,
    role: str | None = None,
    **config: Any,
) -> Any:
    """A boto3 client; credentials come from boto3's own chain (environment, profile, role of the machine).

    Args:
      service: boto3's name of it.
      region, endpoint: None for what the environment or the profile says.
      where: option and URI, for messages.
      role: ARN of a role to assume with those credentials; renewed before they expire.
      config: of botocore's `Config`, over the defaults.

    Raises:
      UsageError: there is no region, or the endpoint is no URL.
    """
    import boto3.session  # here, since few runs need it and it takes a quarter of a second
    from botocore.config import Config

    try:
        # Sessions are not thread-safe, and the default one is shared.
        session = boto3.session.Session(botocore_session=_session_in(role, region) if role else None)
        return session.client(
            service,
            region_name=region_of(region),
            endpoint_url=endpoint,
            config=Config(**{"retries": {"mode": "standard", "max_attempts": _ATTEMPTS}, **config}),
        )
    except NoRegionError:
        raise UsageError(f"{where}: no AWS region; add ?region=… or set AWS_REGION") from None
    except ValueError:
        raise UsageError(f"{where}: expected ?endpoint= to be a URL such as http://host:port") from None
    except BotoCoreError as error:
        raise UnavailableError(f"{where}: {error}") from None


def _session_in(role: str, region: str | None) -> Any:
    """A botocore session whose credentials are those of an assumed role."""
    import botocore.session
    from botocore import credentials

    own = botocore.session.Session()
    own.set_config_variable("region", region_of(region))
    fetcher = credentials.AssumeRoleCredentialFetcher(
        own.create_client, own.get_credentials(), role, extra_args={"RoleSessionName": "beamrec"}
    )

    class Assumed(credentials.CredentialProvider):  # type: ignore[misc]
        METHOD = "beamrec-assume-role"

        def load(self) -> Any:
            return credentials.DeferredRefreshableCredentials(fetcher.fetch_credentials, self.METHOD)

    assumed = botocore.session.Session()
    assumed.register_component("credential_provider", credentials.CredentialResolver([Assumed()]))
    return assumed


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
