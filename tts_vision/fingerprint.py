"""Fingerprints of live objects: cheap facts that tell a changed pipeline, sampler or verifier.

A configuration knows a Python object by its class alone. Its fingerprint adds what decides the results: for a
pipeline the scheduler and its settings, the settings of all components, their weights by name, shape, type
and a few values, and the adapters; for any other object its networks, and the plain values that it was made
with. It loads and moves nothing. A change of single weights can escape it.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tts_vision.errors import ConfigError

if TYPE_CHECKING:
    from tts_vision.config import RunConfig
    from tts_vision.resolve import Live

_VALUES = 4  # of each tensor
_DEPTH = 2  # of objects inside objects that are looked into for networks
_NOT_THE_RESULT = {"self", "device", "batch_size"}
_PLAIN = (bool, int, float, str, type(None))


def fingerprint(config: RunConfig, live: Live | None) -> dict[str, Any]:
    """Facts about the Python objects in the place of names, by dotted keys, as JSON has them."""
    if live is None:
        return {}
    facts: dict[str, Any] = {}
    for key, name, value in (
        ("model", config.model, live.pipe),
        ("verifier", config.verifier, live.verifier),
        ("holdout_verifier", config.holdout_verifier or "", live.holdout),
    ):
        if value is not None and name.startswith("<"):
            facts |= dict(_named(key, _facts(value, _DEPTH)))
    return facts | dict(_named("pipeline_kwargs", _tensors(config.sampler_options.pipeline_kwargs)))


def check_fingerprint(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Checks that live objects are those that a search began with.

    Facts that only one of the two has are not compared: a network may not be loaded yet.

    Raises:
        ConfigError: If they are not; the message names what changed.
    """
    changed = [key for key in recorded if key in now and _digest(recorded[key]) != _digest(now[key])]
    if not changed:
        return
    told = [
        f"{key} differs" if _is_digest(now[key]) else f"{key} is {now[key]!r} and was {recorded[key]!r}"
        for key in changed[:6]
    ]
    raise ConfigError(
        "A search must be continued with the same live objects but "
        f"{', '.join(told)}{', ...' if len(changed) > len(told) else ''}; pass those that it began with, or "
        "choose another output folder."
    )


def _facts(value: Any, depth: int) -> Iterator[tuple[str, Any]]:
    """The facts of one object."""
    if isinstance(value, nn.Module):
        yield from _module_facts(value)
    elif _is_pipeline(value):
        yield from _pipeline_facts(value)
    elif _is_object(value):
        yield "class", type(value).__qualname__
        yield from _named("", _made_with(value))
        yield from _inner_facts(value, depth)


def _pipeline_facts(pipe: Any) -> Iterator[tuple[str, Any]]:
    yield "class", type(pipe).__qualname__
    yield from _named("config", _settings(getattr(pipe, "config", None), set(pipe.components)))
    for name, component in pipe.components.items():
        if component is None:
            yield name, None
        elif isinstance(component, nn.Module):
            yield from _named(name, _module_facts(component))
        else:
            yield f"{name}.class", type(component).__qualname__
            if name == "scheduler":
                yield from _named(f"{name}.config", _settings(getattr(component, "config", None)))
            elif hasattr(component, "__len__"):
                yield f"{name}.length", len(component)


def _module_facts(module: nn.Module) -> Iterator[tuple[str, Any]]:
    module = getattr(module, "_orig_mod", module)  # a compiled one
    yield "class", type(module).__qualname__
    config = getattr(module, "config", None)
    with suppress(Exception):  # of any library
        values = config if isinstance(config, Mapping) or config is None else config.to_dict()
        yield "config", _digest(sorted(_settings(values)))
    tensors, weights = _weights(module)
    yield "tensors", tensors
    if weights is not None:
        yield "weights", weights
    yield from _adapters(module)


def _weights(module: nn.Module) -> tuple[str, str | None]:
    """Digests of the names, shapes and types of all weights, and of a few values of each.

    The second is None where values are not in memory, as those of an offloaded network.
    """
    described, samples = hashlib.sha256(), []
    known = True
    for name, tensor in _stored_tensors(module):
        described.update(f"{name} {tuple(tensor.shape)} {tensor.dtype};".encode())
        if tensor.is_meta:
            known = False
        elif tensor.numel() and known:
            try:
                samples.append(_sample(tensor))
            except (RuntimeError, NotImplementedError, TypeError):  # of a tensor of some other kind
                known = False
    weights = hashlib.sha256(_together(samples)).hexdigest()[:16] if known else None
    return described.hexdigest()[:16], weights


