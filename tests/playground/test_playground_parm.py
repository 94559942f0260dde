"""The playground's step verifier: its three questions, its reasons, and its training."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tts_vision.condition import Condition
from tts_vision.pipelines.bundled import load_playground_masked
from tts_vision.pipelines.playground import judge_data, train_parm, world
from tts_vision.pipelines.playground.checker import detect
from tts_vision.pipelines.playground.hard import load_hard_prompts
from tts_vision.pipelines.playground.judge_bank import pixels_of
from tts_vision.pipelines.playground.step_data import (
    StepExamples,
    Trees,
    _rows,
    draw_trees,
    forks,
    label_trees,
    objects,
    sample_prompt,
)
from tts_vision.pipelines.playground.step_judge import Answers, StepJudge
from tts_vision.pipelines.playground.tokenizer import build_tokenizer, vocabulary
from tts_vision.pipelines.playground.train_clip import build_processor
from tts_vision.pipelines.playground.training import Average, Budget, parts_of
from tts_vision.types import Prompt
from tts_vision.verifiers.playground_judge import PlaygroundJudge
from tts_vision.verifiers.playground_parm import PlaygroundPARM, _reason


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A step verifier with the judge's towers and fresh heads."""
    path = tmp_path_factory.mktemp("parm")
    judge = train_parm.load_judge()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = StepJudge(judge.config)
    model.load_state_dict(judge.state_dict(), strict=False)
    model.save_pretrained(path)
    build_tokenizer("right", opened=True).save_pretrained(path)
    build_processor().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def painted() -> judge_data.Examples:
    return judge_data.paint(3, 6)


def images_of(examples: judge_data.Examples) -> list[Image.Image]:
    return [Image.fromarray(image) for image in examples.images]


def test_the_final_question_is_the_judges_where_the_weights_are_its(
    folder: Path, painted: judge_data.Examples
) -> None:
    prompts = [Prompt("two red circles left of a blue star")] * 6
    verifier, judge = PlaygroundPARM(path=folder), PlaygroundJudge()
    ours = [score.value for score in verifier.score(images_of(painted), prompts)]
    assert ours == pytest.approx([s.value for s in judge.score(images_of(painted), prompts)], abs=1e-5)


def test_each_question_is_answered_by_its_own_head(folder: Path, painted: judge_data.Examples) -> None:
    verifier = PlaygroundPARM(path=folder, batch_size=4)
    verifier.load()
    prompts = [Prompt("a photo of a red circle")] * 6
    ids = build_tokenizer("right", opened=True)(
        prompts[0].text, padding="max_length", return_tensors="pt"
    ).input_ids
    with torch.no_grad():
        wanted, _, _ = train_parm.read_all(verifier._model, pixels_of(painted), ids[None].expand(6, 1, -1))
    for question in ("clarity", "potential"):
        scores = verifier.answer(question, images_of(painted), prompts)
        values = getattr(wanted, question)[:, 0].softmax(-1)[:, 1]
        assert [s.value for s in scores] == pytest.approx(values.tolist(), abs=1e-5)
        assert [s.satisfied for s in scores] == [value > 0.5 for value in values.tolist()]


def test_a_reflection_says_yes_or_names_words_of_the_prompt(
    folder: Path, painted: judge_data.Examples
) -> None:
    prompt = Prompt("two red circles left of a blue star")
    scores = PlaygroundPARM(path=folder).reflection(images_of(painted), [prompt] * 6)
    assert any(not score.satisfied for score in scores)
    for score in scores:
        if score.satisfied:
            assert score.reason is None
        else:
            assert score.reason is not None and score.reason.startswith("not met: ")
            assert set(score.reason.removeprefix("not met: ").split(", ")) <= set(prompt.text.split()) - {
                "of"
            }


def test_a_reason_names_the_words_that_are_not_met_or_the_least_met_one() -> None:
    words = ["a", "photo", "of", "two", "red", "circles", "left", "of", "a", "blue", "star"]
    met = [0.0] * 4 + [0.9, 0.2, 0.9, 0.4, 0.0, 0.9, 0.9, 0.9] + [0.0] * 4
    assert _reason(words, met) == "not met: red, left"
    met = [0.0] * 4 + [0.9, 0.8, 0.9, 0.7, 0.0, 0.9, 0.9, 0.9] + [0.0] * 4
    assert _reason(words, met) == "not met: left"


