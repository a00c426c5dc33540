"""Peer: one function call for each event, as a cloud function behind a delivery stream works.

A call makes three look-ups (the active release with the neighbours of the history, the customer, the items
nearest to the user by pgvector's index), one inference of one row, one upsert, and returns the line, which
the stream appends to its file. `--connect per-event` opens a connection for each call, `warm` keeps one with
its prepared statements. The model stays in memory in both. The cloud's own part, such as starting functions
and the network between them, is not charged: the calls are made here, in one process, one after the other.
"""

import datetime as dt
from typing import Any

import psycopg
from command_line import Stop, parser
from hourly_files import HourlyFiles
from psycopg import sql
from records import Neighbours, Served, recommended, similar
from shop_events import Event, Fields, Message, Refused, dead_letter, parse
from store import Release, connect, release_of, write
from topic import Topic
from user_tower import UserTower, is_usable

# As wide a search as beamrec's; pgvector's own 40 finds less.
_SEARCH = "-c hnsw.ef_search=100"
_RELEASE = """
    SELECT r.id, r.uri, r.dim, r.operator, (r.manifest->>'normalized')::boolean, n.id, n.neighbour_ids,
      n.distances
    FROM beamrec.active_release a JOIN beamrec.releases r ON r.id = a.release
    LEFT JOIN beamrec.item_neighbours n ON n.release = a.release AND n.id = ANY(%s)
"""
_CUSTOMER = "SELECT 1 FROM beamrec.user_embeddings WHERE release = %s AND id = %s"
_NEAREST = """
    SELECT id, -(embedding::vector({dim}) <#> %(user)s::vector({dim})) FROM beamrec.{table}
    ORDER BY embedding::vector({dim}) {operator} %(user)s::vector({dim}) LIMIT %(count)s
"""
_POPULAR = """
    SELECT id FROM beamrec.item_embeddings WHERE release = %s ORDER BY popularity_rank, id LIMIT %s
"""


class Function:
    """What is called with each message.

    Args:
      warm: keep one connection, and prepare the statements on it.
    """

    def __init__(self, uri: str, fields: Fields, items: int, log: bool, warm: bool) -> None:
        self._uri, self._fields, self._items, self._log = uri, fields, items, log
        self._warm = connect(uri, options=_SEARCH) if warm else None
        if self._warm is not None:
            self._warm.prepare_threshold = 0  # at its first use
        self._towers: dict[str, UserTower] = {}

    def __call__(self, message: Message) -> Served:
        """Serves the event of a message; raises Refused where there is none."""
        event = parse(message, self._fields)
        if self._warm is not None:
            return self._serve(self._warm, event)
        with connect(self._uri, options=_SEARCH, prepare_threshold=None) as connection:
            return self._serve(connection, event)

    def _serve(self, connection: psycopg.Connection[Any], event: Event) -> Served:
        release, near = _release(connection, event)
        known = event.customer is not None and bool(
            connection.execute(_CUSTOMER, [release.id, event.customer]).fetchone()
        )
        count = self._items + len(event.products)
        if is_usable(event, known):
            served_by = "known_customer" if known else "cold_customer"
            ranked = self._nearest(connection, release, event, count)
        else:
            served_by = "popular"
            rows = connection.execute(_POPULAR, [release.id, count]).fetchall()
            ranked = [(row[0], 1 / (rank + 1)) for rank, row in enumerate(rows)]
        served = Served(
            event,
            release.id,
            served_by,
            dt.datetime.now(dt.UTC),
            recommended(ranked, event, self._items),
            similar(near, event, self._items),
        )
        write(connection, [served], self._log)
        return served

    def _nearest(
        self, connection: psycopg.Connection[Any], release: Release, event: Event, count: int
    ) -> list[tuple[str, float]]:
        if release.id not in self._towers:
            self._towers = {release.id: UserTower(release.folder, self._fields)}
        vector = self._towers[release.id].vectors([event])[0]
        statement = sql.SQL(_NEAREST).format(
            dim=sql.Literal(release.dim),
            operator=sql.SQL(release.operator),
            table=sql.Identifier(f"item_embeddings_{release.id}"),
        )
        values = {"user": str(vector.tolist()), "count": count}
        found = connection.execute(statement, values).fetchall()
        return sorted(found, key=lambda row: -row[1])


def _release(connection: psycopg.Connection[Any], event: Event) -> tuple[Release, Neighbours]:
    rows = connection.execute(_RELEASE, [event.products]).fetchall()
    if not rows:
        raise SystemExit("no release is active")
    return release_of(rows[0]), {row[5]: (row[6], row[7]) for row in rows if row[5] is not None}


def main() -> None:
    """Calls the function with each message of the topic until SIGTERM."""
    options = parser(__doc__ or "")
    options.add_argument("--connect", choices=("per-event", "warm"), required=True)
    values = options.parse_args()
    stop, fields = Stop(), Fields.of_shop(values.shop)
    function = Function(values.vector_db, fields, values.items, values.log, values.connect == "warm")
    with (
        Topic(values.bootstrap, values.topic) as topic,
        HourlyFiles(values.output / "recommendations") as files,
        HourlyFiles(values.output / "errors" / "parse") as errors,
    ):
        while not stop.asked:
            for message in topic.read(1, 0.1):
                try:
                    served = function(message)
                except Refused as error:
                    errors.write([(dt.datetime.now(dt.UTC), dead_letter(message, error))])
                else:
                    files.write([(served.event.event_time, served.line())])
                topic.commit()


if __name__ == "__main__":
    main()
