"""Secrets by URI: the value comes from where the URI says, and stands in no message."""

import concurrent.futures
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import grpc
import pytest

from beamrec.io.secrets import check_secret, read_secret
from beamrec.schemas.errors import UnavailableError, UsageError

SECRET = "hünter2 %/?#&"  # noqa: S105
OPTION = "--source-secret"


def test_an_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THE_SECRET", SECRET)
    assert read_secret("env:THE_SECRET", OPTION) == SECRET
    monkeypatch.delenv("THE_SECRET")
    with pytest.raises(UsageError, match="--source-secret env:THE_SECRET: no such environment variable"):
        read_secret("env:THE_SECRET", OPTION)


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_file_without_the_line_end_that_editors_add(tmp_path: Path, end: str) -> None:
    path = tmp_path / "a secret"
    path.write_bytes(f"{SECRET} \n{end}".encode())
    assert read_secret(f"file://{tmp_path}/a%20secret", OPTION) == f"{SECRET} " + ("\n" if end else "")


def test_a_file_that_cannot_be_read_or_is_no_text(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read on the worker: No such file"):
        read_secret(f"file://{tmp_path}/none", OPTION)
    (tmp_path / "bytes").write_bytes(b"\xffhunter2")
    with pytest.raises(UsageError, match="cannot be read on the worker: not UTF-8") as caught:
        read_secret(f"file://{tmp_path}/bytes", OPTION)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("hunter2", "expected the URI of a secret: env:NAME, file:///path"),
        ("vault://hunter2", "expected the URI of a secret"),
        ("env:", "expected the name of a secret"),
        ("aws-secretsmanager://", "expected the name of a secret"),
        ("aws-secretsmanager://n?zone=hunter2", "takes endpoint, key, region, got 'zone'"),
        ("file:///x?key=hunter2", "takes no parameters, got 'key'"),
        ("gcp-secretmanager://x", "expected gcp-secretmanager://projects/P/secrets/S/versions/V, got x"),
    ],
)
def test_a_uri_of_no_known_form_is_refused_before_a_run(uri: str, message: str) -> None:
    """A password given in place of its URI is not repeated."""
    with pytest.raises(UsageError, match=message) as caught:
        check_secret(uri, OPTION)
    assert "hunter2" not in str(caught.value)


@pytest.fixture
def aws(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A client of the server's Secrets Manager."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)
    monkeypatch.delenv("AWS_REGION", raising=False)
    return boto3.client("secretsmanager", endpoint_url=s3_endpoint, region_name="eu-west-1")


def test_aws_secrets_manager(aws: Any, s3_endpoint: str) -> None:
    login = json.dumps({"username": "shop", "password": SECRET, "port": 3306})
    arn = aws.create_secret(Name="prod/shop db", SecretString=login)["ARN"]
    aws.create_secret(Name="plain", SecretString=SECRET)
    aws.create_secret(Name="binary", SecretBinary=SECRET.encode())
    query = f"region=eu-west-1&endpoint={s3_endpoint}"
    assert read_secret(f"aws-secretsmanager://plain?{query}", OPTION) == SECRET
    assert read_secret(f"aws-secretsmanager://binary?{query}", OPTION) == SECRET
    for name in ("prod/shop%20db", arn.replace(" ", "%20")):
        assert read_secret(f"aws-secretsmanager://{name}?{query}&key=password", OPTION) == SECRET
    assert read_secret(f"aws-secretsmanager://prod/shop%20db?{query}", OPTION) == login
    for name, key in (("prod/shop%20db", "passwort"), ("prod/shop%20db", "port"), ("plain", "password")):
        with pytest.raises(UsageError, match=f"expected a JSON object with a text under '{key}'") as caught:
            read_secret(f"aws-secretsmanager://{name}?{query}&key={key}", OPTION)
        assert "hünter2" not in str(caught.value)


@pytest.mark.usefixtures("aws")
def test_aws_says_what_is_missing(s3_endpoint: str) -> None:
    with pytest.raises(UsageError, match="aws-secretsmanager://ghost: there is no such secret in eu-west-1"):
        read_secret(f"aws-secretsmanager://ghost?region=eu-west-1&endpoint={s3_endpoint}", OPTION)
    with pytest.raises(UsageError, match="no AWS region; add"):
        read_secret(f"aws-secretsmanager://ghost?endpoint={s3_endpoint}", OPTION)
    with pytest.raises(UsageError, match="endpoint= to be a URL"):
        read_secret("aws-secretsmanager://ghost?region=eu-west-1&endpoint=nowhere", OPTION)


_SERVICE = "google.cloud.secretmanager.v1.SecretManagerService"


@pytest.fixture
def gcp() -> Iterator[str]:
    """A server that speaks Secret Manager's own protocol; it holds one secret, in two versions."""
    from google.cloud import secretmanager

    versions = {"projects/p/secrets/s/versions/1": "old", "projects/p/secrets/s/versions/latest": SECRET}

    def access(request: Any, context: grpc.ServicerContext) -> Any:
        if request.name not in versions:
            context.abort(grpc.StatusCode.NOT_FOUND, "no")
        answer = secretmanager.AccessSecretVersionResponse(name=request.name)
        answer.payload.data = versions[request.name].encode()
        return answer

    handler = grpc.unary_unary_rpc_method_handler(
        access,
        request_deserializer=secretmanager.AccessSecretVersionRequest.deserialize,
        response_serializer=secretmanager.AccessSecretVersionResponse.serialize,
    )
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(2))
    handlers = grpc.method_handlers_generic_handler(_SERVICE, {"AccessSecretVersion": handler})
    server.add_generic_rpc_handlers((handlers,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"http://127.0.0.1:{port}"
    server.stop(None)


def test_google_secret_manager(gcp: str) -> None:
    name = "gcp-secretmanager://projects/p/secrets/s"
    assert read_secret(f"{name}?endpoint={gcp}", OPTION) == SECRET
    assert read_secret(f"{name}/versions/1?endpoint={gcp}", OPTION) == "old"
    with pytest.raises(UsageError, match="projects/p/secrets/s/versions/9: there is no such secret"):
        read_secret(f"{name}/versions/9?endpoint={gcp}", OPTION)


def test_google_without_credentials_is_unavailable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    with pytest.raises(UnavailableError, match=r"projects/p/secrets/s: Google Secret Manager: .*none\.json"):
        read_secret("gcp-secretmanager://projects/p/secrets/s", OPTION)
