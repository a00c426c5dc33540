"""Peer: the job as a textbook writes it in Beam: rows are dicts, joined by `CoGroupByKey`."""

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pymysql
from apache_beam.options.pipeline_options import PipelineOptions
from pyarrow import parquet
from pymysql.cursors import SSDictCursor

Row = dict[str, Any]

SCHEMA = pa.schema(
    {
        "city": pa.string(),
        "state": pa.string(),
        "postalCode": pa.string(),
        "country": pa.string(),
        "creditLimit": pa.decimal128(10, 2),
        "productCode": pa.string(),
        "productLine": pa.string(),
        "productScale": pa.string(),
        "quantityInStock": pa.int16(),
        "buyPrice": pa.decimal128(10, 2),
        "MSRP": pa.decimal128(10, 2),
        "productRating": pa.int32(),
    }
)
QUERIES = {
    "ratings": "SELECT customerNumber, productCode, productRating FROM ratings",
    "customers": "SELECT customerNumber, city, state, postalCode, country, creditLimit FROM customers",
    "products": (
        "SELECT productCode, productLine, productScale, quantityInStock, buyPrice, MSRP FROM products"
    ),
}


class ReadRows(beam.DoFn):
    """A query's rows, each a dict."""

    def __init__(self, port: int, database: str) -> None:
        self._login = {"host": "127.0.0.1", "port": port, "user": "root", "database": database}

    def process(self, query: str) -> Iterator[Row]:
        """Streams the rows."""
        connection = pymysql.connect(**self._login, charset="utf8mb4", cursorclass=SSDictCursor)
        with connection, connection.cursor() as cursor:
            cursor.execute(query)
            yield from cursor


def join(element: tuple[Any, dict[str, list[Row]]], side: str) -> Iterator[Row]:
    """Each rating of a key with the one row that it refers to."""
    _, groups = element
    for other in groups[side]:
        for rating in groups["ratings"]:
            yield {**rating, **other}


def write_partition(element: tuple[int, Iterable[Row]], output: str) -> None:
    """One customer's rows as one Parquet file."""
    customer, rows = element
    folder = Path(output) / f"customerNumber={customer}"
    folder.mkdir(parents=True)
    parquet.write_table(pa.Table.from_pylist(list(rows), SCHEMA), folder / "part-0.parquet")


def main() -> None:
    """Reads, joins, writes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--database", required=True)
    parser.add_argument("--output", required=True)
    values = parser.parse_args()
    options = PipelineOptions(["--runner=apache_beam.runners.portability.fn_api_runner.FnApiRunner"])
    with beam.Pipeline(options=options) as pipeline:
        tables = {
            name: (
                pipeline
                | f"Query {name}" >> beam.Create([query])
                | f"Read {name}" >> beam.ParDo(ReadRows(values.port, values.database))
            )
            for name, query in QUERIES.items()
        }
        _build(tables, values.output)


def _build(tables: dict[str, Any], output: str) -> None:
    with_customers = (
        {
            name: tables[name] | f"{name} by customer" >> beam.WithKeys(lambda row: row["customerNumber"])
            for name in ("ratings", "customers")
        }
        | "Group by customer" >> beam.CoGroupByKey()
        | "Join customers" >> beam.FlatMap(join, "customers")
    )
    joined = (
        {
            "ratings": with_customers | "by product" >> beam.WithKeys(lambda row: row["productCode"]),
            "products": tables["products"]
            | "products by code" >> beam.WithKeys(lambda row: row["productCode"]),
        }
        | "Group by product" >> beam.CoGroupByKey()
        | "Join products" >> beam.FlatMap(join, "products")
    )
    (
        joined
        | "By partition" >> beam.WithKeys(lambda row: row["customerNumber"])
        | "Partition" >> beam.GroupByKey()
        | "Write" >> beam.Map(write_partition, output)
    )


if __name__ == "__main__":
    main()
