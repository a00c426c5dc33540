"""Whether every row of the source has exactly one fate, table by table, before anything is published."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping

from beamrec.io.manifest import LetterFile
from beamrec.schemas.errors import BadDataError

__all__ = ["Account", "check_accounts", "open_accounts"]


@dataclasses.dataclass(frozen=True)
class Account:
    """One table's rows, each number counted by itself.

    Attributes:
      table: its name.
      total: `COUNT(*)` in the snapshot; of a table that changed while it was read, the rows read.
      good: rows that became training rows, or that training rows may refer to.
      letters: dead letters by the rule that they broke.
      changed: whether the table changed while it was read, and that was accepted.
    """

    table: str
    total: int
    good: int
    letters: Counter[str]
    changed: bool = False

    def to_dict(self) -> dict[str, int]:
        """As the manifest has it."""
        return {"in": self.total, "out": self.good, "dead_letters": self.letters.total()}


def open_accounts(
    counts: Mapping[str, int],
    good: Mapping[str, int],
    letters: Iterable[LetterFile],
    changed: Mapping[str, int],
) -> list[Account]:
    """The accounts of the tables whose good rows were counted.

    Args:
      counts: table → `COUNT(*)` in the snapshot.
      good: table → rows that keep every rule.
      letters: dead letters of all tables.
      changed: table → rows that were read, of tables whose count is of another moment.
    """
    rules: dict[str, Counter[str]] = {table: Counter() for table in good}
    for file in letters:
        rules.setdefault(file.table, Counter()).update(file.rules)
    totals = {**counts, **changed}
    return [Account(t, totals.get(t, 0), good.get(t, 0), rules[t], t in changed) for t in rules]


def check_accounts(accounts: Iterable[Account], max_bad_fraction: float) -> None:
    """Refuses data of which a row has no fate or two, or of which too much is bad.

    Args:
      accounts: of every table.
      max_bad_fraction: dead letters by rows, of any table.

    Raises:
      BadDataError: with the table, the numbers and the rules.
    """
    found = list(accounts)
    for account in found:
        bad = account.letters.total()
        if account.good + bad != account.total:
            holds = "{} rows were read" if account.changed else "the snapshot holds {} rows"
            raise BadDataError(
                f"the account of table {account.table} does not add up: {holds.format(account.total)}, "
                f"{account.good} are good and {bad} dead letters; nothing was published"
            )
    refused = [each for each in found if each.letters.total() > max_bad_fraction * each.total]
    if refused:
        # Ratings come last: a customer who is bad makes all its ratings bad too.
        told = "; ".join(_told(account) for account in reversed(refused))
        raise BadDataError(
            f"{told}, expected at most {max_bad_fraction:.2%}; nothing was published. Mend the "
            "source or the shop's rules, or write to another --output with a higher --max-bad-fraction to "
            "see the dead letters"
        )


def _told(account: Account) -> str:
    bad = account.letters.total()
    rules = ", ".join(f"{rule} {count}" for rule, count in account.letters.most_common())
    return f"{bad} of {account.total} {account.table} are bad ({bad / account.total:.2%}; {rules})"
