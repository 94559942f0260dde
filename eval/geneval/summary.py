"""GenEval's figures from verdicts, vectorised: they are computed again for every draw of a bootstrap."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

OVERALL, IMAGES, PROMPTS = "overall", "image accuracy", "prompt accuracy"


def summary(
    correct: np.ndarray,
    tasks: Sequence[str],
    prompts: Sequence[str],
    weights: np.ndarray,
    *,
    expected: Sequence[str],
) -> dict[str, float]:
    """Overall score, accuracy of images, of prompts and of each task (Ghosh et al. 2023).

    The overall score is the unweighted mean over the tasks. A prompt counts as right if one of its images is.

    Args:
        correct: ``(N,)`` 1 or 0 of each image; NaN for one that could not be judged, which counts nowhere.
        tasks: Of each image.
        prompts: Of each image, the id of its prompt.
        weights: ``(N,)`` how often each image counts.
        expected: Tasks of the benchmark; the overall score is NaN while one of them has no image.

    Returns:
        Figures in [0, 1] by label; NaN where there is no image.
    """
    weights = np.where(np.isnan(correct), 0.0, weights)
    right = np.where(np.isnan(correct), 0.0, correct)
    by_task = _means(right, weights, tasks, expected)
    names, of_prompt = np.unique(np.asarray(prompts, dtype=str), return_inverse=True)
    solved, counted = np.zeros(len(names)), np.zeros(len(names))
    np.maximum.at(solved, of_prompt, right * (weights > 0))
    np.maximum.at(counted, of_prompt, weights)
    return {
        OVERALL: float(np.mean(by_task)) if len(by_task) else float("nan"),
        **dict(zip(expected, by_task.tolist())),
        IMAGES: _mean(right, weights),
        PROMPTS: _mean(solved, counted),
    }


def _means(
    values: np.ndarray, weights: np.ndarray, groups: Sequence[str], names: Sequence[str]
) -> np.ndarray:
    """The weighted mean of each group; NaN for one without weight."""
    belongs = np.asarray(groups, dtype=str)[:, None] == np.asarray(names, dtype=str)
    total = weights @ belongs
    return np.divide((values * weights) @ belongs, total, out=np.full(len(names), np.nan), where=total > 0)


def _mean(values: np.ndarray, weights: np.ndarray) -> float:
    return float(values @ weights / weights.sum()) if weights.sum() > 0 else float("nan")
