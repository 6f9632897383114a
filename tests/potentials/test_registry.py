"""How a model spec is read, and who is asked whether it may run its code."""

from __future__ import annotations

import copy
import dataclasses
import logging
import signal
from importlib.metadata import EntryPoint
from types import SimpleNamespace

import numpy as np
import pytest
from springs import CalledSpringPotential, SpringPotential, molecule, triatomic

from omm_mlff.errors import InputError, UnknownNameError
from omm_mlff.potentials import registry
from omm_mlff.potentials.bound_to_systems import bound
from omm_mlff.potentials.probe import Probe
from omm_mlff.potentials.spec import split_options


@pytest.mark.parametrize(
    ("spec", "name", "options"),
    [
        ("tiny", "tiny", {}),
        ("a:b?n=2", "a:b", {"n": 2}),
        ("a?x=0.5&on=True&off=None", "a", {"x": 0.5, "on": True, "off": None}),
        ("a?method=GFN2-xTB&list=[1,2]", "a", {"method": "GFN2-xTB", "list": [1, 2]}),
        ("a?digits='2'&empty=", "a", {"digits": "2", "empty": ""}),
        ("a?charge=+1&name=b%26c+d", "a", {"charge": 1, "name": "b&c+d"}),
        ("dir/model.pt?k=1e3", "dir/model.pt", {"k": 1000.0}),
    ],
)
def test_options_are_literals_where_they_read_as_one(spec, name, options) -> None:
    assert split_options(spec) == (name, options)


@pytest.mark.parametrize("spec", ["a?", "a?b", "a?b=1&&c=2", "a?b=1&c"])
def test_an_option_without_a_value_is_refused(spec) -> None:
    with pytest.raises(InputError, match=r"wanted options as \?name=value"):
        split_options(spec)


def test_an_option_given_twice_is_refused() -> None:
    with pytest.raises(InputError, match="'k' is given twice"):
        split_options("a?k=1&k=2")


@pytest.fixture
def loud(monkeypatch) -> SimpleNamespace:
    """A source whose models run code, in place of all others."""
    loaded = []

    def load(spec):
        loaded.append(spec)
        return SpringPotential()

    source = SimpleNamespace(
        FORMS=("loud:NAME",),
        names=list,
        matches=lambda spec: spec.startswith("loud:"),
        load=load,
        executes=lambda spec: f"{spec} runs code" if spec.endswith("code") else None,
        takes=lambda thing: thing == 42,
        wrap=lambda thing: SpringPotential(),
        loaded=loaded,
    )
    monkeypatch.setattr(registry, "sources", lambda: (source,))
    return source


def test_code_is_announced_before_it_is_loaded(loud, caplog) -> None:
    def announced_first(spec):
        assert caplog.messages == [f"notice: {spec} runs code"]
        return SpringPotential()

    loud.load = announced_first
    with caplog.at_level(logging.WARNING):
        registry.load_potential("loud:code")
    assert len(caplog.messages) == 1


def test_a_model_without_code_is_loaded_in_silence(loud, caplog) -> None:
    registry.load_potential("loud:weights")
    assert caplog.messages == []
    assert loud.loaded == ["loud:weights"]


def test_an_unknown_model_is_told_every_form(loud) -> None:
    with pytest.raises(UnknownNameError, match="loud:NAME"):
        registry.load_potential("quiet")


def test_a_class_is_refused_where_an_object_was_meant() -> None:
    with pytest.raises(InputError, match=r"SpringPotential is a class; wanted an object of it"):
        registry.as_potential(SpringPotential)


def test_a_path_is_the_spec_that_it_spells(tmp_path) -> None:
    with pytest.raises(InputError, match=r"there is no file .*absent\.pt"):
        registry.as_potential(tmp_path / "absent.pt")


