"""VBench: text-to-video models by sixteen dimensions, here or by the official package."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from tts_vision.errors import ConfigError
from tts_vision.eval.evaluator import Evaluator, Found, Item, Judged, Sample, Verdict
from tts_vision.eval.vbench import layout
from tts_vision.eval.vbench.by_package import ByPackage
from tts_vision.eval.vbench.dimensions import DIMENSIONS, LEFT_OUT, NATIVE, PROXIES, totals
from tts_vision.eval.vbench.judges import Judges
from tts_vision.eval.vbench.natively import Natively
from tts_vision.eval.vbench.official import Official
from tts_vision.eval.vbench.prompts import LABELLED, Suite, file_stem, items, published, read_suite
from tts_vision.eval.vbench.results import Table, write_results
from tts_vision.eval.vbench.static_filter import DRAWN
from tts_vision.eval.vbench.verdicts import joined
from tts_vision.registry import register
from tts_vision.types import Modality

FLICKER = "temporal_flickering"


@register(
    "evaluator",
    "vbench",
    paper="VBench (Huang et al. 2024, arXiv:2311.17982)",
    notes={"licence": "Apache-2.0 (prompts and rules); of each model for its weights"},
)
class VBench(Evaluator):
    """VBench: how good videos look and how well they fit their prompts, by up to sixteen dimensions.

    Nine dimensions are measured by this toolkit, one of them, imaging quality, if pyiqa is installed. The
    other seven need models that it does not have; with `official_python`, the official package measures all.
    Raw scores are those of the paper; `quality`, `semantic` and `total` are normalised and weighted as on
    its leaderboard, and NaN as long as a dimension is missing. The proxies apply the rules of the object
    dimensions to another detector: they count towards no total and compare with no leaderboard.

    Args:
        data: Prompts: a file like VBench_full_info.json, own prompts as a file with one in each line, or a
            folder of clips that are named by theirs. By default the published 944 prompts.
        dimensions: To measure; by default all that can be. Own prompts have no labels, which the
            dimensions object_class, multiple_objects, color, spatial_relationship, scene and
            appearance_style need.
        strict: Whether the official code's behaviour is kept where it misleads: a missing dimension counts
            as 0, and clips with one or two frames at 8 per second get a dynamic degree.
        static_filter: Whether temporal flickering is measured on the first five clips of a prompt that
            pass VBench's filter of still clips; by the native RAFT, also for the official package.
        official_python: Interpreter that has the package vbench; measures all dimensions but the proxies.
        official_timeout: Seconds that the package may take for one dimension.
        weights: Folders, files or hub ids of models, by name: dino, clip_b32, clip_l14, aesthetic, raft,
            viclip, musiq, detector.
        device: Of the models; by default the accelerator, if there is one.
        dtype: Precision of DINO, CLIP and ViCLIP. VBench runs OpenAI's CLIP in half precision on a GPU.
        batch_size: Frames computed at once.
        run_name: Begins the names of the result files.
    """

    name: ClassVar[str] = "vbench"
    modality: ClassVar[Modality] = "video"
    metric: ClassVar[str] = "total"

    def __init__(
        self,
        *,
        data: str | None = None,
        dimensions: list[str] | None = None,
        strict: bool = False,
        static_filter: bool = True,
        official_python: str | None = None,
        official_timeout: float = 86400.0,
        weights: dict[str, str] | None = None,
        device: str | None = None,
        dtype: str = "float32",
        batch_size: int = 8,
        run_name: str = "vbench",
    ) -> None:
        self.data, self.strict, self.static_filter = data, strict, static_filter
        if not run_name or run_name != file_stem(run_name):
            raise ConfigError(
                f"run_name must be the beginning of a file name but got {run_name!r}; change it."
            )
        self.run_name = run_name
        is_official = official_python is not None
        custom = data is not None and self._suite.is_custom
        self.dimensions = _chosen(dimensions, official=is_official, custom=custom)
        self._judges = Judges(
            weights or {},
            device=device,
            dtype=dtype,
            batch_size=batch_size,
            strict=strict,
            static_filter=static_filter,
        )
        ours = [name for name in self.dimensions if not is_official or name in PROXIES]
        self._natively = Natively(self._judges, ours)
        self._package: ByPackage | None = None
        if official_python is not None:
            where = device or ("cuda" if torch.cuda.is_available() else "cpu")
            official = Official(official_python, device=where, timeout=official_timeout)
            theirs = [name for name in self.dimensions if name not in PROXIES]
            raft = self._judges.raft if static_filter else None
            self._package = ByPackage(official, self._suite, theirs, raft)
        self._table: Table | None = None  # of the arm that is resampled

    @property
    def together(self) -> bool:  # type: ignore[override]
        """True for the official package, whose models load anew for each dimension and call."""
        return self._package is not None

    @property
    def samples_per_item(self) -> int:  # type: ignore[override]
        """Five; 25 where only temporal flickering is measured, for its filter to choose from."""
        return DRAWN if self.static_filter and self.dimensions == (FLICKER,) else 5

    @cached_property
    def _suite(self) -> Suite:
        return published() if self.data is None else read_suite(self.data)

    @property
    def notes(self) -> list[str]:
        found = []
        missing = [name for name in DIMENSIONS if name not in self.dimensions]
        if missing and self.strict:
            found.append(f"Missing dimensions count as 0 (strict): {', '.join(missing)}.")
        elif missing:
            found.append(
                f"No total is given, because these dimensions are not measured: {', '.join(missing)}."
            )
        if self._package is None:
            found.append(
                "Dimensions are measured by this toolkit's implementation, not by the official package; RAFT "
                "has torchvision's weights C_T_V1 in place of raft-things."
            )
        if any(name in PROXIES for name in self.dimensions):
            found.append("Proxies use another detector than VBench and compare with no leaderboard.")
        if FLICKER in self.dimensions and not self.static_filter:
            found.append(
                "Temporal flickering is measured without the static filter, so still models gain less."
            )
        elif FLICKER in self.dimensions and self.samples_per_item != DRAWN:
            found.append(
                f"VBench draws {DRAWN} samples of a prompt for temporal flickering and keeps five still "
                f"ones; vbench:dimensions={FLICKER} does so."
            )
        if self._suite.is_custom:
            found.append("The prompts are not VBench's, so no score compares with its leaderboard.")
        return found

    @property
    def judge_name(self) -> str:
        where = "official package" if self._package is not None else "native"
        models = self._judges.models(self._natively.dimensions)
        facts = [f"{name}={self._judges.weights[name]}" for name in models]
        return (
            f"vbench, {where}: {', '.join(self.dimensions)}; strict={self.strict}, "
            f"static_filter={self.static_filter}, {self._judges.dtype}; {', '.join(facts)}"
        )

    def items(self) -> list[Item]:
        bases = list(dict.fromkeys(PROXIES.get(name, name) for name in self.dimensions))
        found = items(self._suite, bases)
        if not found:
            raise ConfigError(
                f"The prompts of vbench must have one of {', '.join(self.dimensions)} but none in "
                f"{self._suite.name!r} has; choose other dimensions."
            )
        return found

    def samples_of(self, item: Item) -> int:
        """How many samples of a prompt the published protocol asks for."""
        return DRAWN if self.static_filter and FLICKER in item.tags else 5

    def place(self, item: Item, index: int) -> str:
        return f"{file_stem(item.prompt.text)}-{index}"

    def read_layout(self, folder: Path) -> Found:
        if not folder.is_dir():
            raise ConfigError(f"A folder of clips must exist but {str(folder)!r} does not; check the path.")
        others = {file_stem(entry.prompt) for entry in self._suite.entries}
        wanted = (lambda item: None) if self._suite.is_custom else self.samples_of
        found = layout.read_folder(folder, self.items(), others, wanted)
        if not found.samples:
            reason = next((line for line in found.complaints if "cannot be read" in line), "none is there")
            raise ConfigError(
                f"A folder of vbench holds clips such as {self.place(self.items()[0], 0)}.mp4 but of "
                f"{str(folder)!r} none can be judged ({reason}); check the folder."
            )
        return found

    def judge(self, samples: Sequence[Sample]) -> list[Verdict]:
        found = [self._natively.verdict(sample) for sample in samples]
        if self._package is None:
            return found
        theirs = self._package.verdicts(samples)
        return [joined(mine, other) for mine, other in zip(found, theirs, strict=True)]

    def summarise(self, judged: Sequence[Judged], weights: np.ndarray) -> dict[str, float]:
        """Total, quality and semantic score, and the raw score of each dimension, all in parts of 1."""
        if self._table is None or self._table.judged is not judged:
            self._table = self._table_of(judged)
        means = {name: self._table.mean(name, weights) for name in self.dimensions}
        raw = {name: value for name, value in means.items() if name in DIMENSIONS}
        sums = totals(raw, strict=self.strict)
        return {"total": sums.total, "quality": sums.quality, "semantic": sums.semantic, **means}

    def write_results(self, folder: Path, judged: Sequence[Judged]) -> list[Path]:
        return write_results(folder, self.run_name, self._suite, self._table_of(judged))

    def _table_of(self, judged: Sequence[Judged]) -> Table:
        return Table(judged, self.dimensions, filtered=self.static_filter)

    def self_test(self) -> str:
        """Checks that weights load, and that a still clip is as consistent and steady as can be."""
        told = []
        if self._package is not None:
            self._package.check()
            told.append("the official package can be imported")
        if tested := self._natively.tested():
            told.append(f"a still clip scores 1 and a flashing one less by {', '.join(tested)}")
        return "; ".join(told)


def _chosen(dimensions: list[str] | None, *, official: bool, custom: bool) -> tuple[str, ...]:
    """The dimensions to measure.

    Raises:
        ConfigError: If one is unknown, or cannot be measured.
    """
    if dimensions is None:
        everywhere = [name for name in DIMENSIONS if not (custom and name in LABELLED)]
        if official:
            return tuple(everywhere)
        has_pyiqa = importlib.util.find_spec("pyiqa") is not None
        return tuple(n for n in everywhere if n in NATIVE and (has_pyiqa or n != "imaging_quality"))
    if not dimensions:
        raise ConfigError(
            f"dimensions must name at least one of {', '.join(DIMENSIONS)} but is empty; name one."
        )
    for name in dimensions:
        if name not in DIMENSIONS and name not in PROXIES:
            known = ", ".join([*DIMENSIONS, *PROXIES])
            raise ConfigError(f"dimensions must be of {known} but got {name!r}; change it.")
        if name in LEFT_OUT and not official:
            raise ConfigError(
                f"Dimension {name!r} must be left to the official package because it {LEFT_OUT[name]}; set "
                "official_python, or leave it out."
            )
        if custom and PROXIES.get(name, name) in LABELLED:
            raise ConfigError(
                f"Dimension {name!r} must have a label for each prompt, which own prompts lack; give data "
                "like VBench_full_info.json, or leave it out."
            )
    return tuple(dict.fromkeys(dimensions))
