"""Reads off a module's `forward` how openmm-torch would call it.

The plugin passes the positions, the box if the system is periodic, and every global parameter as a
tensor of shape (): all by place, none by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from omm_mlff.errors import CheckpointError, InputError
from omm_mlff.forces.scripting import script_source

_BOX_NAME = re.compile(r"box|cell|lattice", re.IGNORECASE)
_CONVENTION = (
    "openmm-torch wants forward(positions[, box][, parameters]) -> energy or (energy, forces)"
)


@dataclass(frozen=True)
class Argument:
    """One argument of `forward`."""

    name: str
    type: str
    optional: bool

    @property
    def takes_tensor(self) -> bool:
        return self.type in ("Tensor", "Optional[Tensor]")


@dataclass(frozen=True)
class Signature:
    """How a module's `forward` is called.

    Attributes
    ----------
    arguments : after the positions, as far as they can be given by place
    gives_forces : it returns energy and forces, else the energy alone
    box : the argument that is the box; None where there is none
    parameters : the default of every global parameter, in the order of `forward`
    """

    arguments: tuple[Argument, ...]
    gives_forces: bool
    box: str | None
    parameters: Mapping[str, float]

    @classmethod
    def of(
        cls,
        module: torch.jit.ScriptModule,
        name: str,
        parameters: Mapping[str, float],
        box: str | None = None,
    ) -> Signature:
        """What a module wants, checked against what is given.

        Parameters
        ----------
        name : of the module, for messages
        parameters : global parameters with their defaults
        box : which argument is the box; by default the first that is named like one

        Raises
        ------
        CheckpointError : its `forward` is not by the convention
        InputError : a parameter that it does not have, or one that it wants and nobody gives
        """
        arguments = _arguments(module, name)
        box = _box_argument(arguments, parameters, box, name)
        return cls(
            tuple(arguments),
            _gives_forces(module, name),
            box,
            _parameters(arguments, box, parameters, name),
        )

    def misfit(self, periodic: bool) -> str | None:
        """Why its `forward` cannot be called for this kind of system by openmm-torch."""
        names = [argument.name for argument in self.arguments]
        if periodic:
            if self.box is None:
                taken = f"forward({', '.join(['positions', *names])})"
                return f"{taken} takes no box, the system is periodic"
            if names[0] != self.box:
                return (
                    f"its forward takes {names[0]!r} before the box {self.box!r}, and "
                    "openmm-torch passes the box right after the positions"
                )
        elif self.box is not None:
            box = next(a for a in self.arguments if a.name == self.box)
            if not box.optional:
                return f"its forward wants a box ({self.box!r}), a molecule in vacuum has none"
            if self.parameters:
                first = next(iter(self.parameters))
                return (
                    f"its forward takes the box {self.box!r} before {first!r}, which openmm-torch "
                    "would pass in the place of the box of a molecule in vacuum"
                )
        return None

    def caller(self, module: torch.jit.ScriptModule, periodic: bool) -> torch.jit.ScriptModule:
        """The module behind one signature, whatever its own.

        Returns
        -------
        called with positions, box or None, and a list of parameters; gives the energy, and forces
        or None, as the module gave them
        """
        passed = ["positions", *(["box"] if periodic else [])]
        passed += [f"parameters[{i}]" for i in range(len(self.parameters))]
        call = f"self.model({', '.join(passed)})"
        return script_source(
            "def forward(self, positions: Tensor, box: Optional[Tensor], parameters: List[Tensor])"
            " -> Tuple[Tensor, Optional[Tensor]]:\n"
            + ("    assert box is not None\n" if periodic else "")
            + (f"    energy, forces = {call}\n" if self.gives_forces else f"    energy = {call}\n")
            + ("    return energy, forces\n" if self.gives_forces else "    return energy, None\n"),
            {"model": module},
        )


def _schema(module: torch.jit.ScriptModule) -> Any:
    forward: Any = module.forward
    return forward.schema


def _arguments(module: torch.jit.ScriptModule, name: str) -> list[Argument]:
    """What `forward` takes after the positions and can be given by place."""
    try:
        schema = _schema(module)
    except AttributeError:
        raise CheckpointError(f"{name}: the module has no forward; {_CONVENTION}") from None
    arguments = [
        Argument(a.name, str(a.type), a.has_default_value())
        for a in schema.arguments[1:]
        if not (a.kwarg_only and a.has_default_value())
    ]
    if not arguments:
        raise CheckpointError(f"{name}: its forward takes no positions; {_CONVENTION}")
    if arguments[0].type != "Tensor":
        raise CheckpointError(
            f"{name}: its forward takes {arguments[0].name!r} as {arguments[0].type}, wanted the "
            f"positions as a Tensor; {_CONVENTION}"
        )
    return arguments[1:]


def _gives_forces(module: torch.jit.ScriptModule, name: str) -> bool:
    returned = _schema(module).returns[0].type
    if str(returned) == "Tensor":
        return False
    elements = returned.elements() if isinstance(returned, torch.TupleType) else []
    if [str(element) for element in elements] == ["Tensor", "Tensor"]:
        return True
    shown = str(returned)
    if shown.startswith("__torch__"):
        shown = shown.rsplit(".", 1)[-1]
    raise CheckpointError(
        f"{name}: its forward returns {shown}, wanted Tensor (the energy) or Tuple[Tensor, Tensor] "
        "(energy and forces)"
    )


def _box_argument(
    arguments: Sequence[Argument],
    parameters: Mapping[str, float],
    box: str | None,
    name: str,
) -> str | None:
    if box is not None:
        if box not in [argument.name for argument in arguments]:
            raise InputError(f"{name}: box={box} names no argument of its forward; leave it out")
        return box
    for argument in arguments:
        if argument.name not in parameters and _BOX_NAME.search(argument.name):
            return argument.name
    return None


def _parameters(
    arguments: Sequence[Argument], box: str | None, given: Mapping[str, float], name: str
) -> dict[str, float]:
    """The defaults in the order of `forward`, checked against what it takes."""
    known = {argument.name: argument for argument in arguments if argument.name != box}
    for key, value in given.items():
        if key not in known:
            takes = f"its forward takes {', '.join(known)}" if known else "its forward takes none"
            raise InputError(f"{name}: there is no parameter {key!r} ({takes}); leave it out")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InputError(f"{name}: wanted a number for {key!r}, got {value!r}")
    skipped = ""
    for argument in known.values():
        if argument.name not in given:
            if not argument.optional:
                hint = "" if box else f" (or ?box={argument.name}, if it is the box)"
                raise InputError(
                    f"{name}: its forward wants {argument.name!r}, which is not given; add "
                    f"?{argument.name}=VALUE{hint}"
                )
            skipped = skipped or argument.name
        elif skipped:
            raise InputError(
                f"{name}: openmm-torch passes parameters by place, and {skipped!r} stands before "
                f"{argument.name!r}; give both"
            )
        elif not argument.takes_tensor:
            raise CheckpointError(
                f"{name}: its forward takes {argument.name!r} as {argument.type}, and openmm-torch "
                "passes parameters as tensors; annotate it as a Tensor and save the module again"
            )
    return {key: float(given[key]) for key in known if key in given}
