"""The result of a search, and the folder that it is kept in."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from tts_vision.calibration import PreviewTrust, preview_trust
from tts_vision.candidates import Candidate, MediaStore
from tts_vision.config import RunConfig
from tts_vision.errors import ConfigError, PipelineError, StorageError, VerifierError
from tts_vision.files import (
    POPULATION,
    RESULT,
    THUMBNAILS,
    TRACE,
    best_of,
    inside,
    is_file,
    is_folder,
    make_inside,
    read_file,
    remove_parts,
    replace_file,
    storage,
)
from tts_vision.folders import check_unchanged, has_result, is_finished, missing_trace, read_config
from tts_vision.holdout import HeldOutReport, held_out, holdout_report
from tts_vision.journal import Journal
from tts_vision.ledger import Budget, Spent
from tts_vision.media import read_text, shrunk, still, suffix_of, write_media
from tts_vision.metadata import from_seed, model_fingerprint, sample_text, version_of
from tts_vision.reflections import Reflection, reflections
from tts_vision.resampling import ess, normalise
from tts_vision.trace import Ancestor, Event, Family, answers, check_order, lineage, read_trace
from tts_vision.types import Media, Score, Video

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tts_vision.figures import Point

_GIF_SIDE = 480  # of a GIF that pages and chats show
TOP_UP = "top_up"
"""Name of the answer after which a search spends the rest of its budget on independent samples."""


@dataclass(frozen=True)
class TopUp:
    """Independent samples for the part of the budget that the algorithm left.

    Attributes:
        samples: How many.
        nfe: Network evaluations that they took.
        macs: Multiply-accumulates that they took, where they are counted.
    """

    samples: int = 0
    nfe: float = 0.0
    macs: float = 0.0

    def share_of(self, spent: Spent) -> float:
        """Their share of the compute of a search, from 0 to 1."""
        return (self.macs or self.nfe) / spent.compute if spent.compute else 0.0


@dataclass(frozen=True)
class Result:
    """The outcome of a search.

    Attributes:
        winner: The sample with the highest score; None when no sample could be scored.
        population: All finished samples, best first, unscored ones last.
        trace: All events, in order.
        spent: The cost.
        budget: The limits.
        config: The settings of the search.
        folder: Where it is kept, if anywhere.
        budget_spent: Whether the budget ended the search before its algorithm did.
        is_preview: Whether nothing was finished, so that the winner is a preview.
        satisfied: Whether a sample reached the target; None without a target.
        stopped: Whether the search was stopped and can go on; `tts_vision.resume` does.
    """

    winner: Candidate | None
    population: list[Candidate]
    trace: list[Event]
    spent: Spent
    budget: Budget
    config: RunConfig
    folder: Path | None = None
    budget_spent: bool = False
    is_preview: bool = False
    satisfied: bool | None = None
    stopped: bool = False

    @property
    def best(self) -> Candidate:
        """The sample with the highest score.

        Raises:
            VerifierError: If no sample could be scored.
            PipelineError: If all of them are invalid.
        """
        if self.winner is not None:
            return self.winner
        kept = f" in {str(self.folder / POPULATION)!r}" if self.folder else ""
        if self.population and len(self.invalid) == len(self.population):
            raise PipelineError(
                f"A search needs at least one valid sample but all {len(self.population)} of "
                f"{self.config.model!r} are invalid: {self.invalid[0].score.reason}; run the pipeline by "
                f"itself, for example in float32 or with less guidance. What was decoded is kept{kept}."
            )
        reason = next((c.score.reason for c in self.population if c.score.reason), "nothing was scored")
        raise VerifierError(
            f"A search needs at least one scored sample but {self.config.verifier!r} scored none of "
            f"{len(self.population)}: {reason}; mend the verifier or name another one. "
            f"The samples are kept{kept}."
        )

    @property
    def plain(self) -> Candidate | None:
        """The sample of the root seed without any search, if it was among the samples."""
        first = next((c for c in self.population if c.uid == 0), None)
        return first if first is not None and from_seed(_family(self.trace), 0) else None

    @property
    def invalid(self) -> list[Candidate]:
        """Samples that no verifier was asked about: broken, flagged by a safety checker, or not decoded."""
        return [candidate for candidate in self.population if candidate.score.is_invalid]

    @property
    def warnings(self) -> list[str]:
        """Messages of the algorithm, and about lost files, that the user should know."""
        told = []
        for event in self.trace:
            if event.kind == "recovered":
                told.append(event.message)
            elif event.kind == "answer" and event.what == "warning":
                told.append(str(event.value))
        return told

    @property
    def weights(self) -> dict[int, float]:
        """The weights by which particles follow the law that the algorithm samples, by uid; they sum to 1.

        Empty for algorithms that sample none; `fk_steering` and `das` do.
        """
        uids, value = self._weighing
        return dict(zip(uids, normalise(value["log_weights"]).tolist())) if uids else {}

    @property
    def ess(self) -> float:
        """Effective sample size of `weights`; NaN without any."""
        return ess(list(self.weights.values())) if self.weights else math.nan

    @property
    def log_z(self) -> float:
        """Estimate of the log of the law's normalising constant, relative to the model's; NaN without any."""
        return float(self._weighing[1].get("log_z", math.nan))

    def sample(self, k: int = 1, *, seed: int = 0) -> list[Candidate]:
        """`k` independent draws from the law that the algorithm samples, by `weights`.

        Raises:
            ConfigError: If the algorithm samples no law.
        """
        if not self.weights:
            raise ConfigError(
                f"Samples are drawn by the weights of an algorithm but {self.config.algorithm!r} gives none; "
                "use fk_steering (potential='diff') or das, or take `population`."
            )
        by_uid = {candidate.uid: candidate for candidate in self.population}
        uids, weights = zip(*self.weights.items())
        drawn = np.random.default_rng(seed).choice(len(uids), size=k, p=np.array(weights))
        return [by_uid[uids[i]] for i in drawn]

    @property
    def _weighing(self) -> tuple[tuple[int, ...], dict[str, Any]]:
        found = list(answers(self.trace, "weights"))
        return (found[-1].uids, found[-1].value) if found else ((), {})

    @property
    def topped_up(self) -> TopUp:
        """The independent samples that the rest of the budget went to."""
        start = next(answers(self.trace, TOP_UP), None)
        if start is None:
            return TopUp()
        later = [event for event in answers(self.trace, "score") if event.op > start.op]
        spent = [event.spent for event in self.trace if event.kind == "computed" and event.op > start.op]
        nfe, macs = (max((getattr(s, u) for s in spent), default=0.0) for u in ("nfe", "macs"))
        return TopUp(
            samples=sum(len(event.uids) for event in later),
            nfe=max(0.0, nfe - start.spent.nfe),
            macs=max(0.0, macs - start.spent.macs),
        )

    def lineage(self, uid: int | None = None) -> list[Ancestor]:
        """How a particle, by default the best, came to be: from its seed on.

        Raises:
            ConfigError: If there is no such particle.
        """
        uid = self.best.uid if uid is None else uid
        try:
            return lineage(self.trace, uid)
        except KeyError:
            known = max((u for event in self.trace for u in event.uids), default=-1)
            raise ConfigError(
                f"A particle must be one of 0 to {known} but got {uid}; see 'population'."
            ) from None

    def curve(self) -> list[Point]:
        """How the best score grew, by the scores as they stand at the end."""
        from tts_vision.figures import best_so_far

        return best_so_far(self.trace, self._final)

    @property
    def _final(self) -> dict[int, float]:
        """The scores of finished samples as they stand at the end."""
        return {c.uid: c.score.value for c in self.population}

    @property
    def holdout(self) -> HeldOutReport | None:
        """The held-out verifier's report of the outcome; None without one."""
        return holdout_report(self.trace, self.curve())

    @property
    def preview_trust(self) -> list[PreviewTrust]:
        """How previews ranked their finished samples, by step; empty if none was scored."""
        return preview_trust(self.trace, self._final)

    @property
    def reflections(self) -> list[Reflection]:
        """The finished samples that were judged, the reasons, and what was begun from them, in order."""
        return reflections(self.trace)

    def plot(self) -> Figure:
        """The best score so far, against network evaluations and against seconds; the holdout's beside it."""
        from tts_vision.figures import known_at, scaling

        return scaling(
            self.curve(),
            known=known_at(self.trace),
            verifier=self.config.verifier,
            held_out=held_out(self.trace),
            title=self.config.prompt,
            holdout=self.config.holdout_verifier,
            unit=self.spent.compute_unit,
        )

    def __repr__(self) -> str:
        if self.winner is None:
            return f"Result({self.config.prompt!r}: none of {len(self.population)} samples could be scored)"
        words = [f"best score {self.winner.score.value:.4g}"]
        if self.plain is not None and not math.isnan(self.plain.score.value):
            words.append(f"plain {self.plain.score.value:.4g}")
        words += [f"{len(self.population)} samples"]
        words += [f"{len(self.invalid)} of them invalid"] if self.invalid else []
        words += [f"{self.spent.nfe:g} nfe", f"{self.spent.elapsed:.1f} s"]
        ended = "stopped" if self.stopped else "budget spent" if self.is_preview else ""
        words += [f"preview: {ended} before a sample was finished" if self.is_preview else ended] * bool(
            ended
        )
        if self.satisfied is not None:
            words.append("satisfied" if self.satisfied else "not satisfied")
        words += [f"in {str(self.folder)!r}"] if self.folder else []
        return f"Result({self.config.prompt!r}: {', '.join(words)})"

    def _repr_png_(self) -> bytes | None:
        """The best sample, for notebooks."""
        if self.winner is None:
            return None
        buffer = io.BytesIO()
        still(self.winner.load()).save(buffer, "PNG")
        return buffer.getvalue()