@pytest.fixture(scope="module")
def specs() -> list[world.Spec]:
    return [world.parse_spec("two red circles left of a blue star"), world.parse_spec("a green ring")]


@pytest.fixture(scope="module")
def trees(specs: list[world.Spec]) -> Trees:
    """Painted images in the place of drawn ones: paths that go on to the prompt's own scene or to another."""
    rng = np.random.default_rng(0)

    def scenes(spec: world.Spec, good: int, bad: int) -> list[np.ndarray]:
        other = specs[1] if spec is specs[0] else specs[0]
        return [world.render(world.sample_scene(rng, s)) for s in [spec] * good + [other] * bad]

    previews = [[[scenes(s, 0, 1)[0], scenes(s, 1, 0)[0]]] for s in specs]
    continued = [[[scenes(s, 1, 3), scenes(s, 4, 0)]] for s in specs]
    finished = [[scenes(specs[0], 1, 0)[0]], [scenes(specs[1], 0, 1)[0]]]
    return Trees(
        np.array([[[2, 5]]] * 2, np.uint8),
        np.array(previews),
        np.zeros((2, 1, 2, 64), bool),
        np.array(finished),
        np.array(continued),
        12,
    )


@pytest.fixture(scope="module")
def steps(specs: list[world.Spec], trees: Trees) -> StepExamples:
    return label_trees(0, specs, trees)


def test_the_potential_is_the_share_of_right_outcomes(steps: StepExamples) -> None:
    # of each prompt: the path's image; then twice a preview, and the first continuation from there
    assert steps.step.tolist() == [12, 2, 12, 5, 12] * 2
    assert steps.prompt.tolist() == [0] * 5 + [1] * 5
    assert steps.potential.tolist() == pytest.approx([1, 2 / 5, 1, 1, 1, 0, 1 / 5, 1, 4 / 5, 1])
    assert steps.outcome.tolist() == [1, 1, 1, 1, 1, 0, 0, 1, 0, 1]
    ended = steps.step == 12
    assert torch.equal(steps.right[ended, 0].float(), steps.potential[ended])
    assert (steps.clear[ended] == 1).all() and steps.known[ended].all() and not steps.known[~ended].any()
    # the first preview of a prompt has the objects of its wrong outcomes; those of a ring may differ
    assert steps.clear[1] <= 3 / 5 and steps.clear[3] == 1


def test_each_word_has_the_share_of_outcomes_that_meet_its_demand(steps: StepExamples) -> None:
    asks = steps.met[:, 0] >= 0
    assert torch.equal(steps.hoped >= 0, asks)
    for i in range(len(steps)):
        shares = steps.hoped[i][asks[i]]
        if steps.step[i] == 12:
            assert torch.equal(shares, steps.met[i, 0][asks[i]].float())
        assert shares.min() >= steps.potential[i], "an image is right only if each demand is met"
    words = {token: word for word, token in vocabulary().items()}
    named = {words[int(t)]: float(s) for t, s in zip(steps.tokens[1, 0], steps.hoped[1]) if s >= 0}
    assert named["circles"] == pytest.approx(2 / 5) and named["left"] == pytest.approx(2 / 5)


def test_saved_chunks_are_joined_and_their_prompts_numbered_on(tmp_path: Path, steps: StepExamples) -> None:
    for name in ("a", "b"):
        steps.save(tmp_path / name)
    both = StepExamples.load([tmp_path / "a", tmp_path / "b"])
    assert len(both) == 2 * len(steps) and both.prompt.tolist() == [*[0] * 5, *[1] * 5, *[2] * 5, *[3] * 5]
    assert torch.equal(both.taken(torch.arange(10, 20)).images, steps.images)


def test_paths_of_several_prompts_are_drawn_as_each_alone(specs: list[world.Spec]) -> None:
    pipe = load_playground_masked()
    network = pipe.configured({"guidance_scale": 2.0})
    ids = [pipe.layout.prompt(pipe.tokenizer, text) for text in [*map(world.caption, specs), ""]]
    codes = torch.randint(0, network.vocabulary + 1, (3, 64), generator=torch.Generator().manual_seed(0))
    of_row = torch.tensor([1, 0, 1])
    together = network.logits(_rows(network.encoded(ids), of_row, 2), codes)
    for row, p in enumerate(of_row.tolist()):
        alone = network.logits(network.encode(Condition(world.caption(specs[p]))), codes[row : row + 1])
        assert torch.allclose(together[row], alone[0], atol=2e-4)


