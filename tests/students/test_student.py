"""The networks: what must hold by construction, whatever the weights."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from omm_mlff.students.engine import BoxEngine, MoleculeEngine, build_engine
from omm_mlff.students.pairs import complete_pairs
from omm_mlff.students.prior import RepulsionPrior
from omm_mlff.students.radial import BesselBasis, envelope
from omm_mlff.students.student import STUDENT_CONFIGS, Student, StudentConfig
from omm_mlff.units import ANGSTROM_PER_NM, KJMOL_PER_EV

TARGETS = {"original": 427_000, "tiny": 77_000, "ultra-tiny": 21_000}
SPECIES = torch.tensor([6, 8, 7, 1, 1, 1, 6])


def some_student(name: str = "ultra-tiny", dtype: torch.dtype = torch.float64) -> Student:
    torch.manual_seed(7)
    student = Student(STUDENT_CONFIGS[name])
    student.network.to(dtype)
    return student.eval().requires_grad_(False)


def some_positions(n_atoms: int = 7, seed: int = 3) -> torch.Tensor:
    """Angstrom; no two atoms closer than 0.9."""
    rng = np.random.default_rng(seed)
    chosen: list[np.ndarray] = []
    while len(chosen) < n_atoms:
        trial = rng.uniform(0.0, 4.0, size=3)
        if all(np.linalg.norm(trial - other) > 0.9 for other in chosen):
            chosen.append(trial)
    return torch.tensor(np.array(chosen))


def energy(student: Student, species: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    idx_i, idx_j = complete_pairs(len(species))
    return student(species, idx_i, idx_j, x[idx_j] - x[idx_i]).sum()


def forces(student: Student, species: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    x = x.clone().requires_grad_(True)
    return -torch.autograd.grad(energy(student, species, x), x)[0]


@pytest.mark.parametrize("name", TARGETS)
def test_parameter_count_is_within_one_percent_of_its_target(name):
    n_parameters = Student(STUDENT_CONFIGS[name]).n_parameters
    assert abs(n_parameters / TARGETS[name] - 1.0) < 0.01


def test_forces_are_minus_the_gradient_in_float64():
    student, x = some_student(), some_positions()
    analytic = forces(student, SPECIES, x)
    step = 1e-4
    for atom, axis in ((0, 0), (3, 1), (6, 2)):
        shift = torch.zeros_like(x)
        shift[atom, axis] = step
        e = [float(energy(student, SPECIES, x + k * shift)) for k in (-2, -1, 1, 2)]
        stencil = (e[0] - 8 * e[1] + 8 * e[2] - e[3]) / (12 * step)
        assert -stencil == pytest.approx(float(analytic[atom, axis]), abs=1e-7)


def test_energy_is_invariant_and_forces_turn_with_the_molecule():
    student, x = some_student(), some_positions()
    turn = torch.tensor(Rotation.random(rng=1).as_matrix())
    moved = x @ turn.T + torch.tensor([3.0, -1.0, 2.0])
    assert float(energy(student, SPECIES, moved)) == pytest.approx(
        float(energy(student, SPECIES, x)), abs=1e-10
    )
    torch.testing.assert_close(
        forces(student, SPECIES, moved), forces(student, SPECIES, x) @ turn.T, atol=1e-9, rtol=0
    )


def test_permuting_atoms_permutes_forces():
    student, x = some_student(), some_positions()
    order = torch.randperm(7, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        forces(student, SPECIES[order], x[order]),
        forces(student, SPECIES, x)[order],
        atol=1e-10,
        rtol=0,
    )


def test_mirror_images_have_one_energy():
    student, x = some_student(), some_positions()
    mirrored = x * torch.tensor([1.0, 1.0, -1.0])
    assert float(energy(student, SPECIES, mirrored)) == pytest.approx(
        float(energy(student, SPECIES, x)), abs=1e-10
    )


def test_two_molecules_far_apart_have_the_sum_of_their_energies():
    student, x = some_student(), some_positions()
    both = torch.cat([x, x + 100.0])
    species = torch.cat([SPECIES, SPECIES])
    assert float(energy(student, species, both)) == pytest.approx(
        2 * float(energy(student, SPECIES, x)), abs=1e-9
    )


def test_reference_energies_are_a_constant_that_leaves_forces_alone():
    student, x = some_student(), some_positions()
    before, force = float(energy(student, SPECIES, x)), forces(student, SPECIES, x)
    student.reference_energies += torch.tensor([1.0e4, 2.0e4, 3.0e4, 4.0e4], dtype=torch.float64)
    after = float(energy(student, SPECIES, x))
    assert after - before == pytest.approx(3 * 1e4 + 2 * 2e4 + 3e4 + 4e4, abs=1e-6)
    torch.testing.assert_close(forces(student, SPECIES, x), force, atol=0, rtol=0)


def test_envelope_has_two_continuous_derivatives_at_the_cutoff():
    x = torch.tensor([1.0 - 1e-4], dtype=torch.float64, requires_grad=True)
    value = envelope(x)
    first = torch.autograd.grad(value, x, create_graph=True)[0]
    second = torch.autograd.grad(first, x)[0]
    # Near x = 1 the polynomial is 35 h^3 + O(h^4): value, slope and curvature all vanish there.
    h = 1e-4
    assert float(value.detach()) == pytest.approx(35 * h**3, rel=1e-2)
    assert float(first.detach()) == pytest.approx(-105 * h**2, rel=1e-2)
    assert float(second) == pytest.approx(210 * h, rel=1e-2)
    assert float(envelope(torch.tensor([1.0]))) == 0.0
    assert float(envelope(torch.tensor([1.7]))) == 0.0


def test_a_pair_at_the_cutoff_contributes_nothing():
    student = some_student()
    species = torch.tensor([8, 8])
    alone = float(energy(student, species, torch.tensor([[0.0, 0, 0], [50.0, 0, 0]]).double()))
    near = torch.tensor([[0.0, 0, 0], [5.0 - 1e-7, 0, 0]]).double()
    assert float(energy(student, species, near)) == pytest.approx(alone, abs=1e-12)


def test_bessel_basis_equals_its_closed_form():
    d = torch.tensor([0.7, 2.5], dtype=torch.float64)
    got = BesselBasis(4, 5.0)(d)
    n = np.arange(1, 5)
    want = np.sqrt(2 / 5.0) * np.sin(n * np.pi * d.numpy()[:, None] / 5.0) / d.numpy()[:, None]
    np.testing.assert_allclose(got.numpy(), want, atol=1e-6)


def test_prior_equals_ziegler_biersack_littmark_by_hand():
    # O..O at 1 angstrom: a = 0.8854 * 0.529177 / (2 * 8^0.23) = 0.145215, x = 6.88633.
    d = torch.tensor([1.0], dtype=torch.float64)
    got = 2 * float(
        RepulsionPrior(5.0)(torch.tensor([8, 8]), torch.tensor([0]), torch.tensor([1]), d)
    )
    a = 0.8854 * 0.529177210903 / (2 * 8**0.23)
    phi = sum(
        c * np.exp(-b / a)
        for c, b in ((0.18175, 3.1998), (0.50986, 0.94229), (0.28022, 0.4029), (0.02817, 0.20162))
    )
    x = 0.2
    window = 1 - 21 * x**5 + 35 * x**6 - 15 * x**7
    assert got == pytest.approx(14.3996454 * 64 * phi * window, rel=1e-7)


def test_prior_repels_at_every_distance():
    d = torch.linspace(0.05, 4.99, 400, dtype=torch.float64)
    pairs = torch.zeros(400, dtype=torch.int64)
    for z in ((1, 1), (1, 8), (6, 7), (8, 8)):
        values = RepulsionPrior(5.0)(torch.tensor(z), pairs, pairs + 1, d)
        assert bool((values[1:] < values[:-1]).all())
        assert bool((values >= 0).all())


def test_norms_have_no_cone_at_zero():
    from omm_mlff.students.painn import smooth_norm

    v = torch.zeros(1, 3, 1, dtype=torch.float64, requires_grad=True)
    slope = torch.autograd.grad(smooth_norm(v, 0.1).sum(), v)[0]
    assert float(slope.abs().max()) == 0.0
    kinked = torch.tensor([[[1e-3], [0.0], [0.0]]], dtype=torch.float64, requires_grad=True)
    assert float(torch.autograd.grad(smooth_norm(kinked, 0.1).sum(), kinked)[0].max()) < 0.011


@pytest.mark.parametrize("name", TARGETS)
def test_scripted_copies_equal_single_molecules(name):
    student = some_student(name, torch.float32)
    species = SPECIES
    frames = torch.stack([some_positions(seed=seed) for seed in (1, 2, 3)]) / ANGSTROM_PER_NM
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.*", category=DeprecationWarning)
        scripted = torch.jit.script(MoleculeEngine(student, species, 3))
    energies, batched = scripted(frames.reshape(-1, 3))
    single = MoleculeEngine(student, species)
    for i, frame in enumerate(frames):
        e, f = single(frame)
        assert float(energies[i]) == pytest.approx(float(e), abs=1e-3)
        scale = f.abs().max()
        assert float((batched.view(3, 7, 3)[i] - f).abs().max() / scale) < 1e-5


def test_molecule_and_neighbour_list_agree():
    student = some_student()
    x = some_positions() / ANGSTROM_PER_NM
    molecule = MoleculeEngine(student, SPECIES)(x)
    listed = BoxEngine(student, SPECIES, periodic=False)(x)
    assert float(listed[0]) == pytest.approx(float(molecule[0]), abs=1e-8)
    torch.testing.assert_close(listed[1], molecule[1], atol=1e-7, rtol=0)


def test_a_box_repeated_twice_has_twice_the_energy():
    student = some_student()
    x = some_positions() / ANGSTROM_PER_NM
    box = torch.diag(torch.tensor([0.55, 0.6, 0.65], dtype=torch.float64))
    one = BoxEngine(student, SPECIES, periodic=True)(x, box)
    longer = box.clone()
    longer[0, 0] *= 2
    doubled = torch.cat([x, x + box[0]])
    two = BoxEngine(student, torch.cat([SPECIES, SPECIES]), periodic=True)(doubled, longer)
    assert float(two[0]) == pytest.approx(2 * float(one[0]), abs=1e-8)
    torch.testing.assert_close(two[1][:7], one[1], atol=1e-6, rtol=0)


def test_engine_converts_units():
    student = some_student()
    x = some_positions()
    got_energy, got_forces = MoleculeEngine(student, SPECIES)(x / ANGSTROM_PER_NM)
    assert float(got_energy) == pytest.approx(
        float(energy(student, SPECIES, x)) * KJMOL_PER_EV, rel=1e-12
    )
    want = forces(student, SPECIES, x) * KJMOL_PER_EV * ANGSTROM_PER_NM
    torch.testing.assert_close(got_forces, want, atol=1e-6, rtol=1e-9)


def test_large_molecules_and_boxes_get_a_neighbour_list():
    student = some_student()
    assert isinstance(build_engine(student, SPECIES, periodic=False), MoleculeEngine)
    assert isinstance(build_engine(student, SPECIES, periodic=True), BoxEngine)
    assert isinstance(build_engine(student, SPECIES.repeat(10), periodic=False), BoxEngine)


def test_config_survives_being_written_and_read():
    config = StudentConfig("x", 8, 1, 6, 8, species=(1, 8))
    assert Student(config).config == config
