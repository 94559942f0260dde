"""Noise levels, x0 predictions and solver history of diffusers schedulers."""

from __future__ import annotations

import copy
import functools
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tts_vision.errors import PipelineError
from tts_vision.pipelines.stochastic import Level


def noise_levels(scheduler: Any) -> list[Level]:
    """The level of the sample before each entry of `scheduler.timesteps`, and after the last one.

    In the coordinates of the sample that `scheduler.step` sees: flow ``(1 - sigma, sigma)``,
    variance-exploding ``(1, sigma)``, or variance-preserving.

    Args:
        scheduler: A diffusers scheduler after `set_timesteps`.
    """
    n = len(scheduler.timesteps)
    sigmas = getattr(scheduler, "sigmas", None)
    if sigmas is not None and len(sigmas) > n:
        values = [float(s) for s in sigmas[: n + 1]]
        if is_inverted(scheduler):
            return [Level(s, 1 - s) for s in values]
        if is_flow(scheduler):
            return [Level(1 - s, s) for s in values]
        if float(getattr(scheduler, "init_noise_sigma", 1.0)) != 1.0:
            return [Level(1.0, s) for s in values]
        return [Level(1 / math.hypot(1, s), s / math.hypot(1, s)) for s in values]
    if getattr(scheduler, "alphas_cumprod", None) is None:
        raise PipelineError(
            f"A scheduler must have sigmas or alphas_cumprod for previews and stochastic steps but "
            f"{type(scheduler).__name__} has neither; use another scheduler, such as DDIM."
        )
    kept = [float(scheduler.alphas_cumprod[int(t)]) for t in scheduler.timesteps]
    kept.append(float(getattr(scheduler, "final_alpha_cumprod", 1.0)))
    return [Level(math.sqrt(a), math.sqrt(1 - a)) for a in kept]


def levels_if_known(scheduler: Any) -> list[Level] | None:
    """`noise_levels`, or None where the scheduler's numbers do not tell them."""
    try:
        return noise_levels(scheduler)
    except PipelineError:
        return None


def is_flow(scheduler: Any) -> bool:
    """Whether the scheduler integrates a rectified flow."""
    config = scheduler.config
    return (
        "FlowMatch" in type(scheduler).__name__
        or bool(config.get("use_flow_sigmas"))
        or config.get("prediction_type") == "flow_prediction"
    )


def is_inverted(scheduler: Any) -> bool:
    """Whether a flow's sigmas rise from 0 at noise to 1 at data, and its velocity points to the data."""
    return is_flow(scheduler) and bool(scheduler.config.get("invert_sigmas"))


def velocity(scheduler: Any, output: Tensor) -> Tensor:
    """A flow model's output as the velocity from data to noise."""
    return -output if is_inverted(scheduler) else output


def clipped(scheduler: Any, x0: Tensor) -> Tensor:
    """An x0 estimate, limited as the scheduler's config asks: dynamic thresholding or a fixed range."""
    config = scheduler.config
    if config.get("thresholding") and hasattr(scheduler, "_threshold_sample"):
        return scheduler._threshold_sample(x0)
    if config.get("clip_sample"):
        limit = float(config.get("clip_sample_range", 1.0))
        return x0.clamp(-limit, limit)
    return x0


def first_order(scheduler: Any) -> None:
    """Drops the half-steps of a second-order scheduler on which `set_timesteps` was called.

    A stochastic step in the place of the scheduler's own evaluates each noise level once.
    """
    if getattr(scheduler, "order", 1) != 2:
        return
    scheduler.timesteps = scheduler.timesteps[::2]
    n = len(scheduler.timesteps)
    scheduler.sigmas = torch.cat([scheduler.sigmas[: 2 * n : 2], scheduler.sigmas[-1:]])
    scheduler.order = 1
    if hasattr(scheduler, "sigmas_interpol"):
        scheduler.sigmas_interpol = scheduler.sigmas


def predictions(scheduler: Any, output: Tensor, x: Tensor, level: Level) -> tuple[Tensor, Tensor]:
    """The model's estimates of the finished sample and of the noise, both ``(B, ...)`` float32.

    Args:
        scheduler: Its config names the model's prediction: epsilon, v, sample or flow velocity.
        output: ``(B, ...)`` model output; a learned variance in extra channels is dropped.
        x: ``(B, ...)`` the sample it was computed at.
        level: The sample's noise level.
    """
    if output.ndim > 1 and output.shape[1] == 2 * x.shape[1]:
        output = output.chunk(2, dim=1)[0]
    output, x = output.float(), x.float()
    alpha, sigma = level.alpha, level.sigma
    if hasattr(scheduler, "precondition_outputs"):  # EDM: the output is a residual
        x0 = scheduler.precondition_outputs(x, output, sigma)
        return x0, (x - alpha * x0) / sigma
    kind = "flow_prediction" if is_flow(scheduler) else scheduler.config.get("prediction_type", "epsilon")
    if kind == "flow_prediction":
        output = velocity(scheduler, output)
        return x - sigma * output, x + alpha * output
    if kind == "epsilon":
        return (x - sigma * output) / alpha, output
    if kind == "sample":
        return output, (x - alpha * output) / sigma
    if kind == "v_prediction":
        # v lives in variance-preserving coordinates, whatever the scheduler's own
        norm = math.hypot(alpha, sigma)
        a, s = alpha / norm, sigma / norm
        return a * (x / norm) - s * output, s * (x / norm) + a * output
    raise PipelineError(
        "A model must predict epsilon, sample, v_prediction or flow_prediction but this scheduler says "
        f"{kind!r}; set prediction_type in its config."
    )


