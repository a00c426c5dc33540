"""Training files as a table of an AWS Glue catalogue: Athena, Spark and Redshift find them by name."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from botocore.exceptions import ClientError

from beamrec.io.aws import error_code, explained, open_client
from beamrec.io.manifest import TRAINING_FOLDER, Manifest
from beamrec.io.partitions import BUCKET
from beamrec.schemas.errors import UnavailableError, UsageError

__all__ = ["Registered", "check_catalog", "check_types", "hive_type", "register"]

_OPTION = "--catalog"
_OWNER = "beamrec"
_NAME = re.compile(r"[A-Za-z0-9_]{1,255}")
# Glue's own limits of one call.
_WRITE_BATCH = 100
_DELETE_BATCH = 25
_CALLS_AT_A_TIME = 8
# As Spark reads Parquet's unsigned integers: Hive has none.
_HIVE_TYPES = {
    "bool": "boolean",
    "int8": "tinyint",
    "int16": "smallint",
    "int32": "int",
    "int64": "bigint",
    "uint8": "smallint",
    "uint16": "int",
    "uint32": "bigint",
    "uint64": "decimal(20,0)",
    "float": "float",
    "double": "double",
    "string": "string",
    "large_string": "string",
    "binary": "binary",
    "date32[day]": "date",
    "timestamp[us]": "timestamp",
}
_DECIMAL = re.compile(r"decimal128\((\d+), (\d+)\)")

_Partition = dict[str, Any]
_Values = tuple[str, ...]


class Registered(NamedTuple):
    """Partitions that were created, updated and deleted in the catalogue; the others were right."""

    created: int
    updated: int
    deleted: int


class _Address(NamedTuple):
    database: str
    table: str
    region: str | None
    endpoint: str | None

    @property
    def where(self) -> str:
        return f"{_OPTION} glue://{self.database}/{self.table}"


def check_catalog(uri: str, file_format: str) -> None:
    """Checks the form of a catalogue's URI before a run; asks nothing of AWS.

    Raises:
      UsageError: it is not `glue://database/table?region=&endpoint=`, or the files are not Parquet, which
        is all that readers of the catalogue would understand.
    """
    _parse(uri)
    if file_format != "parquet":
        raise UsageError(
            f"{_OPTION}: readers of a Glue catalogue know no {file_format}; use --format parquet"
        )


def check_access(uri: str) -> None:
    """Asks the catalogue something small, before anything is read or published.

    Raises:
      UsageError: there is no region, or the URI is none.
      UnavailableError: AWS does not answer, or refuses.
    """
    address = _parse(uri)
    client = open_client("glue", address.region, address.endpoint, address.where)
    with explained(address.where):
        client.get_databases(MaxResults=1)


def check_types(types: Mapping[str, str]) -> None:
    """Checks that every column can stand in a catalogue, before anything is published.

    Args:
      types: column → Arrow type, as the manifest writes it.

    Raises:
      UsageError: one has no Hive type.
    """
    for column, arrow_type in types.items():
        hive_type(arrow_type, column)


def register(uri: str, manifest: Manifest, location: str) -> Registered:
    """Makes a table of the catalogue show exactly the published partitions; a second call changes nothing.

    The database is created if there is none. Names are in lower case, as Hive's are.

    Args:
      uri: `glue://database/table`, with `?region=` and `endpoint=` where the environment does not say them.
      manifest: what was published.
      location: the output folder: `s3://bucket/prefix`, or a path where catalogue and readers share it.

    Raises:
      UsageError: the URI is none, the files are not Parquet, a table of that name stands for other data, or
        a column has no Hive type.
      UnavailableError: AWS does not answer, or refuses.
    """
    check_catalog(uri, manifest.file_format)
    address = _parse(uri)
    base = location if "://" in location else f"file://{location}"
    storage = _storage(manifest, f"{base.rstrip('/')}/{TRAINING_FOLDER}")
    client = open_client("glue", address.region, address.endpoint, address.where)
    with explained(address.where):
        _ensure_database(client, address.database)
        _ensure_table(client, address, manifest, storage)
        if not manifest.partition_columns:
            return Registered(0, 0, 0)
        return _Partitions(client, address).bring_to(_wanted(manifest, storage))


def hive_type(arrow_type: str, column: str) -> str:
    """The Hive type that reads an Arrow type, as the manifest writes it, from Parquet.

    Raises:
      UsageError: there is none.
    """
    decimal = _DECIMAL.fullmatch(arrow_type)
    if decimal:
        return f"decimal({decimal.group(1)},{decimal.group(2)})"
    if arrow_type not in _HIVE_TYPES:
        raise UsageError(f"{_OPTION}: column {column}: Hive has no type for {arrow_type}; cast it in a view")
    return _HIVE_TYPES[arrow_type]


def _parse(uri: str) -> _Address:
    expected = f"{_OPTION}: expected glue://database/table?region=&endpoint=, got {uri!r}"
    try:
        parts = urlsplit(uri)
        query = parse_qs(parts.query, strict_parsing=bool(parts.query))
    except ValueError:
        raise UsageError(expected) from None
    names = (parts.netloc, parts.path.removeprefix("/"))
    if (
        parts.scheme != "glue"
        or not all(map(_NAME.fullmatch, names))
        or query.keys() - {"region", "endpoint"}
    ):
        raise UsageError(f"{expected}; names hold letters, digits and _")
    region, endpoint = (query.get(name, [None])[-1] for name in ("region", "endpoint"))
    return _Address(names[0].lower(), names[1].lower(), region, endpoint)


def _columns(types: Mapping[str, str], names: Iterable[str]) -> list[dict[str, str]]:
    return [{"Name": name.lower(), "Type": hive_type(types[name], name)} for name in names]


def _storage(manifest: Manifest, location: str) -> dict[str, Any]:
    in_files = [name for name in manifest.types if name not in manifest.partition_columns]
    parquet = "org.apache.hadoop.hive.ql.io.parquet"
    return {
        "Columns": _columns(manifest.types, in_files),
        "Location": location,
        "InputFormat": f"{parquet}.MapredParquetInputFormat",
        "OutputFormat": f"{parquet}.MapredParquetOutputFormat",
        "SerdeInfo": {
            "SerializationLibrary": f"{parquet}.serde.ParquetHiveSerDe",
            "Parameters": {"serialization.format": "1"},
        },
    }


def _wanted(manifest: Manifest, storage: Mapping[str, Any]) -> dict[_Values, _Partition]:
    """Every partition of the manifest by its values, as Glue takes it."""
    wanted = {}
    for folder in {file.partition for file in manifest.files}:
        values = tuple(unquote(level.partition("=")[2]) for level in folder.split("/"))
        place = {**storage, "Location": f"{storage['Location']}/{folder}"}
        wanted[values] = {"Values": list(values), "StorageDescriptor": place}
    return wanted


def _ensure_database(client: Any, name: str) -> None:
    try:
        client.get_database(Name=name)
    except ClientError as error:
        if error_code(error) != "EntityNotFoundException":
            raise
        client.create_database(DatabaseInput={"Name": name})


def _ensure_table(client: Any, address: _Address, manifest: Manifest, storage: Mapping[str, Any]) -> None:
    types = {**manifest.types, BUCKET: "string"} if manifest.buckets else manifest.types
    table = {
        "Name": address.table,
        "TableType": "EXTERNAL_TABLE",
        "Parameters": {"EXTERNAL": "TRUE", "classification": "parquet", "created_by": _OWNER},
        "PartitionKeys": _columns(types, manifest.partition_columns),
        "StorageDescriptor": storage,
    }
    try:
        found = client.get_table(DatabaseName=address.database, Name=address.table)["Table"]
    except ClientError as error:
        if error_code(error) != "EntityNotFoundException":
            raise
        client.create_table(DatabaseName=address.database, TableInput=table)
        return
    _check_ours(found, storage["Location"], address)
    if found.get("PartitionKeys", []) != table["PartitionKeys"]:
        # Glue keeps the keys of a table that has partitions.
        client.delete_table(DatabaseName=address.database, Name=address.table)
        client.create_table(DatabaseName=address.database, TableInput=table)
    elif _differs(table, found):
        client.update_table(DatabaseName=address.database, TableInput=table)


def _check_ours(found: Mapping[str, Any], location: str, address: _Address) -> None:
    place = found.get("StorageDescriptor", {}).get("Location", "")
    if found.get("Parameters", {}).get("created_by") == _OWNER or place.rstrip("/") == location:
        return
    raise UsageError(
        f"{address.where}: a table of that name stands for {place or 'other data'}, which beamrec did not "
        "register; choose another name, or delete the table"
    )


def _differs(wanted: Any, found: Any) -> bool:
    """Whether anything that is wanted is not there; Glue adds fields of its own."""
    if isinstance(wanted, Mapping):
        return not isinstance(found, Mapping) or any(
            _differs(value, found.get(name)) for name, value in wanted.items()
        )
    if isinstance(wanted, list) and isinstance(found, list):
        return len(wanted) != len(found) or any(map(_differs, wanted, found))
    return bool(wanted != found)


class _Partitions:
    """The partitions of one table, read at once and changed in parallel batches."""

    def __init__(self, client: Any, address: _Address) -> None:
        self._client = client
        self._where = address.where
        self._table = {"DatabaseName": address.database, "TableName": address.table}

    def bring_to(self, wanted: Mapping[_Values, _Partition]) -> Registered:
        found = self._read()
        created = [wanted[values] for values in wanted.keys() - found.keys()]
        updated = [wanted[v] for v in wanted.keys() & found.keys() if _differs(wanted[v], found[v])]
        deleted = [{"Values": list(values)} for values in found.keys() - wanted.keys()]
        self._in_batches(deleted, _DELETE_BATCH, self._delete)
        self._in_batches(updated, _WRITE_BATCH, self._update)
        self._in_batches(created, _WRITE_BATCH, self._create)
        return Registered(len(created), len(updated), len(deleted))

    def _read(self) -> dict[_Values, _Partition]:
        pages = self._client.get_paginator("get_partitions").paginate(**self._table)
        return {tuple(each["Values"]): each for page in pages for each in page["Partitions"]}

    def _in_batches(
        self, entries: Sequence[_Partition], size: int, call: Callable[[list[_Partition]], list[Any]]
    ) -> None:
        left = iter(entries)
        batches = iter(lambda: list(islice(left, size)), [])
        with ThreadPoolExecutor(_CALLS_AT_A_TIME) as pool:
            refused = [refusal for refusals in pool.map(call, batches) for refusal in refusals]
        if refused:
            detail = refused[0].get("ErrorDetail", {})
            raise UnavailableError(
                f"{self._where}: Glue refused {len(refused)} of {len(entries)} partitions: "
                f"{detail.get('ErrorCode')}: {detail.get('ErrorMessage', '')}; the files are "
                "published: run again"
            )

    def _create(self, batch: list[_Partition]) -> list[Any]:
        answer = self._client.batch_create_partition(**self._table, PartitionInputList=batch)
        # An answer that was lost on the way is asked for again, and its partitions are there by then.
        return [e for e in answer.get("Errors", []) if _reason(e) != "AlreadyExistsException"]

    def _update(self, batch: list[_Partition]) -> list[Any]:
        entries = [{"PartitionValueList": each["Values"], "PartitionInput": each} for each in batch]
        errors: list[Any] = self._client.batch_update_partition(**self._table, Entries=entries).get(
            "Errors", []
        )
        return errors

    def _delete(self, batch: list[_Partition]) -> list[Any]:
        answer = self._client.batch_delete_partition(**self._table, PartitionsToDelete=batch)
        return [e for e in answer.get("Errors", []) if _reason(e) != "EntityNotFoundException"]


def _reason(refusal: Mapping[str, Any]) -> Any:
    return refusal.get("ErrorDetail", {}).get("ErrorCode")
