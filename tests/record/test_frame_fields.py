"""One list says what a frame holds: a field more is one row, whoever writes or reads frames."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tables

from omm_mlff.record.frame_fields import FIELDS, FRAME_FIELDS
from omm_mlff.record.rundir import FrameFile, ReplicaRecord, mdtraj_topology

ONE_MORE = """
import dataclasses, sys, warnings
from pathlib import Path
import numpy as np
from omm_mlff.record import frame_fields

row = frame_fields.FrameField("work", "work", "kilojoules_per_mole", False,
                              "getKineticEnergy", "energy")
frame_fields.FRAME_FIELDS += (row,)
frame_fields.FIELDS += ("work",)

import openmm
from openmm import app, unit
from omm_mlff import TrajectoryReporter, load_system
from omm_mlff.dynamics.frames import Frames
from omm_mlff.dynamics.recording import Recorder, topology_json
from omm_mlff.record.rundir import ReplicaRecord, SegmentWriter

water, folder = load_system("water"), Path(sys.argv[1])

@dataclasses.dataclass(frozen=True, eq=False)
class More(Frames):
    @property
    def work(self):
        return 2.0 * self.kinetic_energy

x = np.random.default_rng(0).normal(size=(5, 2, 3, 3))
energy = np.arange(10.0).reshape(5, 2)
writers = [SegmentWriter(folder / str(r), topology_json(water), 3, None, 0) for r in range(2)]
recorder = Recorder(writers, (2, 3, 3), 8)
recorder.add(More(np.arange(5.0), x, x, x, energy, energy + 1.0), np.ones(2, dtype=bool))
recorder.close_segment()
read = ReplicaRecord((folder / "1" / "00000.h5",), None)
assert read.frames([1, 3])["work"].tolist() == [8.0, 16.0], read.frames([1, 3])["work"]
assert [list(chunk) for chunk in read.chunks(9)] == [list(frame_fields.FIELDS)]

system = openmm.System()
for atom in water.topology.atoms():
    system.addParticle(atom.element.mass)
simulation = app.Simulation(water.topology, system, openmm.VerletIntegrator(0.001),
                            openmm.Platform.getPlatformByName("Reference"))
simulation.context.setPositions(water.positions)
simulation.context.setVelocitiesToTemperature(300 * unit.kelvin, 1)
with TrajectoryReporter(folder / "reported.h5", 1) as reporter:
    simulation.reporters.append(reporter)
    simulation.step(3)
read = ReplicaRecord((folder / "reported.h5",), None)
(chunk,) = read.chunks(9)
assert np.array_equal(chunk["work"], chunk["kinetic_energy"]) and (chunk["work"] > 0.0).all()
"""


def test_a_field_more_is_recorded_reported_and_read(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ONE_MORE, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_every_field_has_its_dataset_unit_and_shape(tmp_path: Path) -> None:
    topology = mdtraj_topology(["O"], ["O"], [("O", 0)], np.zeros((0, 2), dtype=np.int64))
    file = FrameFile(tmp_path / "one.h5", topology, 1)
    rng = np.random.default_rng(1)
    frames = {r.name: rng.normal(size=(4, 1, 3) if r.per_atom else 4) for r in FRAME_FIELDS}
    file.append(frames)
    file.close()
    with tables.open_file(str(tmp_path / "one.h5")) as handle:
        for row in FRAME_FIELDS:
            node = handle.get_node("/", row.dataset)
            assert node._v_attrs.units == row.unit
            np.testing.assert_array_equal(node[:], frames[row.name])
    read = ReplicaRecord((tmp_path / "one.h5",), None)
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(read, name), frames[name])


@pytest.mark.parametrize("what", ["name", "dataset"])
def test_no_two_fields_share_a_name(what: str) -> None:
    names = [getattr(row, what) for row in FRAME_FIELDS]
    assert len(set(names)) == len(names)
