"""What a program gives to psgc.train, where `psgc train` has a YAML, and how its callbacks are called."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from psgc.backend import Array
from psgc.config import Config
from psgc.data import Dataset
from psgc.errors import RunFailed, one_line, raised_at
from psgc.problems import Problem
from psgc.run_rows import COLUMNS, IterationRow

LATER = ("bound", "efficiency", "actual_error", "redundant")  # columns that are known once the next iteration goes on
KNOWN = tuple(name for name in COLUMNS if name not in LATER)

Callback = Callable[[dict[str, Any], Array], Any]  # (row, params) -> whether the run is to end


@dataclass(frozen=True)
class Given:
    """config: the settings; problem: of this rank; dataset: its data in memory, None where the settings name the data.

    callbacks: called on rank 0 after each step, with the row and the parameters.
    """

    config: Config
    problem: Problem
    dataset: Dataset | None = None
    callbacks: Sequence[Callback] = ()


class Callbacks:
    """Calls the functions of the program (`Given`)."""

    def __init__(self, functions: Sequence[Callback] = ()) -> None:
        self._functions = functions

    def stepped(self, row: IterationRow, params: Array) -> str:
        """An iteration is over, with these parameters after its step. Why it is enough, empty when the run goes on.

        Raises RunFailed when a function does not return.
        """
        if not self._functions:
            return ""
        told = {name: getattr(row, name) for name in KNOWN}
        shown = params.view()
        if hasattr(shown, "setflags"):  # CuPy has no read-only arrays
            shown.setflags(write=False)
        enough = ""
        for function in self._functions:
            name = getattr(function, "__name__", type(function).__name__)
            try:
                answer = function(dict(told), shown)
                if isinstance(answer, bool | np.bool_) and answer:
                    enough = enough or f"callback {name} said so"
            except Exception as error:  # of the user's code
                raise RunFailed(f"callback {name} raised {one_line(error)}{raised_at(error)}") from error
        return enough
