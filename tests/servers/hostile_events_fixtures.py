"""Event records of some fifty kinds, good and hostile, the same for the same seed."""

import dataclasses
import gzip
import json
import random
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import pytest

Expected = Literal["visible", "dead", "expired", "any"]

LARGEST = 10 << 20
TEXTS = (
    "Bräcke", "São Paulo", "القاهرة", "e\u0301\u0302", "\ufeffBOM", "\u202egnirts", "\u2028\u2029",
    "👩‍👩‍👧‍👦", "a\tb\\n\"c'",
    "'; DROP TABLE beamrec.recommendations_latest; --", "{{7*7}}", "$(reboot)", "%s%n", "../../etc/passwd",
    "\x7f", "NULL", "\\N", "\U0010ffff", "<script>", "'", "\\", "{}", "\\u0000", " ",
)  # fmt: skip
WRONG: dict[str, tuple[Any, ...]] = {
    "customer_number": (True, 1.5, "many", [], {}, "9" * 30),
    "city": (True, 1.5, [], {}),
    "country": (False, -0.5, ["France"], {"name": "France"}),
    "credit_limit": (True, "much", "", [], {}, "nan", "-inf", "0x10", "9" * 5000),
    "browse_history": (True, 7, "P", {}, [None], ["P"], [[]], [1.5]),
    "event_id": (True, 1.5, [], {}, ""),
    "event_time": (True, 1.7e9, [], {}, "", "now"),
}
WRONG_OF_ENTRY: dict[str, tuple[Any, ...]] = {
    "product_code": (None, "", True, 1.5, [], {}),
    "quantity": (True, 1.5, "two", "", [], {}, "9" * 30, 2**63),
    "in_shopping_cart": (0, 1, "true", [], {}),
}


@dataclasses.dataclass(frozen=True)
class HostileEvent:
    """A record, its kind, and what must become of it; `any` where its bytes were drawn."""

    kind: str
    payload: bytes
    expected: Expected


class Maker:
    """What kinds are made of."""

    def __init__(self, seed: int, now: datetime) -> None:
        self.draw, self.now = random.Random(seed), now

    def event(self, **changes: Any) -> dict[str, Any]:
        """A good event with changes; a change to `...` takes the field out."""
        draw = self.draw
        event = {
            "session_id": f"{draw.getrandbits(64):x}",
            "customer_number": draw.choice((103, 112, 999_999)),
            "city": draw.choice(("Nantes", "Oslo")),
            "country": "France",
            "credit_limit": draw.randrange(-500, 90_000),
            "browse_history": [self.entry() for _ in range(draw.randrange(4))],
            **changes,
        }
        return {name: value for name, value in event.items() if value is not ...}

    def entry(self, **changes: Any) -> dict[str, Any]:
        """A good entry of a history."""
        code = f"S{self.draw.randrange(10, 70)}_{self.draw.randrange(1000, 5000)}"
        in_cart = self.draw.random() < 0.5
        return {"product_code": code, "quantity": "2", "in_shopping_cart": in_cart, **changes}

    def json(self, **changes: Any) -> str:
        """A good event as text."""
        return json.dumps(self.event(**changes), ensure_ascii=False)

    def time(self, **ago: float) -> str:
        """RFC 3339."""
        return (self.now - timedelta(**ago)).isoformat()

    def size(self) -> int:
        """Bytes: mostly small, seldom large, the largest one time in 200."""
        return LARGEST if self.draw.random() < 0.005 else int(10 ** self.draw.uniform(0, 4.7))

    def noise(self, count: int) -> bytes:
        """Any."""
        return self.draw.randbytes(count)

    def nested(self, depth: int) -> str:
        """Brackets in brackets."""
        return "[" * depth + "]" * depth

    def flipped(self) -> bytes:
        """A good event with a few bytes that are others."""
        data = bytearray(self.json().encode())
        for _ in range(self.draw.randrange(1, 4)):
            data[self.draw.randrange(len(data))] = self.draw.randrange(256)
        return bytes(data)


def _wrong(make: Maker) -> dict[str, Any]:
    name = make.draw.choice(list(WRONG))
    return make.event(**{name: make.draw.choice(WRONG[name])})


