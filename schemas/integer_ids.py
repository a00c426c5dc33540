"""Integer ids as other systems write them: `103.0` by pandas, `007`, ` 7`."""

import re

from beamrec.schemas.shop import KeyType

__all__ = ["canonical_id"]

_INTEGER = re.compile(r"\s*([+-]?)0*(\d+)(?:\.0*)?\s*", re.ASCII)


def canonical_id(key: str, key_type: KeyType) -> str:
    """An integer in its shortest form; anything else, and every id that is a string, as it is."""
    match = _INTEGER.fullmatch(key) if key_type == "int" else None
    if match is None:
        return key
    return f"{'-' if match[1] == '-' and match[2] != '0' else ''}{match[2]}"
