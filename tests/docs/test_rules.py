"""The file of business rules in docs/streaming.md runs as it is printed, on the shop of `generate shop`."""

import re
import tomllib
from pathlib import Path

import numpy as np

from beamrec.pipelines.shop_tables import ShopSize, make_products
from beamrec.schemas.rules import RuleSet
from beamrec.transforms.rank_by_rules import RankByRules

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_rules_of_the_documentation_are_made_and_read_what_is_there() -> None:
    section = (DOCS / "streaming.md").read_text(encoding="utf-8").split("\n## Business rules\n")[1]
    printed = re.search(r"```toml\n(.*?)```", section, re.DOTALL)
    assert printed
    rules = RuleSet.from_dict(tomllib.loads(printed[1]))
    ranking = RankByRules(rules.rules, 5, "customerNumber")
    products = make_products(ShopSize(), np.random.default_rng(1))
    assert ranking.purchases
    assert rules.purchases is None, "the shop's ratings"
    assert {"quantityInStock", "productLine"} == set(ranking.columns)
    assert set(ranking.columns) <= set(products.schema.names)
