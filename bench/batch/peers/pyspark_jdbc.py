"""Peer: the job as a Glue job does it, PySpark reading by JDBC and writing `partitionBy` Parquet.

As it comes, the database joins, and every file is made by Hadoop's own local file system, which without
Hadoop's native library forks `chmod` three times for each. `--tuned` joins by broadcast in Spark, and makes
the files without a fork.
"""

import argparse

from pyspark.sql import DataFrame, DataFrameReader, SparkSession

SQL = """
    SELECT r.customerNumber, c.city, c.state, c.postalCode, c.country, c.creditLimit, r.productCode,
      p.productLine, p.productScale, p.quantityInStock, p.buyPrice, p.MSRP, r.productRating
    FROM ratings r JOIN customers c ON c.customerNumber = r.customerNumber
    JOIN products p ON p.productCode = r.productCode
"""
READERS = 2
LOCAL_FILES = "com.globalmentor.apache.hadoop.fs.BareLocalFileSystem"


def main() -> None:
    """Reads, joins, writes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", required=True)
    parser.add_argument("--database", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--jars", required=True, help="class path of driver and file system")
    parser.add_argument("--tuned", action="store_true")
    values = parser.parse_args()
    builder = (
        SparkSession.builder.master(f"local[{READERS}]")
        .config("spark.driver.extraClassPath", values.jars)
        .config("spark.driver.memory", "6g")
        .config("spark.ui.enabled", "false")
        .config("spark.sql.shuffle.partitions", str(READERS))
    )
    if values.tuned:
        builder = builder.config("spark.hadoop.fs.file.impl", LOCAL_FILES)
    spark = builder.getOrCreate()
    joined = _join_in_spark(spark, values) if values.tuned else _read_ranges(spark, values, f"({SQL}) joined")
    joined.write.partitionBy("customerNumber").option("compression", "snappy").parquet(values.output)
    spark.stop()


def _join_in_spark(spark: SparkSession, values: argparse.Namespace) -> DataFrame:
    _read_ranges(spark, values, "ratings").createOrReplaceTempView("ratings")
    for table in ("customers", "products"):
        _reader(spark, values, table).load().createOrReplaceTempView(table)
    return spark.sql(SQL.replace("SELECT", "SELECT /*+ BROADCAST(c), BROADCAST(p) */", 1))


def _read_ranges(spark: SparkSession, values: argparse.Namespace, table: str) -> DataFrame:
    """A table or subquery, its customers read in as many ranges as there are cores."""
    bounds = "(SELECT MIN(customerNumber) AS low, MAX(customerNumber) AS high FROM ratings) bounds"
    row = _reader(spark, values, bounds).load().first()
    if row is None:
        raise ValueError(f"{values.database}: no ratings")
    return (
        _reader(spark, values, table)
        .option("partitionColumn", "customerNumber")
        .option("lowerBound", row.low)
        .option("upperBound", row.high + 1)
        .option("numPartitions", READERS)
        .load()
    )


def _reader(spark: SparkSession, values: argparse.Namespace, table: str) -> DataFrameReader:
    # MariaDB's driver streams (MySQL's own was no faster), but Spark knows how to quote by MySQL's scheme.
    url = f"jdbc:mysql://127.0.0.1:{values.port}/{values.database}?permitMysqlScheme=true"
    return spark.read.format("jdbc").options(
        url=url, driver="org.mariadb.jdbc.Driver", user="root", fetchsize="10000", dbtable=table
    )


if __name__ == "__main__":
    main()
