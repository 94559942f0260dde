"""A quicker start of the command line: modules that no search needs are imported when they are first used.

The libraries beneath import compilers, distributed training and statistics whether they are used or not. A
deferred module stands for such a module until something asks it for more than the names below, and becomes it
then. Importing tts_vision in Python defers nothing.
"""

from __future__ import annotations

import gc
import importlib
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

# modules, and the names that are imported from them without being used
_DEFERRED: Mapping[str, tuple[str, ...]] = {
    "torch._dynamo": (),
    "torch._dynamo.eval_frame": ("OptimizedModule",),
    "torch._dynamo.utils": ("is_compile_supported",),
    "torch._dynamo._trace_wrapped_higher_order_op": ("TransformGetItemToIndex",),
    "torch.distributed._composable.fsdp": ("fully_shard",),
    "torch.distributed.checkpoint": (),
    "torch.distributed.checkpoint.hf_storage": ("HuggingFaceStorageReader", "HuggingFaceStorageWriter"),
    "torch.distributed.fsdp": ("CPUOffloadPolicy", "FullyShardedDataParallel", "MixedPrecisionPolicy"),
    "scipy.ndimage": (),
    "scipy.special": ("expit",),
    "scipy.stats": ("rankdata", "spearmanr"),
    "scipy.integrate": (),
    "scipy.optimize": ("linear_sum_assignment",),
    "peft": ("PeftModel",),
    "peft.helpers": ("disable_input_dtype_casting",),
    "peft.tuners": (),
    "peft.tuners.tuners_utils": ("BaseTunerLayer",),
}
# decorators that note something about a function for the compiler
_MARKS = {"torch._dynamo": ("allow_in_graph", "assume_constant_result", "disable")}
_MANY = 100_000
_lock = threading.RLock()


def hasten() -> None:
    """Defers modules from now on, and collects garbage rarely until `settle`."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
    gc.set_threshold(_MANY, *gc.get_threshold()[1:])


def settle() -> None:
    """Ends the start: what is loaded by now is no garbage, and what comes is collected as always."""
    if gc.get_threshold()[0] == _MANY:
        gc.freeze()
        gc.set_threshold(700, *gc.get_threshold()[1:])


class _Deferred(ModuleType):
    """Stands for a module that is not loaded yet; becomes it when it is asked for more than is listed."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name not in {"__version__", "__all__"}:
            # asked of every module, as inspect does
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        with _lock:
            if type(self) is _Deferred and not _is_loaded(_parent_of(self.__name__)):
                if f"{self.__name__}.{name}" in _DEFERRED:
                    return importlib.import_module(f"{self.__name__}.{name}")
                if name in _MARKS.get(self.__name__, ()):
                    return _Mark(self, name)
                if name in _DEFERRED[self.__name__]:
                    return _Later(self, name)
            _load(self)
        return getattr(self, name)


class _Later:
    """Stands for a class or function of a deferred module; using it loads the module."""

    def __init__(self, module: ModuleType, name: str) -> None:
        self.__dict__.update(_module=module, _name=name)

    def _real(self) -> Any:
        _load(self._module)
        return getattr(self._module, self._name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._real()(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real(), name)

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        return (self._real(),)

    def __instancecheck__(self, instance: Any) -> bool:
        # nothing can be an instance of a class that does not exist yet
        return not isinstance(self._module, _Deferred) and isinstance(instance, self._real())

    def __subclasscheck__(self, subclass: type) -> bool:
        return not isinstance(self._module, _Deferred) and issubclass(subclass, self._real())

    def __or__(self, other: Any) -> Any:
        return self._real() | other

    def __ror__(self, other: Any) -> Any:
        return other | self._real()


class _Mark:
    """Stands for a decorator of the compiler: functions are noted, and marked when the compiler is loaded."""

    def __init__(self, module: ModuleType, name: str) -> None:
        self._module, self._name = module, name

    def __call__(self, function: Any = None, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(self._module, _Deferred):
            return getattr(self._module, self._name)(function, *args, **kwargs)
        if function is None:
            return lambda given: self(given, *args, **kwargs)
        if self._name != "disable":
            _noted(self._module).append(lambda: getattr(self._module, self._name)(function))
            return function
        return _disabled(self._module, function, args, kwargs)


def _disabled(
    module: ModuleType, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Callable[..., Any]:
    """A function that the compiler leaves alone, once there is a compiler."""
    from functools import wraps

    real = None

    @wraps(function)
    def call(*call_args: Any, **call_kwargs: Any) -> Any:
        return (real or function)(*call_args, **call_kwargs)

    def mark() -> None:
        nonlocal real
        real = module.disable(function, *args, **kwargs)

    _noted(module).append(mark)
    return call


def _noted(module: ModuleType) -> list[Callable[[], Any]]:
    notes: list[Callable[[], Any]] = module.__dict__["_tts_vision_noted"]
    return notes


def _load(module: ModuleType | None) -> None:
    """Makes a deferred module the real one; its deferred parents first."""
    with _lock:
        if not isinstance(module, _Deferred):
            return
        _load(sys.modules.get(_parent_of(module.__name__)))
        if not isinstance(module, _Deferred):  # its parent needed it
            return
        spec, noted = module.__dict__.pop("_tts_vision_spec"), module.__dict__.pop("_tts_vision_noted")
        module.__class__ = ModuleType
        module.__spec__, module.__loader__ = spec, spec.loader
        spec.loader.exec_module(module)
        for mark in noted:
            mark()


def _parent_of(name: str) -> str:
    return name.rpartition(".")[0]


def _is_loaded(name: str) -> bool:
    """Whether a module that may be deferred is there already."""
    return name in _DEFERRED and name in sys.modules and not isinstance(sys.modules[name], _Deferred)


class _Finder(MetaPathFinder):
    """Finds deferred modules; any other part of a deferred package loads the package."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        parent = _parent_of(name)
        if name not in _DEFERRED or _is_loaded(parent):
            _load(sys.modules.get(parent))
            # the parent may have imported it by now; left among the modules, it would be run again
            found = sys.modules.pop(name, None)
            return None if found is None else ModuleSpec(name, _Found(found))
        spec = PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return None
        stand_in = ModuleSpec(
            name, _Loader(spec), origin=spec.origin, is_package=spec.submodule_search_locations is not None
        )
        if stand_in.submodule_search_locations is not None:
            stand_in.submodule_search_locations.extend(spec.submodule_search_locations or ())
        return stand_in


class _Loader(Loader):
    """Makes the stand-in of a module."""

    def __init__(self, spec: ModuleSpec) -> None:
        self._spec = spec

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = _Deferred(spec.name)
        module.__dict__.update(_tts_vision_spec=self._spec, _tts_vision_noted=[], __file__=self._spec.origin)
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Does nothing yet."""


class _Found(Loader):
    """Finds a module that is loaded already."""

    def __init__(self, module: ModuleType) -> None:
        self._module, self._spec = module, module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec
