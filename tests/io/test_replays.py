"""A replayed dead letter counts once, whatever moment one looks, and is chosen once."""

import dataclasses
import json
import random
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest

from beamrec.io.books import Books
from beamrec.io.dead_letters import LetterFile, Wanted, find_files, parse_place
from beamrec.io.ledger import Account, Settings, account, fix_settings
from beamrec.io.mended_settings import check_mapping, mend_settings
from beamrec.io.replays import Chosen, choose, keep, selections, unfinished
from beamrec.io.shard_log import ShardLog
from beamrec.io.source_log import Part, SourceLog
from beamrec.io.store import LocalStore
from beamrec.schemas.deadletters import DeadLetter
from beamrec.schemas.errors import BeamrecError, UsageError
from beamrec.schemas.events import OUTCOMES, Fate
from beamrec.schemas.paths import hour_folder
from beamrec.schemas.replays import replaced_fate, replay_source

HOUR = datetime(2026, 11, 22, 7, tzinfo=UTC)
SHARDS = 3


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path)


def letter(number: int, stage: str, attempt: int = 1) -> DeadLetter:
    return DeadLetter(
        stage=stage,
        error_type=f"type{number % 2}",
        error_message="",
        payload=b"\xff\x00" * number,
        source={"system": "file", "name": "a", "after": number, "position": number + 1},
        first_seen=HOUR.replace(minute=number % 60).isoformat(),
        attempt=attempt,
    )


def commit(store: LocalStore, source: str, fates: dict[int, str], shard: int | None = None) -> None:
    """Gives the records that end at these positions of a source their fates."""
    rows: dict[int, list[dict[str, object]]] = {}
    for position, fate in fates.items():
        stage = {"expired": "expired", "dead_letter": "parse"}.get(fate)
        rows.setdefault(position % SHARDS, []).append(
            {
                "source": source,
                "after": position - 1,
                "position": position,
                "event_id": f"{source}@{position}",
                "fate": fate,
                "folder": hour_folder(f"errors/{stage}" if stage else "recommendations", HOUR),
                "hour": HOUR,
                "line": letter(position - 1, stage or "").to_json(),
            }
        )
    for number, own in rows.items():
        if shard in (None, number):
            ShardLog(store, number, 24).commit(pa.Table.from_pylist(own, schema=OUTCOMES))


def balanced(store: LocalStore) -> Account:
    """The account, of which the invariant holds: each record that was read has exactly one fate now."""
    found = account(store)
    assert found.reconciled, found
    books = Books(store)
    books.update()
    # As many fates as records, and one more for each that replaced another.
    assert sum(books.fates.values()) == found.counts.records_in + found.replayed
    return found


@pytest.fixture
def failed(store: LocalStore) -> LocalStore:
    """20 records read: 8 visible, 9 dead letters, 3 expired."""
    SourceLog(store).seal([Part("file:a", 0, 20, 20, 0)])
    fates = {n: "visible" if n <= 8 else "dead_letter" if n <= 17 else "expired" for n in range(1, 21)}
    commit(store, "file:a", fates)
    return store


def select(store: LocalStore, **wanted: object) -> dict[str, int]:
    """Chooses; returns what was chosen, by its source."""
    found = choose(store, Wanted(**wanted))  # type: ignore[arg-type]
    selection = keep(store, (Chosen(file, tuple(line for line, _ in letters)) for file, letters in found))
    return selection.sources if selection else {}


