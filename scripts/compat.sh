#!/usr/bin/env bash
# The smoke tests in the oldest and newest versions that pyproject.toml admits.
#
#     scripts/compat.sh [NAME...]     openmm: the oldest OpenMM, with the torch that is here (a minute)
#                                     oldest: the oldest OpenMM and torch, with the plugin (4 GB)
#                                     newest: the newest of both, without the plugin (4 GB)
#
# Each is a layer of packages over the environment that `make setup` has made, which has all the
# rest, in .compat/NAME; it is made once, and again where its versions change. The plugin is the one
# of constraints.txt: no older one is admitted.
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-.venv/bin/python}
FOLDER=${COMPAT_FOLDER:-.compat}
PLUGIN=$(sed -n 's/^\(acellera-openmmtorch-cpu==.*\)/\1/p' constraints.txt)
lowest() { sed -n "s/^    \"$1>=\([0-9.]*\)\".*/\1/p" pyproject.toml | head -n 1; }
OLD_OPENMM=$(lowest openmm).0
OLD_TORCH=$(lowest torch).0
[ "$OLD_OPENMM" != .0 ] && [ "$OLD_TORCH" != .0 ] && [ -n "$PLUGIN" ] || {
    echo "error: pyproject.toml or constraints.txt does not say which versions are admitted" >&2
    exit 2
}

# install FOLDER REQUIREMENT...: into a folder of its own; torch with the libraries that it names.
install() {
    local folder=$1
    shift
    "$PYTHON" -m pip install -qq --disable-pip-version-check --no-deps --target "$folder" "$@"
    local pins
    pins=$("$PYTHON" - "$folder" <<'PY'
import sys
from importlib import metadata

from packaging.requirements import Requirement

for found in metadata.distributions(path=[sys.argv[1]]):
    for row in map(Requirement, found.requires or ()) if found.name == "torch" else ():
        if "==" in str(row.specifier) and (row.marker is None or row.marker.evaluate({"extra": ""})):
            extras = f"[{','.join(sorted(row.extras))}]" if row.extras else ""
            print(f"{row.name}{extras}{row.specifier}")
PY
    )
    if [ -n "$pins" ]; then
        # What the pins of torch name in turn are its CUDA libraries as well.
        # shellcheck disable=SC2086
        "$PYTHON" -m pip install -qq --disable-pip-version-check --target "$folder" $pins
    fi
}

# layer NAME REQUIREMENT...: in .compat/NAME, unless these very versions are there already.
layer() {
    local name=$1 folder=$FOLDER/$1
    shift
    if [ "$(cat "$folder/.versions" 2>/dev/null)" != "$*" ]; then
        rm -rf "$folder"
        mkdir -p "$folder"
        install "$folder" "$@"
        case $name in newest) echo 'raise ImportError("left out")' >"$folder/openmmtorch.py" ;; esac
        echo "$*" >"$folder/.versions"
    fi
}

for name in "${@:-openmm oldest newest}"; do
    for one in $name; do
        case $one in
            openmm) layer openmm "openmm==$OLD_OPENMM" "$PLUGIN" ;;
            oldest) layer oldest "openmm==$OLD_OPENMM" "$PLUGIN" "torch==$OLD_TORCH" ;;
            newest) layer newest openmm torch ;;
            *) echo "error: wanted openmm, oldest or newest, got $one" >&2 && exit 2 ;;
        esac
        export PYTHONPATH="$(realpath "$FOLDER/$one"):$PWD"
        "$PYTHON" - "$one" <<'PY'
import sys

import torch
import openmm  # isort: skip

from omm_mlff.forces.plugin import resolve_backend

print(f"== {sys.argv[1]}: openmm {openmm.__version__}, torch {torch.__version__}, {resolve_backend()}")
PY
        "$PYTHON" -m pytest -q -p no:cacheprovider -m smoke tests/test_smoke.py
    done
done
