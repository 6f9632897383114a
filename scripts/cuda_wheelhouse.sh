#!/usr/bin/env bash
# Fills a folder with the wheels that an offline GPU node needs to run this checkout: OpenMM with
# its CUDA platform, openmm-torch, and what they and this package require, at the versions of
# constraints.txt. What the node has already is left out. Nothing is installed here.
#
# usage: scripts/cuda_wheelhouse.sh PYTHON_VERSION [FOLDER] [cu12|cu13] [ALREADY_THERE] [--tree FILE]
#   PYTHON_VERSION  of the node: 3.11, 3.12 or 3.13
#   FOLDER          default: wheelhouse
#   ALREADY_THERE   default: torch,numpy (CUDA's libraries, which come with torch, never count)
#   --tree FILE     also unpack the wheels, leave out what is not imported (tests, headers, sources,
#                   examples), and pack the tree as FILE (.tar.xz): for a node without pip
# On the node, in this checkout:
#   pip install --no-index --no-deps FOLDER/*.whl && export PYTHONPATH=$PWD
#   (or: mkdir site && tar -xJf FILE -C site && export PYTHONPATH=$PWD:$PWD/site)
#   python -c 'import sys; from omm_mlff.cli.main import main; sys.exit(main(["doctor"]))'
set -euo pipefail

usage() {
    sed -n '6,11s/^# \{0,1\}//p' "$0" >&2
    exit 2
}
tree=
words=()
while [ $# -gt 0 ]; do
    case $1 in
    --tree) [ $# -ge 2 ] || usage; tree=$(realpath -m "$2"); shift 2 ;;
    -*) usage ;;
    *) words+=("$1"); shift ;;
    esac
done
set -- ${words[@]+"${words[@]}"}
case ${1:-} in 3.11 | 3.12 | 3.13) ;; *) usage ;; esac
case ${3:-cu13} in cu12 | cu13) ;; *) usage ;; esac

checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
mkdir -p "${2:-wheelhouse}"
folder=$(cd "${2:-wheelhouse}" && pwd)
python=python3
[ -x "$checkout/.venv/bin/python" ] && python=$checkout/.venv/bin/python
cd "$checkout"
exec "$python" - "$1" "$folder" "${3:-cu13}" "${4:-torch,numpy}" "$tree" <<'PYTHON'
import email
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from pathlib import Path

from pip._vendor.packaging.requirements import Requirement
from pip._vendor.packaging.specifiers import SpecifierSet
from pip._vendor.packaging.utils import canonicalize_name, parse_wheel_filename

python_version, folder, cuda, there, tree = sys.argv[1], Path(sys.argv[2]), *sys.argv[3:]
already_there = {canonicalize_name(name) for name in there.split(",") if name}
target = {
    "python_version": python_version,
    "python_full_version": f"{python_version}.0",
    "implementation_name": "cpython",
    "platform_python_implementation": "CPython",
    "platform_machine": "x86_64",
    "platform_system": "Linux",
    "sys_platform": "linux",
    "os_name": "posix",
    "extra": "",
}
tags = ["--python-version", python_version, "--implementation", "cp", "--only-binary=:all:"]
for minor in range(34, 4, -1):
    tags += ["--platform", f"manylinux_2_{minor}_x86_64"]
tags += ["--platform", "manylinux2014_x86_64"]


def applies(row: Requirement) -> bool:
    return row.marker is None or row.marker.evaluate(target)


def left_out(name: str) -> bool:
    # OpenMM's CUDA plugin links cufft and nvrtc, which torch brings; its wheel also names nvcc and
    # cupti, which it neither links nor calls.
    return name in already_there or name.startswith(("nvidia-", "cuda-")) or name == "triton"


def pip(*words: str) -> None:
    command = [sys.executable, "-m", "pip", "-qq", "--disable-pip-version-check", *words]
    if subprocess.run(command, check=False).returncode:
        sys.exit(f"error: pip {words[0]} failed for {words[-1]}")


def wheels() -> dict[str, Path]:
    return {parse_wheel_filename(path.name)[0]: path for path in sorted(folder.glob("*.whl"))}


