"""The models in memory: the least recently used one leaves before another one is loaded."""

from __future__ import annotations

import gc
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tts_vision.config import RunConfig
    from tts_vision.resolve import Live
    from tts_vision.verifier import Verifier


class Models:
    """Pipelines and verifiers by what they were loaded as.

    Args:
        keep: Pipelines in memory, and as many verifiers.
        load: Makes a verifier from its spec; by default it is loaded into this process.
    """

    def __init__(self, keep: int = 1, load: Callable[[str], Verifier] | None = None) -> None:
        self._keep = keep
        self._load = load or _verifier
        self._pipes: OrderedDict[str, Any] = OrderedDict()
        self._verifiers: OrderedDict[str, Any] = OrderedDict()

    def live(self, config: RunConfig) -> Live:
        """The pipeline and the verifier of a search, loaded if they are not in memory.

        Raises:
            ConfigError: If one is unknown.
            PipelineError: If the pipeline cannot be loaded.
            VerifierError: If the verifier cannot.
        """
        from tts_vision.resolve import Live

        verifier = self.verifier(config.verifier)  # mistakes in it are told before a model is loaded
        return Live(pipe=self.pipe(config), verifier=verifier)

    def pipe(self, config: RunConfig) -> Any:
        """The pipeline of a search."""
        from tts_vision.resolve import load_model

        key = f"{config.model} {config.model_options.model_dump_json()}"
        return self._get(self._pipes, key, lambda: load_model(config))

    def verifier(self, text: str) -> Any:
        """The verifier of a spec."""
        return self._get(self._verifiers, text, lambda: self._load(text))

    def clear(self) -> None:
        """Frees the memory of all of them."""
        self._pipes.clear()
        self._verifiers.clear()
        free_memory()

    def _get(self, held: OrderedDict[str, Any], key: str, load: Callable[[], Any]) -> Any:
        if key in held:
            held.move_to_end(key)
            return held[key]
        while len(held) >= self._keep:
            held.popitem(last=False)
            free_memory()
        held[key] = load()
        return held[key]


def _verifier(text: str) -> Verifier:
    from tts_vision.resolve import find_verifier, load_verifier

    return load_verifier(find_verifier(text))


def free_memory() -> None:
    """Gives memory of dropped models back."""
    import torch

    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
