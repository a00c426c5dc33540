"""The two files that `beamrec init` writes: a configuration and a shop, both with comments."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from beamrec.pipelines.environment import SETTINGS
from beamrec.schemas.shop import EventMapping, Feature, RatingsTable, Shop, Table

__all__ = ["config_toml", "shop_toml", "toml_value"]

_SHOP_HEAD = """\
# The shop: which tables, columns and event fields there are, and what they mean. Give it as --shop.
#
# A feature's kind is "category" (a vocabulary is learned), "number" (scaled), "text", or "none" (kept in the
# training files, not modelled). event_field names the event's field of the same meaning: a customer feature
# without one stays out of the user tower, since it could not be had when recommendations are made.
# trim and lower clean text before the model sees it; log takes log(1 + x) of a skewed number.
#
# Rules of the batch pipeline; a row that breaks one becomes a dead letter, and the ratings of it with it:
#   min, max        inclusive bounds: numbers, or dates such as min = "1990-01-01" (a whole day, as max)
#   values          the only values allowed, compared after trim and lower: values = ["cash", "card"]
#   nullable        false where NULL is an error
# For example: { column = "year", kind = "number", min = 1888, nullable = false }
"""

_CONFIG_HEAD = """\
# Options of beamrec by the names of their flags: `beamrec --config beamrec.toml VERB`. At the top level they
# hold for every verb that has them, under [verb] for that one. Flags on the command line win.
# Passwords do not belong here: set BEAMREC_SOURCE_PASSWORD and BEAMREC_VECTOR_DB_PASSWORD.
"""

_COMMENTS = {
    "source": "the shop's database: sqlite:///path, mysql:// or postgresql://user@host:port/db",
    "output": "where training files or recommendations go",
    "input": "the folder that events arrive in",
    "data": "what `batch --output` was given",
    "releases": "folder of the releases",
    "vector_db": "embedded: or postgresql://user@host:port/db",
    "items": "recommended items for each event",
    "seed": "of every random draw",
    "window_seconds": "event-time window; divides 3600",
    "allowed_lateness": "how late after the end of its window an event still counts",
    "max_delay": "how far the watermark stays behind arrival",
    "dedupe_horizon": "how far back an event id is known",
    "shards": "output shards; fixed by the first run on an output",
}

# Which verb each line is shown under; names of the first group stand at the top level.
_SECTIONS: Mapping[str, Sequence[str]] = {
    "": ("source", "vector_db", "seed"),
    "batch": ("output",),
    "train": ("data", "releases"),
    "stream": (
        "input",
        "output",
        "items",
        "window_seconds",
        "allowed_lateness",
        "max_delay",
        "dedupe_horizon",
        "shards",
    ),
}
_EXAMPLES = {
    "source": "sqlite:///shop.db",
    "batch.output": "lake",
    "stream.output": "out",
    "input": "events",
    "data": "lake",
    "releases": "releases",
}


def toml_value(value: Any) -> str:
    """A string, number, boolean or tuple of them as TOML. JSON's escapes are TOML's, but for DEL."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(toml_value, value))}]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value)


def config_toml(shop_path: str, source: str | None = None) -> str:
    """The configuration: the shop and the source, if known, are set; all else is commented out."""
    lines = [_CONFIG_HEAD, f"shop = {toml_value(shop_path)}"]
    for verb, names in _SECTIONS.items():
        if verb:
            lines += ["", f"[{verb}]"]
        for name in names:
            given = source if name == "source" else None
            lines.append(_setting_line(verb, name, given))
    return "\n".join(lines) + "\n"


def _setting_line(verb: str, name: str, given: str | None) -> str:
    setting = SETTINGS[name]
    value = given if given is not None else setting.value
    example = _EXAMPLES.get(f"{verb}.{name}") or _EXAMPLES.get(name)
    shown = toml_value(example if value is None else value)
    unit = "" if setting.unit in ("URI", "whole number") else f" [{setting.unit}]"
    return f"{'' if given is not None else '# '}{name} = {shown}  # {_COMMENTS[name]}{unit}"


def shop_toml(shop: Shop, left_out: Mapping[str, Sequence[str]] | None = None) -> str:
    """A shop as TOML that `Shop.from_toml` reads back as the same shop.

    Args:
      shop: the shop.
      left_out: columns of the source that the shop does not use, by table, for a comment.
    """
    left_out = left_out or {}
    parts = [_SHOP_HEAD, f"name = {toml_value(shop.name)}", ""]
    for role, table in (("customers", shop.customers), ("products", shop.products)):
        parts += [*_table_lines(role, table), *_left_out_lines(left_out.get(table.name, ())), ""]
    parts += ["[ratings]", *_field_lines(shop.ratings, _RATINGS_COMMENTS), ""]
    parts += ["[events]", *_field_lines(shop.events, _EVENTS_COMMENTS)]
    return "\n".join(parts) + "\n"


_RATINGS_COMMENTS = {
    "customer": "its column with the customer's key",
    "product": "its column with the product's key",
    "min_rating": "ratings outside the scale are dead letters",
    "time": "its column with the time of the rating, for `train --split time`",
}
_EVENTS_COMMENTS = {
    "shape": '"session": an event holds its whole history; "click": one product, its history is kept',
    "session": "clicks of one session follow each other (click)",
    "history_length": "how many earlier clicks of its session a click is served with (click)",
    "history": "the list of viewed products (session)",
    "product": "in an entry of the history, or in the click",
}


def _table_lines(role: str, table: Table) -> list[str]:
    lines = [f"[{role}]"]
    lines += [f"{name} = {toml_value(getattr(table, name))}" for name in ("name", "key")]
    lines += [f'key_type = {toml_value(table.key_type)}  # "int" or "string"', "features = ["]
    return [*lines, *(f"  {_feature(feature)}," for feature in table.features), "]"]


def _feature(feature: Feature) -> str:
    """An inline table with the column and what differs from the defaults."""
    fields = dataclasses.fields(Feature)
    shown = [
        f"{field.name} = {toml_value(getattr(feature, field.name))}"
        for field in fields
        if field.name in ("column", "kind") or getattr(feature, field.name) != field.default
    ]
    return "{ " + ", ".join(shown) + " }"


def _left_out_lines(columns: Sequence[str]) -> list[str]:
    if not columns:
        return []
    head = "# Left out of the training files, as they identify somebody or are no feature; add what you need:"
    return [head, *(f"#   {{ column = {toml_value(column)} }}" for column in columns)]


def _field_lines(values: RatingsTable | EventMapping, comments: Mapping[str, str]) -> list[str]:
    lines = []
    for field in dataclasses.fields(values):
        value = getattr(values, field.name)
        line = f'# {field.name} = ""' if value is None else f"{field.name} = {toml_value(value)}"
        lines.append(f"{line}  # {comments[field.name]}" if field.name in comments else line)
    return lines
