"""Jobs of the app: the same bytes as the command line, pause, stop, resume, restart, and a bounded queue."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tts_vision.app.estimate import Estimate
from tts_vision.app.job import Job, Snapshot
from tts_vision.app.jobs import Jobs, QueueFullError
from tts_vision.app.watch import Watch
from tts_vision.config import RunConfig
from tts_vision.errors import ConfigError
from tts_vision.files import STOPPED
from tts_vision.folders import is_finished
from tts_vision.loaded import Models
from tts_vision.resolve import Live
from tts_vision.runner import resume, run
from tts_vision.testing.toys import GaussianMixtureSampler, TargetReward
from tts_vision.trace import answers, read_trace
from tts_vision.types import Score
from tts_vision.verifiers.human import Human


class ToyModels(Models):
    """The toy and its reward in the place of any model and verifier; a search waits at each scoring."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()
        self.scored = 0
        self.judge: Any = None

    def live(self, config: RunConfig) -> Live:
        return Live(pipe=GaussianMixtureSampler(num_steps=5), verifier=self.judge or self._waiting())

    def _waiting(self) -> Any:
        models = self

        class Waiting(TargetReward):
            def score(self, *args: Any) -> list[Score]:
                assert models.gate.wait(30)
                models.scored += 1
                return super().score(*args)

        return Waiting()


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[Jobs]:
    """Jobs on the toy; nothing is loaded."""
    made = Jobs(tmp_path / "out", queue=3)
    made._models = ToyModels()
    yield made
    models(made).gate.set()
    made.close()


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jobs]:
    """Jobs on the bundled model, which is loaded once."""
    made = Jobs(tmp_path_factory.mktemp("real"))
    yield made
    made.close()


def models(jobs: Jobs) -> ToyModels:
    found = jobs._models
    assert isinstance(found, ToyModels)
    return found


def config(**settings: Any) -> RunConfig:
    return RunConfig(**{"prompt": "a red circle", "algorithm": "fk_steering", "budget": "8x", **settings})


def few_steps(**settings: Any) -> RunConfig:
    """For the bundled model: less than half of its steps."""
    return config(sampler_options={"pipeline_kwargs": {"num_inference_steps": 5}}, **settings)


def until(condition: Callable[[], Any], seconds: float = 60.0) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.005)
    raise AssertionError("it never came")


def held(jobs: Jobs, **settings: Any) -> Job:
    """A job that waits in its first scoring."""
    models(jobs).gate.clear()
    job = jobs.submit(config(**settings))
    until(lambda: all(p.preview for p in job.snapshot().particles) and job.snapshot().particles)
    return job


