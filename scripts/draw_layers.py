"""Draw how the layers of omm_mlff lie, from its imports, into CONTRIBUTING.md.

    python scripts/draw_layers.py            write the picture anew
    python scripts/draw_layers.py --check    end in 1 where it is not what the code is

A box is a folder or file of omm_mlff, a row of boxes a rank of tests/test_layers.py, an arrow an
import. An arrow that follows from others is left out: where cli imports bench and bench imports
units, that cli imports units as well is not drawn.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
GUIDE = ROOT / "CONTRIBUTING.md"
BEGIN, END = "<!-- layers: drawn by scripts/draw_layers.py -->", "<!-- layers end -->"

Graph = dict[str, set[str]]


def main(words: Sequence[str]) -> int:
    """The exit code: with --check 1 where the picture is out of date."""
    text = GUIDE.read_text(encoding="utf-8")
    drawn = with_picture(text, picture(_rules()))
    if "--check" in words:
        return int(drawn != text)
    GUIDE.write_text(drawn, encoding="utf-8")
    return 0


def with_picture(text: str, drawn: str) -> str:
    """The guide with this picture between its two marks."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n```mermaid\n{drawn}```\n{END}{rest.partition(END)[2]}"


def picture(rules: ModuleType) -> str:
    """The picture in Mermaid's words.

    Parameters
    ----------
    rules : tests/test_layers.py, which says where each unit of the package lies and reads imports
    """
    lines = ["flowchart TB"]
    rows = [*reversed(rules.LAYERS), rules.ASIDE]
    for number, row in enumerate(rows):
        title = "aside: judges and reports" if row == rules.ASIDE else " "
        lines.append(f'    subgraph rank{number}["{title}"]')
        lines += [f"        {unit}" for unit in row]
        lines.append("    end")
    for importer, imported in sorted(reduced(imports_between_units(rules)).items()):
        lines += [f"    {importer} --> {unit}" for unit in sorted(imported)]
    return "\n".join(lines) + "\n"


def imports_between_units(rules: ModuleType) -> Graph:
    """Which folder or file of the package imports which other; for types alone included."""
    files = rules.source_files(rules.PACKAGE)
    submodules = {rules.module_name(path, rules.PACKAGE) for path in files}
    found: Graph = {}
    for path in files:
        for row in rules.imports_of(path, rules.PACKAGE, submodules):
            if row.ours and row.importing_unit and row.imported_unit:
                found.setdefault(row.importing_unit, set()).add(row.imported_unit)
    return {unit: others - {unit} for unit, others in found.items()}


def reduced(graph: Graph) -> Graph:
    """The graph without arrows that follow from others; it must have no circle."""

    def reached(unit: str) -> set[str]:
        others = graph.get(unit, set())
        return others.union(*(reached(other) for other in others))

    return {
        unit: others - set().union(*(reached(other) for other in others))
        for unit, others in graph.items()
    }


def drawn_in(text: str) -> tuple[list[list[str]], set[tuple[str, str]]]:
    """The rows and arrows of a picture in a guide."""
    block = text.partition(BEGIN)[2].partition(END)[0]
    rows = [re.findall(r"\w+", row) for row in re.findall(r"subgraph .*\n([^-]*?) {4}end", block)]
    return rows, set(re.findall(r"(\w+) --> (\w+)", block))


def _rules() -> ModuleType:
    spec = importlib.util.spec_from_file_location("layers", ROOT / "tests" / "test_layers.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
