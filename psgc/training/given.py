"""What a program gives to psgc.train, where `psgc train` has a YAML."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from psgc.backend import Array
from psgc.config import Config
from psgc.data import Dataset
from psgc.problems import Problem

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
