"""The paper's numerical experiments, run by psgc and compared with what their authors' code gives.

    python scripts/paper.py --output runs/paper      (or: make paper)

200 workers, 200 chunks, load 8, seconds per chunk Exp(1). Exact recovery: the mean time, on a clock that ticks once a
second, over 2000 trials. Approximate recovery: the mean error at eight deadlines over 1000 trials, 7 workers failed.

The published times of the cyclic assignment are without failures, those of the graph with 8 - l failed workers. The
table says so, and gives psgc's cyclic times with failures as well. The published numbers are for one random graph and
one random order. psgc draws 20 of each, so that its means are those of the model, and its standard error includes how
far a single graph or order may be from that.

References: arXiv:2405.19509.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from psgc.cli.simulate import draw_errors, draw_times
from psgc.record.files import write_output_text
from psgc.simulation.experiment import Trials, simulate
from psgc.simulation.settings import BuiltAssignment, Exponential, Settings
from psgc.terminal import say
from psgc.tools import drawing

N = 200
LOAD = 8
PARTS = (1, 2, 3)
WHERE = ("cyclic, none failed", "graph, 8 - l failed", "cyclic, 8 - l failed")
DEADLINES = (3, 6, 9, 12, 15, 18, 21, 24)
EXACT_TRIALS, APPROXIMATE_TRIALS = 2000, 1000
DRAWS = 20  # graphs and random orders
SCHEMES = {"original": "full", "optimal order": "static", "random order": "random"}
ROUNDING = 0.0005  # of the published numbers
WITHIN_PERCENT, WITHIN_ERRORS = 3.0, 3.0

PUBLISHED_TIMES = {
    ("cyclic, none failed", 1): (5.594, 2.553, 3.189),
    ("cyclic, none failed", 2): (8.257, 3.924, 4.836),
    ("cyclic, none failed", 3): (10.973, 5.654, 6.754),
    ("graph, 8 - l failed", 1): (6.606, 2.856, 3.437),
    ("graph, 8 - l failed", 2): (9.539, 4.433, 5.198),
    ("graph, 8 - l failed", 3): (12.651, 6.390, 7.361),
}
PUBLISHED_ERRORS = {
    ("original", 1): (5.884, 3.448, 2.233, 1.513, 1.067, 0.784, 0.594, 0.471),
    ("optimal order", 1): (0.111,),  # then 0
    ("optimal order", 2): (1.477, 0.031),
    ("optimal order", 3): (4.343, 0.538, 0.046, 0.008, 0.001),
    ("random order", 1): (0.374, 0.008),
    ("random order", 2): (2.124, 0.117, 0.006),
    ("random order", 3): (5.066, 0.991, 0.114, 0.010, 0.001, 0.001),
}


@dataclass(frozen=True)
class PaperMean:
    """One mean: `values` of shape (draws, trials per draw), and what was published for it, if anything."""

    what: str
    parts: int
    scheme: str
    values: Any
    published: float | None = None
    deadline: float | None = None

    @property
    def mean(self) -> float:
        return float(self.values.mean())

    @property
    def standard_error(self) -> float:
        """Of the difference between psgc's mean and the published one.

        Analysis of variance: the means of n trials with one draw each vary by between^2 + within^2 / n. psgc's
        mean is over all draws, the published one is over as many trials with a single draw.
        """
        draws, n = self.values.shape
        within = float(self.values.var(axis=1, ddof=1).mean())
        of_means = float(self.values.mean(axis=1).var(ddof=1))
        between = max(0.0, of_means - within / n)
        if self.deadline is not None and self.scheme != "original" and self.published is not None:
            # These errors are 0 or at least 1, so a mean p < 1 has a variance of at least p (1 - p).
            within = max(within, self.published * (1 - self.published))
        return float(np.sqrt((between + within / n) / draws + between + within / (draws * n)))

    @property
    def difference(self) -> float:
        """psgc's mean minus the published one; 0 when rounding explains it."""
        off = self.mean - (self.mean if self.published is None else self.published)
        return float(np.sign(off) * max(0.0, abs(off) - ROUNDING))

    @property
    def percent(self) -> float:
        if self.difference == 0:
            return 0.0
        return 100 * self.difference / self.published if self.published else np.inf * self.difference

    @property
    def errors(self) -> float:
        return self.difference / self.standard_error if self.difference else 0.0

    @property
    def reproduced(self) -> bool:
        return abs(self.percent) <= WITHIN_PERCENT or abs(self.errors) <= WITHIN_ERRORS


def exact(trials: int = EXACT_TRIALS, seed: int = 0) -> list[PaperMean]:
    """The exact experiment: completion times, of the cyclic assignment also with failures."""
    outcomes = []
    for what, assignment, failed in (
        ("cyclic, none failed", "cyclic", 0),
        ("graph, 8 - l failed", "graph", "load - parts"),
        ("cyclic, 8 - l failed", "cyclic", "load - parts"),
    ):
        found = _simulate(assignment, failed, trials, seed, clock=1.0)
        for (parts, scheme), draws in found.items():
            published = PUBLISHED_TIMES.get((what, parts), (None,) * len(SCHEMES))[[*SCHEMES].index(scheme)]
            outcomes.append(PaperMean(what, parts, scheme, np.array([draw.times for draw in draws]), published))
    return outcomes


