"""How often each product was rated, from wherever the ratings are: what popularity is made of."""

from collections import Counter
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from beamrec.io.manifest import open_training
from beamrec.io.registry import backend, known_schemes, scheme_of
from beamrec.io.store import open_store
from beamrec.schemas.errors import BadDataError, UnavailableError, UsageError
from beamrec.schemas.integer_ids import canonical_id
from beamrec.schemas.shop import Shop

if TYPE_CHECKING:
    import pyarrow.dataset as ds

__all__ = ["count_ratings"]

_SUFFIXES = ("csv", "parquet")
_UNREADABLE = (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, pa.ArrowKeyError)


def count_ratings(uri: str, shop: Shop, secret: str | None = None) -> dict[str, int]:
    """Product id → number of its ratings, read in blocks.

    Args:
      uri: what `batch --output` was given; a CSV or Parquet file with the shop's ratings; or the shop's
        database.
      shop: names the tables and columns.
      secret: where a database's password is; None for the environment.

    Raises:
      UsageError: there are no ratings there, or they are not of this shop.
      BadDataError: a row of a file cannot be read.
      UnavailableError: the system behind the URI is away, or its files cannot be read.
    """
    if scheme_of(uri) in {scheme.removesuffix("://") for scheme in known_schemes("tables")}:
        return _of_database(uri, shop, secret)
    suffix = uri.partition("?")[0].rpartition(".")[2].lower()
    if suffix in _SUFFIXES:
        dataset, column = _open_file(uri, suffix), shop.ratings.product
    else:
        dataset, column = open_training(uri), shop.products.key
    counts: Counter[str] = Counter()
    for key, count in _of_column(dataset, column, uri).items():
        counts[canonical_id(key, shop.products.key_type)] += count
    return dict(counts)


def _of_database(uri: str, shop: Shop, secret: str | None) -> dict[str, int]:
    tables = backend("tables", uri, "--ratings")
    table, product = (tables.quote(name) for name in (shop.ratings.name, shop.ratings.product))
    counted = f"SELECT {product}, COUNT(*) FROM {table} WHERE {product} IS NOT NULL GROUP BY {product}"  # noqa: S608
    with tables.connect(uri, secret) as connection:
        counts: Counter[str] = Counter()
        for rows in tables.fetch(connection, counted):
            for key, count in rows:
                counts[_text(key)] += int(count)
    return dict(counts)


def _text(key: object) -> str:
    return key.decode("utf-8") if isinstance(key, bytes) else str(key)


def _open_file(uri: str, suffix: str) -> "ds.Dataset":
    import pyarrow.dataset as ds  # here, since it imports pandas: a second of every command's start

    root, slash, rest = uri.partition("?")[0].rpartition("/")
    query = uri.partition("?")[1] + uri.partition("?")[2]
    files, base = open_store((root or (slash or ".")) + query, "--ratings").arrow()
    path, table = f"{base}/{rest}", _text_table() if suffix == "csv" else suffix
    try:
        dataset = ds.dataset(path, format=table, filesystem=files)
        if suffix == "csv":
            # Arrow would guess types from the first rows: 00001 would become 1, and a later S10_1 an error.
            texts = pa.schema([(name, pa.string()) for name in dataset.schema.names])
            dataset = ds.dataset(path, schema=texts, format=table, filesystem=files)
    except FileNotFoundError:
        raise UsageError(f"--ratings {uri}: there is no such file") from None
    except _UNREADABLE as error:
        raise UsageError(f"--ratings {uri}: cannot be read as {suffix}: {error}") from None
    return dataset


def _text_table() -> "ds.CsvFileFormat":
    """An empty field is NULL, unless it is quoted; a quoted one may hold newlines."""
    import pyarrow.dataset as ds
    from pyarrow import csv

    return ds.CsvFileFormat(
        parse_options=csv.ParseOptions(newlines_in_values=True),
        convert_options=csv.ConvertOptions(
            null_values=[""], strings_can_be_null=True, quoted_strings_can_be_null=False
        ),
    )


def _of_column(dataset: "ds.Dataset", name: str, uri: str) -> Counter[str]:
    found = next((column for column in dataset.schema.names if column.lower() == name.lower()), None)
    if found is None:
        raise UsageError(
            f"--ratings {uri}: expected a column {name}, got {', '.join(dataset.schema.names)}; give the "
            "--shop that the ratings are of"
        )
    counts: Counter[str] = Counter()
    try:
        for batch in dataset.to_batches(columns=[found]):
            for entry in pc.value_counts(batch.column(0).drop_null().cast(pa.string())):
                counts[entry["values"].as_py()] += entry["counts"].as_py()
    except _UNREADABLE as error:
        raise BadDataError(f"--ratings {uri}: column {found} cannot be read: {error}") from None
    except OSError as error:
        raise UnavailableError(f"--ratings {uri}: cannot be read: {error}") from error
    return counts
