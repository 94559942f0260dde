"""Threads that preprocess images while models compute."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch


@cache
def preprocessing_threads(own: bool = False) -> ThreadPoolExecutor:
    """The threads that preprocess images.

    Args:
        own: Whether the work has threads of its own, as torch's operators have; these count too.
    """
    cores = min(8, os.cpu_count() or 1)
    return ThreadPoolExecutor(max(1, cores // torch.get_num_threads()) if own else cores, "preprocess")


# threads do not survive a fork
os.register_at_fork(after_in_child=preprocessing_threads.cache_clear)
