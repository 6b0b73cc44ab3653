"""`python -m tests.torch_equivalence.table [NAMES]`: what comes of each script in each way, as a Markdown table.

A cell is the largest difference, relative to the largest entry of its tensor: of psgc in one process from plain torch,
and of the others from psgc in one process. Exit code 1 when any is not as it has to be.
"""

import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from tests.torch_equivalence.values import difference
from tests.torch_equivalence.ways import (
    AFTER_RESUME,
    ALL,
    CLOSE,
    EXACT,
    WAYS,
    Ranks,
    has_torch,
    is_refused,
    refusal,
    result,
    ways,
)
from tests.torch_equivalence.ways import script as script_of

BESIDE = 3  # runs at once: their processes wait much


def main() -> int:
    """Print the table; 1 when anything is wrong."""
    torch.set_num_threads(1)
    wrong: list[str] = []
    print(f"| script | one process | {' | '.join(map(str, WAYS))} |\n|---|---|{'---|' * len(WAYS)}", flush=True)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(BESIDE) as pool:
        for name in sys.argv[1:] or ALL:
            line = row_of(name, Path(tempfile.mkdtemp(dir=folder)), pool, wrong)
            print(f"| {name} | {' | '.join(line)} |", flush=True)
    for text in wrong:
        print(text, file=sys.stderr)
    return bool(wrong)


def row_of(name: str, folder: Path, pool: ThreadPoolExecutor, wrong: list[str]) -> list[str]:
    """The cells of a script."""
    if is_refused(name):
        code, said = refusal(name, folder)
        if not code or script_of(name).REFUSED not in said:
            wrong.append(f"{name}: {said or 'it is not refused'}")
            said = f"(!) {said or 'not refused'}"
        cells = [said]
        for way in WAYS[: len(AFTER_RESUME)]:
            found, lines = Ranks(name, way, Path(tempfile.mkdtemp(dir=folder))).refusal()
            is_wrong = found != code or len(lines) != 1 or script_of(name).REFUSED not in lines[0]
            cells.append(f"{'(!) ' if is_wrong else ''}exit {found}")
            wrong += [f"{name}, {way}: exit code {found}: {lines}"] if is_wrong else []
        return [*cells, *[""] * (len(WAYS) - len(cells) + 1)]
    expected = result(name, "psgc", folder, **EXACT)
    cells = ["is the reference"]
    if has_torch(name):
        apart = difference(result(name, "psgc", folder), result(name, "torch", folder))
        cells = [shown(apart, is_wrong := not apart <= CLOSE)]
        wrong += [f"{name}: {apart:.1e} from plain torch"] if is_wrong else []
    made = {way: Ranks(name, way, Path(tempfile.mkdtemp(dir=folder))) for way in ways(name)}
    results = dict(zip(made, pool.map(lambda ranks: ranks.complaints(expected), made.values()), strict=True))
    for way, (_, complaints) in results.items():
        wrong += [f"{name}, {way}: {text}" for text in complaints]
    return cells + [shown(results[way][0], bool(results[way][1])) if way in results else "" for way in WAYS]


def shown(apart: float, is_wrong: bool) -> str:
    return f"{'(!) ' if is_wrong else ''}{f'{apart:.0e}' if apart else '0'}"


if __name__ == "__main__":
    sys.exit(main())
