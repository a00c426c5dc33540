"""Numbers of every column type on one scale."""

import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["to_float64"]


def to_float64(values: pa.Array) -> pa.Array:
    """The nearest float64 of each number, or of each text that spells one; NULL stays NULL: [num_values].

    Raises:
      pa.ArrowInvalid: a text is not a number.
    """
    if pa.types.is_decimal(values.type):
        # Arrow's own cast of a decimal multiplies, and 21000.35 comes out as 21000.350000000002.
        values = pc.cast(values, pa.string())
    return pc.cast(values, pa.float64(), safe=False)
