"""Verifiers on the playground: how well they rank images, and how well they guide in equal time.

``python -m tts_vision.eval.verifiers`` draws independent samples for prompts of every task form and compares
how single verifiers and composed ones rank them with the exact checker's verdict. Then it runs best of n by
each of them for the same number of seconds, prompt by prompt in turn, and lets the exact checker, which no
search saw, judge the winners. It may be interrupted and started again: finished searches are kept.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from scipy.stats import spearmanr

from tts_vision.config import ModelOptions, RunConfig
from tts_vision.errors import ConfigError, VerifierError
from tts_vision.eval.playground import JUDGE, evaluation_prompts
from tts_vision.intervals import Figure, mean_of
from tts_vision.pipelines.playground import world
from tts_vision.resolve import Live, find_verifier, load_model, load_verifier
from tts_vision.results import Result, is_finished, load_result, replace_file
from tts_vision.runner import run
from tts_vision.runs.task import slug
from tts_vision.scoring import safe_scores
from tts_vision.types import Media, Modality, Prompt, Score
from tts_vision.verifier import ALONE, Asked, Verifier
from tts_vision.verifiers.playground import PlaygroundClip

Floats: TypeAlias = NDArray[np.float64]

PLAIN, GRADED, ALL = "plain sample", "playground_oracle", "all"
PATCHES, VIEWS = "tts_vision.eval.verifiers:Patches", "tts_vision.eval.verifiers:ClipViews"
GUIDES = {
    "patches": PATCHES,
    "playground_clip": "playground_clip",
    "clip_views": VIEWS,
    "ensemble(playground_clip, patches)": f"ensemble(playground_clip, {PATCHES})",
    "cascade(patches, clip_views)": f"cascade({PATCHES}, {VIEWS})",
}


class Patches(Verifier):
    """Cheap, and blind to shapes and positions: counts patches, and checks for the colours of the prompt.

    The share of the prompt's colours that are there, less one for each patch too few or too many.
    """

    name = "patches"
    accepts: frozenset[Modality] = frozenset({"image"})

    def score(self, media: Sequence[Media], prompts: Sequence[Prompt], asked: Asked = ALONE) -> list[Score]:
        """One score per image, at most 1."""
        return [self._score(item, prompt) for item, prompt in zip(media, prompts, strict=True)]

    def _score(self, item: Media, prompt: Prompt) -> Score:
        if not isinstance(item, Image.Image):
            return Score.unscored("patches are counted in images")
        pixels = np.asarray(item.convert("RGB")).astype(np.int16)
        off = np.abs(pixels - _ground(pixels)).max(-1) > 28
        sizes = np.bincount(ndimage.label(off)[0].ravel())[1:]
        asked = (prompt.metadata if "include" in prompt.metadata else world.parse_prompt(prompt.text))[
            "include"
        ]
        wrong = abs(int((sizes >= 20).sum()) - sum(entry["count"] for entry in asked))
        palette = np.array(list(world.COLOURS.values()))
        nearest = np.abs(pixels[off][:, None] - palette).sum(-1).argmin(1)
        share = np.bincount(nearest, minlength=len(palette)) / max(len(nearest), 1)
        colours = {entry["color"] for entry in asked if "color" in entry}
        seen = [share[list(world.COLOURS).index(colour)] > 0.08 for colour in colours]
        return Score(value=float(np.mean(seen) if seen else 1.0) - wrong)


class ClipViews(Verifier):
    """Expensive: the mean of the playground's CLIP over shifted copies of an image.

    Args:
        views: Copies, the image itself among them.
    """

    name = "clip_views"
    accepts: frozenset[Modality] = frozenset({"image"})

    def __init__(self, *, views: int = 8) -> None:
        if views < 1:
            raise ConfigError(f"views must be at least 1 but got {views}; raise it.")
        self.clip = PlaygroundClip()
        rng = np.random.default_rng(0)
        self.shifts = [(0, 0), *map(tuple, rng.integers(-4, 5, (views - 1, 2)).tolist())]

    def load(self) -> None:
        """Loads the model."""
        self.clip.load()

    def score(self, media: Sequence[Media], prompts: Sequence[Prompt], asked: Asked = ALONE) -> list[Score]:
        """One mean cosine per image, in [-1, 1]."""
        views = [shifted(item, dx, dy) for item in media for dx, dy in self.shifts]
        theirs = [prompt for prompt in prompts for _ in self.shifts]
        values = np.array([score.value for score in self.clip.score(views, theirs)])
        return [Score(value=float(row.mean())) for row in values.reshape(len(media), len(self.shifts))]


def shifted(item: Media, dx: int, dy: int) -> Media:
    """An image shifted by some pixels; the new pixels repeat its edge."""
    if not isinstance(item, Image.Image):
        return item
    pixels = np.asarray(item.convert("RGB"))
    height, width = pixels.shape[:2]
    x, y = np.arange(width) - dx, np.arange(height) - dy
    return Image.fromarray(pixels[y.clip(0, height - 1)][:, x.clip(0, width - 1)])


def _ground(pixels: NDArray[Any]) -> NDArray[Any]:
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    return np.median(border, axis=0)


@dataclass(frozen=True)
class Agreement:
    """How one verifier ranks independent samples, compared with the exact checker.

    Attributes:
        verifier: Its name.
        task: The task form, or "all".
        within: Mean over prompts of Spearman's correlation among the samples of one prompt, the ranking
            that a search needs; prompts whose samples are all equally right are left out.
        low: Lower end of its 95 % interval over prompts.
        high: Upper end.
        prompts: Prompts that it could be computed for.
        overall: Spearman's correlation over all samples of all prompts.
        samples: How many those are.
        milliseconds: Time per image.
    """

    verifier: str
    task: str
    within: float
    low: float
    high: float
    prompts: int
    overall: float
    samples: int
    milliseconds: float


@dataclass(frozen=True)
class Guided:
    """The winners of searches by one verifier, judged by the exact checker.

    Attributes:
        guide: Its name.
        searches: How many.
        right: Share of right winners; a search that finished nothing in time has none.
        low: Lower end of its 95 % interval over prompts.
        high: Upper end.
        samples: Mean number of finished samples.
        seconds: Mean time of a search.
        verifying: Mean share of that time that verifiers took.
        calls: Mean calls of each verifier.
    """

    guide: str
    searches: int
    right: float
    low: float
    high: float
    samples: float
    seconds: float
    verifying: float
    calls: dict[str, float]


class Benchmark:
    """The searches of the benchmark, kept in a folder.

    Args:
        output: The folder.
        dtype: Precision of the model.
    """

    def __init__(self, output: Path, dtype: str | None = None) -> None:
        self.output = output
        self.options = ModelOptions(dtype=dtype)  # type: ignore[arg-type]
        self.guides = {name: self._loaded(spec) for name, spec in GUIDES.items()}
        self.judge = self._loaded(JUDGE)
        self.graded = self._loaded(GRADED)
        self._pipe: Any = None

    @staticmethod
    def _loaded(spec: str) -> Verifier:
        verifier = load_verifier(find_verifier(spec))
        verifier.load()
        return verifier

    def search(self, folder: Path, prompt: Prompt, guide: str, budget: str, seed: int) -> Result:
        """Best of n by a guide; read if it is there."""
        if is_finished(folder):
            return load_result(folder)
        config = RunConfig(
            prompt=prompt.text,
            prompt_metadata=dict(prompt.metadata),
            model_options=self.options,
            verifier=GUIDES[guide],
            budget=budget,
            seed=seed,
        )
        if self._pipe is None:
            self._pipe = load_model(config)
            # one-time costs of the first search in a process are not measured
            run(config, Live(pipe=self._pipe, verifier=self.guides[guide]))
        live = Live(pipe=self._pipe, verifier=self.guides[guide])
        try:
            return run(config, live, output=folder, resume=True, figures=False)
        except VerifierError:
            if not is_finished(folder):
                raise
            return load_result(folder)  # no sample was finished in time

    def agreement(self, prompts: Sequence[Prompt], samples: int) -> tuple[list[Agreement], list[float]]:
        """How each verifier ranks independent samples; and whether the first one of each prompt is right."""
        truth, plain = [], []
        said: dict[str, list[Floats]] = {name: [] for name in self.guides}
        spent = dict.fromkeys(self.guides, 0.0)
        for done, prompt in enumerate(prompts, start=1):
            folder = self.output / "samples" / slug(prompt.text)
            result = self.search(folder, prompt, "playground_clip", f"{samples}x", seed=1000)
            pool = sorted(result.population, key=lambda candidate: candidate.uid)
            media = [candidate.load() for candidate in pool]
            truth.append(_scores(self.graded, media, prompt))
            plain.append(float(_scores(self.judge, media[:1], prompt)[0]))
            for name, verifier in self.guides.items():
                since = time.perf_counter()
                said[name].append(_scores(verifier, media, prompt))
                spent[name] += time.perf_counter() - since
            if done % 20 == 0 or done == len(prompts):
                print(f"samples of {done} of {len(prompts)} prompts", flush=True)
        tasks = [str(prompt.metadata["tag"]) for prompt in prompts]
        count = sum(map(len, truth))
        rows = [
            agreement(name, task, truth, values, tasks, milliseconds=1000 * spent[name] / count)
            for name, values in said.items()
            for task in (*dict.fromkeys(tasks), ALL)
        ]
        return rows, plain

    def guided(self, prompts: Sequence[Prompt], seconds: float, seeds: Sequence[int]) -> Iterator[Guided]:
        """The winners of searches by each guide in the same time, judged by the exact checker."""
        found: dict[str, list[tuple[float, Result]]] = {name: [] for name in self.guides}
        for done, prompt in enumerate(prompts, start=1):
            for seed in seeds:
                # in turn, so that a busy minute of the machine is shared by all
                for name in self.guides:
                    folder = self.output / f"{seconds:g}s" / slug(name) / f"{slug(prompt.text)}-s{seed}"
                    result = self.search(folder, prompt, name, f"seconds={seconds!r}", seed)
                    won = [] if result.winner is None else [result.winner.load()]
                    found[name].append((float(_scores(self.judge, won, prompt).sum()), result))
            if done % 20 == 0 or done == len(prompts):
                print(f"searches for {done} of {len(prompts)} prompts", flush=True)
        for name, pairs in found.items():
            right = np.array([value for value, _ in pairs]).reshape(len(prompts), len(seeds)).mean(1)
            share = mean_of(right, least=2)
            results = [result for _, result in pairs]
            names = {call for result in results for call in result.spent.calls}
            yield Guided(
                guide=name,
                searches=len(pairs),
                right=share.value,
                low=share.low,
                high=share.high,
                samples=_mean([len(result.population) for result in results]),
                seconds=_mean([result.spent.elapsed for result in results]),
                verifying=_mean([r.spent.seconds.get("verify", 0.0) / r.spent.elapsed for r in results]),
                calls={call: _mean([r.spent.calls.get(call, 0) for r in results]) for call in sorted(names)},
            )


def agreement(
    verifier: str,
    task: str,
    truth: Sequence[Floats],
    said: Sequence[Floats],
    tasks: Sequence[str],
    *,
    milliseconds: float,
) -> Agreement:
    """How a verifier ranks the samples of prompts of one task, or of all.

    Args:
        verifier: Its name.
        task: Which.
        truth: The checker's verdicts on the samples of each prompt.
        said: The verifier's.
        tasks: The task form of each prompt.
        milliseconds: Time per image.
    """
    chosen = [i for i, name in enumerate(tasks) if task in {name, ALL}]
    within = [_spearman(truth[i], said[i]) for i in chosen]
    known = sum(not math.isnan(value) for value in within)
    mean = mean_of(within, least=2)
    every = [np.concatenate([part[i] for i in chosen]) for part in (truth, said)]
    count = len(every[0])
    return Agreement(
        verifier, task, mean.value, mean.low, mean.high, known, _spearman(*every), count, milliseconds
    )


def _spearman(truth: Floats, said: Floats) -> float:
    """Spearman's correlation; NaN if all samples are equally right, 0 if they are all one to the verifier."""
    both = ~(np.isnan(truth) | np.isnan(said))
    if both.sum() < 2 or np.ptp(truth[both]) == 0:
        return math.nan
    if np.ptp(said[both]) == 0:
        return 0.0
    return float(spearmanr(truth[both], said[both]).statistic)


