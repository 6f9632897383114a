#!/usr/bin/env bash
# On a node with a GPU, with or without network: runs everything that only a GPU can tell (doctor, the
# tests marked `cuda`, validation of the three students, the engine alone, the benchmark, drift in each
# precision), in under four minutes, and leaves one JSON and one table.
#
# usage: scripts/gpu_check.sh FOLDER [--tree SITE.tar.xz] [--only NAME,NAME] [--limit-s S]
#   --tree   packages that the node lacks, packed by scripts/cuda_wheelhouse.sh --tree
#   the rest goes to omm_mlff.bench.gpu_check
# Uses `python3`, or what PYTHON names.
set -euo pipefail

[ $# -ge 1 ] || { sed -n '6,9s/^# \{0,1\}//p' "$0" >&2; exit 2; }
folder=$1
shift
tree=
words=()
while [ $# -gt 0 ]; do
    case $1 in
    --tree) tree=${2:?--tree names a file}; shift 2 ;;
    *) words+=("$1"); shift ;;
    esac
done

checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3}
export PYTHONPATH=$checkout${PYTHONPATH:+:$PYTHONPATH}
if [ -n "$tree" ]; then
    site=${SITE:-/tmp/omm-mlff-site}
    if [ ! -d "$site" ]; then
        mkdir -p "$site"
        tar -xJf "$tree" -C "$site"
    fi
    export PYTHONPATH=$PYTHONPATH:$site
    # The plugin's libraries look for torch's beside themselves, where an unpacked tree has none.
    lib=$("$python" -c 'import importlib.util, pathlib
print(pathlib.Path(importlib.util.find_spec("torch").origin).parent / "lib")')
    export LD_LIBRARY_PATH=$lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
fi
exec "$python" -m omm_mlff.bench.gpu_check "$folder" ${words[@]+"${words[@]}"}
