"""The mathematics of psgc: which worker holds which chunk, in which order, coded how, and how good that can be.

No MPI and no files; usable on its own. Workers are counted from 0 (MPI ranks minus one). Symbols: N chunks,
m workers, l = `parts`, A = `assignment`, O = `ordering`, R = `coding_matrix`.
"""

from psgc.coding.agreement import agreeing
from psgc.coding.assignment import ASSIGNMENTS, blocks, check, cyclic, fractional, from_matrix, graph
from psgc.coding.bounds import clairvoyant_bound
from psgc.coding.coding_matrix import coding_matrix, decoding_coefficients, encoding_coefficients, worst_condition
from psgc.coding.ordering import ordering, positions, primary_copies, queues, worst_case
from psgc.coding.unbiased import unbiased_weights
from psgc.coding.worst_case_bound import worst_case_bound

__all__ = [
    "ASSIGNMENTS", "agreeing", "blocks", "check", "clairvoyant_bound", "coding_matrix", "cyclic",
    "decoding_coefficients", "encoding_coefficients", "fractional", "from_matrix", "graph", "ordering", "positions",
    "primary_copies", "queues", "unbiased_weights", "worst_case", "worst_case_bound", "worst_condition",
]  # fmt: skip
