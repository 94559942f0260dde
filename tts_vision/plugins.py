"""The public interface for plugin authors: base classes, registration and the types that plugins exchange.

Import from this module; other modules of ``tts_vision`` may move.

Verifiers:
    - `Verifier`: the base class of reward models, judges and checkers. Define `score`.
    - `Asked`, `ALONE`: the circumstances of a call of `score` (charging further calls, the best sample so
      far, the step of previews, earlier scores), and those of a call outside any search.
    - `BatchedVerifier`: a verifier whose model loads on first use and scores in batches that fit into memory.
      Define `_load` and `_score_batch`.
    - `LazyModel`: loading on first use with ``device``, ``dtype`` and ``batch_size`` alone; also for feature
      extractors.
    - `UnusableSample`: raised by a `BatchedVerifier` for a sample that it cannot score.
    - `Score`, `Prompt`, `Media`, `Video`: the values that a verifier takes and returns.

Feature extractors:
    - `FeatureExtractor`: the protocol of objects that embed samples, for clustering and diversity.

Correctors:
    - `Corrector`: the base class of correctors with parameters. Define `correct`.
    - `Rejected`: a sample that was rejected, and why.
    - `CannotCorrect`: raised by a corrector for a sample that it cannot correct.

Generators:
    - `Sampler`: the base class of generators that are driven step by step.
    - `State`, `Rows`: a batch of particles, and recomputable objects that belong to each.
    - `Condition`: the text, images, embeddings and arguments that a particle is generated for.
    - `Cost`: the cost of an operation, which a sampler reports before it is spent.
    - `Invalid`: decoded in the place of a sample that must not be judged.

Moves:
    - `Move`: the base class of ways to make child particles from their parents.
    - `register_move`: makes a move known to replays by its name.

Registration:
    - `register`: gives an algorithm, verifier, model or feature extractor a name.
"""

from __future__ import annotations

from tts_vision.condition import Condition
from tts_vision.correcting import CannotCorrect, Corrector, Rejected
from tts_vision.model_verifier import BatchedVerifier, LazyModel, UnusableSample
from tts_vision.moves import Move, register_move
from tts_vision.registry import register
from tts_vision.sampler import Sampler
from tts_vision.types import Cost, FeatureExtractor, Invalid, Media, Prompt, Rows, Score, State, Video
from tts_vision.verifier import ALONE, Asked, Verifier

__all__ = [
    "ALONE",
    "Asked",
    "BatchedVerifier",
    "CannotCorrect",
    "Condition",
    "Corrector",
    "Cost",
    "FeatureExtractor",
    "Invalid",
    "LazyModel",
    "Media",
    "Move",
    "Prompt",
    "Rejected",
    "Rows",
    "Sampler",
    "Score",
    "State",
    "UnusableSample",
    "Verifier",
    "Video",
    "register",
    "register_move",
]
