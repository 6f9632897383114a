"""An evaluator gives what the potential says of each frame, and NaN where it says nothing."""

from __future__ import annotations

import dataclasses

import numpy as np
import openmm
import pytest
from springs import STIFFNESS, NativeSpringPotential, SpringPotential, diatomic, triatomic

from omm_mlff.dynamics.evaluator import BATCH_ATOMS, Evaluator
from omm_mlff.errors import AnalysisError, PlatformError, UnsupportedSystemError
from omm_mlff.forces.built import Built
from omm_mlff.potentials.base import Capabilities


def stretched(*lengths_nm: float) -> np.ndarray:
    """Frames of the diatomic, of these lengths."""
    return np.array([[[0.0, 0, 0], [length, 0, 0]] for length in lengths_nm])


def evaluated(potential, frames, **options):
    with Evaluator(potential, diatomic(), "Reference") as evaluator:
        return *evaluator.evaluate(frames, **options), evaluator


@pytest.mark.parametrize("potential", [SpringPotential(), NativeSpringPotential()])
@pytest.mark.parametrize("n_frames", [1, 7, BATCH_ATOMS // 2, BATCH_ATOMS + 5])
def test_energies_and_forces_are_those_of_the_closed_form(potential, n_frames):
    """Fewer frames than a batch, a batch, and one that must be filled up."""
    lengths = np.linspace(0.08, 0.13, n_frames)
    energies, forces, evaluator = evaluated(potential, stretched(*lengths))
    np.testing.assert_allclose(energies, 0.5 * STIFFNESS * (lengths - 0.1) ** 2, atol=1e-9)
    pull = STIFFNESS * (lengths - 0.1)
    np.testing.assert_allclose(forces[:, 0, 0], pull, atol=1e-7)
    np.testing.assert_allclose(forces[:, 1, 0], -pull, atol=1e-7)
    assert np.abs(forces[:, :, 1:]).max() < 1e-9
    assert evaluator.raised == {}


def test_batched_or_one_by_one_is_the_same():
    frames = triatomic().positions + np.random.default_rng(1).normal(0.0, 0.005, (90, 3, 3))
    with Evaluator(SpringPotential(), triatomic(), "Reference") as evaluator:
        together, alone = evaluator.evaluate(frames), evaluator.evaluate(frames, batched=False)
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-8)


def test_evaluator_tells_the_truth_about_nan():
    with Evaluator(SpringPotential(breaks_at=0.12), diatomic(), "Reference") as evaluator:
        stretched = np.array([[[0, 0, 0], [0.13, 0, 0]], [[0, 0, 0], [0.11, 0, 0]]])
        energies, forces = evaluator.evaluate(stretched)
    assert np.isnan(energies[0])
    assert np.isnan(forces[0]).all()
    assert energies[1] == pytest.approx(0.5 * STIFFNESS * 0.01**2)


@pytest.mark.parametrize("n_frames", [3, BATCH_ATOMS])
def test_frames_that_raise_are_nan_and_kept_with_their_message(n_frames):
    lengths = np.full(n_frames, 0.1)
    lengths[1] = 0.25
    energies, forces, evaluator = evaluated(SpringPotential(raises_at=2.0), stretched(*lengths))
    assert np.flatnonzero(np.isnan(energies)).tolist() == [1]
    assert np.isnan(forces[1]).all()
    assert np.isfinite(np.delete(forces, 1, axis=0)).all()
    assert list(evaluator.raised) == [1]
    assert "a pair is too long" in evaluator.raised[1]
    assert evaluator.tally.n_frames == n_frames
    assert len(evaluator.tally.messages) == 1


def test_a_frame_that_is_not_finite_is_not_shown_to_the_potential():
    frames = stretched(0.1, float("nan"), 0.12)
    energies, _, evaluator = evaluated(SpringPotential(), frames)
    assert np.isnan(energies).tolist() == [False, True, False]
    assert evaluator.raised == {}


def test_what_was_wrong_with_the_last_frames_is_not_said_of_the_next():
    with Evaluator(SpringPotential(raises_at=2.0), diatomic(), "Reference") as evaluator:
        evaluator.evaluate(stretched(0.25))
        assert list(evaluator.raised) == [0]
        energies, _ = evaluator.evaluate(stretched(0.11))
    assert energies[0] == pytest.approx(0.5 * STIFFNESS * 0.01**2)
    assert evaluator.raised == {}
    assert evaluator.tally.n_frames == 2
    assert len(evaluator.tally.messages) == 1


def test_a_twin_for_another_system_counts_in_the_same_tally():
    with Evaluator(SpringPotential(), diatomic(), "Reference") as evaluator:
        with evaluator.for_system(triatomic()) as other:
            energies, _ = other.evaluate(triatomic().positions[None])
        assert energies[0] == pytest.approx(0.0, abs=1e-9)
        assert evaluator.tally.n_frames == 1


def test_a_potential_that_is_asked_for_what_it_cannot_is_refused_by_name():
    class Picky(SpringPotential):
        def unsupported(self, system):
            return "it does not like hydrogen"

    with pytest.raises(UnsupportedSystemError, match="springs: it does not like hydrogen"):
        Evaluator(Picky(), diatomic(), "Reference")
    with pytest.raises(PlatformError, match="Metal"):
        Evaluator(SpringPotential(), diatomic(), "Metal")


def test_a_second_context_that_cannot_be_made_is_no_fault_of_the_system():
    class Once(SpringPotential):
        n_made = 0

        def add_to(self, *arguments, **options):
            self.n_made += 1
            if self.n_made > 1:
                raise UnsupportedSystemError("only once")
            return super().add_to(*arguments, **options)

    with Evaluator(Once(), diatomic(), "Reference") as evaluator:
        with pytest.raises(AnalysisError, match="second Context could not be made: only once"):
            evaluator.for_system(evaluator.system)
        with pytest.raises(UnsupportedSystemError, match="only once"):
            evaluator.for_system(triatomic())


def test_a_box_that_is_given_is_used_for_these_frames():
    """Two atoms 0.3 nm apart in a box of 0.4 nm are 0.1 nm apart across its face."""

    class Wrapped(NativeSpringPotential):
        def capabilities(self, system):
            return Capabilities(reads_box=True)

        def add_to(self, openmm_system, system, *, n_replicas=1, tap=None):
            spring = openmm.HarmonicBondForce()
            spring.setUsesPeriodicBoundaryConditions(True)
            spring.addBond(0, 1, 0.1, STIFFNESS)
            openmm_system.addForce(spring)
            return Built("openmm")

    system = dataclasses.replace(diatomic(), box_vectors=2.0 * np.eye(3))
    with Evaluator(Wrapped(), system, "Reference") as evaluator:
        wide, _ = evaluator.evaluate(stretched(0.3))
        narrow, _ = evaluator.evaluate(stretched(0.3), 0.4 * np.eye(3))
    assert wide[0] == pytest.approx(0.5 * STIFFNESS * 0.2**2)
    assert narrow[0] == pytest.approx(0.0, abs=1e-9)


def test_steps_are_timed_from_rest_and_not_at_all_where_one_raises():
    with Evaluator(SpringPotential(), diatomic(), "Reference") as evaluator:
        seconds = evaluator.time_steps(2, 3)
    assert seconds.shape == (3,)
    assert (seconds > 0.0).all()
    with Evaluator(
        SpringPotential(rest_scale=1.5, raises_at=0.9), diatomic(), "Reference"
    ) as evaluator:
        assert np.isnan(evaluator.time_steps(200, 2)).all()
        assert len(evaluator.tally.messages) > 0
