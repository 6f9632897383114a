"""Peak memory of running a potential on a system, in a process of its own.

The process prints what it holds once everything is imported, and the most that it ever held.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass

from omm_mlff.errors import ValidationFailure

_TIMEOUT_S = 1800
_SCRIPT = """
import json, resource, sys
import torch
from omm_mlff.bench.ways import Unrecorded
from omm_mlff.forces.platforms import choose_platform
from omm_mlff.potentials.registry import load_potential
from omm_mlff.systems import load_system
spec, name, platform, precision, n_replicas, n_steps = sys.argv[1:]
def peak():
    try:  # what getrusage tells is no less than what the process had that began this one
        with open("/proc/self/status") as file:
            return 1024 * next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
potential, system = load_potential(spec), load_system(name)
chosen = choose_platform(platform, system.n_atoms * int(n_replicas))
before = peak()
way = Unrecorded(
    potential, system, chosen, precision, name="memory", n_replicas=int(n_replicas),
    tapped=potential.capabilities(system).tap,
)
way.run(int(n_steps))
device = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
print(json.dumps({"before": before, "peak": peak(), "device": device}))
"""


@dataclass(frozen=True)
class PeakMemory:
    """Bytes.

    Attributes
    ----------
    host : the most that the process held
    imported : of it, what it held before there was a Context
    device : the most that torch held on the device; None where there is none
    """

    host: int
    imported: int
    device: int | None


def peak_memory(
    spec: str,
    system: str,
    *,
    platform: str = "auto",
    precision: str = "double",
    n_replicas: int = 1,
    n_steps: int = 5,
) -> PeakMemory:
    """Peak memory of a potential's steps.

    Parameters
    ----------
    spec, system : as a user writes them

    Raises
    ------
    ValidationFailure : the process failed or took too long, with the last line that it left
    """
    words = [spec, system, platform, precision, str(n_replicas), str(n_steps)]
    command = [sys.executable, "-W", "ignore", "-c", _SCRIPT, *words]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        raise ValidationFailure(
            f"{system} took more than {_TIMEOUT_S} s to show its memory"
        ) from None
    if done.returncode != 0:
        left = done.stderr.strip().splitlines() or [f"signal {-done.returncode}"]
        raise ValidationFailure(f"the process that shows {system}'s memory failed: {left[-1]}")
    found = json.loads(done.stdout.strip().splitlines()[-1])
    return PeakMemory(int(found["peak"]), int(found["before"]), found["device"])