def noisy_steps(scheduler: Any, eta: float) -> list[int]:
    """The steps of a schedule whose result depends on the generator.

    Found by running the schedule on a small sample with a model that answers zeros, each step with two
    generators.

    Args:
        scheduler: A scheduler on which `set_timesteps` was called; it is not changed.
        eta: Passed to the step where it takes one.
    """
    known = arguments_of(scheduler)
    if "generator" not in known:
        return []
    first, second = copy.deepcopy(scheduler), copy.deepcopy(scheduler)
    extra = {"eta": eta} if "eta" in known else {}
    x, found = torch.ones(1, 4, 4, 4), list[int]()
    history: list[tuple[Any, ...]] = [(None, None), (None, None)] if takes_history(scheduler) else [(), ()]
    for i, t in enumerate(scheduler.timesteps):
        results = []
        for number, one in enumerate((first, second)):
            if i == 0 and hasattr(one, "set_begin_index"):
                one.set_begin_index(0)
            generator = torch.Generator("cpu").manual_seed(2 * i + number)
            try:
                if hasattr(one, "scale_model_input"):
                    one.scale_model_input(x, t)
                result = step(one, torch.zeros_like(x), t, x, history[number], generator=generator, **extra)
            except (TypeError, ValueError, AttributeError, RuntimeError, IndexError):
                return found
            if history[number]:
                history[number] = (result[1], t)
            results.append(result[0])
        if not torch.equal(*results):
            found.append(i)
        x = results[0]
    return found


def takes_history(scheduler: Any) -> bool:
    """Whether the scheduler leaves its history to its caller, as CogVideoX's DPM solver does."""
    return "timestep_back" in arguments_of(scheduler)


def arguments_of(scheduler: Any) -> frozenset[str]:
    """The names of the arguments of a scheduler's step."""
    return _names(getattr(scheduler.step, "__func__", scheduler.step))


@functools.lru_cache(maxsize=64)
def _names(step: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(step).parameters)


def step(
    scheduler: Any, output: Tensor, t: Any, x: Tensor, before_it: tuple[Any, ...], **options: Any
) -> tuple[Any, ...]:
    """One step of any scheduler.

    Args:
        scheduler: The scheduler.
        output: ``(B, ...)`` model output.
        t: Timestep.
        x: ``(B, ...)`` sample.
        before_it: For a scheduler that `takes_history`, its previous prediction of the finished sample
            and the timestep before this one; else empty.
        options: Passed on to the scheduler, which names them.
    """
    options["return_dict"] = False
    if before_it:
        previous, t_back = before_it
        return tuple(scheduler.step(output, previous, t, t_back, x, **options))
    return tuple(scheduler.step(output, t, x, **options))


def pack(history: dict[str, Any], rows: torch.Size) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Splits solver attributes into tensors with one row per particle and values that all rows share.

    Args:
        history: Attributes of a scheduler by name.
        rows: Shape of the sample; tensors of this shape are rows.

    Returns:
        Row tensors by ``solver/<attribute>[/<position>]``, and shared values, with the layout under
        ``solver``.

    Raises:
        PipelineError: If an attribute is neither tensors nor plain values, so cannot be forked.
    """
    row_tensors: dict[str, Tensor] = {}
    shared: dict[str, Any] = {}

    def layout(key: str, value: Any) -> Any:
        if isinstance(value, Tensor) and value.shape == rows:
            row_tensors[key] = value
            return {"rows": key}
        if isinstance(value, Tensor):
            shared[key] = value.clone()
            return {"tensor": key}
        if isinstance(value, Sequence) and not isinstance(value, str):
            return {"list": [layout(f"{key}/{i}", item) for i, item in enumerate(value)]}
        if value is None or isinstance(value, (bool, int, float, str)):
            return {"value": value}
        if hasattr(value, "item"):
            return {"value": value.item()}
        raise PipelineError(
            "A solver's history must be tensors and numbers to be forked but "
            f"{key.removeprefix('solver/')!r} is a "
            f"{type(value).__name__}; choose another scheduler, such as Euler, DDIM or DPM++ 2M."
        )

    shared["solver"] = {name: layout(f"solver/{name}", value) for name, value in history.items()}
    return row_tensors, shared


def unpack(carry: dict[str, Any], shared: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The attributes that `pack` split, on `device` where they are rows."""

    def value(layout: dict[str, Any]) -> Any:
        if "rows" in layout:
            return carry[layout["rows"]].to(device)
        if "tensor" in layout:
            return shared[layout["tensor"]]
        if "list" in layout:
            return [value(item) for item in layout["list"]]
        return layout["value"]

    return {name: value(item) for name, item in shared.get("solver", {}).items()}
