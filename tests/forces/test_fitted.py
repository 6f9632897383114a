"""Whatever a module gives, OpenMM gets its numbers: no dtype, layout or device crashes it."""

from __future__ import annotations

import numpy as np
import openmm
import pytest
import torch
from springs import context_of, triatomic
from torch import Tensor, nn

from omm_mlff.dynamics.evaluator import Evaluator
from omm_mlff.forces.faults import one_line
from omm_mlff.forces.making import make_force, make_parametric_force
from omm_mlff.forces.platforms import platform_properties
from omm_mlff.forces.python_force import make_python_force
from omm_mlff.forces.tap import Tap
from omm_mlff.potentials.torchscript import wrap

SLOPE = (1.0, -2.0, 3.0)
"""A uniform field: E = -sum of SLOPE . x, the force SLOPE on every atom; float32 has it exactly."""


class Uniform(nn.Module):
    """The field as one energy and a force an atom, by the book."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("slope", torch.tensor(SLOPE))

    def forward(self, positions: Tensor, box: Tensor | None = None) -> tuple[Tensor, Tensor]:
        slope = self.slope.to(positions.dtype)
        return -(positions * slope).sum().reshape(1), slope.repeat(positions.shape[0], 1)


class Single(Uniform):
    def forward(self, positions: Tensor, box: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x = positions.float()
        return -(x * self.slope).sum().reshape(1), self.slope.repeat(x.shape[0], 1)


class Double(Uniform):
    def forward(self, positions: Tensor, box: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x = positions.double()
        slope = self.slope.double()
        return -(x * slope).sum().reshape(1), slope.repeat(x.shape[0], 1)


class Half(Uniform):
    def forward(self, positions: Tensor, box: Tensor | None = None) -> tuple[Tensor, Tensor]:
        slope = self.slope.to(positions.dtype)
        forces = slope.repeat(positions.shape[0], 1).half()
        return -(positions * slope).sum().reshape(1), forces


class Expanded(Uniform):
    """One row of memory for all atoms: strides of zero."""

    def forward(self, positions: Tensor, box: Tensor | None = None) -> tuple[Tensor, Tensor]:
        slope = self.slope.to(positions.dtype)
        return -(positions * slope).sum(), slope.unsqueeze(0).expand(positions.shape[0], 3)


class Columns(Uniform):
    """Not contiguous: x of all atoms, then y, then z."""

    def forward(self, positions: Tensor, box: Tensor | None = None) -> tuple[Tensor, Tensor]:
        slope = self.slope.to(positions.dtype)
        columns = slope.unsqueeze(1).repeat(1, positions.shape[0])
        return -(positions * slope).sum().reshape(1), columns.t()


class EverySecond(Uniform):
    """A view into twice the memory."""

    def forward(self, positions: Tensor, box: Tensor | None = None) -> tuple[Tensor, Tensor]:
        slope = self.slope.to(positions.dtype)
        twice = slope.repeat(2 * positions.shape[0], 1)
        return -(positions * slope).sum().reshape(1), twice[::2]


class Tracked(Uniform):
    """Both with a graph."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, positions: Tensor, box: Tensor | None = None) -> tuple[Tensor, Tensor]:
        slope = self.slope.to(positions.dtype) * self.scale
        return -(positions * slope).sum().reshape(1), slope.repeat(positions.shape[0], 1)


class PythonNumber(Uniform):
    def forward(self, positions: Tensor, box: Tensor | None = None) -> tuple[float, Tensor]:
        slope = self.slope.to(positions.dtype)
        return -float((positions * slope).sum()), slope.repeat(positions.shape[0], 1)


