"""psgc: exact synchronous gradient descent over MPI that never waits for its slowest machine.

    import psgc

    run = psgc.launch("run.yaml", workers=8, set={"optimizer.lr": 0.1})  # as `psgc launch` does
    run.summary["status"], run.history["loss"][-1]
    run = psgc.load("runs/quickstart")  # what a run has left, also before its end
    run.report()  # writes the page of `psgc report`, and returns its path
    psgc.compare(["runs/a", "runs/b"])  # what differs between runs, and how they went
    psgc.replay("runs/quickstart")["yaml"]  # better settings for it
    psgc.simulate("sim.yaml")  # the rows of `psgc simulate`
    psgc.order(assignment)["ordering"]  # the order in which workers do their chunks

A program that is started with `psgc launch program.py -n 4` trains with what is in its memory, on every rank:

    run = psgc.train(Ridge(20), (X, y), lr=0.1, iterations=200, callbacks=[stop])  # None on workers

With `log=["tensorboard"]` rank 0 writes for TensorBoard, MLflow or W&B as well.

Scripts with PyTorch use `psgc.torch`, and the mathematics is `psgc.coding`. All else is done by the command `psgc`.
"""

from typing import TYPE_CHECKING, Any

from psgc.errors import PsgcError, RunFailed, UserError

if TYPE_CHECKING:
    from psgc.library import Run, compare, launch, load, order, replay, simulate, train

__version__ = "0.1.0"
__all__ = [
    "PsgcError", "Run", "RunFailed", "UserError", "compare", "launch", "load", "order", "replay", "simulate", "train",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """What needs NumPy is imported once it is used: every command and every rank imports psgc."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module("psgc.library"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
