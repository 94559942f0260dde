"""Frames per second of the clips that video models make."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

_ARGUMENTS = ("frame_rate", "fps")

FRAME_RATES: dict[str, float] = {
    "AllegroPipeline": 15.0,  # Zhou et al. 2024, arXiv:2410.15458
    "AnimateDiff": 8.0,  # Guo et al. 2023, arXiv:2307.04725
    "CogVideoX": 8.0,  # Yang et al. 2024, arXiv:2408.06072; version 1.5 has 16
    "ConsisID": 8.0,  # Yuan et al. 2024, arXiv:2411.17440, on CogVideoX
    "EasyAnimate": 8.0,  # Xu et al. 2024, arXiv:2405.18991
    "Helios": 24.0,  # by the example of diffusers' class
    "HunyuanVideoFramepack": 30.0,  # by the example of diffusers' class
    "HunyuanVideo": 24.0,  # Kong et al. 2024, arXiv:2412.03603
    "Latte": 8.0,  # Ma et al. 2024, arXiv:2401.03048
    "Mochi": 30.0,  # Genmo 2024, model card of mochi-1-preview
    "SkyReelsV2": 24.0,  # Chen et al. 2025, arXiv:2504.13074
    "Kandinsky5": 24.0,  # Arkhipkin et al. 2025, arXiv:2511.14993
    "SanaVideo": 16.0,  # Chen et al. 2025, arXiv:2509.24695
    "SanaImageToVideo": 16.0,
    "LucyEdit": 24.0,  # Decart 2025, by the example of diffusers' class
    "MotifVideo": 24.0,  # by the example of diffusers' class
    "TextToVideoSD": 8.0,  # Wang et al. 2023, arXiv:2308.06571
    "VideoToVideoSD": 8.0,
    "Wan": 16.0,  # Wan Team 2025, arXiv:2503.20314
    "AnyFlow": 16.0,  # on Wan 2.1, by the example of diffusers' class
    "ChronoEdit": 16.0,  # Wu et al. 2025, arXiv:2510.04290, on Wan
}
"""The published rates, by the longest prefix of a pipeline class."""

DEFAULT = 8.0


def frame_rate(name: str, call: Mapping[str, Any], signature: Mapping[str, inspect.Parameter]) -> float:
    """The frames per second of a clip.

    The call's argument, else the call's default, else the published rate of the model, else `DEFAULT`.

    Args:
        name: The pipeline class.
        call: Arguments of the call.
        signature: Parameters of the call.
    """
    for argument in _ARGUMENTS:
        default = signature[argument].default if argument in signature else None
        value = call.get(argument, default)
        if isinstance(value, (int, float)) and value > 0:
            return float(value)
    prefixes = [prefix for prefix in FRAME_RATES if name.startswith(prefix)]
    return FRAME_RATES[max(prefixes, key=len)] if prefixes else DEFAULT
