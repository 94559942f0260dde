"""Choosing samples that differ: pure functions of their embeddings."""

from __future__ import annotations

from typing import Any

import numpy as np


def representatives(features: Any, k: int) -> list[int]:
    """`k` rows that represent all: of each k-means cluster the one nearest to the centroid, in order.

    Where fewer than `k` rows differ, equal ones fill up.

    Args:
        features: ``(B, D)``.
        k: At most B.
    """
    from sklearn.cluster import KMeans

    rows = np.asarray(features, dtype=np.float64)
    clusters = min(k, len(np.unique(rows, axis=0)))
    means = KMeans(n_clusters=clusters, random_state=0, n_init=10).fit(rows)
    distance = np.linalg.norm(rows - means.cluster_centers_[means.labels_], axis=1)
    nearest: dict[int, int] = {}
    for i in np.argsort(distance, kind="stable").tolist():
        nearest.setdefault(int(means.labels_[i]), i)
    chosen = list(nearest.values())
    others = [i for i in range(len(rows)) if i not in chosen]
    return sorted(chosen + others[: k - len(chosen)])
