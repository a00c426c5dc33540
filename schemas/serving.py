"""Rows of the serving tables `recommendations_latest` and `recommendations_log`."""

import dataclasses
import datetime as dt

__all__ = ["ServingRow"]


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
