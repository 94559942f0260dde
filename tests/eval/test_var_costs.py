"""What TTS-VAR costs on Infinity-2B, counted by the ledger of a real search."""

from __future__ import annotations

import pytest

from tts_vision.eval import var_costs
from tts_vision.pipelines.var.schedules import schedule_for


def test_counts_are_those_of_the_model_and_the_paper(tmp_path, capsys, monkeypatch):
    found = var_costs.rows()
    one, released, full, small, best = found
    assert one.tokens == 2 * 10_521
    assert one.macs / 1e12 == pytest.approx(57.6, abs=0.05)
    # sizes 8, 8, 8, 6, 6, 6, 4, 2, 2, 2, 1, 1, 1, of which all of the first scale share one pass
    assert full.tokens / one.tokens == pytest.approx(1.39, abs=0.005)
    assert full.macs / 1e12 == pytest.approx(74.3, abs=0.05)
    assert best.macs < 8 * one.macs < best.macs + 8 * 1e12
    # eight and six candidates are clustered, four and two resampled, one is left
    assert full.decodes == small.decodes == 8 + 6 + 4 + 2 + 1
    assert released.decode_macs / 1e12 == pytest.approx(276, abs=0.5)
    assert full.decode_macs == pytest.approx(21 * var_costs.decode_macs(1024))
    assert var_costs.decode_macs(1024) == pytest.approx(16 * var_costs.decode_macs(256), rel=1e-3)
    assert small.decode_macs == pytest.approx((20 / 16 + 1) * var_costs.decode_macs(1024), rel=1e-3)
    assert var_costs.cache_shape(schedule_for(1.0)).bytes_per_row == 2 * 32 * 2 * 6425 * 2048 * 2
    monkeypatch.setattr(var_costs, "rows", lambda: found)  # counting takes seconds
    var_costs.main(["--output", str(tmp_path / "costs.md")])
    assert (tmp_path / "costs.md").read_text() in capsys.readouterr().out
