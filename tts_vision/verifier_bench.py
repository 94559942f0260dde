"""Speed and memory of verifiers, for ``tts-vision verifier-bench``."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tts_vision.config import Spec
from tts_vision.errors import ConfigError, TTSVisionError, VerifierError
from tts_vision.ledger import peak_memory
from tts_vision.model_verifier import LazyModel
from tts_vision.resolve import find_verifier, load_verifier
from tts_vision.scoring import safe_scores
from tts_vision.types import Media, Prompt, Video

PROMPT = Prompt("two red circles left of a blue star")


@dataclass(frozen=True)
class Measurement:
    """Time and memory for scoring random samples, in a process of its own.

    Attributes:
        verifier: As it was written, with its batch size.
        kind: Modality of the samples, "image" or "video".
        samples: Number of timed samples.
        unscored: Number of these that it could not score.
        loading: Seconds until it was ready, imports included.
        seconds: Seconds for the samples, after a first batch that is not counted.
        peak_memory: Peak bytes: allocated on the accelerator, or of the whole process without one.
        own_memory: Increase of that peak by loading and scoring.
    """

    verifier: str
    kind: str
    samples: int
    unscored: int
    loading: float
    seconds: float
    peak_memory: int
    own_memory: int

    @property
    def per_second(self) -> float:
        """Samples per second."""
        return self.samples / self.seconds if self.seconds else math.inf


def bench(
    verifiers: Sequence[str],
    *,
    images: int = 32,
    size: int = 512,
    frames: int = 16,
    batch_sizes: Sequence[int] = (),
) -> Iterator[Measurement | VerifierError]:
    """Measures verifiers one after the other, each in a process of its own.

    Args:
        verifiers: As `Spec` reads them.
        images: Samples that are timed.
        size: Their height and width.
        frames: Frames of a clip, for verifiers that score clips alone.
        batch_sizes: Values of the parameter ``batch_size`` to try in turn; its default otherwise.

    Yields:
        For each verifier and batch size its measurement, or the error.

    Raises:
        ConfigError: If a number is not positive or a verifier or its parameter is unknown; at once.
    """
    for name, value in {"images": images, "size": size, "frames": frames}.items():
        if value < 1:
            raise ConfigError(f"{name} must be at least 1 but got {value}; raise it.")
    if not verifiers:
        raise ConfigError("A benchmark needs at least one verifier but got none; name one.")
    specs = [_sized(Spec.parse(text), batch) for text in verifiers for batch in batch_sizes or (None,)]
    for spec in specs:
        find_verifier(str(spec))
    return (_in_own_process(str(spec), images, size, frames) for spec in specs)


def measure(verifier: str, *, images: int, size: int, frames: int) -> Measurement:
    """Measures one verifier in this process; memory that was in use before counts as peak, not as its own.

    Raises:
        VerifierError: If it cannot be loaded, or breaks its contract.
    """
    before, since = _peak(), time.perf_counter()
    made = load_verifier(find_verifier(verifier))
    made.load()
    loading = time.perf_counter() - since
    kind = "image" if "image" in made.accepts else "video"
    first = min(images, made.batch_size) if isinstance(made, LazyModel) else 1
    # never the same samples twice, because verifiers may remember them
    media = [_random(size, frames if kind == "video" else None) for _ in range(first + images)]
    safe_scores(made, media[:first], [PROMPT] * first)
    since = time.perf_counter()
    scores = safe_scores(made, media[first:], [PROMPT] * images)
    seconds = time.perf_counter() - since
    peak = _peak()
    unscored = sum(math.isnan(score.value) for score in scores)
    return Measurement(verifier, kind, images, unscored, loading, seconds, peak, peak - before)


def _in_own_process(verifier: str, images: int, size: int, frames: int) -> Measurement | VerifierError:
    """The peak of a process never falls, so each verifier has one."""
    task = json.dumps({"verifier": verifier, "images": images, "size": size, "frames": frames})
    command = [sys.executable, "-m", "tts_vision.verifier_bench", task]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode == 0:
        return Measurement(**json.loads(done.stdout.splitlines()[-1]))
    said = done.stderr.strip().splitlines() or ["it said nothing"]
    why = (
        f"its process was killed by signal {-done.returncode}, perhaps for want of memory; lower batch_size"
        if done.returncode < 0
        else said[-1].removeprefix("Error: ")
    )
    return VerifierError(f"Verifier {verifier!r} could not be measured: {why}")


def _sized(spec: Spec, batch: int | None) -> Spec:
    if batch is None:
        return spec
    return Spec(spec.name, {**spec.params, "batch_size": str(batch)}, spec.members)


def _random(size: int, frames: int | None) -> Media:
    rng = np.random.default_rng()
    if frames is None:
        return Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8))
    return Video(torch.from_numpy(rng.integers(0, 256, (frames, size, size, 3), dtype=np.uint8)))


def _peak() -> int:
    """Peak bytes of this process alone; other reports of the system may include its parent."""
    if torch.cuda.is_available():
        torch.cuda.init()
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s*(\d+) kB", status.read_text()) if status.exists() else None
    return int(found[1]) * 1024 if found else peak_memory()


def _main() -> None:
    """The process of one measurement: a task as JSON in, a measurement as JSON out."""
    try:
        print(json.dumps(asdict(measure(**json.loads(sys.argv[1])))))
    except (TTSVisionError, ImportError) as error:
        sys.exit(f"Error: {' '.join(str(error).split())}")


if __name__ == "__main__":
    _main()