def test_a_path_goes_on_from_where_it_is_continued(specs: list[world.Spec]) -> None:
    step = np.array([[[1, 11], [3, 11]]] * 2, np.uint8)
    trees = draw_trees(load_playground_masked(), specs, step, 1, seed=3)
    assert trees.previews.shape == (2, 2, 2, 64, 64, 3) and trees.continued.shape == (2, 2, 2, 1, 64, 64, 3)
    assert trees.num_steps == 12 and trees.known.sum(-1)[0, 0, 0] == 1 < trees.known.sum(-1)[0, 1, 0]
    difference = np.abs(trees.continued.astype(int) - trees.finished[:, :, None, None]).mean((-1, -2, -3))
    assert (difference[:, :, 1] < difference[:, :, 0]).mean() > 0.7, "late continuations are alike"
    assert difference.max() > 0, "continuations draw noise of their own"
    # completed previews change nothing else; the last one lacks the noise of one step alone
    completed = draw_trees(load_playground_masked(), specs, step, 1, seed=3, completed=True)
    for name in ("finished", "continued", "known", "step"):
        assert np.array_equal(getattr(completed, name), getattr(trees, name)), name
    off = [
        np.abs(each.previews.astype(int) - each.continued[..., 0, :, :, :]).mean((-1, -2, -3))
        for each in (completed, trees)
    ]
    assert (off[0] != off[1]).any() and off[0].mean() < off[1].mean(), "completions are nearer to the end"


def test_forks_are_different_steps_before_the_last() -> None:
    step = forks(np.random.default_rng(0), 50, 3, 12, 4)
    assert step.shape == (50, 3, 4) and (np.diff(step.astype(int), axis=-1) > 0).all()
    assert set(step.ravel().tolist()) == set(range(1, 12))


def test_a_mirror_exchanges_left_and_right(steps: StepExamples) -> None:
    tokens, cells = steps.tokens.long(), steps.cells
    images, turned, known, swapped = train_parm.mirrored(steps.images, tokens, steps.known, cells)
    words = vocabulary()
    assert torch.equal(turned == words["right"], tokens == words["left"])
    assert torch.equal(images.flip(2), steps.images) and torch.equal(known, steps.known)
    found = judge_data.cells_of(detect(images[0].numpy()))
    # an object whose centre lies on a border of cells may go to either
    assert (torch.from_numpy(found)[:, 0] == swapped[0, :, 0]).float().mean() > 0.95
    spec = world.parse_spec("two red circles right of a blue star")
    assert all(judge_data.demands(detect(images[0].numpy()), spec).values())


@pytest.mark.parametrize("finished", [True, False])
def test_a_resumed_step_verifier_equals_an_uninterrupted_one(
    tmp_path: Path, steps: StepExamples, finished: bool
) -> None:
    results = []
    for name, stops in (("whole", [None]), ("parts", [1, None])):
        (tmp_path / name).mkdir()
        for stop in stops:
            model, best = train_parm.train_parm(
                tmp_path / name,
                steps,
                steps,
                Budget(steps=3),
                train_parm.load_judge(),
                batch_size=4,
                check_every=1 if finished else 100,
                stop_after=stop,
            )
        results.append({**model.state_dict(), **best.shadow})
        assert (tmp_path / name / "best.pt").exists() and best.loss < float("inf")
    for (key, a), b in zip(results[0].items(), results[1].values(), strict=True):
        assert torch.equal(a, b), key


def test_the_best_weights_are_kept_and_not_the_last() -> None:
    average = Average({"x": torch.nn.Linear(1, 1)})
    best = train_parm.Best(average)
    (key, *_) = average.shadow
    for loss, value in ((1.0, 1.0), (0.5, 2.0), (0.7, 3.0)):
        average.shadow[key].fill_(value)
        best.offer(loss, average)
    assert best.loss == 0.5 and best.shadow[key].item() == 2.0


