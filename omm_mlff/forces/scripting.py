"""TorchScript: modules written, read and saved for TorchForce, which takes nothing else."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator, Mapping

import torch
from torch import nn


def script(module: nn.Module) -> torch.jit.ScriptModule:
    """TorchScript, not frozen: the plugin moves it to the Context's device, then freezes it.

    What is frozen before has its parameters for constants, and they stay where they were.
    """
    with known_deprecation():
        scripted: torch.jit.ScriptModule = torch.jit.script(module)
        return scripted


def script_source(forward: str, parts: Mapping[str, nn.Module]) -> torch.jit.ScriptModule:
    """A module whose `forward` is written as TorchScript; for signatures known only at run time.

    Parameters
    ----------
    parts : modules by the names that `forward` has for them
    """

    class Holder(nn.Module):
        """A class of its own each time: objects of one class share what was compiled for one."""

    holder = Holder()
    for name, part in parts.items():
        holder.add_module(name, part)
    scripted = script(holder.eval())
    scripted.define(forward)
    return scripted


def read_script(
    payload: bytes, extra_files: dict[str, bytes] | None = None
) -> torch.jit.ScriptModule:
    """A saved TorchScript module, on the host, ready to be evaluated.

    Reading it can run code that is stored in it.

    Parameters
    ----------
    payload : the whole file
    extra_files : names of files inside it; what they hold is put in their place
    """
    with known_deprecation():
        module: torch.jit.ScriptModule = torch.jit.load(  # type: ignore[no-untyped-call]
            io.BytesIO(payload), map_location="cpu", _extra_files=extra_files
        )
    return module.eval()


@contextlib.contextmanager
def known_deprecation() -> Iterator[None]:
    """TorchScript is deprecated since torch 2.12; TorchForce takes nothing else."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.*", category=DeprecationWarning)
        yield
