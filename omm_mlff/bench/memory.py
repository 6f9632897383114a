"""Peak memory of running a potential on a system, in a process of its own.

The process prints what it holds once everything is imported, and the most that it ever held.
"""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import subprocess
import sys
from dataclasses import dataclass
from typing import cast

from omm_mlff.errors import ValidationFailure
from omm_mlff.schema import Precision

_TIMEOUT_S = 1800


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
    command = [sys.executable, "-W", "ignore", "-m", __spec__.name, *words]
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
    return PeakMemory(**json.loads(done.stdout.strip().splitlines()[-1]))


def own_peak_memory(
    spec: str, name: str, platform: str, precision: Precision, n_replicas: int, n_steps: int
) -> PeakMemory:
    """Peak memory of this process, when it has taken these steps."""
    import torch

    from omm_mlff.bench.ways import Unrecorded
    from omm_mlff.forces.platforms import choose_platform
    from omm_mlff.potentials.registry import load_potential
    from omm_mlff.systems import load_system

    potential, system = load_potential(spec), load_system(name)
    chosen = choose_platform(platform, system.n_atoms * n_replicas)
    imported = _peak_bytes()
    way = Unrecorded(
        potential,
        system,
        chosen,
        precision,
        name="memory",
        n_replicas=n_replicas,
        tapped=potential.capabilities(system).tap,
    )
    way.run(n_steps)
    device = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
    return PeakMemory(_peak_bytes(), imported, device)


def _peak_bytes() -> int:
    try:  # what getrusage tells is no less than what the process had that began this one
        with open("/proc/self/status") as file:
            return 1024 * next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    *_texts, _n_replicas, _n_steps = sys.argv[1:]
    _spec, _system, _platform, _precision = _texts
    _found = own_peak_memory(
        _spec, _system, _platform, cast(Precision, _precision), int(_n_replicas), int(_n_steps)
    )
    sys.stdout.write(json.dumps(dataclasses.asdict(_found)) + "\n")
