"""The benchmark scripts run, resume, and say what they measured."""

from __future__ import annotations

from tts_vision.eval import playground


def test_prompts_are_distinct_and_even_over_the_forms():
    prompts = playground.evaluation_prompts(24)
    assert len({prompt.text for prompt in prompts}) == 24
    forms = [prompt.metadata["tag"] for prompt in prompts]
    assert {forms.count(form) for form in set(forms)} == {4}
    assert all("include" in prompt.metadata for prompt in prompts)


def test_prompts_of_the_hard_track_are_other_ones_with_counts_in_turn():
    prompts = playground.evaluation_prompts(10, "hard")
    counts = [tuple(entry["count"] for entry in prompt.metadata["include"][::-1]) for prompt in prompts]
    assert counts == [(3, 1), (1, 3), (2, 2), (2, 1), (1, 2)] * 2
    every = playground.evaluation_prompts(1000, "hard")
    assert len(every) == 150
    assert not {prompt.text for prompt in every} & {p.text for p in playground.evaluation_prompts(1000)}
