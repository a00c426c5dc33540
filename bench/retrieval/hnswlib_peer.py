"""hnswlib in process, for the bench: builds or loads its index, finds the width that reaches the recall."""

import json
import sys
import time
from pathlib import Path

import hnswlib
import numpy as np

_WIDTHS = (20, 40, 60, 80, 100, 150, 200, 300, 400, 600, 800, 1000)
_CALIBRATION = 200


def main() -> None:
    """`hnswlib_peer.py FOLDER WORK K THREADS SIZE RECALL`: reads `items.npy` and `queries.npy`."""
    folder, work = Path(sys.argv[1]), Path(sys.argv[2])
    k, threads, size, recall = int(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]), float(sys.argv[6])
    items, queries = np.load(folder / "items.npy"), np.load(work / "queries.npy")
    index = _index(folder, items)
    index.set_num_threads(threads)
    width = _calibrated(index, items, queries[:_CALIBRATION], k, recall)
    found, seconds, sizes = [], [], []
    for start in range(0, len(queries), size):
        part = queries[start : start + size]
        began = time.perf_counter()
        labels, _ = index.knn_query(part, k=k)
        seconds.append(time.perf_counter() - began)
        sizes.append(len(part))
        found.append(labels)
    np.save(work / "found.npy", np.concatenate(found).astype(np.int64))
    print(json.dumps({"seconds": seconds, "sizes": sizes, "ef": width}))


def _index(folder: Path, items: np.ndarray) -> "hnswlib.Index":
    index = hnswlib.Index(space="ip", dim=items.shape[1])
    path = folder / "hnswlib.bin"
    if path.exists():
        index.load_index(str(path), max_elements=len(items))
        return index
    index.init_index(max_elements=len(items), ef_construction=200, M=16, random_seed=42)
    index.add_items(items)
    index.save_index(str(path))
    return index


def _calibrated(index: "hnswlib.Index", items: np.ndarray, queries: np.ndarray, k: int, recall: float) -> int:
    """The least width of the search that reaches the recall, set on the index."""
    scores = queries @ items.T
    truth = np.argpartition(-scores, k - 1, axis=1)[:, :k]
    for width in _WIDTHS:
        index.set_ef(max(width, k))
        labels, _ = index.knn_query(queries, k=k)
        hits = [len(set(found) & set(best)) for found, best in zip(labels, truth, strict=True)]
        if np.mean(hits) / k >= recall:
            break
    return width


if __name__ == "__main__":
    main()
