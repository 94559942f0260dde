"""Running out of memory: what it looks like, and working through rows in smaller parts."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TypeVar

import torch

Part = TypeVar("Part")


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory, of the machine or the accelerator, is full."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "not enough memory" in str(error).lower()


def in_halves(
    n: int, size: int, work: Callable[[int, int], Part], *, shrunk: Callable[[int], None] = lambda size: None
) -> list[Part]:
    """`work` on rows ``[a, b)`` of `n`, at most `size` at a time, and half as many whenever memory is full.

    Args:
        n: Rows in all.
        size: Rows at a time.
        work: Computes rows `a` to `b`.
        shrunk: Called with each smaller size, for the caller to remember.

    Returns:
        What `work` returned, in order.

    Raises:
        Exception: What `work` raised, if it was something else or there was but one row.
    """
    done: list[Part] = []
    at = 0
    while at < n:
        taken = min(size, n - at)
        try:
            done.append(work(at, at + taken))
            at += taken
            continue
        except Exception as error:
            if taken == 1 or not out_of_memory(error):
                raise
        # after the handler, so that the traceback no longer holds the tensors that filled the memory
        size = (taken + 1) // 2
        shrunk(size)
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
    return done
