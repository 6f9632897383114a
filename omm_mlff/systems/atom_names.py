"""Elements from the names of atoms, for files that have no column for elements."""

from __future__ import annotations

import re

# Two letters that are an element, and as well the beginning of the name of an atom whose element
# is the first letter: CO is cobalt or a carbonyl's carbon. Others (CD, HG, OS, PA, ...) are taken
# for the first letter, unless the residue bears the same name, as ions do.
# fmt: off
_QUESTIONS = frozenset((
    "BI", "BR", "CA", "CL", "CO", "CR", "CU", "FE", "IR", "NA", "NI", "PB", "PD", "PT",
    "SB", "SE", "SI", "SN",
))
_WATER = frozenset(("HOH", "WAT", "SOL", "H2O", "TIP", "TP3", "TIP3", "TIP3P", "SPC", "DOD"))
# fmt: on
_SURE_BY_COLUMN = frozenset(("BR", "CL", "SE", "SI"))

_SYMBOLS = frozenset(
    (
        *("H", "HE", "LI", "BE", "B", "C", "N", "O", "F", "NE", "NA", "MG", "AL", "SI", "P", "S"),
        *("CL", "AR", "K", "CA", "SC", "TI", "V", "CR", "MN", "FE", "CO", "NI", "CU", "ZN", "GA"),
        *("GE", "AS", "SE", "BR", "KR", "RB", "SR", "Y", "ZR", "NB", "MO", "TC", "RU", "RH"),
        *("PD", "AG", "CD", "IN", "SN", "SB", "TE", "I", "XE", "CS", "BA", "LA", "CE", "PR"),
        *("ND", "SM", "EU", "GD", "TB", "DY", "HO", "ER", "TM", "YB", "LU", "HF", "TA", "W"),
        *("RE", "OS", "IR", "PT", "AU", "HG", "TL", "PB", "BI"),
    )
)


def element_symbol(
    name: str, residue: str, standard: bool, column_13: bool | None = None
) -> tuple[str | None, str]:
    """The symbol that an atom's name begins with, or the question that the name leaves open.

    Parameters
    ----------
    name : of the atom
    residue : the name of its residue
    standard : whether the residue is an amino acid or a nucleotide, whose atoms have set names
    column_13 : in a PDB file, whether the name begins in column 13, where two-letter symbols do;
        None where the format says nothing by columns

    Returns
    -------
    the symbol and "", or None and what it could be, such as "BR1 could be Br or B"
    """
    letters = re.match(r"[A-Za-z]*", name.lstrip("0123456789")).group()  # type: ignore[union-attr]
    pair, first = letters[:2].upper(), letters[:1].upper()
    if not letters:
        return None, f"{name!r} begins with no symbol"
    ion = letters.upper() == re.sub(r"[^A-Za-z]", "", residue).upper()
    if ion and letters.upper() in _SYMBOLS:
        return letters.capitalize(), ""
    if standard or residue.upper() in _WATER:
        return (first.capitalize(), "") if first in _SYMBOLS else (None, f"{name!r} is no element")
    if len(pair) == 2 and pair in _SYMBOLS:
        if first not in _SYMBOLS or letters[:2] == pair.capitalize():
            return pair.capitalize(), ""
        if pair in _QUESTIONS and column_13 is not False:
            if column_13 and pair in _SURE_BY_COLUMN:
                return pair.capitalize(), ""
            return None, f"{name} could be {pair.capitalize()} or {first}"
    if first in _SYMBOLS:
        return first, ""
    return None, f"{name!r} begins with no symbol"
