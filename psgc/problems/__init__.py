"""What psgc optimises: the Problem protocol and the built-in models."""

from psgc.problems.base import Problem, evaluate, has_loss, prepare_evaluation
from psgc.problems.build import call_object, check_labels, load_python, make_problem
from psgc.problems.gradient_check import check_gradient
from psgc.problems.halves import ChunkCheck
from psgc.problems.models import LeastSquares, Logistic, Mlp, Softmax
from psgc.problems.quality import EVALUATION_ROWS, change_of, measures_of, part_of, quality

BUILT_IN = (LeastSquares, Logistic, Mlp, Softmax)  # a class below one of them is a user's

__all__ = [
    "BUILT_IN", "EVALUATION_ROWS", "ChunkCheck", "LeastSquares", "Logistic", "Mlp", "Problem", "Softmax", "call_object",
    "change_of", "check_gradient", "check_labels", "evaluate", "has_loss", "load_python", "make_problem", "measures_of",
    "part_of", "prepare_evaluation", "quality",
]  # fmt: skip
