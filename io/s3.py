"""The store on Amazon S3 and on servers that speak its protocol, by boto3.

Credentials come from boto3's own chain (environment, profile, role of the machine), on every worker. A role
needs s3:ListBucket, GetObject, PutObject and DeleteObject; with AbortMultipartUpload and
ListBucketMultipartUploads, unfinished uploads of a killed run are cleaned up too.
"""

import contextlib
import functools
import io
import logging
import os
import random
import threading
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import boto3.session
import pyarrow as pa
import pyarrow.fs
from boto3.exceptions import S3UploadFailedError
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
)

from beamrec.io.objects import Address, Listed, ObjectStore, each, known_flags
from beamrec.schemas.errors import BeamrecError, UnavailableError, UsageError

__all__ = ["S3Store", "open_store", "with_beam_options"]

# At 5 % of requests refused, ten attempts fail once in 10^13; with backoff they last about a minute.
_ATTEMPTS = 10
_QUICK_ATTEMPTS = 3
_LONGEST_PAUSE_SECONDS = 5.0
_READS = 3
_CONFLICTS = 8
_DELETE_BATCH = 1000
_PARTS = TransferConfig(multipart_threshold=8 << 20, multipart_chunksize=8 << 20, max_concurrency=4)
# The server copies up to 5 GB at once, larger objects in parts.
_COPY_PARTS = TransferConfig(multipart_threshold=1, multipart_chunksize=512 << 20)

_MISSING = {"NoSuchKey", "404", "NotFound", "NoSuchUpload"}
_TAKEN = {"PreconditionFailed", "412"}
_CONFLICT = {"ConditionalRequestConflict", "409"}
_REGION = {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "301"}
_TOO_LARGE = {"EntityTooLarge", "InvalidRequest"}
_REFUSED = {
    "403",
    "AccessDenied",
    "AllAccessDisabled",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidToken",
    "SignatureDoesNotMatch",
}
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
_SECRET_FLAGS = ("s3_access_key_id", "s3_secret_access_key", "s3_session_token")
_NO_CREDENTIALS = (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError, ProfileNotFound)
_AWS_HOSTS = ("amazonaws.com", "amazonaws.com.cn", "api.aws")
_connecting = threading.Lock()
_log = logging.getLogger(__name__)


