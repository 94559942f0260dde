"""The journal of a search: what makes it survive a kill.

Resume is deterministic replay: the algorithm runs again and recorded operations return their recorded
results. Tensors of finished operations are stored as long as some live state is made of them; a result
whose tensors are gone is a placeholder (`State.placeholder`), which can be reindexed and joined but, by
construction, is never computed with.
"""

from __future__ import annotations

import json
import os
import weakref
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from tts_vision.condition import Asset
from tts_vision.errors import StorageError
from tts_vision.trace import Event, read_trace
from tts_vision.types import Rows, State, in_layout, layout_of


@contextmanager
def storage(path: Path, what: str) -> Iterator[None]:
    """Turns a failure to write `what` under `path` into one clear message."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise StorageError(
            f"{what} must be written to {str(path)!r} but the system says: "
            f"{getattr(error, 'strerror', None) or error}. "
            "Free some space or choose another --output; everything written so far is kept, and "
            "'tts-vision resume' goes on from it."
        ) from error


ASSETS = "conditions"
_LAYOUTS = {str(layout): layout for layout in (torch.channels_last, torch.channels_last_3d)}


def read_asset(folder: Path | None, name: str) -> Asset:
    """An image or a tensor of a condition, from the folder of a search.

    Raises:
        StorageError: If it is not there or damaged.
    """
    try:
        if folder is None or Path(name).name != name:
            raise OSError("it is not in the folder of the search")
        return Asset.load(name, (folder / ASSETS / name).read_bytes())
    except (OSError, ValueError, SafetensorError) as error:
        raise StorageError(
            f"Images and tensors of conditions must be in {ASSETS!r} of the search's folder but {name!r} "
            f"cannot be read: {error}; restore the file."
        ) from error


class Blob:
    """The stored tensors of one operation, deleted when no live state is made of them."""

    def __init__(self, path: Path, journal: Journal) -> None:
        self.name = path.name
        weakref.finalize(self, _discard, path, weakref.ref(journal)).atexit = False


def _discard(path: Path, journal: weakref.ref[Journal]) -> None:
    owner = journal()
    if owner is not None and not owner.frozen:
        path.unlink(missing_ok=True)


class Journal:
    """Events and tensors of one search, in a folder or, without one, in memory only.

    Attributes:
        events: All events so far, former sessions included.
        frozen: Once set, stored tensors are kept whatever happens to the states (after a failure).
        is_spent: Whether a former session came to its end because the budget was spent.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self.frozen = False
        self.is_spent = False
        self.events: list[Event] = []
        self._assets: dict[str, Asset] = {}
        self._past: dict[int, list[Event]] = defaultdict(list)
        if folder is None:
            return
        self._path = folder / "trace.jsonl"
        self._blobs = folder / "state"
        with storage(folder, "The trace"):
            self._blobs.mkdir(parents=True, exist_ok=True)
            self.events = read_trace(self._path)
            for event in self.events:
                self._past[event.op].append(event)
            self.is_spent = any(event.kind == "done" and event.budget_spent for event in self.events)
            # drop what a kill left of an unfinished line, so that appended lines stay readable
            content = self._path.read_bytes() if self._path.exists() else b""
            if content and not content.endswith(b"\n"):
                with self._path.open("r+b") as file:
                    file.truncate(content.rfind(b"\n") + 1)
            self._file = self._path.open("ab")

    def past(self, op: int) -> list[Event]:
        """What a former session recorded for operation `op`."""
        return self._past.get(op, [])

    def append(self, event: Event) -> None:
        """Records an event; on disk before this returns."""
        self.events.append(event)
        if self.folder is not None:
            with storage(self._path, "The trace"):
                self._file.write(event.model_dump_json().encode() + b"\n")
                self._file.flush()

    def save(self, state: State, op: int, first: int) -> tuple[State, str | None]:
        """Stores the tensors of `state`; returns it holding on to them, and their name."""
        if self.folder is None:
            return state, None
        path = self._blobs / f"{op:06d}-{first:05d}.safetensors"
        tensors = {"latents": state.latents}
        for key, value in state.carry.items():
            if not isinstance(value, Rows):  # these can be made again
                tensors[f"carry.{key}"] = value
        layouts = {key: str(layout_of(t)) for key, t in tensors.items() if layout_of(t) in _LAYOUTS.values()}
        tensors = {key: value.contiguous() for key, value in tensors.items()}
        # samplers may carry one tensor under two names; safetensors stores no memory twice
        seen: set[int] = set()
        for key, value in tensors.items():
            if (address := value.untyped_storage().data_ptr()) in seen:
                tensors[key] = value.clone()
            seen.add(address)
        shared = dict(state.shared)
        for key in [key for key, value in shared.items() if isinstance(value, torch.Tensor)]:
            tensors[f"shared.{key}"] = shared.pop(key).contiguous()
        meta = {"shared": json.dumps(shared), "layouts": json.dumps(layouts)}
        with storage(path, "A checkpoint"):
            save_file(tensors, path.with_suffix(".part"), metadata=meta)
            os.replace(path.with_suffix(".part"), path)
        return replace(state, keepalive=frozenset({Blob(path, self)})), path.name

    def load(self, name: str | None, like: State, uids: tuple[int, ...], step: int) -> State:
        """The stored state `name`, or a placeholder when its tensors are gone.

        Args:
            name: What `save` returned.
            like: Rows that the operation started from.
            uids: Identities of the stored rows.
            step: Step of the stored rows.

        Raises:
            StorageError: If the tensors are there but cannot be read.
        """
        state = replace(like, uids=uids, step=step, carry={}, keepalive=frozenset())
        path = self._blobs / name if name else None
        if path is None or not path.exists():
            return state.placeholder()
        try:
            with safe_open(path, "pt") as file:
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
                shared = json.loads(file.metadata()["shared"])
                layouts = json.loads(file.metadata()["layouts"])
        except (OSError, SafetensorError) as error:
            raise StorageError(
                f"A checkpoint must be readable but {str(path)!r} is not ({error}); restore the file, or "
                "start the search again in another folder."
            ) from error
        for key, layout in layouts.items():
            tensors[key] = in_layout(tensors[key], _LAYOUTS[layout])
        latents = tensors.pop("latents")
        carry: dict[str, torch.Tensor | Rows] = {}
        for key, tensor in tensors.items():
            group, _, entry = key.partition(".")
            (carry if group == "carry" else shared)[entry] = tensor
        return replace(
            state, latents=latents, carry=carry, shared=shared, keepalive=frozenset({Blob(path, self)})
        )

    def keep(self, asset: Asset) -> None:
        """Keeps an image or a tensor of a condition, once, for as long as the folder."""
        if asset.name in self._assets:
            return
        self._assets[asset.name] = asset
        if self.folder is None:
            return
        path = self.folder / ASSETS / asset.name
        with storage(path, "An image or a tensor of a condition"):
            path.parent.mkdir(exist_ok=True)
            if not path.exists():
                path.with_suffix(".part").write_bytes(asset.dump())
                os.replace(path.with_suffix(".part"), path)

    def asset(self, name: str) -> Asset:
        """An image or a tensor that `keep` kept, in this session or an earlier one.

        Raises:
            StorageError: If it cannot be read.
        """
        if name not in self._assets:
            self._assets[name] = read_asset(self.folder, name)
        return self._assets[name]

    def close(self) -> None:
        """Ends a search that is done: its intermediate tensors are no longer needed."""
        if self.folder is None:
            return
        self._file.close()
        self.frozen = True
        for path in self._blobs.glob("*"):
            path.unlink(missing_ok=True)
        self._blobs.rmdir()
