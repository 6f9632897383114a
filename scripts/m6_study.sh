#!/usr/bin/env bash
# Repeats the M6 study: validates the three students, then compares them into analysis/m6.
# Usage: scripts/m6_study.sh [FOLDER]
#   FOLDER  for the runs, default runs/m6; some GB. Called again, it goes on with what is there.
# PROFILE=quick scripts/m6_study.sh takes a minute or two for each; OUT= names another study.
set -euo pipefail
checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
command=omm-mlff
[ -x "$checkout/.venv/bin/omm-mlff" ] && command=$checkout/.venv/bin/omm-mlff
command -v "$command" >/dev/null || {
    echo "error: omm-mlff is not installed; run: make -C '$checkout' setup" >&2
    exit 2
}
cd "$checkout"
runs=${1:-runs/m6}
folders=()
for model in original tiny ultra-tiny; do
    folders+=("$runs/$model")
    code=0
    "$command" validate --model "$model" --profile "${PROFILE:-standard}" --policy m6 \
        --out "$runs/$model" --resume || code=$?
    case $code in 0 | 1 | 3) ;; *) exit "$code" ;; esac # a verdict was reached, whichever it is
done
exec "$command" compare "${folders[@]}" --out "${OUT:-analysis/m6}" \
    --forecast analysis/m6/forecast.toml
