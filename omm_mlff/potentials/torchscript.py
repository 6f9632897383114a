"""Any TorchScript module by openmm-torch's own convention, from a file or from a script.

    forward(positions[, box][, parameter, ...]) -> energy, or (energy, forces)

in nm, kJ/mol and kJ/mol/nm. The plugin passes the box to a periodic system only, right after the
positions, then every global parameter as a tensor of shape (); all by place, none by name. What a
module wants is read off the schema of its `forward`.

Nothing is unpickled here: TorchScript is loaded as TorchScript, and of anything else no more is
read than what it is.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import openmm
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from omm_mlff.errors import InputError
from omm_mlff.forces.built import Built
from omm_mlff.forces.faults import one_line
from omm_mlff.forces.making import fitted, make_parametric_force, replay
from omm_mlff.forces.plugin import Backend, built_as
from omm_mlff.forces.potential_errors import own_error
from omm_mlff.forces.scripting import read_script, script
from omm_mlff.forces.tap import Tap
from omm_mlff.potentials.base import Capabilities
from omm_mlff.potentials.content import content_digest
from omm_mlff.potentials.probe import Probe
from omm_mlff.potentials.signature import Signature
from omm_mlff.potentials.spec import DTYPES, card_options, split_options
from omm_mlff.potentials.torchscript_file import is_torchscript, open_torchscript
from omm_mlff.schema import MolecularSystem, PotentialCard

SOURCE = "torchscript"
FORMS = ("path/model.pt[?parameter=value&dtype=float64] (TorchScript, needs --system)",)
SUFFIXES = (".pt", ".pth", ".ts", ".jit")


class TorchScriptPotential:
    """A TorchScript module, through the Force that carries it in production.

    Parameters
    ----------
    module : on the host, in evaluation mode; it is not copied
    spec : what a user wrote to get it
    name : of the card
    parameters : a default for every global parameter
    box : which argument of `forward` is the box; by default the one that is named like one
    dtype : of the network; by default that of the module's numbers, float32 where it has none
    cutoff_nm : None where it is not known
    sha256 : of the file, or of what an object holds
    description : what `omm-mlff export` stored in the file
    backend : which Force carries it
    cuda_graphs : whether its evaluations of a molecule on CUDA are captured once and replayed;
        "auto" where a trial shows that it is right

    Raises
    ------
    CheckpointError : its `forward` is not by the convention
    InputError : a parameter that it does not have, or one that it wants and nobody gives
    """

    def __init__(
        self,
        module: torch.jit.ScriptModule,
        *,
        spec: str,
        name: str,
        parameters: Mapping[str, float] | None = None,
        box: str | None = None,
        dtype: str | None = None,
        cutoff_nm: float | None = None,
        sha256: str | None = None,
        description: Mapping[str, Any] | None = None,
        backend: Backend = "auto",
        cuda_graphs: bool | Literal["auto"] = "auto",
    ) -> None:
        self.spec = spec
        self.module = module
        self.cuda_graphs = cuda_graphs
        self.backend: Backend = backend
        self._description = description or {}
        self.signature = Signature.of(module, name, parameters or {}, box)
        model_card = self._description.get("model", {})
        n_parameters = sum(p.numel() for p in module.parameters())
        self._card = PotentialCard(
            name=name,
            source=SOURCE,
            species=None,
            cutoff_nm=self._description.get("cutoff_nm") if cutoff_nm is None else cutoff_nm,
            dtype=dtype or _dtype(module),
            n_parameters=n_parameters or None,
            training_domain=model_card.get("training_domain", {}),
            sha256=sha256,
            knows_atoms_by="index",
        )
        self._probe = Probe(self)
        self._returns: dict[tuple[bytes, ...], str | None] = {}

    @property
    def card(self) -> PotentialCard:
        return self._card

    def unsupported(self, system: MolecularSystem) -> str | None:
        return (
            self.signature.misfit(system.periodic)
            or self._made_for_others(system)
            or self._wrong_return(system)
            or self._probe.failure(system)
        )

    def capabilities(self, system: MolecularSystem) -> Capabilities:
        return Capabilities(
            tap=True,
            reads_box=True,
            # To be tried: what a file does inside is not known. What is captured reads a parameter
            # where it was then, and nobody promises that it is still there.
            graphs=not system.periodic
            and not self.signature.parameters
            and self.cuda_graphs is not False,
            force="pythonforce" if self.backend == "pythonforce" else "torchforce",
        )

    def add_to(
        self,
        openmm_system: openmm.System,
        system: MolecularSystem,
        *,
        n_replicas: int = 1,
        tap: Tap | None = None,
    ) -> Built:
        force = make_parametric_force(
            self._engine(system.periodic),
            parameters=self.signature.parameters,
            periodic=system.periodic,
            tap=tap,
            backend=self.backend,
        )
        openmm_system.addForce(force)
        graph = self.cuda_graphs is True and self.capabilities(system).graphs
        if graph:
            replay(openmm_system, True)
        return built_as(self.backend, graph=graph, graph_reason=self._graph_reason(system))

    def _graph_reason(self, system: MolecularSystem) -> str:
        """Why there is a graph, or none; empty where that is found out when a Context is made."""
        if self.cuda_graphs is False:
            return "turned off"
        if not self.capabilities(system).graphs:
            return "a box, or global parameters, which a graph would not follow"
        return "asked for" if self.cuda_graphs is True else ""

    def __reduce__(self) -> tuple[Any, ...]:
        """TorchScript is not pickled; the module goes as it would be saved."""
        buffer = io.BytesIO()
        torch.jit.save(self.module, buffer)
        arguments = {
            "spec": self.spec,
            "name": self._card.name,
            "parameters": dict(self.signature.parameters),
            "box": self.signature.box,
            "dtype": self._card.dtype,
            "cutoff_nm": self._card.cutoff_nm,
            "sha256": self._card.sha256,
            "description": dict(self._description),
            "backend": self.backend,
            "cuda_graphs": self.cuda_graphs,
        }
        return _restored, (buffer.getvalue(), arguments)

    def energies_and_forces(
        self, positions: NDArray[np.float64], system: MolecularSystem
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The module called in torch; NaN for a frame at which it raises."""
        engine = self._engine(system.periodic)
        energies = np.full(len(positions), np.nan)
        forces = np.full(np.shape(positions), np.nan)
        for i, frame in enumerate(positions):
            try:
                energy, force = engine(*self._inputs(frame, system))
            except Exception as error:  # what somebody else's code raises is not known beforehand
                own_error(error, self._card)
                continue
            energies[i], forces[i] = float(energy), force.numpy()
        return energies, forces

    def reference_energy(self, system: MolecularSystem) -> float | None:
        energy = self._description.get("reference_energy_kjmol")
        return None if energy is None else float(energy)

    def _engine(self, periodic: bool) -> _Engine:
        return _Engine(self.signature.caller(self.module, periodic))

    def _inputs(
        self, frame: NDArray[np.float64], system: MolecularSystem
    ) -> tuple[Tensor, Tensor | None, list[Tensor]]:
        box = None if system.box_vectors is None else torch.from_numpy(system.box_vectors.copy())
        parameters = [
            torch.tensor(v, dtype=torch.float64) for v in self.signature.parameters.values()
        ]
        return torch.from_numpy(np.array(frame, dtype=np.float64)), box, parameters

    def _made_for_others(self, system: MolecularSystem) -> str | None:
        """Why an exported student is not for these atoms; other files do not say."""
        made_for = self._description.get("species")
        if made_for is None or list(made_for) == system.species.tolist():
            return None
        elements = self._description.get("elements", made_for)
        has = [atom.element.symbol for atom in system.topology.atoms()]
        return (
            f"it was exported for {len(elements)} atoms, {_brief(elements)} in this order; this "
            f"system has {len(has)}, {_brief(has)}"
        )

    def _wrong_return(self, system: MolecularSystem) -> str | None:
        """What is wrong with what `forward` gives for the system as it is; remembered.

        Asked in torch before anything is shown to the plugin: with torch 2.12, an error raised in a
        module that the plugin has frozen can end the process (a fault in the interpreter, while it
        looks for the line that raised).
        """
        box = b"" if system.box_vectors is None else system.box_vectors.tobytes()
        key = (system.species.tobytes(), system.bonds.tobytes(), box)
        if key not in self._returns:
            self._returns[key] = self._call_once(system)
        return self._returns[key]

    def _call_once(self, system: MolecularSystem) -> str | None:
        positions, box, parameters = self._inputs(system.positions, system)
        caller = self.signature.caller(self.module, system.periodic)
        x = positions.clone().requires_grad_(True)
        try:
            energy, forces = caller(x, box, parameters)
        except Exception as error:  # what somebody else's code raises is not known beforehand
            return self._raised(error, positions, box, parameters)
        return _complaint(energy, forces, x)

    def _raised(
        self, error: Exception, positions: Tensor, box: Tensor | None, parameters: list[Tensor]
    ) -> str:
        reason = (
            f"its forward raised for {len(positions)} atoms in float64 ({one_line(error)}); is it "
            "for another system?"
        )
        single = None if box is None else box.float()
        caller = self.signature.caller(self.module, box is not None)
        try:
            caller(positions.float().requires_grad_(True), single, parameters)
        except Exception:
            return reason
        return (
            "its forward takes positions in float32 only, and most platforms pass float64: let it "
            f"convert them ({one_line(error)})"
        )


