"""The Glue catalogue shows exactly what is published, on a real server of its protocol (moto)."""

import dataclasses
import uuid
from collections.abc import Iterable
from typing import Any

import boto3
import pytest

from beamrec.io.glue import Registered, check_catalog, check_types, hive_type, register
from beamrec.io.manifest import TRAINING_FOLDER, DataFile, Manifest
from beamrec.schemas.errors import UnavailableError, UsageError

TYPES = {
    "customerNumber": "int32",
    "city": "string",
    "creditLimit": "decimal128(10, 2)",
    "MSRP": "uint16",
    "day": "date32[day]",
}
LAKE = "s3://lake/shop"


def manifest(folders: Iterable[str], *columns: str, types: dict[str, str] = TYPES, **values: Any) -> Manifest:
    """A manifest of a file in each folder."""
    files = tuple(
        DataFile(f"{TRAINING_FOLDER}/{folder}/part-0.parquet", folder, 1, 1, "") for folder in folders
    )
    made = Manifest("run", "sqlite", "one", "t", {}, len(files), columns, types, {}, files, ())
    return dataclasses.replace(made, **values)


@dataclasses.dataclass
class Catalog:
    """A database of the test's own, seen by another client than the one under test."""

    endpoint: str
    database: str

    @property
    def uri(self) -> str:
        return f"glue://{self.database}/Ratings?region=us-east-1&endpoint={self.endpoint}"

    @property
    def client(self) -> Any:
        return boto3.client("glue", endpoint_url=self.endpoint, region_name="us-east-1")

    def table(self) -> dict[str, Any]:
        found: dict[str, Any] = self.client.get_table(DatabaseName=self.database, Name="ratings")["Table"]
        return found

    def partitions(self) -> dict[tuple[str, ...], dict[str, Any]]:
        pages = self.client.get_paginator("get_partitions").paginate(
            DatabaseName=self.database, TableName="ratings"
        )
        return {tuple(each["Values"]): each for page in pages for each in page["Partitions"]}


