"""Exact search by inner product, in the worker: a matrix product a block of items at a time.

Of every block only the scores above the least of the best so far are taken, which soon are few: that is one
comparison an item, where a search of each block for its best would cost more than the product itself.
"""

import numpy as np
import numpy.typing as npt

__all__ = ["best_items"]

_Floats = npt.NDArray[np.float32]
_Ints = npt.NDArray[np.int64]

_BLOCK_USERS = 256
_BLOCK_ITEMS = 8_192  # with the users 8 MiB of scores, which stay in the processor's cache
_FIRST_ITEMS = 1_024
_PENDING = 4  # candidates waiting, in multiples of those wanted


def best_items(users: _Floats, items: _Floats, count: int) -> tuple[_Ints, _Floats]:
    """The items of highest inner product for each user, best first; equal scores in the items' order.

    Memory beyond the answer is 16 MiB, whatever the sizes.

    Args:
      users: [num_users, dim] float32.
      items: [num_items, dim] float32.
      count: items a user.

    Returns:
      (rows of `items`, scores), each [num_users, min(count, num_items)].
    """
    count = min(count, len(items))
    places, scores = np.empty((len(users), count), np.int64), np.empty((len(users), count), np.float32)
    if count:
        for start in range(0, len(users), _BLOCK_USERS):
            block = slice(start, start + _BLOCK_USERS)
            places[block], scores[block] = _best_of_block(users[block], items, count)
    return places, scores


def _best_of_block(users: _Floats, items: _Floats, count: int) -> tuple[_Ints, _Floats]:
    first = min(max(_FIRST_ITEMS, 4 * count), len(items))
    best = _Best(users @ items[:first].T, count)
    buffer = np.empty((len(users), _BLOCK_ITEMS), np.float32)
    for start in range(first, len(items), _BLOCK_ITEMS):
        block = items[start : start + _BLOCK_ITEMS]
        best.offer(np.matmul(users, block.T, out=buffer[:, : len(block)]), start)
    return best.settle()


class _Best:
    """The best of the items seen so far, a row for each user, and those that may replace some of them.

    Args:
      scores: [num_users, num_items] of the first items, `count` of them at least.
      count: how many are wanted.
    """

    def __init__(self, scores: _Floats, count: int) -> None:
        self._shape = len(scores), count
        self._users: list[_Ints] = []
        self._places: list[_Ints] = []
        self._scores: list[_Floats] = []
        least = np.partition(scores, scores.shape[1] - count, axis=1)[:, -count, None]
        self._note(scores, np.flatnonzero(scores >= least), 0)
        self.settle()

    def offer(self, scores: _Floats, start: int) -> None:
        """Notes scores [num_users, items] above the least of the best; the first item is number `start`."""
        self._note(scores, np.flatnonzero(scores > self._least), start)
        if sum(map(len, self._users)) > _PENDING * self._shape[0] * self._shape[1]:
            self.settle()

    def _note(self, scores: _Floats, flat: _Ints, start: int) -> None:
        users, items = np.divmod(flat, scores.shape[1])
        self._users.append(users)
        self._places.append(items + start)
        self._scores.append(scores[users, items])

    def settle(self) -> tuple[_Ints, _Floats]:
        """(places, scores), each [num_users, count]: the best of all, in order."""
        users, places = np.concatenate(self._users), np.concatenate(self._places)
        scores = np.concatenate(self._scores)
        order = np.lexsort((places, -scores, users))
        number, count = self._shape
        begins = np.searchsorted(users[order], np.arange(number))
        chosen = order[begins[:, None] + np.arange(count)]
        self._least = scores[chosen[:, -1], None]
        self._users = [np.repeat(np.arange(number), count)]
        self._places, self._scores = [places[chosen].ravel()], [scores[chosen].ravel()]
        return places[chosen], scores[chosen]