def _restored(module: bytes, arguments: dict[str, Any]) -> TorchScriptPotential:
    return TorchScriptPotential(read_script(module), **arguments)


class _Engine(nn.Module):
    """A foreign module as an engine: energies (1,) in float64, forces like the positions."""

    def __init__(self, caller: torch.jit.ScriptModule) -> None:
        super().__init__()
        self.caller = caller

    def forward(
        self, positions: Tensor, box: Tensor | None, parameters: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        x = positions.detach().requires_grad_(True)
        energy, given = self.caller(x, box, parameters)
        if energy.numel() != 1 or not energy.is_floating_point():
            raise RuntimeError(f"its forward gave an energy of shape {energy.shape}, wanted ()")
        if given is None:
            if not energy.requires_grad:
                raise RuntimeError("its forward gave an energy without a gradient")
            gradient = torch.autograd.grad([energy.sum()], [x], allow_unused=True)[0]
            if gradient is None:
                raise RuntimeError("its forward gave an energy without a gradient")
            forces = -gradient
        else:
            forces = given.detach()
            if forces.shape != positions.shape:
                raise RuntimeError(
                    f"its forward gave forces of shape {forces.shape}, wanted {positions.shape}"
                )
        # On a device it may give what it made on the host; on the host it was asked before.
        return fitted(energy, forces, positions)


def _complaint(energy: Tensor, forces: Tensor | None, positions: Tensor) -> str | None:
    """What is wrong with what a `forward` gave: what was wanted, what came."""
    n_atoms = len(positions)
    if energy.numel() != 1:
        return f"its forward gave an energy of shape {_shape(energy)}, wanted () or (1,)"
    if forces is not None and forces.shape != positions.shape:
        return f"its forward gave forces of shape {_shape(forces)}, wanted ({n_atoms}, 3)"
    for what, tensor in (("an energy", energy), ("forces", forces)):
        if tensor is None:
            continue
        dtype = str(tensor.dtype).removeprefix("torch.")
        if dtype not in DTYPES:
            return f"its forward gave {what} of dtype {dtype}, wanted float32 or float64"
        if tensor.device != positions.device:
            return (
                f"its forward gave {what} on device {tensor.device}, wanted that of the positions "
                f"({positions.device})"
            )
        if not bool(torch.isfinite(tensor).all()):
            return f"its forward gave {what} that is not finite at the structure as given"
    if forces is not None:
        return None
    if not energy.requires_grad:
        return "its forward gave an energy without a gradient, and no forces"
    if torch.autograd.grad([energy.sum()], [positions], allow_unused=True)[0] is None:
        return "its forward gave an energy that does not depend on the positions"
    return None


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))


