"""What is converted is what was recorded, as mdtraj, MDAnalysis and ASE read it."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import mdtraj
import numpy as np
import openmm
import pytest
import tables
from openmm import app
from springs import SpringPotential, molecule, triatomic

from omm_mlff.adapters.convert import convert
from omm_mlff.adapters.reporters import TrajectoryReporter
from omm_mlff.dynamics.simulate import simulate
from omm_mlff.errors import InputError, MissingPackageError, OutputExistsError
from omm_mlff.potentials.registry import load_potential
from omm_mlff.record import rundir
from omm_mlff.record.rundir import FrameFile, RunRecord, mdtraj_topology
from omm_mlff.schema import RunSpec
from omm_mlff.systems import load_system
from omm_mlff.units import EV_ANGSTROM_PER_KJMOL_NM, EV_PER_KJMOL

ase_io = pytest.importorskip("ase.io")

FLOAT32 = 3e-7  # nm, below 4 nm from the origin
XTC = 5.1e-4  # nm, half of what it resolves

DEAD = 1
"""The replica that breaks before the end of the run."""


def universe(*files):
    """MDAnalysis' reading of it."""
    with warnings.catch_warnings():
        # Its own use of what Biopython and its own next version will change.
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        analysis = pytest.importorskip("MDAnalysis")
        return analysis.Universe(*map(str, files))


@pytest.fixture(scope="module")
def vacuum(tmp_path_factory):
    """Four copies on springs in several segments; the second breaks."""
    folder = tmp_path_factory.mktemp("vacuum") / "run"
    spec = RunSpec("springs", "springs", 0.4, 400.0, 4, seed=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rundir, "SEGMENT_FRAMES", 256)
        potential = SpringPotential(breaks_at=0.158, breaks_copy=DEAD)
        record = simulate(spec, potential, triatomic(), folder)
    lengths = [len(replica.time) for _, replica in record.replicas()]
    assert set(record.events) == {DEAD}
    assert 20 < lengths[DEAD] < 800
    assert [n for i, n in enumerate(lengths) if i != DEAD] == [800] * 3
    assert len(record.replica(0).files) > 2
    return record


@pytest.fixture(scope="module")
def periodic(tmp_path_factory):
    """Water under a student, in a box."""
    folder = tmp_path_factory.mktemp("periodic") / "run"
    spec = RunSpec("ultra-tiny", "water-box:16", 0.005, 300.0, 1, seed=1)
    return simulate(spec, load_potential("ultra-tiny"), load_system("water-box:16"), folder)


@pytest.fixture
def triclinic(tmp_path):
    """A file as TrajectoryReporter writes it, with a box that changes and random frames."""
    rng = np.random.default_rng(4)
    topology = mdtraj_topology(
        ["C1", "CL2", "H3"], ["C", "Cl", "H"], [("MOL", 0)] * 3, np.array([[0, 1], [0, 2]])
    )
    box = np.array([[2.0, 0.0, 0.0], [0.3, 2.2, 0.0], [-0.4, 0.5, 2.5]])
    frames = {
        "time": 0.25 + 0.05 * np.arange(7),
        "potential_energy": rng.normal(size=7) * 100,
        "kinetic_energy": rng.random(7),
        **{name: rng.normal(size=(7, 3, 3)) for name in ("positions", "velocities", "forces")},
    }
    boxes = box * (1.0 + 0.02 * np.arange(7))[:, None, None]
    file = FrameFile(tmp_path / "npt.h5", topology, 3, box)
    for i in range(7):
        file.box_vectors = boxes[i]
        file.append({name: values[i : i + 1] for name, values in frames.items()})
    file.close()
    return tmp_path / "npt.h5", frames, boxes


