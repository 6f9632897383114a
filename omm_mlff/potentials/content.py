"""What a model is made of, as one hash: a model that a script hands over has no other name.

Two objects of one class may hold other weights, other parameters or another function; a run of one
must not go on under the other. So everything that an object holds is read: numbers, arrays,
tensors, modules, the code of its functions and classes, what a function has closed over. Of what
cannot be read (an open file, a lock, memory of another language) its type counts, and nothing else.

An object that changes while it is used, such as one that counts its calls, is another one then.
"""

from __future__ import annotations

import functools
import hashlib
import io
import re
import types
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any

import numpy as np
import openmm
import torch
from openmm import app, unit
from torch import nn

from omm_mlff.forces.scripting import known_deprecation

_PLAIN = (type(None), bool, int, float, complex, str, bytes, PurePath)
_BASES = (object, nn.Module)
"""Classes of others whose code is no part of a model."""
_MANGLED = re.compile(rb"[./]___torch_mangle_\d+")
"""TorchScript counts classes of one name in the order in which a process met them."""


def content_digest(thing: Any, *, without: Iterable[str] = ()) -> str:
    """Sha256 of all that an object holds, the same in every process of one version of Python.

    Parameters
    ----------
    without : names of attributes of the object itself that are no part of it, such as results
    """
    reader = _Reader(thing, frozenset(without))
    reader.read(thing)
    return reader.digest.hexdigest()


