"""Published weights: found by path or hub id, read without pickle, and fitted strictly."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tts_vision.errors import VerifierError


def find_file(checkpoint: str, filename: str, owner: str) -> Path:
    """A file of weights.

    Args:
        checkpoint: A file, a folder that holds `filename`, a repository on the Hugging Face hub, or an
            address ``https://...`` of a file, which torch.hub keeps.
        filename: Its name inside a folder or repository.
        owner: The verifier, for messages.

    Raises:
        VerifierError: If it is not there and cannot be downloaded.
    """
    if checkpoint.startswith("https://"):
        return _downloaded(checkpoint, owner)
    path = Path(checkpoint).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        if (path / filename).is_file():
            return path / filename
        held = ", ".join(sorted(p.name for p in path.iterdir())[:5]) or "nothing"
        raise VerifierError(
            f"The folder of {owner!r} must hold {filename} but {checkpoint!r} holds {held}; point checkpoint "
            "at the file itself."
        )
    _refuse_missing_path(checkpoint, owner)
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(checkpoint, filename))
    except Exception as error:  # the hub's client raises a dozen kinds
        raise _unreachable(f"{checkpoint}/{filename}", owner, error) from error


def _downloaded(url: str, owner: str) -> Path:
    """The file at `url` in the cache of torch.hub, checked against the digest in its name if it has one."""
    name = url.rsplit("/", 1)[-1]
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    if path.is_file():
        return path
    digest = re.search(r"-([0-9a-f]{8,})\.", name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), digest[1] if digest else None, progress=False)
    except Exception as error:  # of the network, the disk, or a wrong digest
        raise _unreachable(url, owner, error) from error
    return path


def read_state(path: Path, owner: str) -> dict[str, Tensor]:
    """The tensors in a file of weights, on the CPU; pickles are read with ``weights_only=True``.

    Raises:
        VerifierError: If the file cannot be read, or holds no mapping of tensors.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and safetensors each have their own
        raise VerifierError(
            f"The weights of {owner!r} must be a whole safetensors or PyTorch file but {str(path)!r} is not: "
            f"{_first_line(error)}; download it again."
        ) from error
    for wrapper in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise VerifierError(
            f"The weights of {owner!r} must map names to tensors but {str(path)!r} holds "
            f"{type(state).__name__}; give the published file."
        )
    return dict(state)


def load_strictly(
    module: nn.Module,
    state: Mapping[str, Tensor],
    owner: str,
    *,
    ignore: Collection[str] = (),
    assign: bool = False,
) -> None:
    """Loads `state` into `module`: every key must fit, none may be missing.

    Args:
        module: The model that gets the weights.
        state: Tensors by name.
        owner: The verifier, for messages.
        ignore: Names, or prefixes that end in a dot, in `state` that are known not to be weights (buffers
            of older versions), or in `module` that it makes by itself.
        assign: Whether the module takes the tensors themselves, as one without memory of its own must.

    Raises:
        VerifierError: If a key is missing, unexpected, or of another shape; names them.
    """

    def ignored(key: str) -> bool:
        return any(key == name or (name.endswith(".") and key.startswith(name)) for name in ignore)

    wanted = {key: value for key, value in module.state_dict().items() if not ignored(key)}
    given = {key: value for key, value in state.items() if not ignored(key)}
    check_keys(owner, missing=wanted.keys() - given.keys(), unexpected=given.keys() - wanted.keys())
    other = [key for key in sorted(wanted) if wanted[key].shape != given[key].shape]
    if other:
        key = other[0]
        raise VerifierError(
            f"The weights of {owner!r} must have the shapes of its model but {key!r} is "
            f"{tuple(given[key].shape)} instead of {tuple(wanted[key].shape)} ({len(other)} differ); give "
            "the checkpoint of this model size."
        )
    module.load_state_dict(given, strict=False, assign=assign)


def check_keys(owner: str, *, missing: Collection[str], unexpected: Collection[str]) -> None:
    """Checks that a checkpoint had just the weights that its model has.

    Raises:
        VerifierError: If not; names the first ones.
    """
    if not missing and not unexpected:
        return
    parts = [
        f"{len(keys)} {what} ({', '.join(sorted(keys)[:3])}{', ...' if len(keys) > 3 else ''})"
        for what, keys in (("missing", missing), ("unexpected", unexpected))
        if keys
    ]
    raise VerifierError(
        f"The weights of {owner!r} must fit its model key by key but there are {' and '.join(parts)}; give "
        "the published checkpoint of this verifier."
    )


def from_pretrained(
    model_class: Any,
    checkpoint: str,
    owner: str,
    *,
    ignore: Collection[str] = (),
    unread: Collection[str] = (),
    **settings: Any,
) -> Any:
    """A transformers model in evaluation mode without gradients, loaded strictly.

    Args:
        model_class: A class with transformers' ``from_pretrained``.
        checkpoint: A folder or a repository on the Hugging Face hub.
        owner: The verifier, for messages.
        ignore: Ends of names in the checkpoint that are known not to be weights (buffers of older versions).
        unread: Ends of names of weights that the model has and never reads; they may be missing.
        settings: Further arguments of ``from_pretrained``.

    Raises:
        VerifierError: If it cannot be loaded, or its weights do not fit key by key.
    """
    if not Path(checkpoint).expanduser().exists():
        _refuse_missing_path(checkpoint, owner)
    try:
        # other shapes are told here, by name
        model, info = model_class.from_pretrained(
            checkpoint, output_loading_info=True, ignore_mismatched_sizes=True, **settings
        )
    except Exception as error:  # every library beneath raises its own kinds
        raise _unreachable(checkpoint, owner, error) from error
    unexpected = [key for key in info["unexpected_keys"] if not key.endswith(tuple(ignore))]
    missing = [key for key in info["missing_keys"] if not key.endswith(tuple(unread))]
    check_keys(owner, missing=missing, unexpected=unexpected)
    if mismatched := sorted(info["mismatched_keys"]):
        key, given, wanted = mismatched[0]
        raise VerifierError(
            f"The weights of {owner!r} must have the shapes of its model but {key!r} is {tuple(given)} "
            f"instead of {tuple(wanted)} ({len(mismatched)} differ); give the checkpoint of this model size."
        )
    return model.eval().requires_grad_(False)


def processor_from(processor_class: Any, checkpoint: str, owner: str, **settings: Any) -> Any:
    """A transformers processor or tokenizer.

    Raises:
        VerifierError: If it cannot be loaded.
    """
    try:
        return processor_class.from_pretrained(checkpoint, **settings)
    except Exception as error:  # as above
        raise _unreachable(checkpoint, owner, error) from error


def _refuse_missing_path(checkpoint: str, owner: str) -> None:
    """Refuses a missing path before a hub is asked for it."""
    looks_like_path = checkpoint.startswith((".", "/", "~")) or checkpoint.count("/") != 1
    if looks_like_path:
        raise VerifierError(
            f"The weights of {owner!r} must be an existing path or a hub id 'owner/name' but got "
            f"{checkpoint!r}; check the path."
        )


def _unreachable(what: str, owner: str, error: Exception) -> VerifierError:
    return VerifierError(
        f"The weights of {owner!r} must load from {what!r} but: {_first_line(error)}; check the name and the "
        f"network, or download them elsewhere and give '{owner}:checkpoint=PATH'."
    )


def _first_line(error: Exception) -> str:
    text = str(error).strip().split("\n", 1)[0].rstrip(".")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