class OnTheHost(Uniform):
    """What is made without a device lies on the host."""

    def forward(self, positions: Tensor, box: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x = positions.detach().cpu().double()
        slope = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
        return -(x * slope).sum().reshape(1), slope.repeat(x.shape[0], 1)


class Whole(nn.Module):
    """An energy of whole numbers; no force."""

    def forward(self, positions: Tensor, box: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return torch.full([1], 7, device=positions.device), torch.zeros_like(positions)


class Flat(Uniform):
    def forward(self, positions: Tensor, box: Tensor | None = None) -> tuple[Tensor, Tensor]:
        slope = self.slope.to(positions.dtype)
        return -(positions * slope).sum().reshape(1), slope.repeat(positions.shape[0])


class TooFew(Uniform):
    def forward(self, positions: Tensor, box: Tensor | None = None) -> tuple[Tensor, Tensor]:
        slope = self.slope.to(positions.dtype)
        return -(positions * slope).sum().reshape(1), slope.repeat(1, 1)


class AnEnergyAnAtom(Uniform):
    def forward(self, positions: Tensor, box: Tensor | None = None) -> tuple[Tensor, Tensor]:
        slope = self.slope.to(positions.dtype)
        return -(positions * slope).sum(1), slope.repeat(positions.shape[0], 1)


ODD = (
    Uniform,
    Single,
    Double,
    Half,
    Expanded,
    Columns,
    EverySecond,
    Tracked,
    PythonNumber,
    OnTheHost,
)
SYSTEM = triatomic()


def check(context: openmm.Context, tap: Tap | None, rtol: float) -> None:
    """Energy, forces, and a few steps, of the field."""
    positions = context.getState(positions=True).getPositions(asNumpy=True)._value
    for _ in range(3):
        context.getIntegrator().step(1)
        state = context.getState(positions=True, energy=True, forces=True)
        positions = state.getPositions(asNumpy=True)._value
        energy = -(positions * SLOPE).sum()
        assert state.getPotentialEnergy()._value == pytest.approx(energy, rel=rtol, abs=rtol)
        forces = state.getForces(asNumpy=True)._value
        np.testing.assert_allclose(forces, np.tile(SLOPE, (len(positions), 1)), rtol=1e-6)
        if tap is not None:
            energies, tapped = tap.read()
            assert energies == pytest.approx([energy], rel=rtol, abs=rtol)
            np.testing.assert_array_equal(tapped.reshape(-1, 3), forces)


@pytest.mark.parametrize("tapped", [True, False])
@pytest.mark.parametrize("platform", ["Reference", "CPU"])
@pytest.mark.parametrize("backend", ["torchforce", "pythonforce"])
@pytest.mark.parametrize("module", ODD)
def test_what_a_module_gives_arrives(module, backend, platform, tapped):
    tap = Tap(1, 3) if tapped else None
    force = make_force(module(), periodic=False, tap=tap, backend=backend)
    check(context_of(force, SYSTEM, platform=platform), tap, rtol=1e-6)


@pytest.mark.parametrize("tapped", [True, False])
def test_an_energy_of_whole_numbers_is_one(tapped):
    tap = Tap(1, 3) if tapped else None
    context = context_of(make_force(Whole(), periodic=False, tap=tap), SYSTEM)
    assert context.getState(energy=True).getPotentialEnergy()._value == 7.0


@pytest.mark.parametrize("module", [Columns, Expanded, Single, Tracked])
def test_with_parameters_too(module):
    class Scaled(module):
        def forward(
            self, positions: Tensor, box: Tensor | None, parameters: list[Tensor]
        ) -> tuple[Tensor, Tensor]:
            slope = self.slope.to(positions.dtype)
            columns = slope.unsqueeze(1).repeat(1, positions.shape[0])
            return -(positions * slope).sum() * parameters[0], columns.t() * parameters[0]

    tap = Tap(1, 3)
    force = make_parametric_force(Scaled(), parameters={"k": 1.0}, periodic=False, tap=tap)
    check(context_of(force, SYSTEM), tap, rtol=1e-6)


@pytest.mark.parametrize("backend", ["torchforce", "pythonforce"])
@pytest.mark.parametrize(
    ("module", "complaint"),
    [
        (Flat, r"it gave forces of shape \[9\], wanted \[3, 3\]"),
        (TooFew, r"it gave forces of shape \[1, 3\], wanted \[3, 3\]"),
        (AnEnergyAnAtom, r"it gave 3 energies and 3 forces, wanted 1 of 1 x 3 atoms"),
    ],
)
def test_another_shape_is_an_error_of_one_line(module, complaint, backend):
    force = make_force(module(), periodic=False, tap=Tap(1, 3), backend=backend)
    with pytest.raises(openmm.OpenMMException) as raised:
        context_of(force, SYSTEM).getState(forces=True)
    line = one_line(raised.value)
    assert "\n" not in line
    assert np.char.find(line, complaint.replace("\\", "")) >= 0


@pytest.mark.parametrize("tapped", [True, False])
@pytest.mark.parametrize(
    ("energies", "forces"),
    [
        (lambda x: [7.0], lambda x: np.asfortranarray(np.ones(x.shape))),
        (lambda x: 7, lambda x: np.ones(x.shape, dtype=np.float32)),
        (lambda x: np.float32(7), lambda x: np.broadcast_to(1.0, x.shape)),
        (lambda x: np.array([7]), lambda x: np.ones((2, *x.shape))[::2][0]),
    ],
)
def test_what_a_function_gives_arrives(energies, forces, tapped):
    force = make_python_force(
        lambda frames, box: (energies(frames), forces(frames)),
        n_replicas=1,
        n_atoms=3,
        periodic=False,
        tap=Tap(1, 3) if tapped else None,
    )
    state = context_of(force, SYSTEM).getState(energy=True, forces=True)
    assert state.getPotentialEnergy()._value == 7.0
    assert (state.getForces(asNumpy=True)._value == 1.0).all()


@pytest.mark.parametrize(
    ("energies", "forces", "complaint"),
    [
        (7.0, np.ones((3, 3)), "it gave forces of shape (3, 3), wanted (1, 3, 3)"),
        ([7.0, 7.0], np.ones((1, 3, 3)), "it gave 2 energies, wanted 1"),
    ],
)
def test_another_shape_from_a_function_is_its_own_error(energies, forces, complaint):
    tap = Tap(1, 3)
    force = make_python_force(
        lambda frames, box: (energies, forces), n_replicas=1, n_atoms=3, periodic=False, tap=tap
    )
    context_of(force, SYSTEM).getState(energy=True, forces=True)
    assert tap.raised == {0: f"ValueError: {complaint}"}


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["single", "mixed", "double"])
@pytest.mark.parametrize("module", [Single, Double, Expanded, Columns, OnTheHost])
def test_what_a_module_gives_arrives_on_cuda(module, precision):
    # A Context takes most of a second there: every other one goes without a tap.
    tap = None if module in (Expanded, OnTheHost) else Tap(1, 3)
    force = make_force(module(), periodic=False, tap=tap)
    properties = platform_properties("CUDA", precision)
    check(context_of(force, SYSTEM, platform="CUDA", properties=properties), tap, rtol=1e-5)


class HostForces(nn.Module):
    """By openmm-torch's convention, and not thought of a device."""

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        slope = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
        x = positions.detach().cpu().double()
        return -(x * slope).sum(), slope.unsqueeze(0).expand(x.shape[0], 3)


def test_a_users_module_gives_what_it_likes():
    potential = wrap(HostForces())
    assert potential.unsupported(SYSTEM) is None
    with Evaluator(potential, SYSTEM, "Reference") as evaluator:
        energies, forces = evaluator.evaluate(SYSTEM.positions[None])
    assert energies == pytest.approx([-(SYSTEM.positions * SLOPE).sum()])
    np.testing.assert_array_equal(forces[0], np.tile(SLOPE, (3, 1)))


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["single", "mixed", "double"])
def test_a_users_module_gives_what_it_likes_on_cuda(precision):
    with Evaluator(wrap(HostForces()), SYSTEM, "CUDA", precision) as evaluator:
        energies, forces = evaluator.evaluate(SYSTEM.positions[None])
    assert energies == pytest.approx([-(SYSTEM.positions * SLOPE).sum()], rel=1e-5)
    np.testing.assert_allclose(forces[0], np.tile(SLOPE, (3, 1)), rtol=1e-6)
