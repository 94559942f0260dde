"""Bilinear resizing of images by OpenCV's arithmetic, which detectors of mmdet are evaluated with."""

from __future__ import annotations

import numpy as np

ONE = 2048  # OpenCV's weights of pixels are whole numbers of 2048ths


def opencv_bilinear(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """An image resized as ``cv2.resize`` does by default, to the same values.

    Weights are rounded to 1/2048 and sums are cut off on the way, so that about an eighth of all values
    differs by one from those by floats. There is no filter against aliasing.

    Args:
        image: ``(H, W, C)`` uint8.
        height: Of the result.
        width: Of the result.

    Returns:
        ``(height, width, C)`` uint8.
    """
    if image.shape[:2] == (height, width):
        return image
    # beyond an edge, columns lose their weight; rows keep it, but are those of the edge
    left, right, of_left, of_right = _neighbours(image.shape[1], width, is_cut=True)
    upper, lower, of_upper, of_lower = _neighbours(image.shape[0], height, is_cut=False)
    rows = image[:, left] * of_left[:, None] + image[:, right] * of_right[:, None]
    rows >>= 4
    found = (rows[upper] * of_upper[:, None, None]) >> 16
    found += (rows[lower] * of_lower[:, None, None]) >> 16
    return ((found + 2) >> 2).astype(np.uint8)


def _neighbours(
    given: int, wanted: int, *, is_cut: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The two neighbours of each place of a resized line, ``(wanted,)``, and their weights in 2048ths."""
    at = ((np.arange(wanted) + 0.5) * (given / wanted) - 0.5).astype(np.float32)
    first = np.floor(at).astype(np.int64)
    share = at - np.floor(at)
    if is_cut:
        share = np.where((first < 0) | (first >= given - 1), np.float32(0), share)
    weights = [np.rint(part * np.float32(ONE)).astype(np.int32) for part in (1 - share, share)]
    return first.clip(0, given - 1), (first + 1).clip(0, given - 1), weights[0], weights[1]