class S3Store(ObjectStore):
    """Objects below `s3://bucket/prefix`. Picklable: a worker connects by itself, once a process."""

    def create(self, path: str, data: bytes) -> bool:
        writer = uuid.uuid4().hex
        for _ in range(_CONFLICTS):
            code = self._put_new(path, data, writer)
            if code in _TAKEN:
                # An attempt that was told to have failed may have succeeded: then it is ours.
                return self._writer(path) == writer
            if code is None:
                return True
        raise UnavailableError(
            f"{self.uri}/{path}: {_CONFLICTS} writers at a time, none got through; run again"
        )

    def _put_new(self, path: str, data: bytes, writer: str) -> str | None:
        """The error code where the name is taken or being taken; None if the object was written."""
        target = {**self._object(path), "Body": data, "Metadata": {"writer": writer}}
        with self._explained(path):
            try:
                self._client.put_object(**target, IfNoneMatch="*")
            except ClientError as error:
                code = _code(error)
                if code in _TAKEN | _CONFLICT:
                    return code
                raise
        return None

    def _writer(self, path: str) -> str | None:
        head = self._head(path)
        return head["Metadata"].get("writer") if head else None

    def read(self, path: str) -> bytes:
        with self._explained(path):
            for _ in range(_READS - 1):
                # boto3 tries again until the answer begins, and no longer.
                with contextlib.suppress(HTTPClientError):
                    return self._get(path)
            return self._get(path)

    def _get(self, path: str, **part: str) -> bytes:
        data: bytes = self._client.get_object(**self._object(path), **part)["Body"].read()
        return data

    def put(self, path: str, data: bytes | pa.Buffer, durable: bool = False) -> None:
        content = data.to_pybytes() if isinstance(data, pa.Buffer) else data
        with self._explained(path):
            if len(content) < _PARTS.multipart_threshold:
                self._client.put_object(**self._object(path), Body=content)
            else:
                self._client.upload_fileobj(io.BytesIO(content), **self._object(path), Config=_PARTS)

    def put_file(self, path: str, local_file: str | Path) -> None:
        with self._explained(path):
            self._client.upload_file(str(local_file), **self._object(path), Config=_PARTS)

    def get_file(self, path: str, local_file: str | Path) -> None:
        with self._explained(path):
            self._client.download_file(**self._object(path), Filename=str(local_file), Config=_PARTS)

    def size(self, path: str) -> int | None:
        head = self._head(path)
        return head["ContentLength"] if head else None

    def age_seconds(self, path: str) -> float:
        head = self._head(path)
        if head is None:
            raise FileNotFoundError(path)
        # Both times are the server's.
        now = parsedate_to_datetime(head["ResponseMetadata"]["HTTPHeaders"]["date"])
        written: datetime = head["LastModified"]
        return (now - written).total_seconds()

    def names(self, folder: str) -> list[str]:
        prefix = self.address.below(folder)
        found: set[str] = set()
        for page in self._pages("list_objects_v2", Prefix=prefix, Delimiter="/"):
            found.update(entry["Key"][len(prefix) :] for entry in page.get("Contents", ()))
            found.update(entry["Prefix"][len(prefix) : -1] for entry in page.get("CommonPrefixes", ()))
        return sorted(found - {""})

    def sizes(self, folder: str) -> dict[str, int]:
        return {
            self.address.path(entry["Key"]): entry["Size"]
            for page in self._pages("list_objects_v2", Prefix=self.address.below(folder))
            for entry in page.get("Contents", ())
        }

    def listed(self, folder: str) -> Iterator[Listed]:
        for page in self._pages("list_objects_v2", Prefix=self.address.below(folder)):
            for entry in page.get("Contents", ()):
                tag, modified_us = entry["ETag"].strip('"'), int(entry["LastModified"].timestamp() * 1e6)
                yield Listed(self.address.path(entry["Key"]), entry["Size"], modified_us, tag, tag)

    def read_range(self, listed: Listed, begin: int, end: int) -> bytes:
        part = {"Range": f"bytes={begin}-{end - 1}", "IfMatch": f'"{listed.version}"'}
        with self._explained(listed.path):
            for _ in range(_READS - 1):
                with contextlib.suppress(HTTPClientError):
                    return self._get(listed.path, **part)
            return self._get(listed.path, **part)

    def copy(self, source: str, target: str) -> None:
        origin = self._object(source)
        with self._explained(source):
            try:
                self._client.copy_object(**self._object(target), CopySource=origin)
            except ClientError as error:
                if _code(error) not in _TOO_LARGE:
                    raise
                self._client.copy(origin, **self._object(target), Config=_COPY_PARTS)

    def discard_all(self, paths: Iterable[str]) -> None:
        keys = [self.address.key(path) for path in paths]
        each(self._delete, [keys[at : at + _DELETE_BATCH] for at in range(0, len(keys), _DELETE_BATCH)])

    def abort_uploads(self, folder: str) -> None:
        prefix = self.address.below(folder)
        try:
            for page in self._pages("list_multipart_uploads", Prefix=prefix):
                for upload in page.get("Uploads", ()):
                    if upload["Key"].startswith(prefix):
                        self._abort(upload["Key"], upload["UploadId"])
        except BeamrecError as error:
            # A right that a role may lack, or a call that a server may lack: costs storage, not correctness.
            _log.warning("unfinished uploads below %s/%s may be left: %s", self.uri, folder, error)

    def try_access(self) -> None:
        request = {"Bucket": self.address.bucket, "Prefix": self.address.below(""), "MaxKeys": 1}
        with self._explained(""):
            try:
                _connect(self.address, _QUICK_ATTEMPTS, os.getpid()).list_objects_v2(**request)
            except ClientError as error:
                if error.response["ResponseMetadata"]["HTTPStatusCode"] < 500:
                    raise
                # Who answers is there, only busy, and then asked as patiently as ever.
                self._client.list_objects_v2(**request)

    def arrow(self) -> tuple[pyarrow.fs.FileSystem, str]:
        """Arrow has a client of its own, with the same kinds of credentials."""
        if self.address.verify == "false":
            raise UsageError(
                f"{self.uri}: reading it as a table needs a verified certificate; give --s3_verify a file"
            )
        meta = self._client.meta
        # boto3 has read the environment's and the profile's endpoint as well.
        own = self.address.endpoint or not (meta.endpoint_url or "").split("/")[2].endswith(_AWS_HOSTS)
        files = pyarrow.fs.S3FileSystem(
            region=meta.region_name if meta.region_name != "aws-global" else None,
            endpoint_override=meta.endpoint_url if own else None,
            tls_ca_file_path=self.address.verify or None,
            retry_strategy=pyarrow.fs.AwsStandardS3RetryStrategy(max_attempts=_ATTEMPTS),
            connect_timeout=5,
            request_timeout=60,
        )
        return files, f"{self.address.bucket}/{self.address.prefix}".rstrip("/")

    @property
    def _client(self) -> Any:
        return _connect(self.address, _ATTEMPTS, os.getpid())

    def _object(self, path: str) -> dict[str, str]:
        return {"Bucket": self.address.bucket, "Key": self.address.key(path)}

    def _head(self, path: str) -> dict[str, Any] | None:
        with self._explained(path):
            try:
                head: dict[str, Any] = self._client.head_object(**self._object(path))
            except ClientError as error:
                if _code(error) in _MISSING:
                    return None
                raise
        return head

    def _pages(self, operation: str, **options: str) -> Iterator[dict[str, Any]]:
        with self._explained(self.address.path(options["Prefix"])):
            yield from self._client.get_paginator(operation).paginate(Bucket=self.address.bucket, **options)

    def _delete(self, keys: list[str]) -> None:
        """The answer is a success even if the server could not remove some of them."""
        for _ in range(_ATTEMPTS):
            with self._explained(self.address.path(keys[0])):
                answer = self._client.delete_objects(
                    Bucket=self.address.bucket,
                    Delete={"Objects": [{"Key": key} for key in keys], "Quiet": True},
                )
            left = {entry["Key"]: entry["Code"] for entry in answer.get("Errors", ())}
            left = {key: code for key, code in left.items() if code not in _MISSING}
            if not left:
                return
            keys, code = list(left), next(iter(left.values()))
            if code in _REFUSED:
                break
        raise UnavailableError(
            f"{self.uri}: {len(keys)} objects could not be removed ({code}), {keys[0]} is one"
        )

    def _abort(self, key: str, upload: str) -> None:
        with self._explained(self.address.path(key)), contextlib.suppress(FileNotFoundError):
            self._client.abort_multipart_upload(Bucket=self.address.bucket, Key=key, UploadId=upload)

    @contextlib.contextmanager
    def _explained(self, path: str) -> Iterator[None]:
        try:
            yield
        except ClientError as error:
            raise self._explain(error, path) from None
        except S3UploadFailedError as error:
            raise UnavailableError(f"{self.uri}/{path}: {error}") from None
        except _NO_CREDENTIALS as error:
            raise UnavailableError(
                f"{self.uri}: no credentials ({error}); expected them where boto3 looks: AWS_ACCESS_KEY_ID "
                "and AWS_SECRET_ACCESS_KEY, a profile, or the machine's role"
            ) from None
        except BotoCoreError as error:
            raise UnavailableError(
                f"{self.uri}: the server does not answer ({error}); check ?endpoint= in the URI "
                "(--s3_endpoint_url, AWS_ENDPOINT_URL) and the network, "
                "then run the command again"
            ) from None

    def _explain(self, error: ClientError, path: str) -> Exception:
        code, said = _code(error), error.response.get("Error", {}).get("Message", "")
        where = f"{self.uri}/{path}".rstrip("/")
        if code == "NoSuchBucket":
            return UsageError(
                f"{self.uri}: there is no bucket {self.address.bucket}; create it, or mend the name"
            )
        if code in _MISSING or (code in _TAKEN and error.operation_name == "GetObject"):
            return FileNotFoundError(where)
        if code in _REGION:
            headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
            region = headers.get("x-amz-bucket-region", "another one")
            return UsageError(f"{self.uri}: the bucket is in region {region}; give it by --s3_region_name")
        if code in _REFUSED:
            return UnavailableError(
                f"{where}: access refused ({code}: {said}); check the credentials, and that they may list, "
                "read, write and delete there"
            )
        return UnavailableError(
            f"{where}: {error.operation_name} failed ({code}: {said}); run the command again"
        )


