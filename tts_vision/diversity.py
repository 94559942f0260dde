"""Choosing samples that differ: pure functions of their embeddings."""

from __future__ import annotations

from typing import Any

import numpy as np

_TIE = 1e-6  # of the largest number of a cluster: what distances may differ by and still be equal


def representatives(features: Any, k: int) -> list[int]:
    """`k` rows that represent all: of each k-means cluster the one nearest to the centroid, in order.

    Of members that are equally near, the first is taken. Where fewer than `k` rows differ, equal ones fill
    up, the first ones first.

    Args:
        features: ``(B, D)``.
        k: At most B.
    """
    from sklearn.cluster import KMeans

    rows = np.asarray(features, dtype=np.float64)
    clusters = min(k, len(np.unique(rows, axis=0)))
    means = KMeans(n_clusters=clusters, random_state=0, n_init=10).fit(rows)
    distance = np.linalg.norm(rows - means.cluster_centers_[means.labels_], axis=1)
    chosen = []
    for label in np.unique(means.labels_):
        members = np.flatnonzero(means.labels_ == label)
        # both members of a pair are as far from their mean: rounding must not decide between them
        nearest = distance[members] <= distance[members].min() + _TIE * np.abs(rows[members]).max()
        chosen.append(int(members[nearest][0]))
    others = [i for i in range(len(rows)) if i not in chosen]
    return sorted(chosen + others[: k - len(chosen)])