def test_each_record_has_one_fate_before_in_the_middle_of_and_after_a_replay(failed: LocalStore) -> None:
    assert dataclasses.astuple(balanced(failed).counts)[:5] == (20, 8, 9, 0, 3)
    chosen = select(failed, stages=frozenset({"parse", "expired"}))
    dead, expired = replay_source(Fate.DEAD_LETTER, 0), replay_source(Fate.EXPIRED, 0)
    assert chosen == {dead: 9, expired: 3}
    SourceLog(failed).seal([Part(name, 0, count, count, 0) for name, count in chosen.items()])
    assert (balanced(failed).waiting, balanced(failed).replayed) == (12, 0)
    assert [s.number for s in unfinished(failed)] == [0]

    fates = {1: "visible", 2: "duplicate", 3: "dead_letter", 4: "duplicate"}
    fates |= dict.fromkeys(range(5, 10), "dead_letter")
    commit(failed, dead, fates, shard=1)
    killed = balanced(failed)
    assert (killed.waiting, killed.replayed) == (9, 3)
    assert dataclasses.astuple(killed.counts)[:5] == (20, 9, 7, 1, 3)

    commit(failed, dead, fates)
    commit(failed, expired, dict.fromkeys(range(1, 4), "duplicate"))
    done = balanced(failed)
    assert (done.waiting, done.replayed, unfinished(failed)) == (0, 12, [])
    assert dataclasses.astuple(done.counts)[:5] == (20, 9, 6, 5, 0)
    assert done.replays == {
        "dead_letter/visible": 1, "dead_letter/duplicate": 2, "dead_letter/dead_letter": 6,
        "expired/duplicate": 3,
    }  # fmt: skip
    books = Books(failed)
    books.update()
    books.save()
    assert account(failed) == done, "a snapshot holds what replays replaced"


def test_a_record_of_a_replay_with_two_fates_is_a_fault(failed: LocalStore) -> None:
    (source, _), *_ = select(failed).items()
    SourceLog(failed).seal([Part(source, 0, 9, 9, 0)])
    ShardLog(failed, 0, 24)
    commit(failed, source, {1: "dead_letter"})
    row = {
        "source": source, "after": 0, "position": 1, "event_id": "x", "fate": "dead_letter",
        "folder": hour_folder("errors/parse", HOUR), "hour": HOUR, "line": b"{}",
    }  # fmt: skip
    ShardLog(failed, 7, 24).commit(pa.Table.from_pylist([row], schema=OUTCOMES))
    assert any("more than one fate" in fault for fault in account(failed).faults)


def test_letters_are_chosen_once_and_what_dies_again_has_a_new_one(failed: LocalStore) -> None:
    first = select(failed, error_types=frozenset({"type1"}))
    second = select(failed)
    assert (*first.values(), *second.values()) == (4, 5)
    assert select(failed) == {}
    assert [s.number for s in selections(failed)] == [0, 1]
    lines = [(c.file.path, n) for s in selections(failed) for c in s.chosen for n in c.lines]
    assert len({*lines}) == len(lines) == 9
    commit(failed, replay_source(Fate.DEAD_LETTER, 1), {2: "dead_letter"})
    assert sum(select(failed).values()) == 1


def test_letters_of_times_are_chosen(failed: LocalStore) -> None:
    begin, end = HOUR.replace(minute=10), HOUR.replace(minute=14)
    assert sum(select(failed, begin=begin, end=end).values()) == 4
    assert not select(failed, begin=HOUR.replace(hour=8))
    assert not select(failed, end=HOUR)


@pytest.mark.parametrize(
    ("rest", "stages", "hours"),
    [
        ("", [], None),
        ("/errors", [], None),
        ("/errors/", [], None),
        ("/errors/parse", ["parse"], None),
        ("/errors/parse/year=2026", ["parse"], ((2026, 1, 1, 0), (2027, 1, 1, 0))),
        ("/errors/parse/year=2026/month=12", ["parse"], ((2026, 12, 1, 0), (2027, 1, 1, 0))),
        ("/errors/expired/year=2026/month=02/day=28", ["expired"], ((2026, 2, 28, 0), (2026, 3, 1, 0))),
        (
            "/errors/parse/year=2026/month=11/day=22/hour=23",
            ["parse"],
            ((2026, 11, 22, 23), (2026, 11, 23, 0)),
        ),
    ],
)
@pytest.mark.parametrize("output", ["/a/error/out", "s3://bucket/out", "out"])
def test_a_place_below_errors_says_stage_and_time(
    output: str, rest: str, stages: list[str], hours: tuple[tuple[int, ...], ...] | None
) -> None:
    found, wanted = parse_place(output + rest)
    assert (found, wanted.stages) == (output, frozenset(stages))
    expected = tuple(datetime(*each, tzinfo=UTC) for each in hours) if hours else (None, None)  # type: ignore[arg-type]
    assert (wanted.begin, wanted.end) == expected


