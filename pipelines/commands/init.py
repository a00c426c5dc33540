"""`beamrec init`: a commented configuration and shop to begin with, from a database if one is given."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from beamrec.pipelines.arguments import VerbParser
from beamrec.pipelines.console import Console
from beamrec.pipelines.environment import default
from beamrec.pipelines.templates import config_toml, shop_toml
from beamrec.schemas.errors import UsageError
from beamrec.schemas.shop import CLASSICMODELS, Shop

__all__ = ["HELP", "parser", "run"]

HELP = "writes a commented configuration and shop TOML, from an existing database if one is given"


def parser() -> argparse.ArgumentParser:
    """The options of the verb."""
    options = VerbParser(prog="beamrec init", description=HELP)
    options.add_argument(
        "--source", default=default("source"), help="database to propose the shop from [URI]"
    )
    options.add_argument("--output", default=".", help="folder for beamrec.toml and shop.toml [folder]")
    options.add_argument("--force", action="store_true", help="replace files that are there")
    return options


def run(argv: Sequence[str], console: Console) -> dict[str, Any]:
    """Writes both files; replaces none that is there unless told to."""
    options = parser().parse_args(argv)
    folder = Path(options.output)
    config, shop_file = folder / "beamrec.toml", folder / "shop.toml"
    present = [str(path) for path in (config, shop_file) if path.exists()]
    if present and not options.force:
        raise UsageError(
            f"{' and '.join(present)}: there already; give --force to replace, or another --output"
        )
    shop = CLASSICMODELS
    left_out: dict[str, list[str]] = {}
    if options.source:
        console.status(f"reading tables and columns of {options.source} …")
        shop, left_out = _from_source(options.source)
    _write(shop_file, shop_toml(shop, left_out))
    _write(config, config_toml(str(shop_file), options.source))
    console.print(f"wrote {config} and {shop_file} (shop {shop.name!r})")
    console.print(f"next: look them over, then `beamrec --config {config} doctor`")
    return {"shop": shop.name, "paths": {"config": str(config), "shop": str(shop_file)}}


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--output: {path}: cannot be written: {error.strerror}") from None


def _from_source(uri: str) -> tuple[Shop, dict[str, list[str]]]:
    """The proposed shop, and by table the columns that it leaves out."""
    # Imported here: the drivers and Beam cost seconds that `beamrec init` alone need not pay.
    from beamrec.io.registry import backend
    from beamrec.pipelines.proposal import propose_shop

    module = backend("tables", uri, "--source")
    with module.connect(uri) as connection:
        tables = _tables(module, connection)
        shop = propose_shop(tables, name=_database_name(uri))
        if shop is not CLASSICMODELS:
            shop = propose_shop(tables, shop.name, _rating_range(module, connection, shop))
    used = {shop.customers.name: shop.customers, shop.products.name: shop.products}
    left_out = {
        name: [c for c in tables.get(name, {}) if c.lower() not in {u.lower() for u in (t.key, *t.columns)}]
        for name, t in used.items()
    }
    return shop, left_out


def _tables(module: Any, connection: Any) -> dict[str, Any]:
    """Columns with types by table; a table whose types cannot be told is left out."""
    tables = {}
    for name in sorted(module.table_names(connection), key=lambda name: (name.lower(), name)):
        try:
            tables[name] = module.column_types(connection, name)
        except UsageError:
            continue
    return tables


def _rating_range(module: Any, connection: Any, shop: Shop) -> tuple[float, float] | None:
    table, column = module.quote(shop.ratings.name), module.quote(shop.ratings.rating)
    sql = f"SELECT MIN({column}), MAX({column}) FROM {table}"  # noqa: S608 (quoted identifiers)
    [(low, high)] = next(iter(module.fetch(connection, sql)))
    try:
        return None if low is None else (float(low), float(high))
    except ValueError:
        # SQLite keeps a text in a column of numbers; the scale then has to be set by hand.
        return None


def _database_name(uri: str) -> str:
    return Path(uri.split("?", 1)[0]).stem or "shop"
