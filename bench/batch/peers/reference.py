"""No peer in the race: the same rows in plain files, a slice of the customers at a time.

It vouches for the content of a shop that is too large for a peer: DuckDB's `PARTITION_BY` into 100,000
partitions was stopped at 13 GB.
"""

import argparse
from pathlib import Path

import connectorx
import duckdb

SLICES = 10
SQL = """
    SELECT r.customerNumber, c.city, c.state, c.postalCode, c.country, c.creditLimit, r.productCode,
      p.productLine, p.productScale, p.quantityInStock, p.buyPrice, p.MSRP, r.productRating
    FROM ratings r JOIN customers c ON c.customerNumber = r.customerNumber
    JOIN products p ON p.productCode = r.productCode
    WHERE r.customerNumber BETWEEN {low} AND {high}
"""


def main() -> None:
    """The database joins; every slice becomes one file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", required=True)
    parser.add_argument("--database", required=True)
    parser.add_argument("--output", required=True, type=Path)
    values = parser.parse_args()
    uri = f"mysql://root@127.0.0.1:{values.port}/{values.database}"
    bounds = connectorx.read_sql(
        uri,
        "SELECT MIN(customerNumber) AS low, MAX(customerNumber) AS high FROM ratings",
        return_type="arrow",
    ).to_pylist()[0]
    first, past = int(bounds["low"]), int(bounds["high"]) + 1
    edges = [first + (past - first) * number // SLICES for number in range(SLICES + 1)]
    values.output.mkdir(parents=True)
    with duckdb.connect() as connection:
        for number in range(SLICES):
            sql = SQL.format(low=edges[number], high=edges[number + 1] - 1)
            connection.register("joined", connectorx.read_sql(uri, sql, return_type="arrow"))
            connection.execute(f"COPY joined TO '{values.output}/{number}.parquet' (FORMAT parquet)")


if __name__ == "__main__":
    main()