def bytes_of(folder: Path, *, checkpoints: bool = True) -> dict[str, bytes]:
    """The content of a result folder without times."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != "scaling.png":  # which has seconds on an axis
            found[str(path.relative_to(folder))] = path.read_bytes()
    report = json.loads(found["result.json"])
    del report["timing"]
    found["result.json"] = json.dumps(report).encode()
    events = [json.loads(line) for line in found["trace.jsonl"].splitlines()]
    for event in events:
        for key in ("elapsed", "seconds", "peak_memory"):
            event["spent"].pop(key, None)
    kept = [event for event in events if checkpoints or event["kind"] != "checkpoint"]
    found["trace.jsonl"] = json.dumps(kept).encode()
    return found


def same(one: Path, two: Path, *, checkpoints: bool = True) -> None:
    a, b = bytes_of(one, checkpoints=checkpoints), bytes_of(two, checkpoints=checkpoints)
    assert a.keys() == b.keys()
    assert [name for name in a if a[name] != b[name]] == []


def test_a_finished_folder_has_the_bytes_of_the_command_line(real: Jobs, tmp_path: Path) -> None:
    settings = few_steps(algorithm="evosearch", budget="4x", seed=3)
    job = real.submit(settings)
    events = []
    while job.is_active:  # looking at it changes nothing
        events.append(job.snapshot().event)
        time.sleep(0.02)
    assert job.state == "finished", job.error
    run(settings, output=tmp_path / "cli")
    same(job.folder, tmp_path / "cli")
    assert len(set(events)) > 5
    for particle in job.snapshot().particles:
        assert (job.preview(particle.uid) or b"").startswith(b"\xff\xd8"), "each was seen as a JPEG"


def test_a_paused_search_goes_on_to_the_same_bytes(jobs: Jobs, tmp_path: Path) -> None:
    whole = jobs.submit(config())
    assert whole.wait(60) == "finished", whole.error
    job = held(jobs)
    job.pause()
    models(jobs).gate.set()
    assert job.wait(60) == "paused"
    other = jobs.submit(config(seed=1))
    assert other.wait(60) == "finished", "a paused search lets others run"
    half = job.snapshot().spending.nfe
    assert 0 < half < whole.snapshot().spending.nfe and not is_finished(job.folder)
    job.resume()
    assert job.wait(60) == "finished", job.error
    same(job.folder, whole.folder, checkpoints=False)
    assert job.snapshot().spending.nfe == whole.snapshot().spending.nfe


def test_a_stopped_search_keeps_its_best_and_may_go_on(jobs: Jobs) -> None:
    whole = jobs.submit(config(algorithm="best_of_n", max_batch=2))
    assert whole.wait(60) == "finished"
    job = held(jobs, algorithm="best_of_n", max_batch=2)
    job.stop()
    models(jobs).gate.set()
    assert job.wait(60) == "stopped"
    result = job.result()
    assert result is not None and result.stopped and len(result.population) == 2
    assert (job.folder / "best.png").exists() and (job.folder / STOPPED).exists()
    job.resume()
    assert job.wait(60) == "finished", job.error
    assert not (job.folder / STOPPED).exists()
    same(job.folder, whole.folder, checkpoints=False)


def test_a_paused_search_can_be_stopped(jobs: Jobs) -> None:
    job = held(jobs, algorithm="best_of_n", max_batch=2)
    job.pause()
    models(jobs).gate.set()
    assert job.wait(60) == "paused" and job.result() is None
    job.stop()
    assert job.wait(60) == "stopped"
    result = job.result()
    assert result is not None and result.stopped and len(result.population) >= 2


def test_cancelling_frees_the_search_and_lets_the_next_one_run(jobs: Jobs) -> None:
    job = held(jobs)
    waiting, last = jobs.submit(config(seed=1)), jobs.submit(config(seed=2))
    waiting.cancel()
    assert waiting.state == "stopped" and not waiting.folder.exists() and last.snapshot().place == 1
    job.cancel()
    models(jobs).gate.set()
    assert job.wait(60) == "stopped" and job.result() is None
    assert last.wait(60) == "finished"
    assert all(job.preview(p.uid) is None for p in job.snapshot().particles)
    last.cancel()
    assert last.state == "finished", "after its end it has no effect"
    job.resume()
    assert job.wait(60) == "finished"


def test_the_queue_is_bounded_and_says_so(jobs: Jobs) -> None:
    running = held(jobs)
    waiting = [jobs.submit(config(seed=i)) for i in range(1, 4)]
    assert [job.snapshot().place for job in waiting] == [1, 2, 3] and running.snapshot().place == 0
    with pytest.raises(QueueFullError, match="At most 3 searches may wait but 3 do; try again when one has"):
        jobs.submit(config(seed=9))
    assert len(jobs.all()) == 4
    models(jobs).gate.set()
    for job in (running, *waiting):
        assert job.wait(60) == "finished"


def test_a_job_is_found_again_by_its_id_after_a_restart(jobs: Jobs, tmp_path: Path) -> None:
    finished = jobs.submit(config())
    assert finished.wait(60) == "finished"
    before = finished.snapshot()
    stopped = held(jobs, algorithm="best_of_n", max_batch=2)
    stopped.stop()
    models(jobs).gate.set()
    stopped.wait(60)
    killed = held(jobs, seed=4)
    closing = threading.Thread(target=jobs.close)  # as the server does at its end
    closing.start()
    until(lambda: killed._wanted == "pause")
    models(jobs).gate.set()
    closing.join(60)
    again = Jobs(tmp_path / "out")
    again._models = ToyModels()
    try:
        states = {job.id: job.state for job in again.all()}
        assert states == {finished.id: "finished", stopped.id: "stopped", killed.id: "paused"}
        after = again.get(finished.id).snapshot()
        assert after.best == before.best and after.population == before.population
        facts = [(p.uid, p.step, p.parents, p.fate, p.score, p.file) for p in before.particles]
        assert [(p.uid, p.step, p.parents, p.fate, p.score, p.file) for p in after.particles] == facts
        assert after.curve == before.curve and after.spending.limits == before.spending.limits
        assert again.get(finished.id).preview(before.best or 0), "samples are read from the folder"
        again.get(killed.id).resume()
        assert again.get(killed.id).wait(60) == "finished"
        again.get(stopped.id).resume()
        assert again.get(stopped.id).wait(60) == "finished"
    finally:
        again.close()


def test_jobs_of_two_pages_do_not_mix(jobs: Jobs) -> None:
    one, two = jobs.submit(config(prompt="a red circle")), jobs.submit(config(prompt="a blue star", seed=7))
    for job in (one, two):
        assert job.wait(60) == "finished"
    assert one.id != two.id and one.folder != two.folder
    result = one.result(), two.result()
    assert [r.config.prompt for r in result if r] == ["a red circle", "a blue star"]
    for job in (one, two):
        scores = {p.uid: p.score for p in job.snapshot().particles if p.fate == "finished"}
        found = job.result()
        assert found is not None and scores == {c.uid: c.score.value for c in found.population}


def test_snapshots_tell_what_changed_and_the_curve_grows(jobs: Jobs) -> None:
    job = held(jobs, algorithm="best_of_n", max_batch=2)
    first = job.snapshot()
    assert {p.uid for p in first.particles} == {0, 1} and first.best is None
    assert all(p.fate == "going on" and p.step == 5 and p.preview == 1 for p in first.particles)
    assert job.snapshot(first.event).particles == ()
    models(jobs).gate.set()
    assert job.wait(60) == "finished"
    later = job.snapshot(first.event)
    assert {p.uid for p in later.particles} == set(range(8)) and later.event > first.event
    assert job.snapshot(later.event).particles == ()
    bests = [point.best for point in later.curve]
    assert bests == sorted(bests) and [p.compute for p in later.curve] == [10, 20, 30, 40]
    assert later.spending.nfe == 40 == later.spending.limits["nfe"] and later.spending.share == 1
    json.dumps(later.as_json(), allow_nan=False)


def test_lineage_says_what_happened_to_each(jobs: Jobs) -> None:
    job = jobs.submit(config(algorithm="beam_search:width=2,branch=2"))
    assert job.wait(60) == "finished", job.error
    particles = {p.uid: p for p in job.snapshot().particles}
    result = job.result()
    assert result is not None
    finished = {uid for uid, p in particles.items() if p.fate == "finished"}
    assert finished == {c.uid for c in result.population}
    assert {p.fate for p in particles.values()} == {"finished", "dropped"}
    for uid in finished:
        chain = [link.uid for link in result.lineage(uid)]
        walked = [uid]
        while particles[walked[-1]].parents:
            walked += particles[walked[-1]].parents
        assert walked[::-1] == chain


def test_who_was_not_selected_is_dropped_at_once() -> None:
    from toy_search import toy_context

    watch, fates = Watch(), []

    def observe(context: Any, event: Any) -> None:
        watch.observe(context, event)
        fates.append({p.uid: p.fate for p in watch.particles.values()})

    ctx = toy_context(observer=observe)
    state = ctx.advance(ctx.init(4), 2)
    state = ctx.select(state, [3, 1, 1])
    assert fates[-1] == {0: "dropped", 1: "going on", 2: "dropped", 3: "going on", 4: "going on"}
    ctx.init(1)
    assert fates[-1][4] == "going on", "a fresh particle pushes nobody out"
    ctx.score(ctx.finish(state))
    assert {uid for uid, fate in fates[-1].items() if fate == "finished"} == {1, 3, 4}


def test_failures_are_told(jobs: Jobs) -> None:
    job = jobs.submit(config(algorithm="fk_steering", algorithm_params={"n": 500}))
    assert job.wait(60) == "failed" and "lower it, leave it out" in (job.error or "")
    assert job.snapshot().error == job.error
    with pytest.raises(ConfigError, match="Algorithm must be a registered one but got 'fk_steer'; did you"):
        jobs.submit(config(algorithm="fk_steer"))
    with pytest.raises(ConfigError, match="Parameters of algorithm 'best_of_n' are n but got 'm'"):
        jobs.submit(config(algorithm="best_of_n:m=3"))
    with pytest.raises(ConfigError, match=r"Only a search that waits or runs can be paused but .* is failed"):
        job.pause()
    with pytest.raises(ConfigError, match="must be paused, stopped or failed to be resumed"):
        held(jobs).resume()


@pytest.mark.parametrize("id", ["", "..", "../out", "a/b", "/etc", "nothing-00000000", ".hidden", "x" * 999])
def test_only_folders_of_the_output_are_jobs(jobs: Jobs, id: str) -> None:
    with pytest.raises(ConfigError, match="There must be a job of that id"):
        jobs.get(id)


def test_the_least_recently_used_model_leaves_before_another_is_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alive: list[str] = []
    most = 0

    class Weights:
        def __init__(self, name: str) -> None:
            nonlocal most
            self.name = name
            alive.append(name)
            most = max(most, len(alive))

        def __del__(self) -> None:
            alive.remove(self.name)

    loads: list[str] = []

    def load(asked: RunConfig) -> Weights:
        loads.append(asked.model)
        return Weights(asked.model)

    monkeypatch.setattr("tts_vision.resolve.load_model", load)
    held = Models(keep=1)
    for model in ("a/a", "a/a", "b/b", "a/a"):
        held.live(config(model=model, verifier="playground_oracle"))
    assert loads == ["a/a", "b/b", "a/a"] and most == 1
    two = Models(keep=2)
    loads.clear()
    for model in ("a/a", "b/b", "a/a", "c/c", "a/a", "b/b"):
        two.live(config(model=model, verifier="playground_oracle"))
    assert loads == ["a/a", "b/b", "c/c", "b/b"]
    two.clear()
    held.clear()
    assert alive == []


# Steering


def test_pinned_and_banned_through_a_job_and_resumed_without_it(jobs: Jobs) -> None:
    job = held(jobs)
    job.ban(0)
    job.pin(1)
    models(jobs).gate.set()
    assert job.wait(60) == "finished", job.error
    result = job.result()
    assert result is not None and result.best.uid != 0
    assert 1 in {c.uid for c in result.population}, "never dropped"
    marked = {p.uid: (p.pinned, p.banned) for p in job.snapshot().particles if p.pinned or p.banned}
    assert marked == {0: (False, True), 1: (True, False)}
    (decided,) = answers(read_trace(job.folder / "trace.jsonl"), "steering")
    assert decided.value == {"pinned": [1], "banned": [0]}
    with pytest.raises(ConfigError, match="must be in the population to be pinned but 99 is not"):
        job.pin(99)


def test_a_person_votes_through_the_job(jobs: Jobs) -> None:
    models(jobs).judge = Human(how="pairs", rounds=1)
    job = jobs.submit(config(algorithm="best_of_n", algorithm_params={"n": 4}, verifier="human:rounds=1"))
    question = until(lambda: job.snapshot().question)
    assert question.kind == "pair" and len(question.images) == 2 and question.prompt == "a red circle"
    with pytest.raises(ConfigError, match="must be to the question that is asked now"):
        job.answer(question.id + 1, "first")
    with pytest.raises(ConfigError, match=r"must be first, second or tie but got 0\.5"):
        job.answer(question.id, 0.5)
    job.answer(question.id, "first")
    second = until(lambda: job.snapshot().question)
    job.pause()  # while it waits for the person
    assert job.wait(60) == "paused" and job.snapshot().question is None
    job.resume()
    third = until(lambda: job.snapshot().question)
    assert third.images == second.images, "the first answer is not asked again"
    job.answer(third.id, "second")
    assert job.wait(60) == "finished", job.error
    parts = [*answers(read_trace(job.folder / "trace.jsonl"), "part")]
    assert [part.value["answer"] for part in parts] == ["first", "second"]


def test_drafts_are_picked_and_varied(jobs: Jobs) -> None:
    job = jobs.submit(config(algorithm="draft", algorithm_params={"n": 6}, budget="6x"))
    assert job.wait(60) == "stopped" and job.snapshot().drafts, job.error
    assert (job.folder / "drafts.png").exists()
    with pytest.raises(ConfigError, match="0 to 5, but got 8"):
        job.pick([8])
    job.pick([4, 2])
    assert job.wait(60) == "stopped", job.error
    result = job.result()
    assert result is not None and {c.uid for c in result.population} == {2, 4}
    around = jobs.refine(job, 4, n=3, strength=0.4)
    assert around.wait(60) == "finished", around.error
    varied = around.result()
    assert varied is not None and len(varied.population) == 4
    kept = {c.uid: c.score for c in result.population}[4]
    assert {c.uid: c.score for c in varied.population}[4] == kept
    assert [p.uid for p in around.snapshot().particles if p.original] == [4]
    with pytest.raises(ConfigError, match="is refined but 77 is none of its particles"):
        jobs.refine(job, 77)
    with pytest.raises(ConfigError, match="Drafts are picked once they are made"):
        around.pick([1])


def test_an_image_is_refined_to_the_bytes_of_the_command_line(real: Jobs, tmp_path: Path) -> None:
    image = Image.new("RGB", (96, 64), (200, 30, 30))
    job = real.refine_image(image, few_steps(prompt="a red circle"), n=2, strength=0.6)
    assert job.wait(120) == "finished", job.error
    (original,) = [p for p in job.snapshot().particles if p.original]
    result = job.result()
    assert result is not None and original.uid in {c.uid for c in result.population}
    run(RunConfig.load(job.folder / "config.yaml"), output=tmp_path / "again")
    same(job.folder, tmp_path / "again")
    by_hand = real.refine(job, result.best.uid, prompt="a blue circle", n=1, by_hand=True)
    assert by_hand.config.verifier == "human" and by_hand.config.prompt == "a blue circle"
    question = until(lambda: by_hand.snapshot().question)
    by_hand.answer(question.id, "second")
    assert by_hand.wait(60) == "finished", by_hand.error


# Forecasts


def test_a_forecast_knows_the_cost_and_brackets_the_time(real: Jobs) -> None:
    asked = few_steps(algorithm="evosearch", budget="6x", prompt="two red circles")
    estimate = real.estimate(asked)
    assert estimate.seconds is not None and estimate.low is not None and estimate.high is not None
    assert 0 < estimate.low <= estimate.seconds <= estimate.high
    begun = time.perf_counter()
    assert real.estimate(asked.model_copy(update={"seed": 5})).note == estimate.note
    assert time.perf_counter() - begun < 20
    job = real.submit(asked)
    busy = real.estimate(asked)
    assert "because a search is running" in busy.note or job.state == "finished"
    assert busy.seconds is not None
    unknown = real.estimate(asked.model_copy(update={"algorithm": "best_of_n", "algorithm_params": {}}))
    assert unknown == Estimate(note=unknown.note) or job.state == "finished"
    assert job.wait(60) == "finished"
    result = job.result()
    assert result is not None
    assert (estimate.nfe, estimate.verifier_calls) == (result.spent.nfe, result.spent.verifier_calls)
    assert "about" in str(estimate) and "network evaluations" in str(estimate)


def test_a_forecast_within_a_limit_of_time_is_no_longer_than_that(real: Jobs) -> None:
    estimate = real.estimate(few_steps(budget="seconds=2 and nfe=5000", algorithm="best_of_n"))
    assert estimate.seconds == estimate.high == 2
    with pytest.raises(ConfigError, match="A budget must be"):
        real.estimate(config(budget="lots"))


def test_scores_of_samples_that_somebody_brings(real: Jobs) -> None:
    from PIL import Image

    image = Image.new("RGB", (64, 64), "red")
    (row,) = real.score([image], ["a red circle"], ["playground_clip", "ensemble(playground_clip, human)"])
    assert row["playground_clip"].value == row["playground_clip"].value
    assert "needs a person" in (row["ensemble(playground_clip, human)"].reason or "")
    with pytest.raises(ConfigError, match="not accepted from a browser"):
        real.score([image], ["x"], ["os:system"])


def test_a_job_of_the_bundled_model_is_resumed_by_the_command_line(real: Jobs, tmp_path: Path) -> None:
    settings = few_steps(budget="6x", seed=11)
    job = real.submit(settings)
    until(lambda: job.snapshot().population)
    job.pause()
    if job.wait(60) == "paused":
        resume(job.folder)
    run(settings, output=tmp_path / "cli")
    same(job.folder, tmp_path / "cli", checkpoints=False)


@pytest.mark.slow
def test_twenty_queued_searches_finish_in_flat_memory(tmp_path: Path) -> None:
    import resource

    jobs = Jobs(tmp_path, queue=20)
    try:
        warm = jobs.submit(config(budget="2x"))
        assert warm.wait(120) == "finished"
        waiting = [jobs.submit(config(budget="2x", seed=i)) for i in range(20)]
        peaks = []
        for job in waiting:
            assert job.wait(120) == "finished", job.error
            peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)
        assert len({job.folder for job in waiting}) == 20
        assert peaks[-1] - peaks[4] < 20, f"MB after each search: {peaks}"
    finally:
        jobs.close()


def test_a_snapshot_is_frozen(jobs: Jobs) -> None:
    snapshot: Snapshot = held(jobs).snapshot()
    with pytest.raises(AttributeError):
        snapshot.state = "finished"  # type: ignore[misc]