def open_store(uri: str, option: str) -> S3Store:
    """The store behind an `s3://` URI; raises UsageError."""
    return S3Store(Address.parse(uri, option))


def with_beam_options(uri: str, beam_args: Sequence[str], option: str) -> str:
    """The URI with the endpoint, region and certificates of Beam's `--s3_…` flags or of the environment.

    What the URI says itself comes first, then the flags, then the environment.

    Raises:
      UsageError: a flag holds a credential, or something does not fit.
    """
    flags = known_flags(beam_args, *_SECRET_FLAGS, "s3_endpoint_url", "s3_region_name", "s3_verify")
    secret = next((name for name in _SECRET_FLAGS if name in flags), None)
    if secret:
        raise UsageError(
            f"--{secret}: a credential on the command line ends in process lists and job graphs; put it into "
            "the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN) or a profile"
        )
    address = Address.parse(uri, option)
    given = {
        "endpoint": flags.get("s3_endpoint_url") or _first(os.environ, *_ENDPOINTS),
        "region": flags.get("s3_region_name") or _first(os.environ, "AWS_REGION", "AWS_DEFAULT_REGION"),
        "verify": flags.get("s3_verify", "").replace("False", "false").replace("True", ""),
    }
    missing = {name: value for name, value in given.items() if value and not getattr(address, name)}
    return address.with_options(missing, option).full_uri


