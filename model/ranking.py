"""Top lists and what they are worth: ranking metrics of many customers at once."""

import dataclasses

import numpy as np
import numpy.typing as npt

__all__ = ["NO_ITEM", "Ranked", "coverage", "ranking_metrics", "top_items"]

Floats = npt.NDArray[np.floating]
NO_ITEM = -1


@dataclasses.dataclass(frozen=True)
class Ranked:
    """Recommendations and which of them were right.

    Attributes:
      top: item indices, best first, NO_ITEM where nothing is left to recommend; int32 [users, k].
      hits: whether the item is one that the user likes and that was held out; bool [users, k].
      liked: number of those items of each user; int64 [users].
    """

    top: npt.NDArray[np.int32]
    hits: npt.NDArray[np.bool_]
    liked: npt.NDArray[np.int64]


def top_items(scores: Floats, k: int) -> npt.NDArray[np.int32]:
    """The `k` highest scores of each row, best first, ties by the lower index; int32 [users, min(k, items)].

    Args:
      scores: [users, items]; -inf is never recommended and comes out as NO_ITEM.
    """
    users, items = scores.shape
    k = min(k, items)
    last = np.partition(scores, items - k, axis=1)[:, items - k, None]
    chosen = scores > last
    tied = scores == last
    room = k - chosen.sum(1, dtype=np.int32)
    chosen |= tied & (np.cumsum(tied, axis=1, dtype=np.int32) <= room[:, None])
    indices = np.nonzero(chosen)[1].reshape(users, k).astype(np.int32)
    found = np.take_along_axis(scores, indices, 1)
    order = np.argsort(-found, axis=1, kind="stable")
    top = np.take_along_axis(indices, order, 1)
    top[np.isneginf(np.take_along_axis(found, order, 1))] = NO_ITEM
    return top


def ranking_metrics(ranked: Ranked, k: int) -> dict[str, npt.NDArray[np.float64]]:
    """Recall, nDCG and average precision at `k` of each user, float64 [users]; 0 who likes nothing.

    Relevance is binary. Recall and average precision are shares of min(k, liked), the most that a list
    of k can hold; nDCG is the share of the best list's discounted gain (Järvelin and Kekäläinen, 2002).
    """
    hits = ranked.hits[:, :k].astype(np.float64)
    best = np.minimum(ranked.liked, k)
    ranks = np.arange(1, hits.shape[1] + 1)
    discounts = 1 / np.log2(np.arange(2, k + 2))
    ideal = np.concatenate([[0.0], np.cumsum(discounts)])[best]
    precision = np.cumsum(hits, axis=1) / ranks
    divisor = np.maximum(best, 1)
    return {
        f"recall@{k}": hits.sum(1) / divisor,
        f"ndcg@{k}": hits @ discounts[: hits.shape[1]] / np.where(best, ideal, 1.0),
        f"map@{k}": (precision * hits).sum(1) / divisor,
    }


def coverage(top: npt.NDArray[np.int32], items: int) -> tuple[float, float]:
    """Share of the catalogue that is recommended to somebody, and its standard error.

    The error is the jackknife's (Efron and Stein, 1981): without one user the share falls by the items
    that nobody else is recommended. A bootstrap sample holds 63 % of the users and so covers too little.

    Args:
      top: item indices [users, k], NO_ITEM for none.
    """
    users = len(top)
    counts = np.bincount(top[top != NO_ITEM], minlength=items)
    share = float(np.count_nonzero(counts) / items)
    only_here = ((counts[top] == 1) & (top != NO_ITEM)).sum(1) / items
    variance = (users - 1) / users * float(((only_here - only_here.mean()) ** 2).sum())
    return share, float(np.sqrt(variance))
