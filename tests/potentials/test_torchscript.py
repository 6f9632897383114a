"""TorchScript files by openmm-torch's convention: what is read off them, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import openmm
import pytest
import torch
from springs import molecule
from torch import Tensor, nn

from omm_mlff.checks.base import Evidence
from omm_mlff.checks.registry import all_checks
from omm_mlff.dynamics.evaluator import Evaluator
from omm_mlff.errors import CheckpointError, InputError, UnsupportedSystemError
from omm_mlff.forces.tap import Tap
from omm_mlff.potentials import torchscript
from omm_mlff.potentials.base import build_system
from omm_mlff.potentials.registry import as_potential, load_potential

N_ATOMS = 3
POSITIONS = np.array([[0.0, 0.0, 0.0], [0.1, 0.02, 0.0], [-0.03, 0.09, 0.01]])
BOX = np.array([[3.0, 0.0, 0.0], [0.4, 2.8, 0.0], [-0.3, 0.2, 2.5]])
SYSTEM = molecule([8, 1, 1], POSITIONS, [[0, 1], [0, 2]])
BOXED = molecule([8, 1, 1], POSITIONS, [[0, 1], [0, 2]], box_vectors=BOX)


class Well(nn.Module):
    """E = |x|^2, of the plugin's documentation; F = -2x."""

    def forward(self, positions: Tensor) -> Tensor:
        return (positions**2).sum()


class WellOfOne(nn.Module):
    def forward(self, positions: Tensor) -> Tensor:
        return (positions**2).sum().reshape(1)


class WellWithForces(nn.Module):
    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        return (positions**2).sum(), -2.0 * positions


class WellInSinglePrecision(nn.Module):
    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        x = positions.float()
        return (x**2).sum(), (-2.0 * x).t().contiguous().t()


class Trap(nn.Module):
    """E = k |x|^2 + l sum(x)."""

    def forward(self, positions: Tensor, k: Tensor, l: Tensor) -> Tensor:  # noqa: E741
        return k * (positions**2).sum() + l * positions.sum()