def _first(environment: Mapping[str, str], *names: str) -> str:
    return next((environment[name] for name in names if environment.get(name)), "")


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _go_on_trying(attempts: int, response: tuple[Any, Any] | None, most: int, **_: Any) -> float | None:
    """Seconds until a request that the server was too busy for is sent again; None if it is not.

    boto3's attempts come out of a budget of the client, which a server that refuses a third of all requests
    uses up within a minute: then each had one attempt, and a commit, a dozen of them, never came through.
    """
    status = response[0].status_code if response else 0
    if attempts >= most or (status < 500 and status != 429):
        return None
    return min(random.uniform(0, 1 << (attempts - 1)), _LONGEST_PAUSE_SECONDS)  # noqa: S311


@functools.cache
def _connect_once(address: Address, attempts: int, pid: int) -> Any:
    own = bool(address.endpoint or _first(os.environ, *_ENDPOINTS))
    config = Config(
        retries={"mode": "standard", "total_max_attempts": attempts},
        connect_timeout=5,
        read_timeout=60,
        max_pool_connections=32,
        # Servers other than Amazon's often know neither bucket names in host names nor the newer checksums.
        s3={"addressing_style": "path"} if own else {},
        request_checksum_calculation="when_required" if own else "when_supported",
        response_checksum_validation="when_required" if own else "when_supported",
    )
    verify = {"": None, "false": False}.get(address.verify, address.verify)
    client = boto3.session.Session().client(
        "s3",
        endpoint_url=address.endpoint or None,
        region_name=address.region or None,
        verify=verify,
        config=config,
    )
    client.meta.events.register_last("needs-retry.s3", functools.partial(_go_on_trying, most=attempts))
    return client


def _connect(address: Address, attempts: int, pid: int) -> Any:
    """One client for all threads of a process; a forked process needs connections of its own."""
    with _connecting:
        return _connect_once(address, attempts, pid)
