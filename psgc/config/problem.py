"""What is optimised: the sections problem, data and optimizer of a run's YAML."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, ConfigDict, Field, ValidationInfo, model_validator

from psgc.validation import (
    LARGEST,
    Count,
    Flag,
    Fraction,
    Natural,
    NotNegative,
    PathText,
    Positive,
    Section,
    UsedBy,
    expect,
    key,
    refuse,
)
from psgc.yaml_source import shown

_DOTTED = r"[^\W\d]\w*(\.[^\W\d]\w*)*"
_Function = Annotated[str, Field(pattern=rf"^{_DOTTED}:{_DOTTED}$"), expect("'module:function'")]
_Options = Annotated[dict[str, Any], expect("a mapping of keyword arguments")]
_CLIP = "largest Euclidean norm of a gradient, longer ones are scaled"
_ClipNorm = Annotated[Positive | None, Field(description=_CLIP)]
_PROBLEMS = "least_squares, logistic, softmax, mlp, python: 'module:object' or torch: 'module:function'"


class BuiltinProblem(Section):
    """A model that comes with psgc."""

    kind: Annotated[Literal["least_squares", "logistic", "softmax", "mlp"], expect(_PROBLEMS)] = Field(
        description=_PROBLEMS
    )
    l2: NotNegative = key(0.0, "l2 / 2 times the squared length of the parameters is added to the loss")
    hidden: Annotated[Count, UsedBy(["mlp"])] = key(64, "units of the hidden layer")


class PythonProblem(Section):
    """A user's model."""

    kind: Annotated[Literal["python"], expect("kind python, or no kind, with the key python")] = key(
        "python", "may be left out"
    )
    python: Annotated[str, Field(pattern=rf"^{_DOTTED}:{_DOTTED}$"), expect("'module:object'")] = Field(
        description="'module:object'"
    )
    options: _Options = key({}, "keyword arguments of the object")


class ScriptProblem(Section):
    """The problem of a script, in the record of its run. A YAML to train from cannot have it."""

    kind: Literal["script"] = "script"
    script: str = Field(description="the file name of the script")
    of: str = Field("", description="what psgc.train was given: the class of an object, or a built-in problem")


class TorchProblem(ScriptProblem):
    """A user's function that returns model, dataset and loss."""

    unused: ClassVar[Mapping[str, str]] = dict.fromkeys(("kind", "script", "of"), "a torch problem has no such key")

    torch: _Function = Field(description="'module:function', which returns model, dataset and loss")
    options: _Options = key({}, "keyword arguments of the function")
    kind: Literal["script"] = Field(default="script", exclude=True)
    script: str = Field(default="", exclude=True)
    of: str = Field(default="", exclude=True)


class Data(Section):
    """Files."""

    unused: ClassVar[Mapping[str, str]] = {"options": "only data: {python: 'module:function'} takes options"}

    path: PathText = Field(description="a file: .npz, .npy (with labels: another .npy) or LIBSVM text")
    labels: PathText | None = key(None, "a .npy file with the labels, where path is one with X")
    test: PathText | None = key(None, "a file with held-out rows, as path")
    test_labels: PathText | None = key(None, "a .npy file with the labels of test")
    index_base: Annotated[Literal["auto", 0, 1], expect("auto, 0 or 1")] = key(
        "auto", "the first index of LIBSVM text; auto: 0 when there is an index 0, else 1"
    )

    @model_validator(mode="after")
    def _labels_of_something(self) -> Self:
        if self.test_labels is not None and self.test is None:
            raise refuse("test_labels needs data.test", "test_labels", "test")
        if all(Path(path).suffix.lower() in (".npz", ".npy") for path in (self.path, self.test) if path is not None):
            self._refuse_unused("index_base", "a .npz or .npy file")
        return self


_FILE_KEY = "data.python reads the rows; leave out this key, or python"


class PythonData(Section):
    """Data that a user's function reads."""

    unused: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("path", "labels", "test", "test_labels", "index_base"), _FILE_KEY
    )

    python: _Function = Field(description="'module:function', which returns the rows")
    options: _Options = key({}, "keyword arguments of the function")


class BatchSettings(Section):
    """Every row comes once an epoch, in an order that depends on seed and epoch alone, or in the order of the data."""

    size: Count = Field(description="a whole number >= 1: rows of an iteration, all chunks together")
    epochs: Count = Field(description="a whole number >= 1: how often every row comes")
    shuffle: Flag = key(True, "whether rows come in another order each epoch, or as they are in the data")


