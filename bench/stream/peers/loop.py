"""Peer: the job as a hand-written Python loop that takes messages in batches.

A batch is up to `--batch` messages, or those of `--wait` seconds: parsed one by one, then one look-up, one
inference, one matrix product, one upsert, one write to the file. Records that are no events go to a file of
their own. Outages of a server end it; what it repeats after a restart is written twice.
"""

import datetime as dt
from collections.abc import Sequence

from batch_recommender import BatchRecommender
from command_line import Stop, parser
from hourly_files import HourlyFiles
from shop_events import Event, Fields, Message, Refused, dead_letter, parse
from store import connect, write
from topic import Topic


def main() -> None:
    """Serves the topic until SIGTERM."""
    options = parser(__doc__ or "")
    options.add_argument("--batch", type=int, default=500, help="most messages a batch")
    options.add_argument("--wait", type=float, default=0.02, help="longest time to fill a batch [s]")
    options.add_argument("--remember", action="store_true", help="keep neighbours that were looked up")
    values = options.parse_args()
    stop, fields = Stop(), Fields.of_shop(values.shop)
    with (
        connect(values.vector_db) as connection,
        Topic(values.bootstrap, values.topic) as topic,
        HourlyFiles(values.output / "recommendations") as files,
        HourlyFiles(values.output / "errors" / "parse") as errors,
    ):
        recommender = BatchRecommender(connection, fields, values.items, values.remember)
        while not stop.asked:
            events = _events(topic.read(values.batch, values.wait), fields, errors)
            if events:
                served = recommender.serve(events)
                write(connection, served, values.log)
                files.write((row.event.event_time, row.line()) for row in served)
                topic.commit()


def _events(messages: Sequence[Message], fields: Fields, errors: HourlyFiles) -> list[Event]:
    events = []
    for message in messages:
        try:
            events.append(parse(message, fields))
        except Refused as error:
            errors.write([(dt.datetime.now(dt.UTC), dead_letter(message, error))])
    return events


if __name__ == "__main__":
    main()
