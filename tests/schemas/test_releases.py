"""Manifests hold numbers that every reader takes, and can be written again."""

import dataclasses
import json
import math
from typing import Any

import pytest

from beamrec.schemas.releases import ReleaseManifest

MANIFEST = ReleaseManifest(
    id="a", created_at="2026-11-22T12:00:00Z", code_version="0", shop="test", user_key_type="int",
    item_key_type="string", dim=8, items=60, users=7, files=(), metrics={"rmse": 0.9, "epochs": 3},
    training={"epochs": 3, "learning_rate": 1e-3}, item_norms=(0.5, 1e18), normalized=False,
)  # fmt: skip


def changed(field: str, text: str) -> bytes:
    """The manifest with JSON of a hand's writing in a field."""
    values: dict[str, Any] = dataclasses.asdict(MANIFEST) | {field: "HERE"}
    return json.dumps(values).replace('"HERE"', text).encode()


def test_a_manifest_survives_its_json() -> None:
    assert ReleaseManifest.from_json(MANIFEST.to_json()) == MANIFEST


@pytest.mark.parametrize(
    ("field", "text", "message"),
    [
        ("metrics", f'{{"x": 1{"0" * 400}}}', "metrics: x: expected a finite number"),
        ("metrics", '{"x": 1e999}', "1e999 is too great a number"),
        ("metrics", '{"x": true}', "metrics: x: expected a finite number"),
        ("training", '{"learning_rate": -1e999}', "-1e999 is too great a number"),
        ("item_norms", "[1, 1e20]", "expected 0 ≤ least ≤ greatest ≤ 1e\\+18"),
        ("item_norms", f"[1, 1{'0' * 400}]", "expected 0 ≤ least ≤ greatest"),
        ("item_norms", "[2, 1]", "expected 0 ≤ least ≤ greatest"),
    ],
)
def test_numbers_that_no_float_holds_are_refused(field: str, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReleaseManifest.from_json(changed(field, text))


def test_numbers_as_great_as_a_float_are_taken() -> None:
    read = ReleaseManifest.from_json(changed("metrics", '{"x": 1.7e308}'))
    assert math.isfinite(read.metrics["x"])
    assert ReleaseManifest.from_json(read.to_json()) == read
