"""What psgc optimises: the Problem protocol and the built-in models."""

from psgc.problems.base import Problem, evaluate, has_loss
from psgc.problems.build import called, check_labels, load_object, load_python, make_problem
from psgc.problems.models import LeastSquares, Logistic, Mlp, Softmax
from psgc.problems.quality import EVALUATION_ROWS, quality

__all__ = [
    "EVALUATION_ROWS",
    "LeastSquares",
    "Logistic",
    "Mlp",
    "Problem",
    "Softmax",
    "called",
    "check_labels",
    "evaluate",
    "has_loss",
    "load_object",
    "load_python",
    "make_problem",
    "quality",
]
