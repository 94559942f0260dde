"""A solver's history, split into rows and what rows share."""

from __future__ import annotations

import pytest
import torch

from tts_vision.errors import PipelineError
from tts_vision.pipelines.schedule import pack, unpack


def test_history_comes_back_as_it_was():
    rows = torch.arange(6.0).view(3, 2)
    history = {
        "model_outputs": [None, rows, rows + 1],
        "last_sample": rows * 2,
        "dt": torch.tensor(0.5),
        "timestep_list": [torch.tensor(999), 3],
        "lower_order_nums": 2,
        "_step_index": None,
        "corrected": True,
    }
    carry, shared = pack(history, rows.shape)
    assert set(carry) == {"solver/model_outputs/1", "solver/model_outputs/2", "solver/last_sample"}
    back = unpack(carry, shared, torch.device("cpu"))
    assert back["model_outputs"][0] is None and torch.equal(back["model_outputs"][2], rows + 1)
    assert torch.equal(back["last_sample"], rows * 2) and float(back["dt"]) == 0.5
    assert [int(t) for t in back["timestep_list"]] == [999, 3]
    assert (back["lower_order_nums"], back["_step_index"], back["corrected"]) == (2, None, True)


def test_only_rows_follow_their_particles():
    rows = torch.arange(6.0).view(3, 2)
    carry, shared = pack({"last_sample": rows, "sigmas": torch.arange(3.0)}, rows.shape)
    chosen = {key: value[[2, 2]] for key, value in carry.items()}
    back = unpack(chosen, shared, torch.device("cpu"))
    assert torch.equal(back["last_sample"], rows[[2, 2]]) and torch.equal(back["sigmas"], torch.arange(3.0))


def test_a_history_that_cannot_be_forked_is_refused():
    """DPMSolverSDEScheduler's Brownian tree, for example, belongs to a whole batch."""
    with pytest.raises(PipelineError, match=r"'noise_sampler' is a object; choose another scheduler"):
        pack({"noise_sampler": object()}, torch.Size((1, 2)))
