"""The progress of transformers' Trainer as a part of the run's state, for ranks that fell behind and resumed runs."""

from typing import Any

import torch
import transformers
from transformers.trainer_callback import ExportableState

from psgc.torch.tensor_files import from_bytes

STATE = ("global_step", "epoch", "best_metric", "best_global_step", "best_model_checkpoint")
OWN = ("_total_loss_scalar", "_globalstep_last_logged", "_initial_global_step")
TIMES = ("_runtime", "_per_second")  # ends of names whose values differ between ranks


class LoopProgress:
    """The progress of a Trainer. Attach it to the run.

    trainer: the Trainer of this rank
    size: number of examples of a step
    """

    def __init__(self, trainer: transformers.Trainer, size: int) -> None:
        self._trainer, self._size = trainer, size

    @classmethod
    def size_in(cls, state: bytes | bytearray | None) -> int | None:
        """The size of the steps of the run of this state; None if it did not train yet."""
        known = {} if state is None else from_bytes(state, "the state")
        return known.get(cls.__name__.lower(), {}).get("size")

    def state_dict(self) -> dict[str, Any]:
        found = self.state_for_digest()
        found["state"]["log_history"] = [_plain(_without_times(logs)) for logs in self._trainer.state.log_history]
        return found

    def state_for_digest(self) -> dict[str, Any]:
        """Without the log, which grows and decides nothing."""
        trainer = self._trainer
        state = {name: getattr(trainer.state, name) for name in STATE}
        own = {name: getattr(trainer, name, 0) for name in OWN}
        loss = float(getattr(trainer, "_tr_loss", 0.0))
        callbacks = {type(one).__name__: dict(one.state()["attributes"]) for one in self._callbacks}
        return _plain({"size": self._size, "state": state, "own": own, "loss": loss, "callbacks": callbacks})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        trainer = self._trainer
        for name, value in state["state"].items():
            setattr(trainer.state, name, value)
        for name, value in state["own"].items():
            setattr(trainer, name, value)
        trainer._tr_loss = torch.tensor(state["loss"], device=trainer.args.device)
        for callback in self._callbacks:
            for name, value in state["callbacks"].get(type(callback).__name__, {}).items():
                setattr(callback, name, value)

    @property
    def _callbacks(self) -> list[Any]:
        return [one for one in self._trainer.callback_handler.callbacks if isinstance(one, ExportableState)]


def _without_times(logs: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in logs.items() if not name.endswith(TIMES)}


def _plain(value: Any) -> Any:
    """The value with NumPy's and torch's numbers as Python's."""
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return value.item() if hasattr(value, "item") else value