def batch_of(value: Any, info: ValidationInfo) -> Any:
    """The batch of a YAML: a number of rows of every chunk, or a mapping."""
    if isinstance(value, dict | BatchSettings):
        return BatchSettings.model_validate(value, context=info.context)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= LARGEST):
        raise refuse(f"expected a whole number >= 1 or {{size: ROWS, epochs: NUMBER}}, got {shown(value)}")
    return value


class RateSchedule(Section):
    """How the learning rate changes with the iterations. See `psgc.optimizer.factor`."""

    kind: Literal["constant", "step", "cosine", "linear"]
    warmup: Natural = key(0, "iterations in which the rate rises to lr")
    every: Annotated[Count, UsedBy(["step"])] = key(100, "iterations from one step to the next")
    factor: Annotated[Positive, UsedBy(["step"])] = key(0.1, "by which each step multiplies the rate")
    length: Annotated[Count | None, UsedBy(["cosine", "linear"])] = key(
        None, "iterations to the end; null: all of the run"
    )
    final: Annotated[Fraction, UsedBy(["cosine", "linear"])] = key(0.0, "share of lr at the end")

    @model_validator(mode="after")
    def _decays(self) -> Self:
        if self.length is not None and self.length <= self.warmup:
            raise refuse(f"length {self.length} is all warmup, expected more than {self.warmup}", "length", "warmup")
        return self


_ADAM = UsedBy(["adam", "adamw"])


def _usual_decay(value: Any, info: ValidationInfo) -> Any:
    if value is not None:
        return value
    return 0.01 if info.data.get("kind") == "adamw" else 0.0


class OptimizerSettings(Section):
    kind: Literal["sgd", "momentum", "nesterov", "adam", "adamw"]
    lr: Positive = Field(description="a number > 0: the learning rate, such as 0.1")
    momentum: Annotated[Fraction, UsedBy(["momentum", "nesterov"])] = key(0.9, "share of the previous step")
    beta1: Annotated[Fraction, _ADAM] = key(0.9, "decay of the mean of gradients")
    beta2: Annotated[Fraction, _ADAM] = key(0.999, "decay of the mean of their squares")
    epsilon: Annotated[Positive, _ADAM] = key(1e-8, "added to the denominator")
    weight_decay: Annotated[NotNegative, BeforeValidator(_usual_decay)] = Field(
        default=None,
        validate_default=True,
        description="decoupled with every kind, lr * weight_decay * params; problem.l2 is part of the loss instead; "
        "null: 0.01 with adamw, else 0",
    )
    clip_norm: _ClipNorm = None
    schedule: RateSchedule | None = key(None, "how the learning rate changes; null: it is lr")


class ScriptOptimizer(Section):
    """The steps are made by the user's script."""

    kind: Literal["script"] = "script"


class _WithArguments(Section):
    """A section whose unknown keys are arguments of a class."""

    model_config = ConfigDict(extra="allow")

    @property
    def arguments(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


_OPTIMIZER = "a class of torch.optim, for example AdamW"


class TorchOptimizer(ScriptOptimizer, _WithArguments):
    """A class of torch.optim; the keys that are not below are its arguments."""

    unused: ClassVar[Mapping[str, str]] = {"kind": "a torch problem has torch: NAME instead, a class of torch.optim"}

    torch: Annotated[str, expect(_OPTIMIZER)] = Field(description=_OPTIMIZER)
    clip_norm: _ClipNorm = None
    kind: Literal["script"] = Field(default="script", exclude=True)


_SCHEDULER = "a class of torch.optim.lr_scheduler, for example CosineAnnealingLR"


class TorchScheduler(_WithArguments):
    """A class of torch.optim.lr_scheduler, stepped after each step; the other keys are its arguments."""

    torch: Annotated[str, expect(_SCHEDULER)] = Field(description=_SCHEDULER)


def problem_of(value: Any) -> type[Section]:
    if isinstance(value, dict) and value.get("kind") == "script":
        return ScriptProblem
    is_python = isinstance(value, dict) and ("python" in value or value.get("kind") == "python")
    return PythonProblem if is_python else BuiltinProblem


def data_of(value: Any) -> type[Section]:
    return PythonData if isinstance(value, dict) and "python" in value else Data


def optimizer_of(value: Any) -> type[Section]:
    return ScriptOptimizer if value == {"kind": "script"} else OptimizerSettings
