"""Undoes a step whose gradient was wrong: the run goes back to a checkpoint from before (`verify: {idle: true}`)."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

from psgc.disk import write_text
from psgc.run import launched


class Undo:
    """Ends the run, which `psgc launch` then starts again from an older checkpoint.

    directory: the run directory
    give_up_after: removes the checkpoints of later steps, and says which one is the newest (`CheckpointStore`)
    """

    def __init__(self, directory: Path, give_up_after: Callable[[int], int | None]) -> None:
        self._directory, self._give_up_after = directory, give_up_after
        self._is_ending = False

    def step(self, step: int) -> str:
        """Undo this step and all later ones. Returns what to say of that; empty when it cannot be undone.

        It cannot without `psgc launch`, and without a checkpoint from before.
        """
        if not launched.is_launched() or (newest := self._give_up_after(step)) is None:
            return ""
        if not self._is_ending:
            self._is_ending = True
            write_text(self._directory / launched.UNDO, "")
            os.kill(os.getpid(), signal.SIGUSR1)  # as a scheduler's warning: the run ends in order
        return f"; so the run goes back to the checkpoint of step {newest}"