@pytest.mark.parametrize("stride", [1, 7])
@pytest.mark.parametrize("to", ["dcd", "xtc"])
def test_positions_and_times_of_binary_formats(vacuum, tmp_path, to, stride):
    precision = FLOAT32  # XTC compresses from ten atoms on
    rows = convert(vacuum.folder, to, tmp_path, stride=stride)
    assert [row.name for row in rows] == [f"replica_{i:03d}" for i in range(4)]
    for (_, replica), row in zip(vacuum.replicas(), rows, strict=True):
        positions, time = replica.positions[::stride], replica.time[::stride]
        assert row.n_frames == len(time)
        assert row.end_ps == time[-1]
        loaded = mdtraj.load(str(row.path), top=str(tmp_path / "topology.pdb"))
        np.testing.assert_allclose(loaded.xyz, positions, atol=precision)
        assert loaded.unitcell_vectors is None
        if to == "xtc":
            np.testing.assert_allclose(loaded.time, time, rtol=1e-6, atol=1e-9)
        seen = universe(tmp_path / "topology.pdb", row.path)
        found = [(step.time, step.positions / 10, step.dimensions) for step in seen.trajectory]
        np.testing.assert_allclose([row[0] for row in found], time, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose([row[1] for row in found], positions, atol=precision)
        assert {row[2] is None for row in found} == {True}


def test_extended_xyz_holds_everything_in_ases_units(vacuum, tmp_path):
    from ase import units

    rows = convert(vacuum.folder, "extxyz", tmp_path, stride=5)
    assert sorted(path.name for path in tmp_path.iterdir()) == [row.path.name for row in rows]
    for (_, replica), row in zip(vacuum.replicas(), rows, strict=True):
        frames = ase_io.read(row.path, index=":")
        assert len(frames) == row.n_frames == len(replica.time[::5])
        np.testing.assert_allclose([f.info["time_ps"] for f in frames], replica.time[::5])
        for i, frame in enumerate(frames):
            k = 5 * i
            energy = replica.potential_energy[k] * EV_PER_KJMOL
            assert frame.get_potential_energy() == pytest.approx(energy, abs=1e-12)
            np.testing.assert_allclose(frame.positions / 10, replica.positions[k], atol=1e-9)
            np.testing.assert_allclose(
                frame.get_forces(), replica.forces[k] * EV_ANGSTROM_PER_KJMOL_NM, atol=1e-8
            )
            velocities = frame.get_velocities() * (1000 * units.fs) / 10  # nm/ps
            np.testing.assert_allclose(velocities, replica.velocities[k], atol=3e-7)
            kinetic = replica.kinetic_energy[k] * EV_PER_KJMOL
            assert frame.get_kinetic_energy() == pytest.approx(kinetic, abs=1e-7)
            assert frame.info["kinetic_energy_eV"] == pytest.approx(kinetic, abs=1e-12)
            assert not frame.pbc.any()
    named = rows[0].path.rename(tmp_path / "replica_000.xyz")  # as both know it
    seen = [step.positions.copy() for step in universe(named).trajectory]
    for other in (mdtraj.formats.XYZTrajectoryFile(str(named)).read(), seen):
        np.testing.assert_allclose(other, vacuum.replica(0).positions[::5] * 10, atol=1e-6)


def test_a_replica_that_died_is_converted_up_to_there(vacuum, tmp_path):
    rows = convert(vacuum.folder, "xtc", tmp_path, replicas=[DEAD])
    (row,) = rows
    assert row.n_frames == len(vacuum.replica(DEAD).time) < 800
    assert row.stopped == vacuum.events[DEAD].detail
    assert sorted(path.name for path in tmp_path.iterdir()) == ["replica_001.xtc", "topology.pdb"]


def test_a_periodic_run_keeps_its_box(periodic, tmp_path):
    from ase import units

    replica = periodic.replica(0)
    lengths = np.diag(load_system("water-box:16").box_vectors)
    for to in ("dcd", "xtc", "extxyz"):
        convert(periodic.folder, to, tmp_path)
    for to, precision in (("dcd", FLOAT32), ("xtc", XTC)):
        file = tmp_path / f"replica_000.{to}"
        loaded = mdtraj.load(str(file), top=str(tmp_path / "topology.pdb"))
        np.testing.assert_allclose(loaded.xyz, replica.positions, atol=precision)
        np.testing.assert_allclose(loaded.unitcell_lengths, np.tile(lengths, (10, 1)), rtol=1e-6)
        seen = universe(tmp_path / "topology.pdb", file)
        for step, positions, time in zip(
            seen.trajectory, replica.positions, replica.time, strict=True
        ):
            np.testing.assert_allclose(step.positions / 10, positions, atol=precision)
            np.testing.assert_allclose(step.dimensions, [*lengths * 10, 90, 90, 90], rtol=1e-6)
            assert step.time == pytest.approx(time, abs=1e-8)
    frame = ase_io.read(tmp_path / "replica_000.extxyz", index=3)
    assert frame.pbc.all()
    np.testing.assert_allclose(frame.cell.lengths() / 10, lengths, rtol=1e-12)
    np.testing.assert_allclose(frame.cell.angles(), 90)
    assert frame.get_potential_energy() * units.mol / units.kJ == pytest.approx(
        replica.potential_energy[3],
        rel=2e-8,  # ASE keeps to CODATA 2014
    )
    assert ase_io.read(tmp_path / "topology.pdb").pbc.all()


def test_a_box_that_changes_and_is_not_rectangular(triclinic, tmp_path):
    from ase import units

    file, frames, boxes = triclinic
    for to in ("dcd", "xtc", "extxyz"):
        convert(file, to, tmp_path, stride=2)
    top = tmp_path / "topology.pdb"
    for to in ("dcd", "xtc"):
        loaded = mdtraj.load(str(tmp_path / f"npt.{to}"), top=str(top))
        np.testing.assert_allclose(loaded.unitcell_vectors, boxes[::2], atol=2e-6)
        np.testing.assert_allclose(loaded.xyz, frames["positions"][::2], atol=FLOAT32)
        seen = universe(top, tmp_path / f"npt.{to}")
        assert [step.time for step in seen.trajectory] == pytest.approx(frames["time"][::2])
        from MDAnalysis.lib.mdamath import triclinic_vectors

        found = [triclinic_vectors(step.dimensions) / 10 for step in seen.trajectory]
        np.testing.assert_allclose(found, boxes[::2], atol=2e-6)
    read = ase_io.read(tmp_path / "npt.extxyz", index=":")
    np.testing.assert_allclose([f.cell.array / 10 for f in read], boxes[::2], atol=1e-12)
    np.testing.assert_allclose(
        [f.get_velocities() for f in read],
        frames["velocities"][::2] * 10 / (1000 * units.fs),
        atol=1e-8,
    )


def test_the_topology_has_elements_bonds_and_box(triclinic, tmp_path):
    convert(triclinic[0], "dcd", tmp_path)
    top = tmp_path / "topology.pdb"
    loaded = mdtraj.load(str(top))
    assert [atom.element.symbol for atom in loaded.topology.atoms] == ["C", "Cl", "H"]
    assert sorted((a.index, b.index) for a, b in loaded.topology.bonds) == [(0, 1), (0, 2)]
    np.testing.assert_allclose(loaded.unitcell_vectors[0], triclinic[2][0], atol=1e-3)
    seen = universe(top)
    assert list(seen.atoms.elements) == ["C", "Cl", "H"]
    assert seen.bonds.indices.tolist() == [[0, 1], [0, 2]]
    assert ase_io.read(top).get_chemical_symbols() == ["C", "Cl", "H"]
    pdb = app.PDBFile(str(top))
    assert [atom.element.symbol for atom in pdb.topology.atoms()] == ["C", "Cl", "H"]


def test_every_bond_is_listed_also_those_of_standard_residues(periodic, tmp_path):
    convert(periodic.folder, "xtc", tmp_path)
    loaded = mdtraj.load(str(tmp_path / "topology.pdb"))
    found = sorted(sorted((a.index, b.index)) for a, b in loaded.topology.bonds)
    assert found == periodic.bonds.tolist()
    assert universe(tmp_path / "topology.pdb").bonds.indices.tolist() == periodic.bonds.tolist()


def test_momenta_follow_the_masses_of_the_system(tmp_path):
    """Hydrogen mass repartitioning: the reporter keeps each mass."""
    system = openmm.System()
    for mass in (15.0, 3.0):
        system.addParticle(mass)
    pair = molecule([8, 1], [[0, 0, 0], [0.1, 0, 0]], [[0, 1]])
    ours = app.Simulation(pair.topology, system, openmm.VerletIntegrator(0.001))
    ours.context.setPositions(pair.positions)
    ours.context.setVelocities([[1, 0, 0], [0, -2, 0]])
    with TrajectoryReporter(tmp_path / "run.h5", 1) as reporter:
        ours.reporters.append(reporter)
        ours.step(2)
    convert(tmp_path / "run.h5", "extxyz", tmp_path)
    frame = ase_io.read(tmp_path / "run.extxyz", index=0)
    assert frame.get_masses().tolist() == [15.0, 3.0]
    # 1/2 15 1^2 + 1/2 3 2^2 kJ/mol
    assert frame.get_kinetic_energy() == pytest.approx(13.5 * EV_PER_KJMOL, rel=1e-7)


def test_the_segments_of_a_reporter_that_was_killed_are_one_trajectory(tmp_path, vacuum):
    parts = tmp_path / "mine.h5.parts"
    parts.mkdir()
    for path in vacuum.replica(0).files:
        (parts / path.name).write_bytes(path.read_bytes())
    (parts / "00009.h5.partial").write_bytes(b"half of it")
    (row,) = convert(parts, "dcd", tmp_path / "out")
    assert (row.path.name, row.n_frames) == ("mine.dcd", 800)
    (row,) = convert(vacuum.folder / "replica_002", "dcd", tmp_path / "out")
    assert (row.path.name, row.n_frames) == ("replica_002.dcd", 800)


def test_a_validation_is_converted_run_by_run(vacuum, periodic, tmp_path):
    runs = tmp_path / "checked" / "runs"
    runs.mkdir(parents=True)
    (runs / "springs").symlink_to(vacuum.folder)
    (runs / "box").symlink_to(periodic.folder)
    (runs / "empty").mkdir()
    seen = []
    rows = convert(
        tmp_path / "checked", "xtc", tmp_path / "out", stride=10, progress=lambda *a: seen.append(a)
    )
    assert len(rows) == 5
    assert {path.parent.name for path in (tmp_path / "out").rglob("*.pdb")} == {"springs", "box"}
    assert all(done <= total for _, done, total in seen)
    assert [row for row in seen if row[1] == row[2]]


def test_blocks_of_any_size_give_the_same_file(vacuum, tmp_path, monkeypatch):
    """Memory is bounded by the block, whatever the run's length."""
    convert(vacuum.folder, "xtc", tmp_path / "a", stride=3)
    monkeypatch.setattr("omm_mlff.adapters.convert._BLOCK_BYTES", 13 * 3 * 3 * 8)
    largest = 0
    chunks = tables.EArray.__getitem__

    def counted(node, key):
        nonlocal largest
        values = chunks(node, key)
        largest = max(largest, len(values) if node.name == "coordinates" else 0)
        return values

    monkeypatch.setattr(tables.EArray, "__getitem__", counted)
    convert(vacuum.folder, "xtc", tmp_path / "b", stride=3)
    assert largest == 13
    for path in sorted((tmp_path / "a").iterdir()):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_what_is_there_is_refused_and_replaced_only_by_force(vacuum, tmp_path):
    convert(vacuum.folder, "dcd", tmp_path, replicas=[0])
    convert(vacuum.folder, "xtc", tmp_path, replicas=[0])  # the topology is the same
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(OutputExistsError, match=r"replica_000\.dcd is already there; use --force"):
        convert(vacuum.folder, "dcd", tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    (tmp_path / "topology.pdb").write_text("another's\n")
    with pytest.raises(OutputExistsError, match=r"topology\.pdb"):
        convert(vacuum.folder, "dcd", tmp_path, replicas=[2])
    (row,) = convert(vacuum.folder, "dcd", tmp_path, replicas=[0], stride=9, force=True)
    assert row.n_frames == 89
    assert (tmp_path / "topology.pdb").read_bytes() == before[tmp_path / "topology.pdb"]


def test_nothing_half_written_is_left_under_a_final_name(vacuum, tmp_path, monkeypatch):
    from omm_mlff.adapters.convert import _Block

    blocks = iter([5, 5])

    def interrupted(self):
        if next(blocks, None) is None:
            raise KeyboardInterrupt
        return self.n_frames

    monkeypatch.setattr(_Block, "n_finite", interrupted)
    for to in ("dcd", "xtc", "extxyz"):
        blocks = iter([5, 5])
        with pytest.raises(KeyboardInterrupt):
            convert(vacuum.folder, to, tmp_path / to, replicas=[0])
        assert list((tmp_path / to).iterdir()) == []


def test_frames_after_the_last_finite_one_are_left_out(tmp_path, triclinic):
    file, _, _ = triclinic
    with tables.open_file(str(file), "a") as handle:
        handle.root.coordinates[4, 1, 1] = np.nan
        handle.root.coordinates[6, 0, 0] = 1e7
    for to in ("dcd", "xtc", "extxyz"):
        (row,) = convert(file, to, tmp_path)
        assert (row.n_frames, row.end_ps) == (4, pytest.approx(0.4))
        assert row.stopped == "positions at 0.45 ps are not finite, or beyond 1 mm"
    assert universe(tmp_path / "topology.pdb", tmp_path / "npt.dcd").trajectory.n_frames == 4


def test_dcd_refuses_times_that_it_cannot_hold(tmp_path, triclinic):
    file, frames, _ = triclinic
    with tables.open_file(str(file), "a") as handle:
        handle.root.time[5] = frames["time"][5] + 0.01
    with pytest.raises(InputError, match="not evenly spaced, which dcd cannot hold; use --to xtc"):
        convert(file, "dcd", tmp_path)
    convert(file, "xtc", tmp_path)
    seen = universe(tmp_path / "topology.pdb", tmp_path / "npt.xtc").trajectory
    assert seen[5].time == pytest.approx(0.51)


def test_extended_xyz_without_ase_names_the_install_command(vacuum, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ase", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'omm-mlff\[ase\]'"):
        convert(vacuum.folder, "extxyz", tmp_path)
    convert(vacuum.folder, "dcd", tmp_path)


def damaged(folder: Path) -> Path:
    path = folder / "half.h5"
    path.write_bytes(b"\x89HDF\r\n\x1a\nno more")
    return path


def of_another(folder: Path) -> Path:
    with tables.open_file(str(folder / "other.h5"), "w") as handle:
        handle.create_array("/", "time", np.zeros(3))
    return folder / "other.h5"


def empty_run(folder: Path) -> Path:
    (folder / "run").mkdir()
    (folder / "run" / "spec.json").write_text("{}")
    return folder / "run"


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda folder: folder / "absent", "does not exist"),
        (lambda folder: folder, "is not a run: expected spec.json, runs/, or segments"),
        (lambda folder: Path(__file__), "not a run directory and not an .h5 file"),
        (damaged, "cannot be read"),
        (of_another, "has no coordinates and no topology"),
        (empty_run, "cannot be read"),
    ],
)
def test_what_is_not_a_run_is_refused_in_one_line(tmp_path, make, complaint):
    with pytest.raises(InputError, match=complaint):
        convert(make(tmp_path), "dcd", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_replicas_that_are_not_there_are_refused(vacuum, triclinic, tmp_path):
    with pytest.raises(InputError, match="has replicas 0 to 3; there is no replica 9"):
        convert(vacuum.folder, "dcd", tmp_path / "out", replicas=[9])
    with pytest.raises(InputError, match="one trajectory; leave out --replica"):
        convert(triclinic[0], "dcd", tmp_path / "out", replicas=[0])


def test_a_run_that_recorded_nothing_is_refused(vacuum, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("spec.json", "provenance.json", "status.json"):
        (bare / name).write_bytes((vacuum.folder / name).read_bytes())
    assert RunRecord.open(bare).replica(0).files == ()
    with pytest.raises(InputError, match="holds no frame; nothing was written"):
        convert(bare, "xtc", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_lithium_and_sodium_survive_the_way_out_and_back(tmp_path):
    """A name such as Na1 is easily taken for nitrogen."""
    salt = molecule(
        [3, 9, 11, 17],
        [[0.0, 0.0, 0.0], [0.156, 0.0, 0.0], [0.0, 1.0, 0.0], [0.236, 1.0, 0.0]],
        [[0, 1], [2, 3]],
    )
    run = tmp_path / "run"
    spec = RunSpec("springs", "springs", 0.005, 300.0, 1, seed=3)
    simulate(spec, SpringPotential(), salt, run)
    for form in ("dcd", "xtc", "extxyz"):
        convert(run, form, tmp_path / form)
        for path in sorted((tmp_path / form).rglob("*")):
            if path.suffix == ".pdb":
                elements = [a.element.atomic_number for a in mdtraj.load(str(path)).topology.atoms]
                assert elements == [3, 9, 11, 17]
                assert load_system(str(path)).species.tolist() == [3, 9, 11, 17]
            elif path.suffix == ".extxyz":
                assert ase_io.read(path, index=0).numbers.tolist() == [3, 9, 11, 17]
                assert load_system(f"{path}?frame=2").species.tolist() == [3, 9, 11, 17]
    (segment,) = (run / "replica_000").glob("*.h5")
    assert load_system(f"{segment}?frame=2").species.tolist() == [3, 9, 11, 17]