def _stored_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The parameters and buffers that a checkpoint has."""
    yield from module.named_parameters()
    for prefix, part in module.named_modules():
        for name, buffer in part._buffers.items():
            if buffer is not None and name not in part._non_persistent_buffers_set:
                yield f"{prefix}.{name}", buffer


def _sample(tensor: Tensor) -> Tensor:
    """A few values of a tensor, evenly spread, as bytes on its device."""
    tensor, n = tensor.detach(), tensor.numel()
    if tensor.is_contiguous():
        values = tensor.view(-1)[:: max(1, (n - 1) // (_VALUES - 1))][:_VALUES]
    else:  # not flattened, which would copy it
        places = range(0, n, max(1, (n - 1) // (_VALUES - 1)))[:_VALUES]
        values = torch.stack([tensor[_coordinates(place, tensor.shape)] for place in places])
    return values.contiguous().view(torch.uint8)


def _coordinates(place: int, shape: torch.Size) -> tuple[int, ...]:
    found = []
    for size in reversed(shape):
        place, at = divmod(place, size)
        found.append(at)
    return tuple(reversed(found))


def _together(samples: list[Tensor]) -> bytes:
    """The bytes of all samples in order, with one transfer from each device."""
    places: dict[torch.device, list[int]] = {}
    for i, sample in enumerate(samples):
        places.setdefault(sample.device, []).append(i)
    pieces: dict[int, bytes] = {}
    for numbers in places.values():
        joined = torch.cat([samples[i] for i in numbers]).cpu().numpy().tobytes()
        at = 0
        for i in numbers:
            pieces[i] = joined[at : at + len(samples[i])]
            at += len(samples[i])
    return b"".join(pieces[i] for i in range(len(samples)))


def _adapters(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """The adapters in use and their scales, of layers as PEFT makes them."""
    active: set[str] = set()
    scales = []
    for name, part in module.named_modules():
        scaling = vars(part).get("scaling")
        if isinstance(scaling, dict):
            used = [] if vars(part).get("_disable_adapters") else getattr(part, "active_adapters", [])
            active |= set(used)
            scales.append((name, sorted((key, str(value)) for key, value in scaling.items() if key in used)))
    if scales:
        yield "adapters", sorted(active)
        yield "adapter_scales", _digest(scales)


def _made_with(value: Any) -> Iterator[tuple[str, Any]]:
    """The arguments of an object's constructor that it keeps as plain values or tensors."""
    kept = _attributes(value)
    try:
        names = inspect.signature(type(value).__init__).parameters
    except (TypeError, ValueError):
        return
    for name in names:
        if name not in kept or name in _NOT_THE_RESULT:
            continue
        if isinstance(kept[name], Tensor):
            yield name, _digest_of(kept[name])
        elif _is_plain(kept[name]):
            yield name, kept[name]


def _inner_facts(value: Any, depth: int) -> Iterator[tuple[str, Any]]:
    """The facts of networks and pipelines inside an object."""
    for name, inner in sorted(_attributes(value).items()):
        if isinstance(inner, nn.Module) or _is_pipeline(inner):
            yield from _named(name, _facts(inner, 0))
        elif depth:
            yield from _named(name, _inner_facts(inner, depth - 1))


def _tensors(value: Any) -> Iterator[tuple[str, Any]]:
    """Digests of the tensors in nested arguments, whose names do not tell them apart."""
    if isinstance(value, Tensor):
        yield "", _digest_of(value)
    elif isinstance(value, (Mapping, list, tuple)):
        for key, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _named(str(key), _tensors(inner))


def _settings(config: Any, without: set[str] | frozenset[str] = frozenset()) -> Iterator[tuple[str, Any]]:
    """The settings of a component, as JSON has them; what a library notes about itself apart."""
    for key, value in config.items() if isinstance(config, Mapping) else ():
        if not key.startswith("_") and key not in without and key not in ("transformers_version", "dtype"):
            yield key, json.loads(json.dumps(value, default=str))


def _named(prefix: str, facts: Iterator[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    for key, value in facts:
        yield ".".join(part for part in (prefix, key) if part), value


def _is_pipeline(value: Any) -> bool:
    # looked up without running code of the object first: attributes of some load what they are asked for
    if not _is_object(value) or inspect.getattr_static(value, "components", None) is None:
        return False
    return isinstance(value.components, Mapping)


def _is_object(value: Any) -> bool:
    """Whether a value is an instance with attributes, and no function, class or module."""
    return hasattr(type(value), "__dict__") and not (
        inspect.isroutine(value) or inspect.isclass(value) or inspect.ismodule(value)
    )


def _attributes(value: Any) -> dict[str, Any]:
    found = inspect.getattr_static(value, "__dict__", None)
    return vars(value) if found is not None and _is_object(value) else {}


def _is_plain(value: Any) -> bool:
    parts = value if isinstance(value, tuple) else (value,)
    return all(isinstance(part, _PLAIN) for part in parts)


def _digest_of(tensor: Tensor) -> str:
    content = tensor.detach().cpu().contiguous()
    data = content.reshape(-1).view(torch.uint8).numpy().tobytes() if content.numel() else b""
    return hashlib.sha256(f"{content.dtype} {tuple(content.shape)}".encode() + data).hexdigest()[:16]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 16 and all(char in "0123456789abcdef" for char in value)
