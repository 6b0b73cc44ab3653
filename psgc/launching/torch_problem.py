"""`psgc train` for a torch problem: every rank runs the training that the YAML describes, as it would run a script."""

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from psgc.errors import UserError
from psgc.launching.execution import Execution
from psgc.training import launched


def train(path: str, overrides: Sequence[str], resuming: bool, debug: bool) -> NoReturn:
    """Train as this rank of mpirun, or all alone without mpirun, and end the process."""
    if resuming:
        os.environ[launched.RESUME] = "1"
    if debug:
        os.environ[launched.DEBUG] = "1"

    def work() -> None:
        try:
            from psgc.torch.from_yaml import train
        except ImportError as error:
            raise UserError(f"{path}: problem.torch: {error}") from error
        train(path, overrides)

    if launched.ranks() > 1:
        from psgc.launching import rank  # with MPI

        rank.run(work)
        sys.exit()
    alone = Execution()
    alone.run(work)
    alone.show()
    sys.exit(alone.code)
