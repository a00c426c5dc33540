"""A stand-in for the REST endpoint of Google Cloud Dataflow, as far as Beam's client uses it.

Like the service it takes only what its messages know, from who has a token, and one active job of a name.
"""

import dataclasses
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

_ACTIVE = ("JOB_STATE_PENDING", "JOB_STATE_RUNNING", "JOB_STATE_DRAINING")


@dataclasses.dataclass
class DataflowService:
    """What was asked of the service.

    Attributes:
      endpoint: `--dataflow_endpoint`.
      credentials: file for GOOGLE_APPLICATION_CREDENTIALS.
      jobs: jobs by their ids, as JSON, in the order of their submission; what is submitted is done at once.
    """

    endpoint: str
    credentials: Path
    jobs: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)

    def create(self, job: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Status and answer to a submission."""
        from google.cloud import dataflow  # type: ignore[attr-defined]
        from google.protobuf import json_format

        try:
            message = json_format.ParseDict(job, dataflow.Job.pb(dataflow.Job()))
        except json_format.ParseError as error:
            return 400, _error("INVALID_ARGUMENT", str(error))
        job = json_format.MessageToDict(message)
        replaced = job.get("replaceJobId")
        active = [j for j in self.jobs.values() if j["name"] == job["name"] and j["currentState"] in _ACTIVE]
        if active and active[0]["id"] != replaced:
            # The service answers with the job that is there, which has another request's id.
            return 200, active[0]
        if replaced:
            self.jobs[replaced]["currentState"] = "JOB_STATE_UPDATED"
        return 200, self.add(job, "JOB_STATE_DONE")

    def add(self, job: dict[str, Any], state: str) -> dict[str, Any]:
        """Adds a job, in a state."""
        name = f"2026-11-22_00_00_00-{len(self.jobs)}"
        self.jobs[name] = {**job, "id": name, "currentState": state}
        return self.jobs[name]

    def look(self, name: str) -> tuple[int, dict[str, Any]]:
        """Status and answer to a question for a job."""
        return (200, self.jobs[name]) if name in self.jobs else (404, _error("NOT_FOUND", name))


def _error(status: str, message: str) -> dict[str, Any]:
    return {"error": {"code": 400, "status": status, "message": message}}


class _Handler(BaseHTTPRequestHandler):
    service: DataflowService

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if urlsplit(self.path).path == "/token":
            asked = parse_qs(body.decode())
            known = asked["grant_type"] == ["urn:ietf:params:oauth:grant-type:jwt-bearer"]
            self._answer(
                200 if known else 400,
                {"access_token": "stand-in", "expires_in": 3600, "token_type": "Bearer"},
            )
        elif self._is_allowed():
            self._answer(*self.service.create(json.loads(body)))

    def do_GET(self) -> None:
        if not self._is_allowed():
            return
        path = urlsplit(self.path).path
        tail = path.partition("/jobs")[2].strip("/")
        if not tail:
            self._answer(200, {"jobs": list(self.service.jobs.values())})
        elif "/" in tail:  # messages and metrics of a job
            self._answer(200, {})
        else:
            self._answer(*self.service.look(tail))

    def _is_allowed(self) -> bool:
        """Whether it is a question for jobs of a project and a region, with a token."""
        if not self.headers.get("Authorization", "").startswith("Bearer "):
            self._answer(401, _error("UNAUTHENTICATED", "no token"))
        elif "/v1b3/projects/" not in self.path or "/locations/" not in self.path:
            self._answer(404, _error("NOT_FOUND", self.path))
        else:
            return True
        return False

    def _answer(self, status: int, value: dict[str, Any]) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        """Says nothing."""


@pytest.fixture(scope="module")
def dataflow_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DataflowService]:
    """A service of the module's own, with no jobs."""
    handler = type("Handler", (_Handler,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    url = f"http://localhost:{server.server_address[1]}"
    credentials = tmp_path_factory.mktemp("dataflow") / "credentials.json"
    _write_credentials(credentials, f"{url}/token")
    handler.service = DataflowService(url, credentials)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield handler.service
    server.shutdown()
    server.server_close()


def _write_credentials(path: Path, token_uri: str) -> None:
    """A service account's key: a real one, which nobody trusts."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    account = {
        "type": "service_account",
        "project_id": "shop-project",
        "private_key_id": "0",
        "private_key": key.decode(),
        "client_email": "launcher@shop-project.example",
        "client_id": "0",
        "token_uri": token_uri,
    }
    path.touch(0o600)
    path.write_text(json.dumps(account))