@pytest.mark.parametrize("mean", [True, False])
def test_the_best_weights_are_exported_or_the_mean_of_the_last_and_others(
    tmp_path: Path, folder: Path, steps: StepExamples, mean: bool
) -> None:
    _, best = train_parm.train_parm(
        tmp_path, steps, steps, Budget(steps=2), train_parm.load_judge(), batch_size=4, check_every=1
    )
    best.shadow = {name: torch.full_like(value, 0.25) for name, value in best.shadow.items()}
    torch.save(best.state_dict(), tmp_path / "best.pt")
    train_parm.export(tmp_path, tmp_path, steps, 0, "cpu", folder if mean else None)
    name = "vision_model.embeddings.patch_embedding.weight"
    exported = StepJudge.from_pretrained(tmp_path / "parm").state_dict()[name]
    if not mean:
        assert (exported == 0.25).all()
        return
    last = parts_of(tmp_path, "parm")["average"]["shadow"]["parm." + name]
    theirs = StepJudge.from_pretrained(folder).state_dict()[name]
    assert torch.allclose(exported.float(), (last + theirs) / 2, atol=1e-3)


def test_several_captions_are_judged_as_each_alone(folder: Path, painted: judge_data.Examples) -> None:
    model = StepJudge.from_pretrained(folder).eval()
    tokens = torch.from_numpy(painted.tokens).long()
    with torch.no_grad():
        together, _, _ = train_parm.read_all(model, pixels_of(painted), tokens[:, :3])
        alone = model.answers(pixels_of(painted), tokens[:, 2], tokens[:, 2] != 0)
    for a, b in zip(together, alone):
        assert torch.allclose(a[:, 2], b, atol=1e-5)


def test_calibration_makes_the_mean_answer_the_share_of_yes(folder: Path, steps: StepExamples) -> None:
    model = StepJudge.from_pretrained(folder).eval()
    soft = replace(steps, potential=torch.full_like(steps.potential, 0.3))
    soft.potential[::2] = 0.1
    train_parm.calibrate(model, soft)
    previews = soft.step < 12
    answers = train_parm.answers_to(model, soft).potential[previews].softmax(-1)[:, 1]
    assert float(answers.mean()) == pytest.approx(float(soft.potential[previews].mean()), abs=1e-3)


def test_ranks_are_taken_within_a_prompt_and_a_step(steps: StepExamples) -> None:
    n = 8
    some = StepExamples(**{key: value[:1].repeat_interleave(n, 0) for key, value in vars(steps).items()})
    some.step[:4], some.step[4:] = 6, 12
    some.prompt[:] = torch.tensor([0, 0, 1, 1] * 2)
    some.outcome[:] = torch.tensor([1, 0, 0, 1] * 2)
    some.potential[:] = torch.tensor([2 / 3, 0, 1 / 3, 1 / 3, 1.0, 0, 0, 1])
    logits = torch.zeros(n, 2)
    logits[:, 1] = torch.tensor([2.0, 1, 1, 2, 9, 9, 9, 9])
    final = torch.zeros(n, 2)
    final[4:, 1] = torch.tensor([1.0, 2, 1, 2])
    found = train_parm.ranks(Answers(logits, logits, final, logits), some, 2)
    # right continuations are (0.5, 0) of both prompts, whose outcomes are (1, 0) and (0, 1)
    assert found[6] == pytest.approx((1.0, 0.0))
    assert found[12][0] == pytest.approx(0.0) and math.isnan(found[12][1])
    assert math.isnan(train_parm.ranks(Answers(logits, logits, final, logits), some, 0)[6][1])


def test_the_correlation_within_a_prompt_knows_ties_and_nothing() -> None:
    right = [np.array([1.0, 0.0]), np.array([0.0, 1.0]), np.array([1.0, 1.0])]
    values = [np.array([0.9, 0.1]), np.array([0.5, 0.5]), np.array([0.1, 0.9])]
    assert train_parm.correlations(values, right) == pytest.approx([1.0, 0.0])
    assert train_parm.correlations(values[2:], right[2:]) == []


def test_objects_are_counted_by_shape_and_colour() -> None:
    rng = np.random.default_rng(0)
    spec = world.parse_spec("two red circles and a blue star")
    scene = judge_data.painted(rng, spec)
    assert sum(objects(judge_data.found_in(scene)).values()) == len(scene.things)


def test_training_never_draws_evaluation_prompts() -> None:
    rng = np.random.default_rng(0)
    specs = [sample_prompt(rng) for _ in range(300)]
    kept = {world.caption(world.parse_spec(record["prompt"])) for record in load_hard_prompts()}
    kept |= {record["prompt"] for record in world.load_prompts()}
    assert not {world.caption(spec) for spec in specs} & kept
    assert any(sum(group.count for group in spec.groups) == 4 for spec in specs), "some are of the hard track"