def _scores(verifier: Verifier, media: Sequence[Media], prompt: Prompt) -> Floats:
    return np.array([score.value for score in safe_scores(verifier, media, [prompt] * len(media))])


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def agreement_table(rows: Sequence[Agreement]) -> str:
    """Spearman within prompts, a row per task and a column per verifier, as Markdown."""
    names = list(dict.fromkeys(row.verifier for row in rows))
    lines = ["| task | " + " | ".join(names) + " |", "|---|" + "--:|" * len(names)]
    by_task: dict[str, list[Agreement]] = {}
    for row in rows:
        by_task.setdefault(row.task, []).append(row)
    for task, group in by_task.items():
        title = f"**{task}**" if task == ALL else task.replace("_", " ")
        lines.append(f"| {title} | " + " | ".join(map(_correlation, group)) + " |")
    every = [row for row in rows if row.task == ALL]
    lines.append("| all samples of all prompts | " + " | ".join(f"{r.overall:.2f}" for r in every) + " |")
    lines.append("| ms per image | " + " | ".join(f"{row.milliseconds:.1f}" for row in every) + " |")
    return "\n".join(lines)


def _correlation(row: Agreement) -> str:
    if not row.prompts:
        return "-"
    interval = "" if math.isnan(row.low) else f" [{row.low:.2f}, {row.high:.2f}]"
    return f"{row.within:.2f}{interval} ({row.prompts})"