def _brief(elements: Sequence[str]) -> str:
    shown = " ".join(map(str, elements[:12]))
    return shown if len(elements) <= 12 else f"{shown} ..."


def _dtype(module: torch.jit.ScriptModule) -> str:
    """Of its parameters, else its buffers, else the numbers in its code, else float32."""
    graph: Any = module.inlined_graph  # its nodes do not outlive it
    constants = [
        node.t("value")
        for node in graph.findAllNodes("prim::Constant", recurse=True)
        if node.hasAttribute("value") and node.kindOf("value") == "t"
    ]
    for tensors in (list(module.parameters()), list(module.buffers()), constants):
        dtypes = {str(t.dtype).removeprefix("torch.") for t in tensors} & set(DTYPES)
        if dtypes:
            return "float32" if "float32" in dtypes else "float64"
    return "float32"


def names() -> list[str]:
    """Nothing: none ships."""
    return []


def matches(spec: str) -> bool:
    """Whether this source reads the spec: a path with the suffix of such files."""
    return _path_of(spec).suffix.lower() in SUFFIXES


def executes(spec: str) -> str | None:
    """One line on whose code loading will run."""
    path = _path_of(spec)
    if not path.is_file() or not is_torchscript(path):
        return None
    return f"{path} is TorchScript: loading and evaluating it runs code that came with it"


