"""The page shows what the report says, needs nothing beside it, and shows hostile values as text."""

import dataclasses
import functools
import re
import xml.etree.ElementTree as ET

import numpy as np
import pyarrow as pa
import pytest

from beamrec.io.report_charts import escape, number, percent
from beamrec.io.report_page import render
from beamrec.pipelines.generate_shop import ShopSize, make_shop
from beamrec.schemas.ranges import RatingsRange
from beamrec.schemas.report import Categories, ColumnProfile, EntityProfile, Numbers, Report
from beamrec.schemas.shop import CLASSICMODELS
from beamrec.transforms.drift import drift
from beamrec.transforms.join import find_rows
from beamrec.transforms.profile import profile_range, report_of
from beamrec.transforms.sketches import NumberSketch

HOSTILE = "</style></title><script>alert(1)</script>\"'&\x00\x1b[31m\u202e\ufffe]]>"


@functools.cache
def shop_report(seed: int) -> Report:
    tables = make_shop(ShopSize(customers=60, products=40, ratings=600, bad=0, seed=seed))
    customers, products = (
        tables[table.name].select([table.key, *table.columns])
        for table in (CLASSICMODELS.customers, CLASSICMODELS.products)
    )
    ratings = tables["ratings"]
    range_ = RatingsRange(
        ratings=ratings,
        customers=customers,
        products=products,
        taken_at=f"2026-11-{seed:02}T07:00:00.000+00:00",
        counts_products=True,
        customer_rows=find_rows(ratings.column(0), customers.column(0)),
        product_rows=find_rows(ratings.column(1), products.column(0)),
    )
    return report_of(profile_range(range_, CLASSICMODELS), CLASSICMODELS)


def numbers(values: list[float]) -> Numbers:
    found = NumberSketch.of(pa.array(values, pa.float64()), np.ones(len(values), np.int64)).distribution()
    assert found is not None
    return found


def one_column(distribution: Numbers | Categories | None, rows: int = 10, name: str = "column") -> Report:
    column = ColumnProfile("t", name, rows, 0 if distribution else rows, 0, 0, distribution)
    entity = EntityProfile("t", 1, 1, rows, rows, 0.0, (1.0,) * 100)
    return Report("s", "2026-11-22T07:00:00+00:00", rows, ((3.0, rows),), entity, entity, (column,))


def page(report: Report, **options: object) -> ET.Element:
    return ET.fromstring(render(report, **options))  # type: ignore[arg-type]  # noqa: S314


def texts(element: ET.Element) -> str:
    return " ".join("".join(element.itertext()).split())


def test_a_page_is_well_formed_and_needs_nothing_beside_it() -> None:
    before, after = shop_report(1), shop_report(2)
    html = render(
        after, drift=drift(before, after), previous=before, dead_letters={"ratings": {"null_key": 3}}
    )
    ET.fromstring(html)  # noqa: S314
    assert not re.search(r"<script|<link|<img|<iframe|\bsrc=|\bhref=|url\(|@import|https?:", html)
    assert len(html.encode()) < 200_000


def test_the_same_report_gives_the_same_page() -> None:
    assert render(shop_report(1)) == render(shop_report(1))


def test_every_picture_has_a_title_a_description_and_a_table_beside_it() -> None:
    root = page(shop_report(1), dead_letters={"ratings": {"null_key": 3}})
    figures = root.findall(".//figure")
    assert len(figures) >= 4 + 12
    for pair in root.findall(".//div[@class='pair']"):
        (picture,) = pair.findall("figure/svg")
        assert picture.get("role") == "img"
        assert (picture.findtext("title") or "").strip()
        assert (picture.findtext("desc") or "").strip()
        assert pair.findall("div/table/tbody/tr")


def test_the_tiles_say_what_matters_first() -> None:
    report = shop_report(1)
    letters = {"ratings": {"null_key": 1200, "unknown_product": 34}, "customers": {}}
    tiles = [texts(tile) for tile in page(report, dead_letters=letters).findall(".//ul[@class='tiles']/li")]
    assert tiles[0].startswith("Training rows600")
    assert tiles[1] == f"Customers{report.customers.rated}of 60 have ratings"
    assert tiles[2] == f"Products{report.products.rated}of 40 have ratings"
    assert tiles[3] == "Dead letters1,234rows that broke a rule"
    assert tiles[4] == "Drift–no previous run"


def test_what_needs_attention_is_named() -> None:
    report = one_column(Categories(1, 1.0, (("a", 4),)))
    (column,) = report.columns
    products = dataclasses.replace(report.products, total=4, unrated_sample=("S1", "<S2>"))
    report = dataclasses.replace(report, columns=(dataclasses.replace(column, nulls=6),), products=products)
    root = page(report, drift={"column": 0.31, "other": 0.1}, dead_letters={"ratings": {"null_key": 1}})
    attention = [texts(point) for point in root.findall(".//section[@class='card attention']//li")]
    assert attention == [
        "column drifted since the previous run: PSI 0.310",
        "1 row of ratings broke the rule null_key",
        "column is missing in 60.0 % of the rows",
        "3 of 4 products have no rating: the model learns them by their features alone",
    ]
    assert "Never rated: S1, <S2> and 1 more." in texts(root)


def test_nothing_to_worry_about_is_said_too() -> None:
    root = page(one_column(Categories(1, 1.0, (("a", 10),))), drift={"column": 0.0})
    attention = root.find(".//section[@class='card attention']")
    assert attention is not None
    assert texts(attention) == "Needs attentionNothing."


