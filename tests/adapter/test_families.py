"""Every promise, for every further pipeline class: editing, control, guidance, video."""

from __future__ import annotations

from contextlib import suppress

import pytest
from contract import CHECKS, NotPromised, Subject
from families import FAMILIES


@pytest.mark.parametrize("name", FAMILIES)
def test_a_pipeline_is_driven_as_its_own_call_runs(name: str) -> None:
    subject = Subject.of(FAMILIES[name])
    for check in CHECKS.values():
        with suppress(NotPromised):
            check(subject)
