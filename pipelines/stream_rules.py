"""Business rules of `beamrec stream`: from `--rules` and `--source` to what the search applies."""

from argparse import ArgumentParser
from typing import Any

import apache_beam as beam

from beamrec.io.registry import backend, reject_password
from beamrec.io.retrieval import Retrieval, SearchItems
from beamrec.io.rule_facts import FactsSource
from beamrec.io.ruled_search import SearchByRules, SearchRules
from beamrec.io.secrets import check_secret
from beamrec.pipelines.environment import default
from beamrec.schemas.errors import UsageError
from beamrec.schemas.rules import PurchasesTable, RuleSet
from beamrec.schemas.shop import Shop
from beamrec.transforms.rank_by_rules import RankByRules

__all__ = ["RULE_OPTIONS", "add_rule_options", "load_rules", "search"]

RULE_OPTIONS = ("rules", "source", "source_secret")
"""Names of the options that `load_rules` takes together."""


def add_rule_options(parser: ArgumentParser) -> None:
    """`--rules`, the database that they read, and `--explain`."""
    add = parser.add_argument
    add("--rules", help="business rules of the ranking [TOML file]")
    add("--source", default=default("source"), help="shop database, if the rules read it [URI]")
    add("--source-secret", help="where its password is, if not in the environment [URI]")
    add("--explain", action="store_true", help="give each recommended item its reason")


def load_rules(values: Any, shop: Shop) -> SearchRules | None:
    """The rules that the options name; None without `--rules`.

    Args:
      values: with RULE_OPTIONS, `items` and `explain`.

    Raises:
      UsageError: the file is wrong, a rule cannot be made, or the rules need a `--source`.
    """
    if not values.rules:
        return None
    file = RuleSet.from_toml(values.rules)
    ranking = RankByRules(file.rules, values.items, shop.customers.key, values.explain)
    try:
        columns, purchases = ranking.columns, _purchases(file, shop) if ranking.purchases else None
    except UsageError as error:
        raise UsageError(f"--rules {values.rules}: {error}") from error
    facts = None
    if columns or purchases is not None:
        if not values.source:
            needed = ", ".join([*columns, *([purchases.table] if purchases else [])])
            raise UsageError(f"--source is missing: the rules read {needed} of the shop's database")
        facts = FactsSource(
            values.source, shop, columns, purchases, file.refresh_seconds, values.source_secret
        )
        _check(facts)
    return SearchRules(ranking, facts, file.candidates, file.most_candidates)


def _purchases(file: RuleSet, shop: Shop) -> PurchasesTable:
    ratings = shop.ratings
    return file.purchases or PurchasesTable(ratings.name, ratings.customer, ratings.product)


def _check(facts: FactsSource) -> None:
    reject_password(facts.uri, "--source", "BEAMREC_SOURCE_PASSWORD")
    backend("tables", facts.uri, "--source")
    if facts.secret is not None:
        check_secret(facts.secret, "--source-secret")


def search(
    vector_db: str, items: int, retrieval: Retrieval, rules: SearchRules | None, customer: str
) -> beam.PTransform:
    """User to item search, under the rules if there are any."""
    if rules is None:
        return SearchItems(vector_db, items, retrieval)
    return SearchByRules(vector_db, rules, customer, retrieval)