def test_the_address_of_an_endpoint_stays_with_the_output_folder() -> None:
    found, wanted = parse_place("s3://bucket/out/errors/parse?endpoint=http://h:1")
    assert (found, wanted.stages) == ("s3://bucket/out?endpoint=http://h:1", {"parse"})


@pytest.mark.parametrize("uri", ["", "/errors", "out/errors/parse/year=2026/month=13"])
def test_a_place_that_is_none_is_refused(uri: str) -> None:
    with pytest.raises(UsageError, match="--errors"):
        parse_place(uri)


def test_expired_ones_are_read_where_they_are_named_and_files_come_by_hour(failed: LocalStore) -> None:
    failed.create(f"{hour_folder('errors/parse', HOUR.replace(hour=5))}/part-0009-0000000000.jsonl", b"")
    failed.create("errors/parse/notes/a/b/c/part-0000-0000000000.jsonl", b"")
    found = find_files(failed, Wanted())
    assert {file.fate for file in found} == {Fate.DEAD_LETTER}
    assert found[0].hour.hour == 5
    assert [f.hour for f in found] == sorted(f.hour for f in found)
    assert {f.fate for f in find_files(failed, Wanted(frozenset({"expired"})))} == {Fate.EXPIRED}


@pytest.mark.parametrize("damage", [b"{}\n", b"no json\n", b"[]\n", b'{"payload": "?"}\n'])
def test_a_damaged_file_of_letters_is_named(failed: LocalStore, damage: bytes) -> None:
    (file, *_) = find_files(failed, Wanted())
    (failed.root / file.path).write_bytes(damage)
    with pytest.raises(BeamrecError, match=f"{file.path} of .* is damaged"):
        list(choose(failed, Wanted()))


def test_a_letter_comes_back_exactly() -> None:
    draw = random.Random(1)
    for number in range(50):
        sent = dataclasses.replace(
            letter(number, "parse"), payload=draw.randbytes(number), event_id="ü\udc80"
        )
        assert DeadLetter.from_json(sent.to_json()) == sent


def test_only_sources_of_replays_replace_a_fate() -> None:
    assert replaced_fate(replay_source(Fate.EXPIRED, 3)) is Fate.EXPIRED
    assert replaced_fate("file:replay:expired/000000000003") is None
    assert replaced_fate("file:a") is None


def mapping(**events: str) -> str:
    return json.dumps(
        [{"event_id": "event_id", "event_time": "t", "shape": "session"} | events, "int", "string"]
    )


@pytest.mark.parametrize(
    ("form", "change", "refused"),
    [
        ("jsonl", {"event_time": "when"}, None),
        ("jsonl", {"customer": "login"}, None),
        ("parquet", {"event_time": "when"}, None),
        ("parquet", {"customer": "login"}, "columns of these names"),
        ("jsonl", {"event_id": "uuid"}, "ids would change"),
        ("jsonl", {"shape": "click"}, "ids would change"),
    ],
)
def test_a_folder_takes_another_mapping_as_far_as_no_id_changes(
    store: LocalStore, form: str, change: dict[str, str], refused: str | None
) -> None:
    settings = Settings(8, "in", None, "films", mapping(), form)
    fix_settings(store, settings)
    if refused:
        with pytest.raises(UsageError, match=refused):
            mend_settings(store, "films", mapping(**change))
        fix_settings(store, settings)
        return
    after, changed = check_mapping(store, "films", mapping(**change))
    fix_settings(store, settings)
    assert mend_settings(store, "films", mapping(**change)) == changed == (f"events.{next(iter(change))}",)
    fix_settings(store, after)
    with pytest.raises(UsageError, match="event_mapping"):
        fix_settings(store, settings)


def test_another_shop_is_refused_and_so_is_a_folder_of_batch(store: LocalStore) -> None:
    with pytest.raises(UsageError, match="no output folder of `stream`"):
        mend_settings(store, "films", mapping())
    fix_settings(store, Settings(8, "in", None, "films", mapping()))
    with pytest.raises(UsageError, match="shop 'films'"):
        mend_settings(store, "books", mapping())


def test_hours_are_read_out_of_paths() -> None:
    assert LetterFile.of(f"{hour_folder('errors/parse', HOUR)}/x").hour == HOUR
    with pytest.raises(ValueError, match="errors/parse"):
        LetterFile.of("errors/parse/2026/11/22/07/x")