class _Reader:
    """Walks through an object once, whatever refers to whatever."""

    def __init__(self, whole: Any, without: frozenset[str]) -> None:
        self._whole = whole
        self._without = without
        self.digest = hashlib.sha256()
        self._seen: dict[int, int] = {}
        self._alive: list[Any] = []  # an id is unique only among objects that live

    def say(self, *words: object) -> None:
        for word in words:
            raw = word if isinstance(word, bytes) else str(word).encode()
            self.digest.update(f"{len(raw)}:".encode() + raw)

    def read(self, value: Any) -> None:
        if isinstance(value, _PLAIN):
            self.say(type(value).__name__, repr(value))
            return
        if id(value) in self._seen:
            self.say("again", self._seen[id(value)])
            return
        self._seen[id(value)] = len(self._seen)
        self._alive.append(value)
        if isinstance(value, Mapping):
            self.say("mapping", len(value))
            for key in sorted(value, key=_order):
                self.read(key)
                self.read(value[key])
        elif isinstance(value, list | tuple):
            self.say(type(value).__name__, len(value))
            for item in value:
                self.read(item)
        elif isinstance(value, set | frozenset):
            self.say("set", *sorted(content_digest(item) for item in value))
        elif isinstance(value, np.ndarray | np.generic):
            self._array(np.asarray(value))
        elif isinstance(value, torch.Tensor):
            self._tensor(value)
        else:
            self._composed(value)

    def _composed(self, value: Any) -> None:
        if isinstance(value, torch.jit.ScriptModule):
            self.say("script", *_script_parts(value))
        elif isinstance(value, type):
            self.read_class(value)
        elif isinstance(value, types.FunctionType):
            self._function(value)
        elif isinstance(value, types.MethodType):
            self.read(value.__func__)
            self.read(value.__self__)
        elif isinstance(value, functools.partial):
            self.read([value.func, value.args, value.keywords])
        elif isinstance(value, types.ModuleType | types.BuiltinFunctionType):
            self.say(value.__name__)
        elif isinstance(value, unit.Unit | app.Element):
            self.say(repr(value))  # inside they keep what was converted or asked for before
        elif isinstance(value, openmm.System | openmm.Force):
            self._openmm(value)
        else:
            self._object(value)

    def _array(self, array: np.ndarray[Any, Any]) -> None:
        self.say("array", array.dtype, array.shape)
        if array.dtype.hasobject:
            self.read(array.tolist())
        else:
            self.say(np.ascontiguousarray(array).tobytes())

    def _tensor(self, tensor: torch.Tensor) -> None:
        self.say("tensor", tensor.dtype, tuple(tensor.shape))
        if tensor.layout == torch.strided and tensor.numel():
            on_host = tensor.detach().cpu().contiguous().reshape(-1)
            self.say(on_host.view(torch.uint8).numpy().tobytes())

    def _openmm(self, value: openmm.System | openmm.Force) -> None:
        self.say(type(value).__name__)
        try:
            self.say(openmm.XmlSerializer.serialize(value))
        except openmm.OpenMMException:  # such as a TorchForce, or a function that does not pickle
            self.say("cannot be serialised")

    def _object(self, value: Any) -> None:
        self.read_class(type(value))
        held = dict(getattr(value, "__dict__", {}))
        if value is self._whole:
            held = {name: one for name, one in held.items() if name not in self._without}
        for owner in type(value).__mro__:
            slots = vars(owner).get("__slots__", ())
            for name in [slots] if isinstance(slots, str) else slots:
                if hasattr(value, name) and not name.startswith("__"):
                    held[name] = getattr(value, name)
        if isinstance(value, nn.Module):
            numbers = (value.named_parameters(recurse=False), value.named_buffers(recurse=False))
            held = {name: one for name, one in held.items() if not name.startswith("_")}
            held |= {f"number {name}": one for own in numbers for name, one in own}
            held |= {f"module {name}": one for name, one in value.named_children()}
            held["training"] = value.training
        self.read(held)

    def read_class(self, kind: type) -> None:
        """Names and code of a class and of what it derives from."""
        for owner in kind.__mro__:
            if owner in _BASES or id(owner) in self._seen:
                continue
            self._seen[id(owner)] = len(self._seen)
            self.say("class", owner.__module__, owner.__qualname__)
            for name, member in sorted(vars(owner).items()):
                if isinstance(member, staticmethod | classmethod):
                    member = member.__func__
                elif isinstance(member, property):
                    member = member.fget
                if isinstance(member, types.FunctionType):
                    self.say(name)
                    self._code(member.__code__)
                elif isinstance(member, (*_PLAIN, list, tuple, np.ndarray, torch.Tensor)) and not (
                    name.startswith("__")
                ):
                    self.say(name)
                    self.read(member)

    def _function(self, function: types.FunctionType) -> None:
        self.say("function", function.__module__, function.__qualname__)
        self._code(function.__code__)
        self.read([function.__defaults__, function.__kwdefaults__])
        for cell in function.__closure__ or ():
            try:
                self.read(cell.cell_contents)
            except ValueError:  # a cell that is still empty
                self.say("empty")

    def _code(self, code: types.CodeType) -> None:
        self.say("code", code.co_code, *code.co_names, *code.co_freevars)
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                self._code(constant)
            elif isinstance(constant, frozenset):
                self.say("set", *sorted(map(repr, constant)))
            else:
                self.say(repr(constant))


def _order(key: Any) -> str:
    """Of the keys of a mapping; those that do not say what they are stay as they came."""
    parts = key if isinstance(key, tuple) else (key,)
    return repr(key) if all(isinstance(part, _PLAIN) for part in parts) else ""


def _script_parts(module: torch.jit.ScriptModule) -> list[bytes]:
    """Code, weights and constants of TorchScript; not where in which file they were written."""
    buffer = io.BytesIO()
    with known_deprecation():
        torch.jit.save(module, buffer)
    parts = []
    with zipfile.ZipFile(buffer) as archive:
        for name in sorted(archive.namelist()):
            inside = name.partition("/")[2]
            if inside.endswith(".debug_pkl") or inside in (".data/serialization_id", "byteorder"):
                continue
            content = archive.read(name)
            if inside.endswith(".py"):
                content = _sorted_constants(content)
            parts += [inside.encode(), content]
    return [_MANGLED.sub(b"", part) for part in parts]


def _sorted_constants(code: bytes) -> bytes:
    """TorchScript lists the constants of a class in the order of a set."""
    lines = code.split(b"\n")
    constants = [line for line in lines if b" : Final[" in line]
    return b"\n".join(sorted(constants) + [line for line in lines if line not in constants])