class BoxedTrap(nn.Module):
    """E = k |x|^2 + the box's volume."""

    def forward(self, positions: Tensor, boxvectors: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return k * (positions**2).sum() + torch.det(boxvectors), -2.0 * k * positions


class Boxed(nn.Module):
    def forward(self, positions: Tensor, box: Tensor) -> Tensor:
        return (positions**2).sum() + torch.det(box)


class OptionalBox(nn.Module):
    def forward(self, positions: Tensor, box: Tensor | None = None) -> Tensor:
        energy = (positions**2).sum()
        return energy if box is None else energy + torch.det(box)


class OptionalBoxThenParameter(nn.Module):
    def forward(
        self, positions: Tensor, box: Tensor | None = None, k: Tensor | None = None
    ) -> Tensor:
        energy = (positions**2).sum()
        return energy if k is None else energy * k


class ParameterThenBox(nn.Module):
    def forward(self, positions: Tensor, k: Tensor, box: Tensor) -> Tensor:
        return k * (positions**2).sum() + torch.det(box)


class FloatParameter(nn.Module):
    def forward(self, positions: Tensor, k: float) -> Tensor:
        return k * (positions**2).sum()


class DocumentedForce(nn.Module):
    """The force that OpenMM's documentation pairs with E = k |x|^2; the truth is -2 k x."""

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        k = 100.0
        return k * (positions**2).sum(), -0.5 * k * positions


class Transposed(nn.Module):
    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        return (positions**2).sum(), -2.0 * positions.t()


class EnergyPerAtom(nn.Module):
    def forward(self, positions: Tensor) -> Tensor:
        return (positions**2).sum(1)


class IntegerEnergy(nn.Module):
    def forward(self, positions: Tensor) -> Tensor:
        return (1e6 * positions**2).sum().to(torch.int64)


class HalfForces(nn.Module):
    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        return (positions**2).sum(), (-2.0 * positions).half()


class ForcesElsewhere(nn.Module):
    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        return (positions**2).sum(), torch.zeros(3, 3, device="meta")


class NotANumber(nn.Module):
    def forward(self, positions: Tensor) -> Tensor:
        return (positions**2).sum().log() * float("nan")


class NoGradient(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("energy", torch.tensor(1.0))

    def forward(self, positions: Tensor) -> Tensor:
        return self.energy


class ConstantEnergy(nn.Module):
    """Depends on a parameter, so that it has a gradient, and on no position."""

    def __init__(self) -> None:
        super().__init__()
        self.zero = nn.Parameter(torch.tensor(1.0))

    def forward(self, positions: Tensor) -> Tensor:
        return self.zero * 2.0


class TenAtoms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("rest", torch.zeros(10, 3, dtype=torch.float64))

    def forward(self, positions: Tensor) -> Tensor:
        return ((positions - self.rest) ** 2).sum()


class SinglePrecisionOnly(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def forward(self, positions: Tensor) -> Tensor:
        return self.layer(positions).sum()


class RaisesFarOut(nn.Module):
    def forward(self, positions: Tensor) -> Tensor:
        if bool((positions.abs() > 1.0).any()):
            raise ValueError("an atom has left the trap")
        return (positions**2).sum()


class Pair(NamedTuple):
    energy: Tensor
    forces: Tensor


class NamedPair(nn.Module):
    def forward(self, positions: Tensor) -> Pair:
        return Pair((positions**2).sum(), -2.0 * positions)


class Three(nn.Module):
    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return positions.sum(), positions, positions


class Dictionary(nn.Module):
    def forward(self, positions: Tensor) -> dict[str, Tensor]:
        return {"energy": positions.sum()}


class OfDictionary(nn.Module):
    def forward(self, data: dict[str, Tensor]) -> Tensor:
        return data["positions"].sum()


class NoForward(nn.Module):
    @torch.jit.export
    def energy(self, positions: Tensor) -> Tensor:
        return positions.sum()


def saved(folder: Path, module: nn.Module, name: str = "model.pt") -> str:
    path = folder / name
    torch.jit.script(module).save(str(path))
    return str(path)


def state_of(potential, system, platform="Reference"):
    context = openmm.Context(
        build_system(potential, system),
        openmm.VerletIntegrator(0.001),
        openmm.Platform.getPlatformByName(platform),
    )
    context.setPositions(system.positions)
    return context


def energy_and_forces(context):
    state = context.getState(energy=True, forces=True)
    return state.getPotentialEnergy()._value, state.getForces(asNumpy=True)._value


@pytest.mark.parametrize("backend", ["torchforce", "pythonforce"])
@pytest.mark.parametrize("platform", ["Reference", "CPU"])
@pytest.mark.parametrize(
    ("module", "rtol"),
    [
        (Well, 1e-13),
        (WellOfOne, 1e-13),
        (WellWithForces, 1e-13),
        (NamedPair, 1e-13),
        (WellInSinglePrecision, 1e-6),
        (OptionalBox, 1e-13),
    ],
)
def test_a_well_has_the_energy_and_forces_of_its_closed_form(
    tmp_path, module, rtol, platform, backend
):
    potential = load_potential(saved(tmp_path, module()))
    potential.backend = backend
    energy, forces = energy_and_forces(state_of(potential, SYSTEM, platform))
    assert energy == pytest.approx((POSITIONS**2).sum(), rel=rtol)
    np.testing.assert_allclose(forces, -2.0 * POSITIONS, rtol=rtol, atol=1e-15)
    direct = potential.energies_and_forces(POSITIONS[None], SYSTEM)
    assert direct[0][0] == pytest.approx(energy, rel=1e-13)
    np.testing.assert_allclose(direct[1][0], forces, rtol=1e-13)


@pytest.mark.parametrize("backend", ["torchforce", "pythonforce"])
@pytest.mark.parametrize("tapped", [False, True])
def test_global_parameters_have_their_defaults_and_can_be_set(tmp_path, backend, tapped):
    # Named in another order than that of forward: the plugin passes them by place.
    potential = load_potential(saved(tmp_path, Trap()) + "?l=7&k=2.5")
    potential.backend = backend
    tap = Tap(1, N_ATOMS) if tapped else None
    context = openmm.Context(
        build_system(potential, SYSTEM, tap=tap),
        openmm.VerletIntegrator(0.001),
        openmm.Platform.getPlatformByName("Reference"),
    )
    context.setPositions(POSITIONS)
    for k, l in ((2.5, 7.0), (40.0, 7.0), (40.0, -1.0)):  # noqa: E741
        if (k, l) != (2.5, 7.0):
            context.setParameter("k", k)
            context.setParameter("l", l)
        energy, forces = energy_and_forces(context)
        expected = k * (POSITIONS**2).sum() + l * POSITIONS.sum()
        assert energy == pytest.approx(expected, rel=1e-13)
        np.testing.assert_allclose(forces, -2.0 * k * POSITIONS - l, rtol=1e-13)
        if tap is not None:
            assert tap.read()[0][0] == pytest.approx(expected, rel=1e-13)
            np.testing.assert_allclose(tap.read()[1][0], forces, rtol=1e-13)
    with pytest.raises(openmm.OpenMMException, match="invalid parameter name"):
        context.setParameter("m", 1.0)
    if tap is not None:
        tap.close()


@pytest.mark.parametrize("backend", ["torchforce", "pythonforce"])
def test_a_periodic_system_passes_its_box(tmp_path, backend):
    potential = load_potential(saved(tmp_path, BoxedTrap()) + "?k=3")
    potential.backend = backend
    context = state_of(potential, BOXED)
    energy, forces = energy_and_forces(context)
    volume = np.linalg.det(BOX)
    assert energy == pytest.approx(3.0 * (POSITIONS**2).sum() + volume, rel=1e-12)
    np.testing.assert_allclose(forces, -6.0 * POSITIONS, rtol=1e-12)
    direct, _ = potential.energies_and_forces(POSITIONS[None], BOXED)
    assert direct[0] == pytest.approx(energy, rel=1e-13)
    assert context.getSystem().usesPeriodicBoundaryConditions()
    context.setPeriodicBoxVectors(*(2.0 * BOX))
    assert energy_and_forces(context)[0] == pytest.approx(energy + 7.0 * volume, rel=1e-12)


def test_an_optional_box_serves_both(tmp_path):
    potential = load_potential(saved(tmp_path, OptionalBox()))
    assert potential.unsupported(SYSTEM) is None
    assert potential.unsupported(BOXED) is None


def test_a_module_without_a_box_serves_no_periodic_system(tmp_path):
    potential = load_potential(saved(tmp_path, Trap()) + "?k=1&l=2")
    reason = potential.unsupported(BOXED)
    assert reason == "forward(positions, k, l) takes no box, the system is periodic"
    with pytest.raises(UnsupportedSystemError, match=r"model cannot serve springs: forward\("):
        build_system(potential, BOXED)


def test_a_module_that_wants_a_box_serves_no_molecule_in_vacuum(tmp_path):
    potential = load_potential(saved(tmp_path, Boxed()))
    assert potential.unsupported(BOXED) is None
    reason = potential.unsupported(SYSTEM)
    assert reason == "its forward wants a box ('box'), a molecule in vacuum has none"


def test_what_the_plugin_would_pass_in_the_wrong_place_is_refused(tmp_path):
    swapped = load_potential(saved(tmp_path, ParameterThenBox()) + "?k=1")
    assert "'k' before the box 'box'" in swapped.unsupported(BOXED)
    optional = load_potential(saved(tmp_path, OptionalBoxThenParameter()) + "?k=1")
    assert optional.unsupported(BOXED) is None
    assert "in the place of the box" in optional.unsupported(SYSTEM)
    assert load_potential(saved(tmp_path, OptionalBoxThenParameter())).unsupported(SYSTEM) is None


def test_the_box_can_be_named(tmp_path):
    class Unclear(nn.Module):
        def forward(self, positions: Tensor, h: Tensor) -> Tensor:
            return (positions**2).sum() + torch.det(h)

    path = saved(tmp_path, Unclear())
    with pytest.raises(InputError, match=r"add \?h=VALUE \(or \?box=h, if it is the box\)"):
        load_potential(path)
    assert load_potential(path + "?box=h").unsupported(BOXED) is None


WRONG_OPTIONS = [
    (Trap, "", r"model: its forward wants 'k', which is not given; add \?k=VALUE"),
    (Trap, "?k=1", r"wants 'l', which is not given"),
    (Trap, "?k=1&l=2&m=3", r"no parameter 'm' \(its forward takes k, l\)"),
    (Well, "?k=1", r"no parameter 'k' \(its forward takes none\)"),
    (Trap, "?k=stiff&l=2", r"wanted a number for 'k', got 'stiff'"),
    (FloatParameter, "?k=1", r"takes 'k' as float, and openmm-torch passes parameters as tensors"),
    (Well, "?dtype=float16", r"wanted dtype float32 or float64, got 'float16'"),
    (Well, "?cutoff_nm=-1", r"wanted cutoff_nm as a positive number, got -1"),
    (Well, "?box=cell", r"box=cell names no argument"),
]


@pytest.mark.parametrize(("module", "options", "message"), WRONG_OPTIONS)
def test_options_are_checked_against_forward(tmp_path, module, options, message):
    path = saved(tmp_path, module())
    with pytest.raises(InputError, match=message) as raised:
        load_potential(path + options)
    assert "\n" not in str(raised.value)


NOT_BY_THE_CONVENTION = [
    (Three, "returns Tuple[Tensor, Tensor, Tensor], wanted Tensor (the energy)"),
    (Dictionary, "returns Dict[str, Tensor], wanted Tensor"),
    (OfDictionary, "takes 'data' as Dict[str, Tensor], wanted the positions as a Tensor"),
    (NoForward, "the module has no forward; openmm-torch wants forward(positions[, box]"),
]


@pytest.mark.parametrize(("module", "message"), NOT_BY_THE_CONVENTION)
def test_a_forward_that_is_not_by_the_convention_is_named_on_loading(tmp_path, module, message):
    with pytest.raises(CheckpointError, match=re.escape(message)):
        load_potential(saved(tmp_path, module()))


WRONG_RETURNS = [
    (Transposed, "its forward gave forces of shape (3, 2), wanted (2, 3)"),
    (EnergyPerAtom, "its forward gave an energy of shape (2,), wanted () or (1,)"),
    (IntegerEnergy, "its forward gave an energy of dtype int64, wanted float32 or float64"),
    (HalfForces, "its forward gave forces of dtype float16, wanted float32 or float64"),
    (
        ForcesElsewhere,
        "its forward gave forces of shape (3, 3), wanted (2, 3)",
    ),
    (NotANumber, "its forward gave an energy that is not finite at the structure as given"),
    (NoGradient, "its forward gave an energy without a gradient, and no forces"),
    (ConstantEnergy, "its forward gave an energy that does not depend on the positions"),
]
TWO = molecule([1, 1], POSITIONS[:2], [[0, 1]])


@pytest.mark.parametrize(("module", "reason"), WRONG_RETURNS)
def test_what_forward_gives_is_named_with_what_was_wanted(tmp_path, module, reason):
    assert load_potential(saved(tmp_path, module())).unsupported(TWO) == reason


def test_forces_on_another_device_are_named(tmp_path):
    reason = load_potential(saved(tmp_path, ForcesElsewhere())).unsupported(SYSTEM)
    assert reason == "its forward gave forces on device meta, wanted that of the positions (cpu)"


def test_another_number_of_atoms_is_refused_with_what_forward_raised(tmp_path):
    reason = load_potential(saved(tmp_path, TenAtoms())).unsupported(SYSTEM)
    assert "\n" not in reason
    assert reason.startswith("its forward raised for 3 atoms in float64 (RuntimeError: The size of")
    assert "tensor b (10)" in reason


def test_a_network_that_takes_single_precision_alone_is_named(tmp_path):
    reason = load_potential(saved(tmp_path, SinglePrecisionOnly())).unsupported(SYSTEM)
    assert reason.startswith("its forward takes positions in float32 only")


def test_a_forward_that_raises_somewhere_gives_no_number_there(tmp_path):
    potential = load_potential(saved(tmp_path, RaisesFarOut()))
    assert potential.unsupported(SYSTEM) is None
    frames = np.stack([POSITIONS, POSITIONS + 2.0, 1.5 * POSITIONS])
    energies, forces = potential.energies_and_forces(frames, SYSTEM)
    assert np.isnan(energies).tolist() == [False, True, False]
    assert np.isnan(forces).all((1, 2)).tolist() == [False, True, False]
    context = state_of(potential, SYSTEM)
    context.setPositions(frames[1])
    with pytest.raises(openmm.OpenMMException, match="an atom has left the trap"):
        context.getState(energy=True)


def test_a_force_that_is_not_minus_the_gradient_fails_the_gradient_check(tmp_path):
    check = next(check for check in all_checks() if check.name == "gradient")
    values = {}
    for module in (DocumentedForce, Well):
        potential = load_potential(saved(tmp_path, module()) + "?dtype=float64")
        with Evaluator(potential, SYSTEM, "Reference") as evaluator:
            evidence = Evidence(SYSTEM, potential.card, evaluator=evaluator)
            found = {m.name: m.value for m in check.measure(evidence)}
        values[module] = found
    # E = k x^2 has F = -2 k x; -k x / 2 is a quarter of it.
    assert values[DocumentedForce]["gradient.scale"] == pytest.approx(0.25, abs=1e-6)
    assert values[DocumentedForce]["gradient.error"] > 0.5
    assert values[Well]["gradient.scale"] == pytest.approx(1.0, abs=1e-6)
    assert values[Well]["gradient.error"] < 1e-6


def test_the_card_says_what_the_file_shows(tmp_path):
    potential = load_potential(saved(tmp_path, SinglePrecisionOnly(), "my-net.pth"))
    card = potential.card
    assert (card.name, card.source, card.species) == ("my-net", "torchscript", None)
    assert (card.dtype, card.n_parameters, card.knows_atoms_by) == ("float32", 4, "index")
    assert card.cutoff_nm is None
    assert len(card.sha256) == 64
    assert potential.reference_energy(SYSTEM) is None
    told = load_potential(potential.spec + "?dtype=float64&cutoff_nm=0.6").card
    assert (told.dtype, told.cutoff_nm) == ("float64", 0.6)
    assert load_potential(saved(tmp_path, TenAtoms())).card.dtype == "float64"
    assert load_potential(saved(tmp_path, Well())).card.dtype == "float32"


def test_the_dtype_of_a_frozen_file_is_that_of_the_numbers_in_its_code(tmp_path):
    for dtype in (torch.float32, torch.float64):
        frozen = torch.jit.freeze(torch.jit.script(SinglePrecisionOnly().to(dtype).eval()))
        frozen.save(str(tmp_path / "frozen.pt"))
        card = load_potential(str(tmp_path / "frozen.pt")).card
        assert (card.dtype, card.n_parameters) == (str(dtype).removeprefix("torch."), None)


def test_a_traced_file_is_read_like_a_scripted_one(tmp_path):
    path = str(tmp_path / "traced.jit")
    torch.jit.trace(Boxed(), (torch.rand(3, 3), torch.eye(3))).save(path)
    potential = load_potential(path)
    assert energy_and_forces(state_of(potential, BOXED))[0] == pytest.approx(
        (POSITIONS**2).sum() + np.linalg.det(BOX), rel=1e-12
    )


def test_files_that_are_not_torchscript_are_named_and_never_unpickled(tmp_path):
    ran = tmp_path / "it ran"
    write = {
        "numbers.pt": lambda path: torch.save(SinglePrecisionOnly().state_dict(), path),
        "old.pt": lambda path: torch.save(
            SinglePrecisionOnly().state_dict(), path, _use_new_zipfile_serialization=False
        ),
        "whole.pt": lambda path: torch.save(Tell(ran), path),
        "tensor.pt": lambda path: torch.save(torch.zeros(3), path),
        "garbage.pt": lambda path: path.write_bytes(b"no model at all"),
        "empty.pt": lambda path: path.write_bytes(b""),
    }
    said = {}
    for name, writer in write.items():
        path = tmp_path / name
        writer(path)
        assert torchscript.executes(str(path)) is None
        with pytest.raises(CheckpointError) as raised:
            load_potential(str(path))
        said[name] = str(raised.value)
        assert "\n" not in said[name]
        assert "torch.jit.script" in said[name]
    assert not ran.exists()
    assert "is a state_dict (2 entries)" in said["numbers.pt"]
    assert "is a state_dict (2 entries)" in said["old.pt"]
    assert "holds a pickled" in said["whole.pt"]
    assert "holds a Tensor" in said["tensor.pt"]
    assert "is not a TorchScript file" in said["garbage.pt"]
    assert "is not a TorchScript file" in said["empty.pt"]


class Tell:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_missing_file_and_a_broken_one_are_one_line_each(tmp_path):
    with pytest.raises(InputError, match=r"there is no file .*nothing\.pt; give the path"):
        load_potential(str(tmp_path / "nothing.pt?k=1"))
    whole = Path(saved(tmp_path, SinglePrecisionOnly()))
    payload = bytearray(whole.read_bytes())
    middle = len(payload) // 2
    payload[middle - 200 : middle + 200] = bytes(400)
    whole.write_bytes(payload)
    with pytest.raises(CheckpointError, match="cannot be read as TorchScript") as raised:
        load_potential(str(whole))
    assert "\n" not in str(raised.value)


def test_which_specs_are_read():
    for spec in ("a.pt", "dir/a.PTH", "a.ts?k=1", "a.jit"):
        assert torchscript.matches(spec)
    for spec in ("tiny", "a.xml", "openmm-ml:ani2x?path=a.pt", "a.ptx"):
        assert not torchscript.matches(spec)
    assert torchscript.names() == []


def test_loading_is_announced(tmp_path, caplog):
    spec = saved(tmp_path, Trap()) + "?k=1&l=1"
    with caplog.at_level("WARNING"):
        load_potential(spec)
    assert f"{tmp_path / 'model.pt'} is TorchScript" in caplog.text


def test_a_module_from_a_script_is_taken_as_it_is_and_left_as_it_was():
    scripted = torch.jit.script(SinglePrecisionOnly().double())
    scripted.train()
    potential = as_potential(scripted)
    assert potential.spec == "an object: SinglePrecisionOnly"
    assert potential.card.n_parameters == 4
    assert potential.unsupported(SYSTEM) is None
    assert scripted.training
    eager = as_potential(Well())
    assert eager.card.name == "Well"
    assert energy_and_forces(state_of(eager, SYSTEM))[0] == pytest.approx((POSITIONS**2).sum())


def test_a_module_that_cannot_be_scripted_is_named():
    class Python(nn.Module):
        def forward(self, positions: Tensor) -> Tensor:
            return positions.sum() * len(globals())

    with pytest.raises(InputError, match="Python is no TorchScript and cannot be made it") as got:
        as_potential(Python())
    assert "\n" not in str(got.value)


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["single", "mixed", "double"])
def test_on_cuda_the_module_and_its_parameters_follow_the_positions(tmp_path, precision):
    class Rest(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("rest", torch.zeros(3, 3))

        def forward(self, positions: Tensor, boxvectors: Tensor, k: Tensor) -> Tensor:
            return k * ((positions - self.rest) ** 2).sum() + torch.det(boxvectors)

    potential = load_potential(saved(tmp_path, Rest()) + "?k=3")
    with Evaluator(potential, BOXED, "CUDA", precision) as evaluator:
        energies, forces = evaluator.evaluate(POSITIONS[None])
    expected = 3.0 * (POSITIONS**2).sum() + np.linalg.det(BOX)
    assert energies[0] == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(forces[0], -6.0 * POSITIONS, atol=1e-5)
