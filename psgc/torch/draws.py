"""Whether code of the user draws random numbers: from `random`, NumPy's or torch's default generators."""

import random
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

# functions of torch that draw random numbers, if not from a generator that they are given; some do so with dropout only
_DRAWING = """
    _fused_dropout _sample_dirichlet _standard_gamma alpha_dropout bernoulli binomial cauchy dropout dropout1d
    dropout2d dropout3d exponential feature_alpha_dropout feature_dropout fractional_max_pool2d fractional_max_pool3d
    geometric gru gumbel_softmax log_normal lstm multi_head_attention_forward multinomial native_dropout normal poisson
    rand rand_like randint randint_like randn randn_like random randperm rnn_relu rnn_tanh rrelu
    scaled_dot_product_attention uniform
    """
DRAWING = frozenset(_DRAWING.split())


class Draws(Exception):
    """The dataset draws random numbers, in a thread where they are not seeded."""


class NoDraws(TorchFunctionMode):
    """Raises Draws in place of a function that would draw from torch's default generators, in this thread only."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "").rstrip("_") in DRAWING and not any(
            isinstance(argument, torch.Generator) for argument in (*args, *kwargs.values())
        ):
            raise Draws
        return func(*args, **kwargs)


def states() -> tuple[Any, ...]:
    """The states of `random` and of NumPy's generator, which all threads share."""
    kind, keys, *rest = np.random.get_state()
    return random.getstate(), kind, np.asarray(keys).tobytes(), *rest


def all_states() -> tuple[Any, ...]:
    """The states of `random`, of NumPy's and of torch's generator."""
    return *states(), torch.get_rng_state().numpy().tobytes()
