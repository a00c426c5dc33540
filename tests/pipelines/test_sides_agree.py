"""The batch side and the stream side give the model identical features for identical values."""

import datetime as dt
import json
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa

from beamrec.pipelines.generate_shop import make_shop
from beamrec.pipelines.shop_tables import ShopSize
from beamrec.schemas.events import RAW_EVENTS
from beamrec.schemas.shop import CLASSICMODELS as SHOP
from beamrec.transforms.features import build_features
from beamrec.transforms.parse import parse_events

ROWS = 1000


def joined_ratings(random: np.random.Generator) -> pa.RecordBatch:
    """1,000 ratings joined with generated customers, types as a database gives them, some values odd."""
    tables = make_shop(ShopSize(customers=200, products=50, ratings=ROWS))
    ratings = tables["ratings"].slice(0, ROWS).to_pylist()
    customers = {row["customerNumber"]: row for row in tables["customers"].to_pylist()}
    odd: list[Any] = [None, "", "Norway  ", "Bräcke", " oslo", "\u00a0", "a\nb"]
    rows = []
    for rating in ratings:
        customer = customers[rating["customerNumber"]]
        rows.append(
            {
                "customerNumber": customer["customerNumber"],
                "city": random.choice(np.array([customer["city"], *odd], object)),
                "country": random.choice(np.array([customer["country"], *odd], object)),
                "creditLimit": random.choice(
                    np.array([customer["creditLimit"], None, Decimal("0.07"), Decimal("16777217.01")], object)
                ),
            }
        )
    schema = pa.schema(
        [
            ("customerNumber", pa.int32()),
            ("city", pa.string()),
            ("country", pa.string()),
            ("creditLimit", pa.decimal128(10, 2)),
        ]
    )
    assert len(rows) == ROWS
    return pa.RecordBatch.from_pylist(rows, schema=schema)


def as_events(batch: pa.RecordBatch, random: np.random.Generator) -> pa.RecordBatch:
    """The same values as a click stream carries them: JSON, numbers with or without a point, or as text."""
    now = dt.datetime.now(dt.UTC)
    rows = []
    for i, row in enumerate(batch.to_pylist()):
        limit = row["creditLimit"]
        if limit is not None:
            spellings = [float(limit), str(limit), *([int(limit)] if limit == int(limit) else [])]
            limit = spellings[random.integers(len(spellings))]
        event = {
            "customer_number": [row["customerNumber"], str(row["customerNumber"])][random.integers(2)],
            "city": row["city"],
            "country": row["country"],
            "credit_limit": limit,
            "browse_history": [],
        }
        payload = json.dumps(event, ensure_ascii=bool(random.integers(2))).encode()
        rows.append({"source": "file:a", "after": i, "position": i + 1, "arrival": now, "payload": payload})
    return pa.RecordBatch.from_pylist(rows, schema=RAW_EVENTS)


def test_a_thousand_ratings_and_events_with_the_same_values_have_identical_features() -> None:
    random = np.random.default_rng(42)
    batch = joined_ratings(random)
    events, dead = parse_events(as_events(batch, random), SHOP)
    assert dead.num_rows == 0
    of_batch = build_features(batch, SHOP.customers.key, SHOP.user_features)
    of_stream = build_features(events, SHOP.customers.key, SHOP.user_features)
    assert of_batch.schema == of_stream.schema
    assert of_batch.equals(of_stream)
    assert of_stream.num_rows == ROWS
    assert all(column.null_count > 0 for column in of_stream.columns[1:]), "NULLs are among them"