def requirements_of(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(archive.read(name)).get_all("Requires-Dist") or []


pinned = {}
for line in Path("constraints.txt").read_text().splitlines():
    if line.strip() and not line.startswith("#"):
        row = Requirement(line)
        if applies(row):
            pinned[canonicalize_name(row.name)] = str(row.specifier)
own = tomllib.loads(Path("pyproject.toml").read_text())["project"]["dependencies"]
roots = [*own, f"acellera-openmmtorch-{cuda}", f"openmm-cuda-{cuda.removeprefix('cu')}"]

waiting = [(row, "omm-mlff") for row in map(Requirement, roots) if applies(row)]
seen: set[str] = set()
expected: dict[str, list[SpecifierSet]] = {}
while waiting:
    row, owner = waiting.pop(0)
    name = canonicalize_name(row.name)
    if left_out(name):
        expected.setdefault(name, []).append(row.specifier)
    if name in seen or left_out(name):
        continue
    seen.add(name)
    if name not in pinned:
        print(f"warning: constraints.txt does not name {name}, which {owner} requires")
    pip("download", "--no-deps", *tags, "-d", str(folder), f"{row.name}{pinned.get(name, '')}")
    wheel = wheels()[name]
    print(f"{wheel.stat().st_size / 1e6:7.2f} MB  {wheel.name}", flush=True)
    for child in map(Requirement, requirements_of(wheel)):
        # `httpx[http2]` also asks for what that extra requires
        environments = [{**target, "extra": extra} for extra in ("", *row.extras)]
        if child.marker is None or any(map(child.marker.evaluate, environments)):
            child.marker = None
            waiting.append((child, name))

# Proof that nothing is missing: pip resolves it all from this folder alone, with empty stand-ins
# for what the node has.
with tempfile.TemporaryDirectory() as scratch:
    for name, wanted in expected.items():
        mentioned = [part.version for specifiers in wanted for part in specifiers]
        candidates = [pinned.get(name, "==1").removeprefix("=="), *mentioned]
        fitting = [v for v in candidates if all(s.contains(v) for s in wanted)]
        if not fitting:
            sys.exit(f"error: no version of {name} fits all of {[str(s) for s in wanted]}")
        version = fitting[0]
        stem = f"{name.replace('-', '_')}-{version}"
        with zipfile.ZipFile(f"{scratch}/{stem}-py3-none-any.whl", "w") as archive:
            info = f"{stem}.dist-info"
            archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
            archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            archive.writestr(f"{info}/RECORD", "")
    pip(
        *("download", "--no-index", *tags, "-d", f"{scratch}/resolved"),
        *("--find-links", str(folder), "--find-links", scratch),
        *roots,
    )
for name in sorted(set(wheels()) - seen):
    print(f"warning: {wheels()[name].name} was in the folder before, and is not needed")
for name, wanted in sorted(expected.items()):
    print(f"   there already  {name} {','.join(sorted({str(s) for s in wanted} - {''}))}")
total = sum(path.stat().st_size for path in folder.glob("*.whl"))
print(f"{len(wheels())} wheels, {total / 1e6:.1f} MB in {folder}: complete")

# Folders that nothing imports. Not `tables/tests`: PyTables imports it.
NOT_IMPORTED = {"tests", "test", "testData", "test_data", "examples", "benchmarks", "include", "Contrib"}
KEPT = ("tables/tests/",)
SOURCES = (".h", ".hpp", ".c", ".cc", ".cpp", ".pyx", ".pxd", ".pyi", ".a", ".lib")
UNUSED = ("rdkit-stubs/", "rdkit/sping/", "rdkit/Chem/Draw/", "openmm/app/data/charmm36_2024")


def imported(name: str) -> bool:
    """Whether a file of a wheel is needed where nothing is compiled or tested."""
    if name.startswith(KEPT):
        return name.endswith(".py")
    folders = set(name.split("/")[:-1])
    return not (folders & NOT_IMPORTED or name.endswith(SOURCES) or name.startswith(UNUSED))


if tree:
    with tempfile.TemporaryDirectory() as scratch:
        site = Path(scratch) / "site"
        for wheel in wheels().values():
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(site, [n for n in archive.namelist() if imported(n)])
        for data in site.glob("*.data"):  # what pip would put beside the packages
            for part in ("purelib", "platlib"):
                if (data / part).is_dir():
                    shutil.copytree(data / part, site, dirs_exist_ok=True)
            shutil.rmtree(data)
        with tarfile.open(tree, "w:xz", preset=9) as archive:
            archive.add(site, ".")
    print(f"{Path(tree).stat().st_size / 1e6:.1f} MB in {tree}: the wheels unpacked")
PYTHON
