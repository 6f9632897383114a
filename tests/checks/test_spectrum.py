"""The spectrum: oscillators of known frequency, the sum rule, Verlet's own frequency."""

from __future__ import annotations

import numpy as np
import pytest
from checks.fakes import FakeReplica, FakeRun, by_name, card, water
from scipy.signal import find_peaks

from omm_mlff.checks import spectrum
from omm_mlff.checks.base import Evidence
from omm_mlff.checks.frames import Sample
from omm_mlff.units import INVERSE_CM_PER_RADIAN_PER_PS

DT_PS = 5e-4
N_FRAMES = 4000  # 2 ps: 16.7 cm^-1


def oscillating(lines: dict[float, float], n_frames: int = N_FRAMES, phase: float = 0.0):
    """Velocities of one atom that swings at wavenumbers (1/cm) with amplitudes (nm/ps)."""
    time = np.arange(n_frames) * DT_PS
    velocities = np.zeros((n_frames, 3, 3))
    for axis, (wavenumber, amplitude) in enumerate(lines.items()):
        omega = wavenumber / INVERSE_CM_PER_RADIAN_PER_PS
        velocities[:, 0, axis] = amplitude * np.cos(omega * time + phase + axis)
    return velocities


def measured(velocities: list[np.ndarray], **options):
    system = water()
    replicas = [FakeReplica(3, DT_PS, velocities=v) for v in velocities]
    run = FakeRun(replicas, system.masses, **options)
    return by_name(spectrum.CHECK.measure(Evidence(system, card(), (run,))))


def test_the_highest_of_two_lines_is_found_without_verlets_shift() -> None:
    found = measured(
        [oscillating({1600.0: 1.0, 3800.0: 0.5}, phase=phase) for phase in (0.0, 1.0, 2.0)]
    )
    omega_dt = 3800.0 / INVERSE_CM_PER_RADIAN_PER_PS * DT_PS
    shift = 3800.0 * omega_dt**2 / 24.0
    assert shift == pytest.approx(20.3, abs=0.1)
    # The closed form against its own leading term, and a quarter of a bin for the line.
    assert found["spectrum.peak"].value == pytest.approx(3800.0 - shift, abs=4.0)
    assert found["spectrum.resolution"].value == pytest.approx(1e10 / 299792458.0 / 2.0, rel=1e-6)
    assert found["spectrum.high"].value < 1e-6


def test_a_run_of_verlet_shows_the_frequency_of_its_spring() -> None:
    omega = 3800.0 / INVERSE_CM_PER_RADIAN_PER_PS
    x, v = 0.0, 1.0
    force = -(omega**2) * x
    velocities = np.zeros((N_FRAMES, 3, 3))
    for frame in range(N_FRAMES):
        velocities[frame, 0, 0] = v
        half = v + 0.5 * DT_PS * force
        x += DT_PS * half
        force = -(omega**2) * x
        v = half + 0.5 * DT_PS * force
    found = measured([velocities, velocities])
    assert found["spectrum.peak"].value == pytest.approx(3800.0, abs=1.0)


def test_a_single_frequency_has_the_width_that_is_promised() -> None:
    found = measured([oscillating({2000.0: 1.0}, phase=phase) for phase in (0.0, 0.7, 1.9)])
    width = found["spectrum.width"].value / found["spectrum.resolution"].value
    assert width == pytest.approx(2.8, abs=0.15)


def test_a_decaying_vibration_has_the_width_of_its_decay() -> None:
    """A Lorentzian: the velocity's envelope exp(-g t / 2) is a full width of g, in rad/ps."""
    rate = 40.0
    envelope = np.exp(-0.5 * rate * np.arange(N_FRAMES) * DT_PS)
    dying = oscillating({2000.0: 1.0}) * envelope[:, None, None]
    density = spectrum.density_of_states(dying, water().masses, DT_PS)
    line = spectrum.highest_line(density)
    assert line is not None
    assert line[1] == pytest.approx(rate * INVERSE_CM_PER_RADIAN_PER_PS, rel=0.1)


