"""The front door: what it accepts, what it refuses before computing, and going on after a stop."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import tts_vision
from toy_plugins import MODEL, VERIFIER, Videos, first_coordinate
from tts_vision import ModelOptions, Result, RunConfig, SamplerOptions, search
from tts_vision.context import SearchContext
from tts_vision.errors import (
    CapabilityError,
    ConfigError,
    PipelineError,
    TTSVisionError,
    UnknownNameError,
    VerifierError,
)
from tts_vision.registry import lookup
from tts_vision.results import load_result, read_config
from tts_vision.runner import resume, run
from tts_vision.testing.toys import GaussianMixtureSampler, TargetReward, position_of
from tts_vision.trace import Event
from tts_vision.types import Media, State

FILE = MODEL.rpartition("@")[0]


def toy(**options: Any) -> GaussianMixtureSampler:
    return GaussianMixtureSampler(num_steps=6, **options)


def content(folder: Path) -> dict[str, Any]:
    """All bytes that identical runs share."""
    files: dict[str, Any] = {p.name: p.read_bytes() for p in sorted((folder / "population").iterdir())}
    files |= {p.name: p.read_bytes() for p in folder.glob("best.*")}
    result = json.loads((folder / "result.json").read_text())
    result.pop("timing")
    return files | {"result": result}


def test_takes_live_objects_and_plain_functions() -> None:
    result = search(toy(), "two red circles", verifier=first_coordinate, budget="8x", seed=3)
    values = [candidate.score.value for candidate in result.population]
    assert values == sorted(values, reverse=True)
    assert len(values) == 8
    assert result.best.score.value == position_of(result.best.load())[0]
    assert result.plain is not None
    assert result.plain.uid == 0
    assert result.spent.nfe == result.budget.nfe == 48
    assert not result.budget_spent
    assert "best score" in repr(result)
    assert result._repr_png_() is not None
    assert [a.uid for a in result.lineage()] == [result.best.uid]


def test_takes_names_and_an_algorithm_of_ones_own() -> None:
    def twice(ctx: SearchContext, *, extra: int = 0) -> State:
        state = ctx.finish(ctx.init(2 + extra))
        ctx.score(state)
        return state

    near = f"{VERIFIER}:x=0.5"
    result = search(MODEL, "a", algorithm=twice, algorithm_params={"extra": "1"}, verifier=near, budget="4x")
    assert len(result.population) == 3
    assert result.config.algorithm_params == {"extra": 1}
    assert result.config.algorithm.startswith("<")


def test_names_are_loaded_lazily_and_stay_functions() -> None:
    assert callable(tts_vision.search)
    assert callable(tts_vision.replay)
    assert callable(tts_vision.compare)
    assert all(getattr(tts_vision, name) is not None for name in tts_vision.__all__)


def test_the_algorithm_says_whether_steps_are_stochastic(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[SamplerOptions] = []

    class Recorder(GaussianMixtureSampler):
        def __init__(self, pipe: Any, *, options: SamplerOptions) -> None:
            seen.append(options)
            super().__init__(num_steps=6, eta=1.0 if options.stochastic else 0.0)

        @staticmethod
        def accepts(pipe: Any) -> bool:
            return pipe == "pipe"

    from tts_vision import registry, resolve

    monkeypatch.setattr(resolve, "entries", lambda kind: [registry.Entry("sampler", "recorder", Recorder)])
    config = RunConfig(prompt="a", model="<pipe>", verifier="<v>", budget="4x", algorithm="fk_steering")
    live = resolve.Live(pipe="pipe", verifier=TargetReward())
    run(config, live)
    run(config.model_copy(update={"algorithm": "best_of_n", "algorithm_params": {}}), live)
    with pytest.raises(CapabilityError, match="lacks stochastic; set stochastic=True"):
        run(config.model_copy(update={"sampler_options": SamplerOptions(stochastic=False)}), live)
    assert [options.stochastic for options in seen] == [True, False, False]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"prompt": ""}, ConfigError, "A prompt must"),
        ({"pipe_or_id": "playgrund"}, UnknownNameError, "got 'playgrund'"),
        ({"pipe_or_id": object()}, PipelineError, "but got builtins.object"),
        ({"pipe_or_id": f"{FILE}@broken_model"}, PipelineError, "must load but: OSError: invalid header"),
        ({"pipe_or_id": f"{FILE}@no_pipeline"}, PipelineError, "a sampler drives"),
        ({"algorithm": "best_of_m"}, UnknownNameError, "did you mean 'best_of_n'"),
        ({"algorithm_params": {"m": 3}}, ConfigError, "Parameters of algorithm 'best_of_n' are .* got 'm'"),
        ({"algorithm_params": {"n": "many"}}, ConfigError, "n of algorithm 'best_of_n' must be"),
        ({"algorithm_params": {"n": 0}}, ConfigError, "n must be at least 1 but got 0"),
        ({"verifier": f"{VERIFIER}:z=1"}, ConfigError, "Parameters of verifier .* got 'z'"),
        ({"verifier": "clipp"}, UnknownNameError, "got 'clipp'"),
        ({"verifier": Videos()}, ConfigError, "'videos' scores video but 'gaussian_mixture' makes image"),
        ({"verifier": 3}, ConfigError, "A verifier must be a name, .* but <int> is int"),
        ({"verifier": "ensemble"}, ConfigError, r"'ensemble' is made of other verifiers .* name them"),
        ({"verifier": "playground_clip(a)"}, ConfigError, "'playground_clip' has no members .* without"),
        ({"verifier": "ensemble(clipp, a)"}, UnknownNameError, "got 'clipp'"),
        ({"verifier": f"ensemble({VERIFIER}:z=1)"}, ConfigError, "Parameters of verifier .* got 'z'"),
        ({"verifier": f"ensemble({VERIFIER}):hwo=rank"}, ConfigError, "did you mean 'how'"),
        ({"verifier": f"ensemble({FILE}@Videos)"}, ConfigError, "scores video but 'gaussian_mixture' makes"),
        ({"verifier": f"ensemble({FILE}@Videos, {VERIFIER})"}, ConfigError, "must score the same kind"),
        ({"verifier": None}, ConfigError, "needs a verifier"),
        ({"budget": "0.5x"}, ConfigError, "must pay for one sample"),
        ({"budget": "lots"}, ConfigError, "A budget must be"),
        ({"seed": -1}, ConfigError, "seed of a run must be"),
        ({"pipe_or_id": toy(eta=0.0), "algorithm": "fk_steering"}, CapabilityError, "lacks stochastic"),
        ({"algorithm": "evosearch", "algorithm_params": {"beta_step": 2}}, ConfigError, "beta_step must be"),
        ({"pipeline_kwargs": {"height": 8}}, ConfigError, "Sampler options must be given to a sampler"),
        (
            {"model_options": ModelOptions(dtype="float16")},
            ConfigError,
            "Model options apply to a model that is",
        ),
    ],
)
def test_mistakes_are_told_before_anything_is_computed(
    arguments: dict[str, Any], error: type[TTSVisionError], message: str, tmp_path: Path
) -> None:
    given = {"pipe_or_id": toy(), "prompt": "a", "verifier": TargetReward(), "budget": "4x", **arguments}
    output = tmp_path / "out"
    with pytest.raises(error, match=message):
        search(output=output, **given)
    assert not output.exists()


def test_what_is_refused_before_the_first_particle_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tts_vision import registry

    monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))

    @registry.register("algorithm", "picky", size="n")
    def picky(ctx: SearchContext, *, n: int = 2, first: bool = True) -> State:
        state = ctx.init(n) if not first else None
        if type(ctx) is SearchContext:  # a rehearsal passes, as if what is wrong were known to others alone
            raise ConfigError("The endpoint must answer but does not; start it.")
        state = ctx.finish(state or ctx.init(n))
        ctx.score(state)
        return state

    settings: dict[str, Any] = {"algorithm": "picky", "verifier": TargetReward(), "budget": "4x"}
    with pytest.raises(ConfigError, match="The endpoint must answer"):
        search(toy(), "a", output=tmp_path / "a", **settings)
    assert not (tmp_path / "a").exists()
    with pytest.raises(ConfigError, match="The endpoint must answer"):
        search(toy(), "a", output=tmp_path / "b", algorithm_params={"first": False}, **settings)
    assert (tmp_path / "b" / "trace.jsonl").exists(), "it began, so it can go on"


def test_a_verifier_that_scores_nothing_fails_and_loses_nothing(tmp_path: Path) -> None:
    config = RunConfig(prompt="a", model=MODEL, verifier=f"{FILE}@raises", budget="3x")
    for _ in range(2):  # the second reads the finished folder
        with pytest.raises(VerifierError, match="none of 3: raises raised RuntimeError: no such reward"):
            run(config, output=tmp_path, resume=True)
    assert len(list((tmp_path / "population").iterdir())) == 3
    assert load_result(tmp_path).winner is None
    with pytest.raises(VerifierError, match="nan returned NaN"):
        search(toy(), "a", verifier=f"{FILE}@nan", budget="3x")
    with pytest.raises(VerifierError, match="one score per sample"):
        search(toy(), "a", verifier=f"{FILE}@too_few", budget="3x")


def test_one_unscored_sample_is_last_and_never_wins() -> None:
    def fussy(images: list[Media], prompts: list[str]) -> list[float]:
        positions = [float(position_of(image)[0]) for image in images]
        return [float("nan") if position > 1 else position for position in positions]

    result = search(toy(), "a", verifier=fussy, budget="16x")
    assert result.best.score.value <= 1
    assert result.population[-1].score.reason == "fussy returned NaN"


def test_a_spent_budget_returns_the_best_so_far() -> None:
    def greedy_for_scores(ctx: SearchContext) -> None:
        state = ctx.finish(ctx.init(4))
        ctx.score(state)
        ctx.finish(ctx.init(1))

    result = search(toy(), "a", verifier=TargetReward(), algorithm=greedy_for_scores, budget="4x")
    assert result.budget_spent
    assert len(result.population) == 4

    def only_previews(ctx: SearchContext) -> None:
        state = ctx.advance(ctx.init(2), 3)
        ctx.score(state)
        ctx.finish(state)

    result = search(toy(), "a", verifier=TargetReward(), algorithm=only_previews, budget="1x")
    assert result.budget_spent
    assert result.is_preview
    assert not result.population
    assert "preview" in repr(result)


def test_a_preview_that_won_before_a_kill_is_made_again(tmp_path: Path) -> None:
    def only_previews(ctx: SearchContext) -> None:
        state = ctx.advance(ctx.init(2), 3)
        ctx.score(state)
        ctx.finish(state)

    taker = Snapshots(tmp_path / "a", tmp_path / "snaps")
    arguments: dict[str, Any] = {"verifier": TargetReward(), "algorithm": only_previews, "budget": "1x"}
    search(toy(), "a", output=tmp_path / "a", progress=taker, **arguments)
    search(toy(), "a", output=taker.taken[-1], resume=True, **arguments)
    assert content(taker.taken[-1]) == content(tmp_path / "a")


class Snapshots:
    """Copies a result folder at each event, as a kill right after it would leave it."""

    def __init__(self, folder: Path, to: Path) -> None:
        self.folder, self.to = folder, to
        self.taken: list[Path] = []

    def __call__(self, context: SearchContext, event: Event) -> None:
        self.taken.append(self.to / f"{len(self.taken):03d}")
        shutil.copytree(self.folder, self.taken[-1])


@pytest.mark.parametrize(
    ("algorithm", "max_batch"),
    [
        ("best_of_n", 2),
        ("zero_order", 2),
        ("search_over_paths", 2),
        ("evosearch", 2),
        ("evosearch", None),
        ("fk_steering", 2),
    ],
)
def test_a_search_killed_at_any_event_ends_with_the_same_bytes(
    algorithm: str, max_batch: int | None, tmp_path: Path
) -> None:
    config = RunConfig(
        prompt="a", model=MODEL, verifier=VERIFIER, algorithm=algorithm, budget="5x", max_batch=max_batch
    )
    whole = tmp_path / "whole"
    taker = Snapshots(whole, tmp_path / "snaps")
    run(config, output=whole, progress=taker, figures=False)
    expected = content(whole)
    assert not (whole / "state").exists()
    for folder in taker.taken:
        run(read_config(folder), output=folder, resume=True, figures=False)
        assert content(folder) == expected, folder.name
    # and once more, killed again on the way
    first = taker.taken[0]
    shutil.rmtree(first)
    again = Snapshots(first, tmp_path / "again")
    run(config, output=first, figures=False, progress=again)
    middle = again.taken[len(again.taken) // 2]
    third = Snapshots(middle, tmp_path / "third")
    run(config, output=middle, resume=True, figures=False, progress=third)
    last = third.taken[-2]
    run(config, output=last, resume=True, figures=False)
    assert content(last) == expected


FIRST = f"{FILE}@first_coordinate"
COMPOSED = [
    f"ensemble({VERIFIER}, {FIRST})",
    f"cascade({FIRST}, {VERIFIER}):fraction=0.5",
    f"calibrated({VERIFIER}):how=linear,least=2",
]


@pytest.mark.parametrize("verifier", COMPOSED)
@pytest.mark.parametrize("algorithm", ["zero_order", "search_over_paths", "evosearch", "fk_steering"])
@pytest.mark.filterwarnings("ignore::tts_vision.errors.HoldoutWarning")
def test_a_search_by_a_composed_verifier_ends_with_the_same_bytes(
    verifier: str, algorithm: str, tmp_path: Path
) -> None:
    settings = {"verifier": verifier, "holdout_verifier": f"{VERIFIER}:x=0", "algorithm": algorithm}
    config = RunConfig(prompt="a", model=MODEL, budget="5x", max_batch=3, **settings)
    whole = tmp_path / "whole"
    taker = Snapshots(whole, tmp_path / "snaps")
    run(config, output=whole, progress=taker, figures=False)
    expected = content(whole)
    for folder in taker.taken:
        run(read_config(folder), output=folder, resume=True, figures=False)
        assert content(folder) == expected, folder.name


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError, SystemExit])
def test_an_interrupted_search_can_go_on(stop: type[BaseException], tmp_path: Path) -> None:
    config = RunConfig(prompt="a", model=MODEL, verifier=VERIFIER, algorithm="evosearch", budget="8x")
    run(config, output=tmp_path / "whole", figures=False)
    events = 0

    def interrupt(context: SearchContext, event: Event) -> None:
        nonlocal events
        events += 1
        if events == 9:
            raise stop("now")

    with pytest.raises(stop):
        run(config, output=tmp_path / "cut", progress=interrupt, figures=False)
    assert '"checkpoint"' in (tmp_path / "cut" / "trace.jsonl").read_text()
    run(config, output=tmp_path / "cut", resume=True, figures=False)
    assert content(tmp_path / "cut") == content(tmp_path / "whole")


def test_identical_runs_give_identical_bytes_for_any_micro_batch(tmp_path: Path) -> None:
    for name, max_batch in (("a", None), ("b", None), ("c", 1)):
        search(MODEL, "a", verifier=VERIFIER, budget="6x", output=tmp_path / name, max_batch=max_batch)
    assert content(tmp_path / "a") == content(tmp_path / "b") == content(tmp_path / "c")
    for name in ("contact_sheet.png", "lineage.svg", "config.yaml"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert (tmp_path / "a" / "scaling.png").exists()


def test_live_objects_are_resumed_by_search_alone(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"verifier": TargetReward(), "budget": "4x", "output": tmp_path}
    taker = Snapshots(tmp_path, tmp_path.parent / f"{tmp_path.name}-snaps")
    search(toy(), "a", progress=taker, **arguments)
    cut = taker.taken[2]
    with pytest.raises(ConfigError, match=r"live verifier cannot .* resume=True\) with the same object"):
        resume(cut)
    with pytest.raises(ConfigError, match="must be new or empty"):
        search(toy(), "a", **{**arguments, "output": cut})
    with pytest.raises(ConfigError, match=r"budget is '5x' and .* has '4x'"):
        search(toy(), "a", resume=True, **{**arguments, "output": cut, "budget": "5x"})
    search(toy(), "a", resume=True, **{**arguments, "output": cut})
    assert content(cut) == content(tmp_path)
    assert isinstance(resume(cut), Result)  # it is finished now, so nothing has to be loaded


def test_config_yaml_reproduces_the_run(tmp_path: Path) -> None:
    search(MODEL, "a", algorithm="evosearch", verifier=VERIFIER, budget="6x", seed=5, output=tmp_path / "a")
    run(RunConfig.load(tmp_path / "a" / "config.yaml"), output=tmp_path / "b")
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_every_algorithm_is_registered_for_the_command_line() -> None:
    names: Sequence[str] = ("best_of_n", "zero_order", "search_over_paths", "evosearch", "fk_steering")
    assert all(lookup("algorithm", name).paper for name in names)
