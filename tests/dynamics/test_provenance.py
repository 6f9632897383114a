"""What a record says it was made with is what it was made with."""

from __future__ import annotations

import importlib.metadata
import platform

import numpy as np
import openmm
import pytest
import torch
from springs import NativeSpringPotential, SpringPotential, triatomic

from omm_mlff.dynamics.initial_state import Rest
from omm_mlff.dynamics.provenance import package_versions, run_provenance
from omm_mlff.record.documents import read_document, write_document
from omm_mlff.record.provenance import RecordedGraph, RecordedIntegrator, RunProvenance
from omm_mlff.schema import RunSpec

SPEC = RunSpec("springs", "springs", 1.0, 300.0, 2, seed=0, precision="single")


def provenance(potential=None, platform_name="Reference"):
    system = triatomic()
    rest = Rest(system.positions + 0.001, "minimum")
    return run_provenance(
        SPEC,
        potential or SpringPotential(),
        system,
        platform_name,
        rest,
        3,
        integrator=RecordedIntegrator("VerletIntegrator", "on the step"),
        force="pythonforce",
        engine="",
        graph=RecordedGraph(False, "the host has none"),
        device=None,
        notices=("one thing is not as it was asked for",),
    )


def test_versions_are_those_of_what_is_imported():
    versions = dict(package_versions())
    assert versions["openmm"].startswith(openmm.version.short_version.split(".dev")[0])
    assert versions["numpy"] == np.__version__
    assert versions["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert versions["omm-mlff"] == importlib.metadata.version("omm-mlff")


def test_a_package_that_is_absent_has_no_version(monkeypatch):
    found = importlib.metadata.version

    def version(name):
        if name == "mdtraj":
            raise importlib.metadata.PackageNotFoundError(name)
        return found(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert "mdtraj" not in dict(package_versions())
    assert "openmm" in dict(package_versions())


def test_the_molecule_is_the_one_at_rest():
    said = provenance()
    system, molecule = triatomic(), said.molecule
    np.testing.assert_array_equal(molecule.species, system.species)
    np.testing.assert_array_equal(molecule.masses, system.masses)
    np.testing.assert_array_equal(molecule.bonds, system.bonds)
    np.testing.assert_array_equal(molecule.positions, system.positions + 0.001)
    assert molecule.periodic is False
    assert (said.start, said.n_dof) == ("minimum", 3)


@pytest.mark.parametrize(
    ("potential", "recording"), [(SpringPotential(), "tap"), (NativeSpringPotential(), "state")]
)
def test_how_it_was_recorded_is_said(potential, recording):
    assert provenance(potential).recording.startswith(recording)


def test_a_platform_without_a_choice_of_precision_is_double():
    assert provenance(platform_name="Reference").precision == "double"
    assert provenance(platform_name="CUDA").precision == "single"


def test_it_is_read_as_it_was_written_and_names_this_machines_python(tmp_path):
    said = provenance()
    write_document(tmp_path / "provenance.json", said)
    assert read_document(tmp_path / "provenance.json", RunProvenance) == said
    assert said.python == platform.python_version()
    assert said.machine == platform.machine()
    assert (said.potential.name, said.potential.source) == ("springs", "tests")


def test_two_potentials_of_one_name_are_told_apart_by_their_content():
    """What has no file is known by a hash of what it computes with."""
    one, same, other = (
        provenance(SpringPotential(force_scale=scale)).potential.sha256 for scale in (1.0, 1.0, 1.1)
    )
    assert one == same != other
