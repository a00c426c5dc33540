"""Which positions of each source have a fate in a shard: a floor, and the few beyond it.

Everything up to a source's floor has a fate in some shard (floors come from the snapshots of the account),
so a shard keeps only what lies above: 8 bytes a record, and nothing of a source that is done.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt
import pyarrow as pa

__all__ = ["FatedPositions", "by_source"]

_Positions = npt.NDArray[np.int64]


def by_source(sources: pa.ChunkedArray, positions: _Positions) -> Iterator[tuple[str, npt.NDArray[np.intp]]]:
    """Each source with the indices of its rows, by ascending position."""
    encoded = sources.combine_chunks()
    if not pa.types.is_dictionary(encoded.type):
        encoded = encoded.dictionary_encode()
    codes = encoded.indices.to_numpy()
    order = np.lexsort((positions, codes))
    ordered = codes[order]
    begins = np.flatnonzero(np.diff(ordered, prepend=-1))
    names = encoded.dictionary.take(pa.array(ordered[begins])).to_pylist()
    return zip(names, np.split(order, begins[1:]), strict=True)


class FatedPositions:
    """Positions by source; asked and filled by whole batches."""

    def __init__(self) -> None:
        self._floors: Mapping[str, int] = {}
        self._runs: dict[str, list[_Positions]] = {}
        self._rows = 0

    def __len__(self) -> int:
        """How many positions beyond the floors are held."""
        return self._rows

    def known(self, sources: pa.ChunkedArray, positions: _Positions) -> npt.NDArray[np.bool_]:
        """Which rows have a fate already, or had one earlier in this very batch."""
        known = np.zeros(len(positions), bool)
        for source, index in by_source(sources, positions) if len(positions) else ():
            ascending = positions[index]
            seen = np.diff(ascending, prepend=ascending[0] - 1) == 0
            if source in self._floors:
                seen |= ascending <= self._floors[source]
            for run in self._runs.get(source, ()):
                at = np.minimum(np.searchsorted(run, ascending), len(run) - 1)
                seen |= run[at] == ascending
            known[index] = seen
        return known

    def add(self, sources: pa.ChunkedArray, positions: _Positions) -> None:
        """Adds the rows of an entry."""
        for source, index in by_source(sources, positions) if len(positions) else ():
            self._rows += len(index)
            runs = self._runs.setdefault(source, [])
            runs.append(positions[index])
            while len(runs) > 1 and len(runs[-2]) < 2 * len(runs[-1]):
                last = runs.pop()
                runs[-1] = np.sort(np.concatenate([runs[-1], last]), kind="stable")

    def raise_floors(self, floors: Mapping[str, int]) -> None:
        """Forgets the positions that lie at or below the floors of their sources; floors only rise."""
        self._floors = floors
        kept: dict[str, list[_Positions]] = {}
        for source, runs in self._runs.items():
            floor = floors.get(source)
            above = runs if floor is None else [run[np.searchsorted(run, floor, "right") :] for run in runs]
            if any(len(run) for run in above):
                # Copied, or a small rest would keep the whole array alive.
                kept[source] = [np.sort(np.concatenate(above))]
        self._runs = kept
        self._rows = sum(len(run) for runs in kept.values() for run in runs)

    def to_table(self) -> pa.Table:
        """Columns source and position."""
        pieces = [(source, run) for source, runs in self._runs.items() for run in runs]
        names = pa.array([source for source, _ in pieces], pa.string())
        rows = np.repeat(np.arange(len(pieces), dtype=np.int32), [len(run) for _, run in pieces])
        positions = np.concatenate([run for _, run in pieces]) if pieces else np.empty(0, np.int64)
        return pa.table(
            {"source": pa.DictionaryArray.from_arrays(pa.array(rows), names), "position": positions}
        )

    def fill(self, table: pa.Table) -> None:
        """Adds what `to_table` returned."""
        self.add(table["source"].unify_dictionaries(), table["position"].to_numpy())