def test_an_object_is_taken_as_it_is_or_wrapped_or_refused(loud) -> None:
    springs = SpringPotential()
    assert registry.as_potential(springs) is springs
    assert isinstance(registry.as_potential(42), SpringPotential)
    with pytest.raises(InputError, match=r"a builtins.int is no potential; wanted a model spec"):
        registry.as_potential(43)


def by_index(system) -> SpringPotential:
    import dataclasses

    springs = SpringPotential()
    springs.card = dataclasses.replace(springs.card, knows_atoms_by="index")
    return springs


def test_a_potential_that_knows_atoms_by_index_serves_what_it_is_bound_to_alone() -> None:
    water = triatomic()
    swapped = molecule([1, 8, 1], water.positions, [[0, 1], [0, 2]])
    held = bound(by_index(water), [water])
    assert held.unsupported(water) is None
    assert "place" in str(held.unsupported(swapped))
    assert held.spec == "springs"
    assert held.capabilities(water).max_replicas == 64
    assert "place" in str(copy.copy(held).unsupported(swapped))


def test_a_potential_that_knows_elements_is_not_bound() -> None:
    springs = SpringPotential()
    assert bound(springs, [triatomic()]) is springs


class Moody(SpringPotential):
    """Raises what it is told to, while it is built or while it is evaluated."""

    def __init__(self, error=None, **options):
        super().__init__(**options)
        self.error = error
        self.n_built = 0

    def add_to(self, openmm_system, system, *, n_replicas=1, tap=None):
        self.n_built += 1
        if self.error:
            raise self.error
        return super().add_to(openmm_system, system, n_replicas=n_replicas, tap=tap)


def test_a_probe_tells_what_went_wrong_in_one_line_and_tries_once() -> None:
    moody = Moody(ValueError("no parameters for Xx\nand more"))
    probe = Probe(moody)
    assert probe.failure(triatomic()) == "ValueError: no parameters for Xx"
    assert probe.failure(triatomic()) == "ValueError: no parameters for Xx"
    assert moody.n_built == 1


def test_a_probe_passes_what_can_be_evaluated() -> None:
    assert Probe(Moody()).failure(triatomic()) is None


def test_a_probe_finds_an_energy_that_is_not_a_number() -> None:
    assert "not finite" in str(Probe(Moody(breaks_at=1e-3)).failure(triatomic()))


def test_a_probe_tries_the_same_molecule_in_a_box_anew() -> None:
    moody = Moody()
    probe = Probe(moody)
    water = triatomic()
    probe.failure(water)
    probe.failure(molecule(water.species, water.positions, water.bonds, 2.0 * np.eye(3)))
    assert moody.n_built == 2


def test_a_probe_tries_the_same_molecule_with_another_charge_anew() -> None:
    moody = Moody()
    probe = Probe(moody)
    probe.failure(triatomic())
    probe.failure(dataclasses.replace(triatomic(), charge=1))
    assert moody.n_built == 2


def test_ctrl_c_while_a_potential_is_probed_is_ctrl_c() -> None:
    def interrupt(frame):
        signal.raise_signal(signal.SIGINT)

    probe = Probe(CalledSpringPotential(tapped=False, objects=interrupt))
    with pytest.raises(KeyboardInterrupt):
        probe.failure(triatomic())


def test_a_package_that_cannot_be_imported_takes_no_other_model_along(monkeypatch, caplog) -> None:
    broken = EntryPoint("broken", "no_such_package.models", registry.ENTRY_POINTS)
    monkeypatch.setattr(registry, "entry_points", lambda group: [broken])
    registry.sources.cache_clear()
    try:
        assert "tiny" in registry.model_names()
        with pytest.raises(UnknownNameError):
            registry.load_potential("theirs:model")
    finally:
        registry.sources.cache_clear()
    assert "no models of the entry point no_such_package.models" in caplog.text
    assert "No module named 'no_such_package'" in caplog.text


def test_a_name_too_long_for_a_folder_is_unknown() -> None:
    with pytest.raises(UnknownNameError):
        registry.load_potential("a" * 5000)
