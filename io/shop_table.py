"""One table of a shop database as it is now, for what needs no snapshot of all of them."""

from beamrec.io.arrow_types import check_key_type
from beamrec.io.registry import backend
from beamrec.io.table_reader import Rows, TableReader
from beamrec.schemas.shop import Table

__all__ = ["read_table"]


def read_table(uri: str, table: Table, secret: str | None = None, option: str = "--source") -> Rows:
    """All customers or products: a batch of the key and the features, and rows that fit no batch.

    Args:
      uri: of the shop database.
      table: `Shop.customers` or `Shop.products`.
      secret: where the password is; None is the environment.
      option: the flag that the URI came from, for messages.

    Raises:
      UsageError: the URI is wrong, or the table is not as the shop says.
      UnavailableError: the database is away, or refuses us.
    """
    module = backend("tables", uri, option)
    with module.connect(uri, secret) as connection:
        reader = TableReader.open(module, connection, table.name, (table.key, *table.columns), bulk=True)
        check_key_type(reader.schema.field(0).type, table.key_type, f"{table.name}.{table.key}")
        return reader.read(connection)