def _wrong_entry(make: Maker) -> dict[str, Any]:
    name = make.draw.choice(list(WRONG_OF_ENTRY))
    wrong = make.entry(**{name: make.draw.choice(WRONG_OF_ENTRY[name])})
    return make.event(browse_history=[make.entry(), wrong, make.entry()])


Kind = tuple[Expected, Callable[[Maker], Any]]
KINDS: dict[str, Kind] = {
    # Good, however strange.
    "own id and time": (
        "visible",
        lambda m: m.event(event_id=f"own-{m.noise(8).hex()}", event_time=m.time(seconds=5)),
    ),
    "nothing at all": ("visible", lambda m: {}),
    "missing field": ("visible", lambda m: m.event(**{m.draw.choice(list(WRONG)): ...})),
    "every field null": ("visible", lambda m: m.event(**dict.fromkeys(WRONG))),
    "extra fields": ("visible", lambda m: m.event(**{f"f{i}": {"a": [i, None, [{}]]} for i in range(200)})),
    "extra field of any size": ("visible", lambda m: m.event(note="é" * (m.size() // 2))),
    "extra field deep inside": ("visible", lambda m: m.json()[:-1] + f', "deep": {m.nested(100)}}}'),
    "duplicate keys": (
        "visible",
        lambda m: m.json()[:-1] + ', "city": "Oslo", "city": "Lyon", "city": null}',
    ),
    "fields that are ours": (
        "visible",
        lambda m: m.event(release=[], served_by=1, similar_items={}, processed_at=0),
    ),
    "hostile texts": ("visible", lambda m: m.event(city=m.draw.choice(TEXTS), country=m.draw.choice(TEXTS))),
    "hostile product": (
        "visible",
        lambda m: m.event(browse_history=[m.entry(product_code=m.draw.choice(TEXTS))]),
    ),
    "hostile field names": ("visible", lambda m: m.event(**{text: text for text in TEXTS})),
    "text of any size": ("visible", lambda m: m.event(city="x" * m.size())),
    "escaped astral text": ("visible", lambda m: json.dumps(m.event(city="👩‍👩‍👧‍👦𝒳"))),
    "NUL in an extra field": ("visible", lambda m: m.event(note="a\0b")),
    "history of 1,000": (
        "visible",
        lambda m: m.event(browse_history=[m.entry()] * m.draw.choice((7, 50, 1000))),
    ),
    "numbers as text": (
        "visible",
        lambda m: m.event(credit_limit=" 7e2 ", browse_history=[m.entry(quantity="+07")]),
    ),
    "largest numbers": (
        "visible",
        lambda m: m.event(customer_number=2**63 - 1, credit_limit=m.draw.choice((3e38, 2**63))),
    ),
    "tiny number": ("visible", lambda m: m.event(credit_limit=5e-324)),
    "huge number in an extra field": (
        "visible",
        lambda m: m.json()[:-1] + f', "n": {"9" * m.draw.randrange(300)}1}}',
    ),
    "white space all over": ("visible", lambda m: json.dumps(m.event(), indent=2).replace("\n", "\t")),
    # Broken.
    "time long ago": (
        "expired",
        lambda m: m.event(event_time=m.draw.choice((m.time(days=9), "0001-01-01T00:00:00Z"))),
    ),
    "time in the future": (
        "dead",
        lambda m: m.event(event_time=m.draw.choice((m.time(days=-1), "9999-12-31T23:59:59Z"))),
    ),
    "time beyond the calendar": ("dead", lambda m: m.event(event_time="9999-12-31T23:59:59-23:59")),
    "no such time": ("dead", lambda m: m.event(event_time="2026-02-30T25:61:00Z")),
    "time without offset": ("dead", lambda m: m.event(event_time="2026-11-22T07:00:00")),
    "wrong type": ("dead", _wrong),
    "wrong type in the history": ("dead", _wrong_entry),
    "history without end": (
        "dead",
        lambda m: m.event(browse_history=[m.entry()] * m.draw.choice((1001, 20_000))),
    ),
    "long id": ("dead", lambda m: m.event(event_id="x" * (257 + m.size()))),
    "long product": (
        "dead",
        lambda m: m.event(browse_history=[m.entry(product_code="é" * (257 + m.size() // 2))]),
    ),
    "customer out of range": (
        "dead",
        lambda m: m.event(customer_number=m.draw.choice((2**63, 2**64 - 1, -(10**300)))),
    ),
    "number out of range": ("dead", lambda m: m.event(credit_limit=m.draw.choice((1e39, -1e308, "1e400")))),
    "number beyond all": ("dead", lambda m: m.json()[:-1] + ', "credit_limit": 1e999}'),
    "NUL in a feature": ("dead", lambda m: m.event(city="a\0b")),
    "NUL in a key": ("dead", lambda m: m.event(browse_history=[m.entry(product_code="\0")])),
    "NUL in an id": ("dead", lambda m: m.event(event_id="e\0")),
    "raw NUL": ("dead", lambda m: m.json(city="\1").replace("\\u0001", "\0")),
    "raw control character": ("dead", lambda m: m.json(city="\1").replace("\\u0001", "\x1b")),
    "lone surrogate, escaped": ("dead", lambda m: m.json(city="@").replace("@", "\\ud83d")),
    "lone surrogate, raw": ("dead", lambda m: m.json(city="@").encode().replace(b"@", b"\xed\xa0\x80")),
    "UTF-16": ("dead", lambda m: m.json().encode("utf-16-le").replace(b"\n", b" ")),
    "Latin-1": ("dead", lambda m: m.json(city="Bräcke").encode("latin-1")),
    "byte order mark": ("dead", lambda m: b"\xef\xbb\xbf" + m.json().encode()),
    "overlong UTF-8": ("dead", lambda m: m.json(city="@").encode().replace(b"@", b"\xc0\xaf")),
    "nested without end": ("dead", lambda m: m.nested(m.draw.choice((1_025, 100_000)))),
    "nested where a number belongs": (
        "dead",
        lambda m: m.json()[:-1] + f', "customer_number": {m.nested(900)}}}',
    ),
    "nested too deep to be written": ("dead", lambda m: m.json()[:-1] + f', "deep": {m.nested(900)}}}'),
    "cut off": ("dead", lambda m: m.json()[: m.draw.randrange(1, 60)]),
    "two in one": ("dead", lambda m: m.json() + m.json()),
    "an array": ("dead", lambda m: f"[{m.json()}]"),
    "a scalar": ("dead", lambda m: m.draw.choice(("null", "7", "-0.0", "true", '"text"'))),
    "NaN": ("dead", lambda m: m.json()[:-1] + ', "n": NaN}'),
    "JSON with comments": ("dead", lambda m: "/* */" + m.json()),
    "not JSON": ("dead", lambda m: m.draw.choice(("<event/>", "a,b,c", "customer_number: 1", "\\x80", "}{"))),
    "gzip": ("dead", lambda m: gzip.compress(m.json().encode()).replace(b"\n", b"\r")),
    # By chance.
    "any bytes": ("any", lambda m: m.noise(m.size())),
    "flipped bytes": ("any", lambda m: m.flipped()),
}


def hostile(count: int, seed: int = 42, now: datetime | None = None) -> Iterator[HostileEvent]:
    """Draws records: every second one is `plain` with the id `plain-0`, `plain-1`, …, the others of KINDS."""
    make, names = Maker(seed, now or datetime.now(UTC)), list(KINDS)
    for i in range(count):
        if i % 2 == 0:
            plain = make.event(event_id=f"plain-{i // 2}")
            yield HostileEvent("plain", json.dumps(plain).encode(), "visible")
            continue
        kind = names[i // 2 % len(names)]
        expected, function = KINDS[kind]
        made = function(make)
        text = json.dumps(made, ensure_ascii=False) if isinstance(made, dict) else made
        yield HostileEvent(kind, text if isinstance(text, bytes) else text.encode(), expected)


@pytest.fixture(scope="session")
def hostile_events() -> Callable[..., Iterator[HostileEvent]]:
    """`hostile_events(count, seed=, now=)`: see `hostile`."""
    return hostile