def approximate(trials: int = APPROXIMATE_TRIALS, seed: int = 0) -> list[PaperMean]:
    """The approximate experiment: errors at the deadlines, on the graph with 7 failed workers."""
    found = _simulate("graph", LOAD - 1, trials, seed, deadlines=[float(deadline) for deadline in DEADLINES])
    outcomes = []
    for (scheme, parts), published in PUBLISHED_ERRORS.items():
        errors = np.array([draw.errors for draw in found[parts, scheme]])
        for d, deadline in enumerate(DEADLINES):
            mean = published[d] if d < len(published) else 0.0
            outcomes.append(PaperMean("graph, 7 failed", parts, scheme, errors[:, :, d], mean, deadline))
    return outcomes


def _simulate(
    assignment: str, failed: int | str, trials: int, seed: int, **more: Any
) -> dict[tuple[int, str], list[Trials]]:
    """The trials of each draw of a graph and a random order, by parts and scheme."""
    found: dict[tuple[int, str], list[Trials]] = {}
    names = {schedule: scheme for scheme, schedule in SCHEMES.items()}
    for draw in range(DRAWS):
        settings = Settings(
            assignment=BuiltAssignment(kind=assignment, chunks=N, workers=N, load=LOAD),
            parts=[*PARTS],
            schedules=[*SCHEMES.values()],
            speeds=Exponential(kind="exponential", failed=failed),
            trials=trials // DRAWS,
            seed=1000 * seed + draw,
            **more,
        )
        for result in simulate(settings):
            found.setdefault((result.parts, names[result.schedule]), []).append(result)
    return found


def markdown(times: list[PaperMean], errors: list[PaperMean]) -> str:
    """psgc's means beside the published ones."""
    published = [outcome for outcome in (*times, *errors) if outcome.published is not None]
    good = sum(outcome.reproduced for outcome in published)
    lines = [
        "# The experiments of arXiv:2405.19509, by psgc",
        "",
        f"{good} of {len(published)} published means are reproduced within {WITHIN_PERCENT:g} % or "
        f"{WITHIN_ERRORS:g} standard errors, whichever is larger. The standard errors are those of the difference: "
        "both sides are means of trials, and the published ones are for one random graph and one random order.",
        "",
        f"## Mean completion time ({times[0].values.size} trials)",
        "",
        "| assignment | l | scheme | published | psgc | difference % | in standard errors | reproduced |",
        "|---|---|---|---|---|---|---|---|",
        *(_line(f"{o.what} | {o.parts} | {o.scheme}", o) for o in times),
        "",
        "The published times of the cyclic assignment are those without failed workers; the last rows have them.",
        "",
        f"## Mean error at a deadline ({errors[0].values.size} trials, 7 workers failed, graph)",
        "",
        "| scheme | l | T | published | psgc | difference % | in standard errors | reproduced |",
        "|---|---|---|---|---|---|---|---|",
        *(_line(f"{o.scheme} | {o.parts} | {o.deadline}", o) for o in errors),
    ]
    return "\n".join(lines) + "\n"


def _line(row: str, outcome: PaperMean) -> str:
    if outcome.published is None:
        return f"| {row} | | {outcome.mean:.3f} | | | |"
    verdict = "yes" if outcome.reproduced else "**no**"
    return (
        f"| {row} | {outcome.published:.3f} | {outcome.mean:.3f} | {outcome.percent:+.1f} | {outcome.errors:+.1f} | "
        f"{verdict} |"
    )


def draw(times: list[PaperMean], errors: list[PaperMean], directory: Path) -> None:
    """The paper's two figures, with the published means as crosses."""
    figure = drawing.new_figure(11)
    for axes, where in zip(figure.subplots(1, 2), WHERE, strict=False):
        here = [o for o in times if o.what == where]
        series = {s: [(o.parts, o.mean, o.values.std()) for o in here if o.scheme == s] for s in SCHEMES}
        draw_times(axes, series)
        axes.plot([o.parts for o in here], [o.published for o in here], "kx", label="published")
        axes.set_title(where)
        axes.legend(fontsize="small")
    drawing.save(figure, directory / "exact.png")

    figure = drawing.new_figure(7)
    axes = figure.subplots()
    named = {f"{scheme}, l = {parts}": (scheme, parts) for scheme, parts in PUBLISHED_ERRORS}
    by_name = {name: [o.mean for o in errors if (o.scheme, o.parts) == key] for name, key in named.items()}
    draw_errors(axes, DEADLINES, by_name)
    shown = [o for o in errors if o.published]
    axes.plot(*np.array([(o.deadline, o.published) for o in shown]).T, "kx", label="published")
    axes.set_title(errors[0].what)
    axes.legend(fontsize="small")
    drawing.save(figure, directory / "approximate.png")


def main(arguments: list[str] | None = None) -> None:
    """Run everything; write paper.md, exact.png and approximate.png into the output directory."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--output", default="runs/paper", type=Path, metavar="DIR")
    options = parser.parse_args(arguments)
    times, errors = exact(), approximate()
    options.output.mkdir(parents=True, exist_ok=True)
    text = markdown(times, errors)
    write_output_text(options.output / "paper.md", text)
    draw(times, errors, options.output)
    for line in text.split("\n"):
        say(line)
    say(f"written to {options.output}: paper.md, exact.png, approximate.png")


if __name__ == "__main__":
    main()
