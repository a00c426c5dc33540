"""The streaming job reads events from an object store, compressed or not, and leaves out what it has read."""

import gzip
import json
from collections.abc import Callable
from typing import Any

import pytest

from beamrec.io.store import open_store


def event(number: int) -> bytes:
    return json.dumps({"event_id": f"e{number}", "customer_number": 103, "browse_history": []}).encode()


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_objects_become_recommendations_once(
    stream_job: Callable[..., Any], request: pytest.FixtureRequest, scheme: str
) -> None:
    uri = request.getfixturevalue("gcs") if scheme == "gs" else request.getfixturevalue("s3").uri
    objects = open_store(uri, "--input")
    job = stream_job(f"--input={uri}", "--runner=direct", "--stop-when-idle=3")
    objects.put("2026/11/22/07/a.jsonl.gz", gzip.compress(b"\n".join(map(event, range(50)))))
    assert job.start().finish()["out"] == 50
    objects.put("2026/11/22/06/late.jsonl", b"\n".join(map(event, range(50, 80))) + b"\nno event\n")
    result = job.start().finish()
    assert result["ok"], result
    assert (result["in"], result["out"], result["dead_letters"], result["reconciled"]) == (81, 80, 1, True)
    assert sorted(record["event_id"] for _, record in job.visible()) == sorted(f"e{n}" for n in range(80))
    (letter,) = job.errors()
    assert letter["source"]["system"] == scheme
    assert letter["source"]["name"] == "2026/11/22/06/late.jsonl"