def test_thresholds_give_the_verdict() -> None:
    root = page(one_column(None), drift={"a": 0.05, "b": 0.15, "c": 0.3, "d": 0.6}, warn=0.25, fail=0.5)
    section = next(each for each in root.findall(".//section") if "Drift since" in texts(each))
    rows = [[texts(cell) for cell in row] for row in section.findall(".//tbody/tr")]
    assert rows == [
        ["d", "0.600", "fails the run"],
        ["c", "0.300", "drifted"],
        ["b", "0.150", "some change"],
        ["a", "0.050", "stable"],
    ]


def test_hostile_values_stand_on_the_page_as_text() -> None:
    report = one_column(Categories(1, 1.0, ((HOSTILE, 10),)), name=HOSTILE)
    entity = dataclasses.replace(report.products, table=HOSTILE, total=2, unrated_sample=(HOSTILE,))
    report = dataclasses.replace(report, shop=HOSTILE, taken_at=HOSTILE, customers=entity, products=entity)
    html = render(report, drift={HOSTILE: 0.9}, previous=report, dead_letters={HOSTILE: {HOSTILE: 2}})
    root = ET.fromstring(html)  # noqa: S314
    assert not root.findall(".//script")
    assert len(root.findall(".//style")) == len(re.findall("<style", html)) == 1
    assert "<script>alert(1)</script>\"'&\\u0000\\u001b[31m\\u202e\\ufffe" in texts(root)
    assert not set(html) & {"\x00", "\x1b", "\u202e", "\ufffe"}


def test_a_category_column_shows_shares_now_and_before() -> None:
    before = one_column(Categories(2, 1.0, (("a", 8), ("", 2))))
    now = one_column(Categories(3, 1.0, (("b", 5), ("a", 4), ("", 1))))
    (card,) = [
        each for each in page(now, previous=before).findall(".//section") if each.find("h3") is not None
    ]
    assert [[texts(cell) for cell in row] for row in card.findall(".//tbody/tr")] == [
        ["b", "5", "50.0 %", "0.0 %"],
        ["a", "4", "40.0 %", "80.0 %"],
        ["(empty)", "1", "10.0 %", "20.0 %"],
    ]
    assert len(card.findall(".//line[@class='before']")) == 3


def test_blanks_at_the_ends_of_a_value_can_be_seen() -> None:
    top = (("Norway", 4), ("Norway  ", 3), (" ", 2), (" a b ", 1))
    root = page(one_column(Categories(4, 1.0, top)))
    labels = [label.text for label in root.findall(".//text[@class='label']")]
    assert labels[-4:] == ["Norway", "Norway␣␣", "␣", "␣a b␣"]


def test_rows_beyond_the_named_categories_are_counted_and_a_sample_is_called_one() -> None:
    top = tuple((f"v{n:02}", 100 - n) for n in range(15))
    rows = sum(count for _, count in top) + 1000
    text = texts(page(one_column(Categories(16_000, 0.25, top), rows=rows)))
    assert "More than 16,000 different values, rows estimated from 25.0 % of the customers." in text
    assert f"all others{number(1000 + sum(count for _, count in top[10:]))}" in text


@pytest.mark.parametrize(
    "values",
    [
        [5.0] * 10,
        [float(n) for n in range(-3, 7)],
        [0.0, -0.0, 1e300, -1e300, 3.5, 3.5, 3.5, 3.5, 3.5, 3.5],
        [10.0**n for n in range(10)],
        [n / 7 for n in range(10)],
        [1.7976931348623157e308, -1.7976931348623157e308, *[1.0] * 8],
        [5e-324] * 10,
    ],
)
def test_the_bars_of_a_number_column_hold_every_row(values: list[float]) -> None:
    root = page(one_column(numbers(values)), previous=one_column(numbers([1.0, 2.0])))
    table = root.find(".//details/table")
    assert table is not None
    shares = [float(texts(row[1]).strip("< %")) for row in table.findall("tbody/tr")]
    assert sum(shares) == pytest.approx(100, abs=2)
    assert "nan" not in texts(root)


def test_few_integers_have_a_bar_each() -> None:
    root = page(one_column(numbers([1, 1, 2, 4, 4, 4, 4, 4, 4, 4])))
    table = root.find(".//details/table")
    assert table is not None
    bars = [[texts(cell) for cell in row] for row in table.findall("tbody/tr")]
    assert bars == [["1", "20.0 %"], ["2", "10.0 %"], ["3", "0.0 %"], ["4", "70.0 %"]]


def test_a_report_of_nothing_has_a_page() -> None:
    text = texts(page(report_of(None, CLASSICMODELS), drift={}))
    assert "Snapshot of an empty source" in text
    assert "Training rows0" in text


def test_text_and_numbers_for_people() -> None:
    assert escape("a<b>&\"'\n\u200b😀é") == "a&lt;b&gt;&amp;&quot;&#x27;\\u000a\\u200b😀é"
    assert [number(value) for value in (0, -1200, 0.12345, 12345.6, 1e300)] == [
        "0",
        "-1,200",
        "0.1235",
        "12,346",
        "1e+300",
    ]
    assert [percent(share) for share in (0, 1e-9, 0.5, 1)] == ["0.0 %", "< 0.1 %", "50.0 %", "100.0 %"]
