"""Every conversion factor of the package, each with its source.

Inside the package: nm, ps, kJ/mol, dalton, K. Students and their training data keep the ML
convention (angstrom, eV). Constants are CODATA 2018 (the SI of 2019, in which e, k and N_A are
exact; the hartree is from the 2018 adjustment).
"""

from __future__ import annotations

import math

_AVOGADRO = 6.02214076e23  # 1/mol, exact since 2019
_BOLTZMANN_J = 1.380649e-23  # J/K, exact since 2019
_ELEMENTARY_CHARGE = 1.602176634e-19  # C, exact since 2019

BOLTZMANN = _BOLTZMANN_J * _AVOGADRO / 1000.0
"""Boltzmann's constant in kJ/mol/K."""

NM_PER_ANGSTROM = 0.1
ANGSTROM_PER_NM = 10.0
PS_PER_FS = 1.0e-3
PS_PER_NS = 1.0e3

NS_PER_DAY_PER_FS_PER_MS = 86400.0 * 1.0e3 * 1.0e-6
"""Simulated ns a day at one femtosecond of time simulated in one millisecond of wall time."""

KJMOL_PER_EV = _ELEMENTARY_CHARGE * _AVOGADRO / 1000.0
"""kJ/mol in one eV: 96.485 332 12."""

EV_PER_KJMOL = 1.0 / KJMOL_PER_EV
MEV_PER_KJMOL = 1000.0 / KJMOL_PER_EV

KJMOL_NM_PER_EV_ANGSTROM = KJMOL_PER_EV * ANGSTROM_PER_NM
"""kJ/mol/nm in one eV/angstrom."""

EV_ANGSTROM_PER_KJMOL_NM = 1.0 / KJMOL_NM_PER_EV_ANGSTROM

GRAM_PER_CM3_PER_DALTON_NM3 = 1.0e21 / _AVOGADRO
"""g/cm^3 in one dalton/nm^3 (molar mass constant 1 g/mol, true to 4e-10)."""

EV_PER_HARTREE = 27.211386245988  # CODATA 2018
KJMOL_PER_HARTREE = EV_PER_HARTREE * KJMOL_PER_EV
KJMOL_PER_KCALMOL = 4.184  # the thermochemical calorie, exact (ISO 31-4, 1992)
ANGSTROM_PER_BOHR = 0.529177210903  # CODATA 2018

COULOMB_EV_ANGSTROM = EV_PER_HARTREE * ANGSTROM_PER_BOHR
"""e^2 / (4 pi eps0) in eV angstrom: 14.399 645."""

KELVIN_PER_EV_PER_ATOM = 2.0 * KJMOL_PER_EV / (3.0 * BOLTZMANN)
"""Kinetic temperature, in K, of one eV per atom with three degrees of freedom each."""

_PLANCK = 6.62607015e-34  # J s, exact since 2019
_SPEED_OF_LIGHT = 299792458.0  # m/s, exact since 1983

INVERSE_CM_PER_RADIAN_PER_PS = 1.0e10 / (2.0 * math.pi * _SPEED_OF_LIGHT)
"""Wavenumber, in 1/cm, of a vibration of one radian per ps: 5.308 837."""

MEV_PER_INVERSE_CM = 1.0e5 * _PLANCK * _SPEED_OF_LIGHT / _ELEMENTARY_CHARGE
"""Energy, in meV, of one quantum of 1/cm: 0.123 984 198."""

BYTES_PER_MIB = 1024**2