def test_the_last_peak_is_that_of_another_program() -> None:
    random = np.random.default_rng(5)
    found = 0
    for k in range(600):
        n = int(random.integers(1, 60))
        values = random.integers(0, 6, n).astype(float) if k % 2 else random.normal(size=n).cumsum()
        for prominence in (0.5, 1.0, 2.5):
            theirs, _ = find_peaks(values, prominence=prominence)
            ours = spectrum.last_peak(values, prominence)
            assert ours == (int(theirs[-1]) if len(theirs) else None)
            found += ours is not None
    assert found > 500


@pytest.mark.parametrize("n_frames", [1000, 1001])
def test_the_density_of_states_sums_to_the_kinetic_energy(n_frames: int) -> None:
    random = np.random.default_rng(4)
    velocities = random.normal(size=(n_frames, 3, 3))
    masses = water().masses
    kinetic = 0.5 * (masses[:, None] * velocities**2).sum(axis=(1, 2))
    plain = spectrum.density_of_states(velocities, masses, DT_PS)
    assert plain.density.sum() * plain.spacing == pytest.approx(kinetic.mean(), rel=1e-12)
    window = np.hanning(n_frames)
    shaded = spectrum.density_of_states(velocities, masses, DT_PS, window)
    weighted = (window**2 * kinetic).sum() / (window**2).sum()
    assert shaded.density.sum() * shaded.spacing == pytest.approx(weighted, rel=1e-12)


def test_each_oscillator_holds_its_own_kinetic_energy() -> None:
    velocities = oscillating({1000.0: 1.0, 3000.0: 2.0})
    masses = water().masses
    found = spectrum.density_of_states(velocities, masses, DT_PS, np.hanning(N_FRAMES))
    low = found.wavenumber < 2000.0
    parts = [found.density[band].sum() * found.spacing for band in (low, ~low)]
    expected = [0.25 * masses[0] * amplitude**2 for amplitude in (1.0, 2.0)]
    assert parts == pytest.approx(expected, rel=1e-3)


def test_the_power_spectrum_is_the_transform_of_the_autocorrelation() -> None:
    """Wiener and Khinchin, in circular form, by another route."""
    velocities = np.random.default_rng(2).normal(size=(64, 3, 3))
    masses = water().masses
    weighted = velocities * np.sqrt(0.5 * masses)[None, :, None]
    correlation = np.array(
        [(weighted * np.roll(weighted, -lag, axis=0)).sum() / 64 for lag in range(64)]
    )
    transform = np.fft.fft(correlation).real
    found = spectrum.density_of_states(velocities, masses, DT_PS)
    one_sided = transform[:33].copy()
    one_sided[1:32] *= 2.0
    assert found.density * found.spacing == pytest.approx(one_sided / 64, rel=1e-9)


def test_motion_that_no_molecule_has_is_counted_as_high() -> None:
    found = measured([oscillating({3000.0: 1.0, 6000.0: 1.0}) for _ in range(2)])
    assert found["spectrum.high"].value == pytest.approx(0.5, abs=1e-3)


def test_stretches_are_joined_across_segments_and_their_rest_is_dropped() -> None:
    velocities = np.random.default_rng(0).normal(size=(10_000, 3, 3))
    replica = FakeReplica(3, DT_PS, velocities=velocities)
    got = list(spectrum._velocities(Sample(0, replica, 9_999), 3_000))
    assert [len(part) for part in got] == [3_000] * 3
    assert np.array_equal(np.concatenate(got), velocities[:9_000])


def test_a_coarse_record_says_that_it_shows_too_little() -> None:
    found = measured([oscillating({1000.0: 1.0})] * 2, stride=10)
    assert "smaller stride" in found["spectrum.peak"].not_applicable


@pytest.mark.parametrize("broken", [0.0, np.nan])
def test_a_molecule_that_rests_or_is_broken_has_no_lines(broken: float) -> None:
    found = measured([np.full((N_FRAMES, 3, 3), broken)] * 2)
    assert found["spectrum.peak"].value is None
    assert "does not move" in found["spectrum.high"].not_applicable


def test_white_noise_does_not_stop_the_check() -> None:
    random = np.random.default_rng(3)
    found = measured([random.normal(size=(N_FRAMES, 3, 3)) for _ in range(4)])
    assert found["spectrum.high"].value == pytest.approx(1.0 - 4500.0 / 33356.0, abs=0.02)
