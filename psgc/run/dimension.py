"""The number of parameters of a run before it starts, found in a process of its own.

A user's model may print, crash, hang or start MPI when it is built; there it does no harm.
`python -m psgc.run.dimension run.yaml SETTING ...` is that process.
"""

import subprocess
import sys
import tempfile
from collections.abc import Sequence

from psgc.config import load
from psgc.processes import die_with_parent

MARK = b"psgc-dimension "  # the answer, among what a model prints
LIMIT = 20.0  # seconds


def dimension(config_path: str, overrides: Sequence[str], seconds: float = LIMIT) -> int | None:
    """The number of parameters; None: the problem cannot be built, or not in so many seconds."""
    command = [sys.executable, "-P", "-m", "psgc.run.dimension", config_path, *overrides]
    with tempfile.TemporaryFile() as out:  # nobody has to read it, unlike a pipe, which children of the model may hold
        try:
            code = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.DEVNULL,
                timeout=seconds,
                preexec_fn=die_with_parent,
            ).returncode
        except (OSError, subprocess.TimeoutExpired):
            return None
        out.seek(0)
        answers = [line.removeprefix(MARK) for line in out.read().splitlines() if line.startswith(MARK)]
    return int(answers[-1]) if answers and code == 0 else None


def _main(config_path: str, *overrides: str) -> None:
    from psgc.run.inputs import open_problem  # with SciPy, which who asks does not need

    dim = int(open_problem(load(config_path, overrides), config_path)[1].dim)
    sys.stdout.write(f"\n{MARK.decode()}{dim}\n")


if __name__ == "__main__":
    _main(*sys.argv[1:])
