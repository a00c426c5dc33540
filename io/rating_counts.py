"""How often each product was rated, from wherever the ratings are: what popularity is made of."""

from collections import Counter
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from beamrec.io.manifest import open_training
from beamrec.io.registry import backend, known_schemes, scheme_of
from beamrec.io.store import open_store
from beamrec.schemas.errors import UsageError
from beamrec.schemas.shop import Shop

if TYPE_CHECKING:
    import pyarrow.dataset as ds

__all__ = ["count_ratings"]

_FORMATS = {"csv": "csv", "parquet": "parquet"}


def count_ratings(uri: str, shop: Shop, secret: str | None = None) -> dict[str, int]:
    """Product id → number of its ratings, read in blocks.

    Args:
      uri: what `batch --output` was given; a CSV or Parquet file with the shop's ratings; or the shop's
        database.
      shop: names the tables and columns.
      secret: where a database's password is; None for the environment.

    Raises:
      UsageError: there are no ratings there, or they are not of this shop.
      UnavailableError: the system behind the URI is away.
    """
    if scheme_of(uri) in {scheme.removesuffix("://") for scheme in known_schemes("tables")}:
        return _of_database(uri, shop, secret)
    suffix = uri.partition("?")[0].rpartition(".")[2].lower()
    if suffix in _FORMATS:
        return _of_column(_open_file(uri, _FORMATS[suffix]), shop.ratings.product, uri)
    return _of_column(open_training(uri), shop.products.key, uri)


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


def _open_file(uri: str, file_format: str) -> "ds.Dataset":
    import pyarrow.dataset as ds  # here, since it imports pandas: a second of every command's start

    root, slash, rest = uri.partition("?")[0].rpartition("/")
    query = uri.partition("?")[1] + uri.partition("?")[2]
    files, base = open_store((root or (slash or ".")) + query, "--ratings").arrow()
    try:
        return ds.dataset(f"{base}/{rest}", format=file_format, filesystem=files)
    except FileNotFoundError:
        raise UsageError(f"--ratings {uri}: there is no such file") from None
    except pa.ArrowInvalid as error:
        raise UsageError(f"--ratings {uri}: cannot be read as {file_format}: {error}") from None


def _of_column(dataset: "ds.Dataset", name: str, uri: str) -> dict[str, int]:
    found = next((column for column in dataset.schema.names if column.lower() == name.lower()), None)
    if found is None:
        raise UsageError(
            f"--ratings {uri}: expected a column {name}, got {', '.join(dataset.schema.names)}; give the "
            "--shop that the ratings are of"
        )
    counts: Counter[str] = Counter()
    for batch in dataset.to_batches(columns=[found]):
        for entry in pc.value_counts(batch.column(0).drop_null().cast(pa.string())):
            counts[entry["values"].as_py()] += entry["counts"].as_py()
    return dict(counts)