@pytest.fixture
def catalog(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Catalog:
    """An address in a server where nothing is registered yet."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    return Catalog(s3_endpoint, f"db_{uuid.uuid4().hex}")


def test_schema_and_partitions_are_those_of_the_manifest(catalog: Catalog) -> None:
    published = manifest(["customerNumber=103", "customerNumber=112"], "customerNumber")
    assert register(catalog.uri, published, LAKE) == Registered(2, 0, 0)
    table = catalog.table()
    columns = {column["Name"]: column["Type"] for column in table["StorageDescriptor"]["Columns"]}
    assert columns == {"city": "string", "creditlimit": "decimal(10,2)", "msrp": "int", "day": "date"}
    assert table["PartitionKeys"] == [{"Name": "customernumber", "Type": "int"}]
    assert table["TableType"] == "EXTERNAL_TABLE"
    partitions = catalog.partitions()
    assert set(partitions) == {("103",), ("112",)}
    place = partitions["103",]["StorageDescriptor"]
    assert place["Location"] == f"{LAKE}/{TRAINING_FOLDER}/customerNumber=103"
    assert {column["Name"]: column["Type"] for column in place["Columns"]} == columns
    assert "Parquet" in place["SerdeInfo"]["SerializationLibrary"]


def test_a_second_call_changes_nothing_and_later_ones_only_what_changed(catalog: Catalog) -> None:
    first = manifest(["city=a", "city=b", "city=c"], "city")
    register(catalog.uri, first, LAKE)
    assert register(catalog.uri, first, LAKE) == Registered(0, 0, 0)
    assert register(catalog.uri, manifest(["city=b", "city=d"], "city"), LAKE) == Registered(1, 0, 2)
    assert set(catalog.partitions()) == {("b",), ("d",)}
    wider = manifest(["city=b", "city=d"], "city", types={**TYPES, "new": "int64"})
    assert register(catalog.uri, wider, LAKE) == Registered(0, 2, 0)
    for place in (catalog.table(), *catalog.partitions().values()):
        assert place["StorageDescriptor"]["Columns"][-1] == {"Name": "new", "Type": "bigint"}
    assert register(catalog.uri, wider, "s3://lake/moved") == Registered(0, 2, 0)
    assert catalog.partitions()["b",]["StorageDescriptor"]["Location"].startswith("s3://lake/moved/")


def test_values_are_as_in_the_data_and_places_as_in_the_store(catalog: Catalog) -> None:
    folders = ["city=a%2Fb/day=2004-02-29", "city=%C3%9F/day=__HIVE_DEFAULT_PARTITION__"]
    register(catalog.uri, manifest(folders, "city", "day"), "/data/lake")
    places = {v: p["StorageDescriptor"]["Location"] for v, p in catalog.partitions().items()}
    assert places == {
        ("a/b", "2004-02-29"): f"file:///data/lake/{TRAINING_FOLDER}/{folders[0]}",
        ("ß", "__HIVE_DEFAULT_PARTITION__"): f"file:///data/lake/{TRAINING_FOLDER}/{folders[1]}",
    }


def test_other_partition_columns_replace_the_table(catalog: Catalog) -> None:
    register(catalog.uri, manifest(["city=a"], "city"), LAKE)
    buckets = manifest(["bucket=000", "bucket=001"], "bucket", buckets=2)
    assert register(catalog.uri, buckets, LAKE) == Registered(2, 0, 0)
    assert catalog.table()["PartitionKeys"] == [{"Name": "bucket", "Type": "string"}]
    assert set(catalog.partitions()) == {("000",), ("001",)}
    assert register(catalog.uri, manifest([""]), LAKE) == Registered(0, 0, 0)
    assert catalog.table()["PartitionKeys"] == []
    assert {"customernumber", "city"} < {c["Name"] for c in catalog.table()["StorageDescriptor"]["Columns"]}
    assert catalog.partitions() == {}


def test_a_table_of_someone_else_is_left_alone(catalog: Catalog) -> None:
    catalog.client.create_database(DatabaseInput={"Name": catalog.database})
    theirs = {"Name": "ratings", "StorageDescriptor": {"Location": "s3://theirs/"}}
    catalog.client.create_table(DatabaseName=catalog.database, TableInput=theirs)
    with pytest.raises(UsageError, match="stands for s3://theirs/, which beamrec did not register"):
        register(catalog.uri, manifest(["city=a"], "city"), LAKE)
    assert catalog.table()["StorageDescriptor"]["Location"] == "s3://theirs/"


def test_two_thousand_partitions_take_batches_not_calls(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted in requests: a call for each partition would be two thousand."""
    import botocore.httpsession

    sent: list[int] = []
    send = botocore.httpsession.URLLib3Session.send

    def counting(*arguments: Any) -> Any:
        sent.append(1)
        return send(*arguments)

    monkeypatch.setattr(botocore.httpsession.URLLib3Session, "send", counting)
    many = [f"customerNumber={number}" for number in range(2_000)]
    assert register(catalog.uri, manifest(many, "customerNumber"), LAKE) == Registered(2_000, 0, 0)
    # 20 batches of 100, and a few for the table; moto answers a page of partitions in one.
    assert len(sent) < 50
    assert len(catalog.partitions()) == 2_000
    assert register(catalog.uri, manifest(many[:1_500], "customerNumber"), LAKE) == Registered(0, 0, 500)
    assert len(catalog.partitions()) == 1_500


@pytest.mark.parametrize(
    "uri",
    [
        "glue://db",
        "glue://db/",
        "glue://db/a/b",
        "s3://db/t",
        "glue://d-b/t",
        "glue://db/t?zone=x",
        "glue://db/t?x",
    ],
)
def test_a_uri_of_another_form_is_refused(uri: str) -> None:
    with pytest.raises(UsageError, match="--catalog: expected glue://database/table"):
        check_catalog(uri, "parquet")


def test_what_readers_of_the_catalogue_cannot_read_is_refused() -> None:
    with pytest.raises(UsageError, match="know no tfrecord; use --format parquet"):
        check_catalog("glue://db/t", "tfrecord")
    with pytest.raises(UsageError, match=r"column x: Hive has no type for time64\[us\]"):
        hive_type("time64[us]", "x")
    check_types(TYPES)
    for odd in ("timestamp[us, tz=UTC]", "decimal256(50, 2)"):
        with pytest.raises(UsageError, match=r"--catalog: column city: Hive has no type for"):
            check_types({**TYPES, "city": odd})


@pytest.mark.usefixtures("catalog")
def test_a_server_that_is_down_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("beamrec.io.aws._ATTEMPTS", 1)
    uri = "glue://db/t?region=us-east-1&endpoint=http://127.0.0.1:1"
    with pytest.raises(UnavailableError, match="--catalog glue://db/t: Could not connect"):
        register(uri, manifest(["city=a"], "city"), LAKE)
