"""The journal of a search: what makes it survive a kill.

Resume is deterministic replay: the algorithm runs again and recorded operations return their recorded
results. Tensors of finished operations are stored as long as some live state is made of them; a result
whose tensors are gone is a placeholder (`State.placeholder`), which can be reindexed and joined but, by
construction, is never computed with.
"""

from __future__ import annotations

import json
import os
import re
import time
import weakref
import zlib
from collections import defaultdict
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from tts_vision.condition import Asset
from tts_vision.errors import StorageError
from tts_vision.files import (
    ASSETS,
    STATE,
    TRACE,
    append_to,
    is_file,
    is_folder,
    is_plain,
    make_inside,
    read_file,
    replace_file,
    storage,
)
from tts_vision.trace import Began, Event, check_order, read_trace
from tts_vision.types import Rows, State, in_layout, layout_of

SYNC = 0.02
"""Share of the time that may go into waiting for the disk, so that a loss of power costs next to nothing."""
_OPERATIONS = ("birth", "computed", "answer")
# what a killed session left: tensors that it did not record, and a file that was not whole yet
# states, those half written, and the file that safetensors writes in turn
_LEFT = re.compile(r"\d{6,}-\d{5,}\.safetensors|\.\d{6,}-\d{5,}\.part\.safetensors|\.tmp\w{6}")
_LAYOUTS = {str(layout): layout for layout in (torch.channels_last, torch.channels_last_3d)}


def read_asset(folder: Path | None, name: str) -> Asset:
    """An image or a tensor of a condition, from the folder of a search.

    Raises:
        StorageError: If it is not there or damaged.
    """
    try:
        if folder is None or not is_plain(name):
            raise OSError("it is not in the folder of the search")
        is_folder(folder / ASSETS)
        return Asset.load(name, read_file(folder / ASSETS / name))
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


def _checksum(tensors: dict[str, torch.Tensor]) -> str:
    """Stands for the content of tensors, against damage on the disk."""
    check = 0
    for key in sorted(tensors):
        tensor = tensors[key]
        check = zlib.crc32(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode(), check)
        if tensor.numel():
            check = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, check)
    return f"{check:08x}"


def _discard(path: Path, journal: weakref.ref[Journal]) -> None:
    owner = journal()
    if owner is not None and not owner.frozen:
        path.unlink(missing_ok=True)


