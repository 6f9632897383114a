#!/usr/bin/env bash
# The start-up check of this checkout's environment, else of the omm-mlff on the PATH.
# Usage: scripts/startup_check.sh [--json]
set -euo pipefail
checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [ -x "$checkout/.venv/bin/omm-mlff" ]; then
    exec "$checkout/.venv/bin/omm-mlff" doctor "$@"
elif command -v omm-mlff >/dev/null; then
    exec omm-mlff doctor "$@"
fi
echo "error: omm-mlff is not installed; run: make -C '$checkout' setup" >&2
exit 2