def load(spec: str) -> TorchScriptPotential:
    """The potential behind a spec.

    Raises
    ------
    InputError : no such file, or an option that is not understood
    CheckpointError : not TorchScript, or not by openmm-torch's convention
    """
    written, options = split_options(spec)
    path = Path(written)
    said, box = card_options(spec, options, dtype=None), options.pop("box", None)
    cuda_graphs = options.pop("cuda_graphs", "auto")
    if cuda_graphs != "auto" and not isinstance(cuda_graphs, bool):
        raise InputError(f"{spec}: wanted cuda_graphs auto, True or False, got {cuda_graphs!r}")
    if box is not None and not isinstance(box, str):
        raise InputError(f"{spec}: wanted box as the name of an argument, got {box!r}")
    file = open_torchscript(path)
    return TorchScriptPotential(
        file.module,
        spec=spec,
        name=path.stem,
        parameters=options,
        box=box,
        cuda_graphs=cuda_graphs,
        **said,
        sha256=file.sha256,
        description=file.description,
    )


def takes(thing: Any) -> bool:
    """Whether this source makes a potential of an object: a module of torch."""
    return isinstance(thing, nn.Module)


def wrap(thing: nn.Module) -> TorchScriptPotential:
    """The potential behind a module, which is copied and, where it must be, scripted.

    Raises
    ------
    InputError : it cannot be scripted
    CheckpointError : its `forward` is not by openmm-torch's convention
    """
    kind = type(thing).__name__
    try:
        scripted = thing if isinstance(thing, torch.jit.ScriptModule) else script(thing)
    except Exception as error:  # the front end raises many things
        raise InputError(
            f"{kind} is no TorchScript and cannot be made it ({one_line(error)}); give "
            "torch.jit.script(...) or torch.jit.trace(...) of it"
        ) from None
    name = getattr(scripted, "original_name", kind)
    buffer = io.BytesIO()
    torch.jit.save(scripted, buffer)
    module = read_script(buffer.getvalue())
    digest = content_digest(module)
    return TorchScriptPotential(module, spec=f"an object: {name}", name=name, sha256=digest)


def _path_of(spec: str) -> Path:
    """The path in a spec, whatever its options are like."""
    return Path(spec.partition("?")[0])