def ranked(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Best first, unscored last, equals by uid."""
    return sorted(
        candidates,
        key=lambda c: (
            math.isnan(c.score.value),
            -c.score.value if c.score.value == c.score.value else 0,
            c.uid,
        ),
    )


class SampleMemory(MediaStore):
    """Keeps finished samples in memory, and knows the facts about them."""

    def __init__(self, config: RunConfig, journal: Journal) -> None:
        self.config, self.journal = config, journal
        self._seen = 0
        self._family = Family()

    def text(self, candidate: Candidate) -> dict[str, str]:
        """The facts about a sample, with those of its file."""
        stored = {} if candidate.path is None else read_text(candidate.path)
        step = candidate.step if candidate.preview else None
        return stored | sample_text(
            self.config,
            self.family,
            candidate.uid,
            candidate.score,
            facts={**candidate.facts, **model_fingerprint(self.journal.events)},
            media=candidate.media,
            preview_step=step,
        )

    @property
    def family(self) -> Family:
        """How all particles so far came to be."""
        for event in self.journal.events[self._seen :]:
            self._family.add(event)
        self._seen = len(self.journal.events)
        return self._family


class SampleFolder(SampleMemory):
    """Keeps finished samples as files of ``population/``: images as PNG, clips without loss and as MP4.

    Args:
        config: The settings of the search.
        journal: Its record.
        root: Its folder.
        figures: Whether thumbnails are kept for figures.
    """

    def __init__(self, config: RunConfig, journal: Journal, root: Path, *, figures: bool = True) -> None:
        super().__init__(config, journal)
        self.root, self.figures = root, figures

    def save(
        self,
        uid: int,
        media: Media,
        score: Score,
        *,
        settled: bool = True,
        facts: Mapping[str, Any] = MappingProxyType({}),
    ) -> str | None:
        label = "invalid" if score.is_invalid else "unscored" if math.isnan(score.value) else ""
        value = f"_{label}" if label else f"_{score.value:.4f}" if settled else ""
        name = f"{POPULATION}/{uid:05d}{value}{suffix_of(media)}"
        facts = {**facts, **model_fingerprint(self.journal.events)}
        text = sample_text(self.config, self.family, uid, score, settled=settled, facts=facts, media=media)
        for path in _files(self.root / name):
            replace_file(path, lambda part: write_media(media, part, text), "A sample")
        return name

    def path(self, name: str) -> Path | None:
        return inside(self.root, name)

    def show(self, uid: int, step: int, media: Media) -> None:
        if not self.figures:
            return
        from tts_vision.tree_figure import thumbnail

        path = _thumbnail(self.root, (uid, step))
        with storage(path, "A thumbnail"):
            make_inside(path.parent)
        replace_file(path, lambda part: thumbnail(media).save(part, "PNG"), "A thumbnail")


def _thumbnail(root: Path, node: tuple[int, int]) -> Path:
    """The file of the thumbnail of a particle at a step."""
    uid, step = node
    return root / THUMBNAILS / f"{uid:05d}_{step:05d}.png"


def _files(path: Path) -> list[Path]:
    """The files to write for a sample: that with its exact pixels and, for a clip, one that players know."""
    return [path, path.with_suffix(".mp4")] if path.suffix == ".mkv" else [path]


def write_result(result: Result, *, figures: bool = True) -> None:
    """Writes the report of a finished search into its folder.

    Args:
        result: Of a search with a folder.
        figures: Whether the contact sheet, the scaling plot and the lineage are drawn.
    """
    root = result.folder
    assert root is not None
    for name in (POPULATION, THUMBNAILS):
        if is_folder(root / name):
            remove_parts(root / name)
    if result.winner is not None:
        winner = result.winner
        for path in winner.files:
            copy = partial(Path.write_bytes, data=read_file(path))
            replace_file(root / f"best{path.suffix}", copy, "The best sample")
        if winner.path is None:
            for path in _files(root / f"best{suffix_of(winner.load())}"):
                replace_file(path, winner.save, "The best sample")
        if isinstance(clip := winner.load(), Video):
            small = partial(write_media, shrunk(clip, _GIF_SIDE), text=winner.file_text)
            replace_file(root / "best.gif", small, "The best sample")
    if figures:
        _draw(result, root)
    text = json.dumps(report(result), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    replace_file(root / RESULT, lambda part: part.write_text(text), "The result")


def _draw(result: Result, root: Path) -> None:
    from tts_vision import figures

    if result.population:
        plain = None if result.plain is None else result.plain.uid
        sheet = figures.contact_sheet(result.population, title=result.config.prompt, plain=plain)
        replace_file(root / "contact_sheet.png", lambda part: sheet.save(part, "PNG"), "The contact sheet")
    plot = result.plot()
    replace_file(
        root / "scaling.png",
        lambda part: plot.savefig(part, format="png", dpi=120, metadata={"Software": None}),
        "The plot",
    )
    if result.reflections:
        told = figures.reflection_sheet(result.reflections, result.population, title=result.config.prompt)
        replace_file(root / "reflections.png", lambda part: told.save(part, "PNG"), "The reflections")
    best = None if result.winner is None else result.winner.uid
    if is_folder(root / THUMBNAILS):
        _draw_tree(result, root, best)
    tree = figures.lineage_svg(result.trace, best, {c.uid: c.score.value for c in result.population})
    replace_file(root / "lineage.svg", lambda part: part.write_text(tree), "The lineage")


def _draw_tree(result: Result, root: Path, best: int | None) -> None:
    from tts_vision.tree_figure import Tree, tree_sheet

    def stored(node: tuple[int, int]) -> Image.Image | None:
        path = _thumbnail(root, node)
        return Image.open(io.BytesIO(read_file(path))) if is_file(path) else None

    sheet = tree_sheet(Tree.of(result.trace, best, until=TOP_UP), stored, title=result.config.prompt)
    replace_file(root / "tree.png", lambda part: sheet.save(part, "PNG"), "The tree")


def report(result: Result) -> dict[str, Any]:
    """The result as JSON has it. All that differs between identical runs is under ``timing``."""
    best, plain_sample = result.winner, result.plain
    return {
        "prompt": result.config.prompt,
        "seed": result.config.seed,
        "best": None if best is None else _entry(best, result.folder),
        "is_preview": result.is_preview,
        "invalid_samples": len(result.invalid),
        "plain_score": None if plain_sample is None else _number(plain_sample.score.value),
        "budget_spent": result.budget_spent,
        "satisfied": result.satisfied,
        "stopped": result.stopped,
        "topped_up": asdict(result.topped_up),
        "warnings": result.warnings,
        "weights": {str(uid): weight for uid, weight in result.weights.items()},
        "log_z": _number(result.log_z),
        "ess": _number(result.ess),
        "budget": {key: value for key, value in asdict(result.budget).items() if value is not None},
        "spent": result.spent.model_dump(exclude={"seconds", "elapsed", "peak_memory"}),
        "reflections": [reflection.as_json() for reflection in result.reflections],
        "holdout": None if result.holdout is None else result.holdout.as_json(),
        "preview_trust": [asdict(row) for row in result.preview_trust],
        "lineage": []
        if best is None
        else [a.model_dump(exclude_none=True) for a in result.lineage(best.uid)],
        "population": [_entry(candidate, result.folder) for candidate in result.population],
        "config": result.config.content,
        "config_hash": result.config.hash,
        "versions": {name: version_of(name) for name in ("tts-vision", "torch", "diffusers", "transformers")},
        "timing": result.spent.model_dump(include={"seconds", "elapsed", "peak_memory"}),
    }


def load_result(root: Path | str) -> Result:
    """The result of a finished search, read from its folder.

    Raises:
        ConfigError: If the folder is none, or its search did not finish.
        StorageError: If what it holds cannot be read.
    """
    root = Path(root)
    config = read_config(root)
    if not has_result(root):
        raise ConfigError(
            f"A result needs a finished search but that in {str(root)!r} has no {RESULT}; "
            f"'tts-vision resume {root}' finishes it."
        )
    try:
        found = json.loads(read_file(root / RESULT))
        population = [_candidate(entry, root) for entry in found["population"]]
        best = None if found["best"] is None else _candidate(found["best"], root, best=True)
        events = read_trace(root / TRACE)
        check_order(events, root / TRACE)
        result = Result(
            winner=best,
            population=population,
            trace=events,
            spent=Spent(**found["spent"], **found["timing"]),
            budget=Budget(**found["budget"]),
            config=config,
            folder=root,
            budget_spent=found["budget_spent"],
            is_preview=found["is_preview"],
            satisfied=found.get("satisfied"),
            stopped=not is_finished(root),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StorageError(
            f"{str(root / RESULT)!r} must be what a search wrote but cannot be read ({error!r}); delete "
            f"it, and 'tts-vision resume {root}' writes it again."
        ) from error
    if not events:
        raise StorageError(missing_trace(root, RESULT))
    check_unchanged(root, config, events[0] if events[0].kind == "began" else None)
    return result


def _family(events: Sequence[Event]) -> Family:
    family = Family()
    for event in events:
        family.add(event)
    return family


def _entry(candidate: Candidate, root: Path | None) -> dict[str, Any]:
    path = candidate.path
    return {
        "uid": candidate.uid,
        "score": _number(candidate.score.value),
        "parts": {key: _number(value) for key, value in candidate.score.parts.items()},
        "reason": candidate.score.reason,
        "satisfied": candidate.score.satisfied,
        "step": candidate.step,
        "preview": candidate.preview,
        "file": str(path.relative_to(root)) if path is not None and root is not None else None,
        "row_seed": int(candidate.text["row_seed"]) if "row_seed" in candidate.text else None,
    }


def _candidate(entry: Mapping[str, Any], root: Path, *, best: bool = False) -> Candidate:
    """The sample of an entry; the `best` one of a search that finished none is in the folder itself."""
    parts = {key: _score(value) for key, value in entry["parts"].items()}
    satisfied = entry.get("satisfied")
    score = Score(value=_score(entry["score"]), parts=parts, reason=entry["reason"], satisfied=satisfied)
    path = inside(root, entry["file"]) if entry["file"] else None
    if path is None and best:
        path = best_of(root)
    text = {} if path is None else read_text(path)
    if entry["row_seed"] is not None:
        text["row_seed"] = str(entry["row_seed"])
    uid, step, preview = int(entry["uid"]), int(entry["step"]), bool(entry.get("preview", False))
    return Candidate(uid, score, step, preview, path=path, text=text)


def _number(value: float) -> float | str | None:
    """A score as JSON has it."""
    if math.isnan(value):
        return None
    return value if math.isfinite(value) else str(value)


def _score(value: float | str | None) -> float:
    return math.nan if value is None else float(value)