class Journal:
    """Events and tensors of one search, in a folder or, without one, in memory only.

    Attributes:
        events: All events so far, former sessions included.
        frozen: Once set, stored tensors are kept whatever happens to the states (after a failure).
        last_op: The last operation that a former session recorded; -1 without any.
        is_spent: Whether a former session came to its end because the budget was spent.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self.frozen = False
        self.is_spent = False
        self.last_op = -1
        self.events: list[Event] = []
        self._assets: dict[str, Asset] = {}
        self._past: dict[int, list[Event]] = defaultdict(list)
        self._held: weakref.WeakValueDictionary[str, Blob] = weakref.WeakValueDictionary()
        if folder is None:
            return
        self._path = folder / TRACE
        self._blobs = folder / STATE
        with storage(folder, "The trace"):
            self.events = read_trace(self._path)
            check_order(self.events, self._path)
            folder.mkdir(parents=True, exist_ok=True)
            make_inside(self._blobs)
            self._file = append_to(self._path)
            self._file_number, self._opened = self._file.fileno(), time.monotonic()
            self._waited = 0.005  # about as long as one takes, so that short searches do without
            # drop what a kill left of an unfinished line, so that appended lines stay readable
            whole = read_file(self._path).rfind(b"\n") + 1
            if whole < self._file.tell():
                self._file.truncate(whole)
        for event in self.events:
            if event.kind in _OPERATIONS:
                self._past[event.op].append(event)
        self.last_op = max(self._past, default=-1)
        self.is_spent = any(event.kind == "done" and event.budget_spent for event in self.events)

    def begin(self, began: Began) -> Began:
        """Records the settings of a search, as its first event, once; returns the recorded ones."""
        if not self.events:
            self.append(began)
        first = self.events[0]
        return first if first.kind == "began" else began

    def past(self, op: int) -> list[Event]:
        """The events that a former session recorded for operation `op`."""
        return self._past.get(op, [])

    def append(self, event: Event) -> None:
        """Records an event; it survives the end of the process and, where events are not dense, of power."""
        self.events.append(event)
        if self.folder is not None:
            with storage(self._path, "The trace"):
                self._file.write(event.model_dump_json().encode() + b"\n")
                self._file.flush()
                self._sync()

    def _sync(self) -> None:
        """Waits until the trace is on the disk, unless such waits took more than their share of the time."""
        now = time.monotonic()
        if self._waited <= SYNC * (now - self._opened):
            os.fsync(self._file_number)
            self._waited += time.monotonic() - now

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
        meta = {"shared": json.dumps(shared), "layouts": json.dumps(layouts), "check": _checksum(tensors)}
        replace_file(path, lambda part: save_file(tensors, part, metadata=meta), "A checkpoint")
        return replace(state, keepalive=frozenset({self._hold(path)})), path.name

    def _hold(self, path: Path) -> Blob:
        """The handle of stored tensors: one for all states that are made of them."""
        blob = self._held.get(path.name)
        if blob is None:
            blob = self._held[path.name] = Blob(path, self)
        return blob

    def load(self, name: str | None, like: State, uids: tuple[int, ...], step: int) -> State:
        """The stored state `name`, or a placeholder when its tensors are gone.

        Args:
            name: What `save` returned.
            like: Rows that the operation started from.
            uids: Identities of the stored rows.
            step: Step of the stored rows.

        Raises:
            StorageError: If the tensors are there but cannot be read, or something else is in their place.
        """
        state = replace(like, uids=uids, step=step, carry={}, keepalive=frozenset())
        path = self._blobs / name if name else None
        if path is None or not is_folder(self._blobs) or not is_file(path):
            return state.placeholder()
        try:
            with safe_open(path, "pt") as file:
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
                meta = file.metadata() or {}
            shared, layouts = json.loads(meta["shared"]), json.loads(meta["layouts"])
            if meta["check"] != _checksum(tensors) or len(tensors["latents"]) != len(uids):
                raise ValueError("its content was changed")
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
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
            state, latents=latents, carry=carry, shared=shared, keepalive=frozenset({self._hold(path)})
        )

    def keep(self, asset: Asset) -> None:
        """Keeps an image or a tensor of a condition, once, for as long as the folder."""
        if asset.name in self._assets:
            return
        self._assets[asset.name] = asset
        if self.folder is None:
            return
        path = self.folder / ASSETS / asset.name
        what = "An image or a tensor of a condition"
        with storage(path, what):
            make_inside(path.parent)
            if not is_file(path):
                replace_file(path, lambda part: part.write_bytes(asset.dump()), what)

    def asset(self, name: str) -> Asset:
        """An image or a tensor that `keep` kept, in this session or an earlier one.

        Raises:
            StorageError: If it cannot be read.
        """
        if name not in self._assets:
            self._assets[name] = read_asset(self.folder, name)
        return self._assets[name]

    def close(self, *, keep_tensors: bool = False) -> None:
        """Ends a search that is done, whose intermediate tensors are no longer needed, or one that may go on.

        Args:
            keep_tensors: Whether it may go on.
        """
        if self.folder is None:
            return
        with storage(self._path, "The trace"):
            self._sync()
            self._file.close()
        self.frozen = True
        if keep_tensors or not is_folder(self._blobs):
            return
        for path in self._blobs.iterdir():
            if _LEFT.fullmatch(path.name):  # files of the user stay
                path.unlink(missing_ok=True)
        with suppress(OSError):
            self._blobs.rmdir()