def guided_table(rows: Sequence[Guided], plain: Sequence[float]) -> str:
    """Right winners by guide, as Markdown."""
    lines = [
        "| guide | right, % | samples | seconds | of it verifying, % | verifier calls |",
        "|---|--:|--:|--:|--:|---|",
    ]
    lines.append(f"| {PLAIN} | {mean_of(plain, least=2).percent} | 1 | | | |")
    for row in rows:
        right = Figure(row.right, row.low, row.high).percent
        calls = ", ".join(f"{name} {count:.1f}" for name, count in row.calls.items())
        lines.append(
            f"| {row.guide} | {right} | {row.samples:.1f} | {row.seconds:.2f} | {100 * row.verifying:.0f} | "
            f"{calls} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmark from a command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/verifiers"), help="where searches are kept")
    parser.add_argument("--results", type=Path, default=Path("eval/results"), help="where the tables go")
    parser.add_argument("--prompts", type=int, default=48, help="distinct prompts, up to 123")
    parser.add_argument("--samples", type=int, default=12, help="of each prompt, to be ranked")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each search")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--dtype", default=None, help="precision of the model, such as bfloat16")
    options = parser.parse_args(arguments)

    prompts = evaluation_prompts(options.prompts)
    benchmark = Benchmark(options.output, options.dtype)
    ranked, plain = benchmark.agreement(prompts, options.samples)
    guided = list(benchmark.guided(prompts, options.seconds, options.seeds))
    text = (
        f"Spearman's rank correlation with the exact checker among {options.samples} independent samples of "
        "a prompt: mean over prompts where not all are equally right [95 % interval] (number of prompts).\n\n"
        f"{agreement_table(ranked)}\n\n"
        f"Best of n for {options.seconds:g} seconds by each guide: {len(prompts)} prompts, "
        f"{len(options.seeds)} seeds; winners judged by the exact checker.\n\n{guided_table(guided, plain)}\n"
    )
    settings = {key: value for key, value in vars(options).items() if key not in {"output", "results"}}
    data: Mapping[str, Any] = {
        "settings": settings,
        "agreement": [asdict(row) for row in ranked],
        "plain": _mean(plain),
        "guided": [asdict(row) for row in guided],
    }
    options.results.mkdir(parents=True, exist_ok=True)
    replace_file(options.results / "verifiers.md", lambda part: part.write_text(text), "The table")
    found = json.dumps(_plain(data), indent=2) + "\n"
    replace_file(options.results / "verifiers.json", lambda part: part.write_text(found), "The results")
    print(text)
    print(f"{options.results / 'verifiers.md'}  {options.results / 'verifiers.json'}")


def _plain(value: Any) -> Any:
    """NaN as null, because JSON has no NaN."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


if __name__ == "__main__":
    main()
