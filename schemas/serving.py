"""Serving: how a release's items are searched, and rows of the tables of recommendations."""

import dataclasses
import datetime as dt
from collections.abc import Mapping
from typing import Any, Literal, get_args

__all__ = ["SearchIndex", "SearchSetting", "ServingRow"]

SearchIndex = Literal["hnsw", "ivfflat", "none", "exact"]
"""pgvector's indexes, a sequential scan by the server, or the product with all items in the worker."""

_MAX_EF_SEARCH = 1_000  # pgvector's own limits
_MAX_PROBES = 32_768


@dataclasses.dataclass(frozen=True)
class SearchSetting:
    """How the items of a release are searched, as measured on its own vectors.

    Attributes:
      index: what finds the items of highest score.
      ef_search: width of the search in an HNSW index; unused by the others.
      probes: lists that a search in an IVFFlat index looks into; unused by the others.

    Raises:
      ValueError: at construction, for a value that pgvector would refuse.
    """

    index: SearchIndex = "hnsw"
    ef_search: int = 100
    probes: int = 10

    def __post_init__(self) -> None:
        if self.index not in get_args(SearchIndex):
            raise ValueError(
                f"SearchSetting: index: expected one of {', '.join(get_args(SearchIndex))}; "
                f"got {self.index!r}"
            )
        for name, most in (("ef_search", _MAX_EF_SEARCH), ("probes", _MAX_PROBES)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
                raise ValueError(
                    f"SearchSetting: {name}: expected an integer from 1 to {most}, got {value!r}"
                )

    @property
    def name(self) -> str:
        """For people: `hnsw, ef_search 100`."""
        shown = {
            "hnsw": f"hnsw, ef_search {self.ef_search}",
            "ivfflat": f"ivfflat, probes {self.probes}",
            "none": "exact, in PostgreSQL",
            "exact": "exact, in the worker",
        }
        return shown[self.index]

    def to_dict(self) -> dict[str, Any]:
        """What the store keeps as JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "SearchSetting":
        """The inverse of `to_dict`; names of a later version are passed over.

        Raises:
          ValueError: a value is not one of a setting.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})


@dataclasses.dataclass(frozen=True)
class ServingRow:
    """One customer's recommendations from one event.

    Attributes:
      customer_id: canonical string of the customer key; one row of `recommendations_latest` each.
      event_time, processed_at: aware datetimes, UTC.
      release: id of the release that scored the event.
      served_by: `known_customer`, `cold_customer` or `popular`.
      recommended_items, similar_items: JSON text in the shape of FORMATS.
    """

    customer_id: str
    event_id: str
    event_time: dt.datetime
    processed_at: dt.datetime
    release: str
    served_by: str
    recommended_items: str
    similar_items: str

    def __post_init__(self) -> None:
        for name in ("event_time", "processed_at"):
            value = getattr(self, name)
            if not isinstance(value, dt.datetime) or value.tzinfo is None:
                raise ValueError(f"ServingRow: {name} must be a datetime with a time zone, got {value!r}")

    @property
    def precedence(self) -> tuple[dt.datetime, bytes, dt.datetime]:
        """Newest wins: event time, then event id (by bytes, as in the store), then processing time."""
        return (self.event_time, self.event_id.encode("utf-8"), self.processed_at)
