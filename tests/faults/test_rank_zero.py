"""Rank 0 is killed or stopped: another rank serves on; without fault tolerance the run ends, and `--resume` goes on."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.faults.matrix import (
    CLOSE,
    Case,
    Outcome,
    Planned,
    Settings,
    config_text,
    write_data,
)
from tests.ranks.mpirun import Finished, psgc, run, sets

pytestmark = pytest.mark.faults
KILLED_IN = 12
ITERATIONS = 20
RANKS, DEDICATED = 6, "--dedicated-server"
LONGEST = 5.0  # seconds that takeovers take on a busy machine: 0.1 s each on an idle one
STOPPED_FOR = 4.0  # seconds, then it is killed
Death = tuple[int, int, str]  # the MPI rank of a process, and in which iteration it dies at which step


def settings(transfer: str, parts: int, collect_timeout: float = 10.0) -> Settings:
    return Settings(transfer, parts, ITERATIONS, 0.01, 4, 3, collect_timeout)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the data, and in `undisturbed` the run whose server lives."""
    folder = tmp_path_factory.mktemp("rank_zero")
    write_data(folder)
    (folder / "run.yaml").write_text(config_text(settings("per_chunk", 1), [], "undisturbed"))
    finished = run(psgc("launch", "run.yaml", "-n", str(RANKS), DEDICATED), folder)
    assert finished.returncode == 0, finished.said
    return folder


def launch(
    folder: Path,
    output: str,
    how: Settings,
    deaths: Sequence[Death],
    *more: str,
    kind: str = "kill",
    processes: int | None = None,
) -> Finished:
    """A run in which these die. more: arguments of `psgc launch`; processes: all of which are workers."""
    planned = [Planned(Case("", kind, step), iteration, (rank,)) for rank, iteration, step in deaths]
    (folder / f"{output}.yaml").write_text(config_text(how, planned, output))
    ranks = [str(RANKS), DEDICATED] if processes is None else [str(processes)]
    return run(psgc("launch", f"{output}.yaml", "-n", *ranks, *more), folder)


@pytest.mark.parametrize(
    ("transfer", "parts", "deaths"),
    [
        ("per_chunk", 1, [(0, KILLED_IN, "begin")]),  # it is stopped
        ("combined", 2, [(0, KILLED_IN, "passing_on"), (1, KILLED_IN + 3, "begin")]),
        ("allreduce", 1, [(0, KILLED_IN, "stepping"), (2, KILLED_IN, "gradient")]),
        ("allreduce", 2, [(0, ITERATIONS - 1, "begin")]),
    ],
    ids=["stopped", "two in turn", "with a worker", "in the last iteration"],
)
def test_a_run_whose_rank_0_is_killed_is_done_and_exact_with_a_whole_record(
    folder: Path, transfer: str, parts: int, deaths: Sequence[Death]
) -> None:
    output, is_stopped = f"{transfer}-{parts}", transfer == "per_chunk"
    how = settings(transfer, parts, STOPPED_FOR) if is_stopped else settings(transfer, parts)
    finished = launch(folder, output, how, deaths, kind="stop" if is_stopped else "kill")
    assert ("is stopped for 4 s (faults.collect_timeout): its process is killed" in finished.stderr) == is_stopped
    assert finished.returncode == 0, finished.said
    assert not finished.orphans, finished.said
    outcome, undisturbed = Outcome(folder / output), folder / "undisturbed/params.npy"
    assert outcome.numbers == [*range(ITERATIONS)], finished.said
    assert np.abs(outcome.params - np.load(undisturbed)).max() <= CLOSE
    if transfer == "per_chunk":  # with one part copies are then always the same, and always summed in the same order
        assert (folder / output / "params.npy").read_bytes() == undisturbed.read_bytes()
    takeovers = [(rank, iteration) for rank, iteration, _ in deaths if rank != 2]
    lines = re.findall(
        r"^rank 0 on \S+ lost in iteration (\d+): its process died; worker (\d) on", finished.stdout, re.M
    )
    assert [int(successor) for _, successor in lines] == [rank + 1 for rank, _ in takeovers], finished.said
    for (_, killed_in), (begins, _) in zip(takeovers, lines, strict=True):
        assert killed_in - 1 <= int(begins) <= killed_in + 1, finished.said
    lost = [who for rank, _ in takeovers for who in (0, rank + 1)] + [rank for rank, _, _ in deaths if rank == 2]
    assert sorted(event[:2] for event in outcome.events) == sorted(("lost", rank) for rank in lost), finished.said
    assert outcome.summary["takeovers"] == len(takeovers)
    assert outcome.summary["takeover_seconds"] < LONGEST


@pytest.mark.parametrize(("transfer", "dies"), [("per_chunk", "stepping"), ("allreduce", "passing_on")])
def test_where_every_process_is_a_worker_the_one_that_takes_over_goes_on_computing(
    folder: Path, transfer: str, dies: str
) -> None:
    """With five processes there are the five workers of the other runs here."""
    output, processes = f"all-work-{transfer}", RANKS - 1
    deaths = [(0, KILLED_IN, dies), (3, KILLED_IN + 3, "gradient")]
    finished = launch(folder, output, settings(transfer, 1), deaths, processes=processes)
    assert finished.returncode == 0, finished.said
    assert not finished.orphans, finished.said
    outcome = Outcome(folder / output)
    assert outcome.numbers == [*range(ITERATIONS)], finished.said
    assert np.abs(outcome.params - np.load(folder / "undisturbed/params.npy")).max() <= CLOSE
    assert "worker 2 on" in finished.stdout, finished.said
    assert sorted(event[:2] for event in outcome.events) == [("lost", 0), ("lost", 1), ("lost", 3)], finished.said
    with np.load(folder / output / "timeline.npz") as timeline:
        late = timeline["iteration"] > KILLED_IN + 4
        assert {*timeline["worker"][late].tolist()} == {2, 4, 5}


def test_without_fault_tolerance_a_run_whose_rank_0_is_killed_ends_and_goes_on_where_it_was(folder: Path) -> None:
    planned, plain = [(0, KILLED_IN, "begin")], "--no-fault-tolerance"
    killed = launch(folder, "plain", settings("allreduce", 2), planned, plain)
    assert killed.returncode == 1, killed.said
    assert not killed.orphans, killed.said
    command = ["psgc", "launch", "plain.yaml", "-n", str(RANKS), plain, *sets("dedicated_server=true"), "--resume"]
    assert killed.stderr.splitlines()[-1] == f"psgc launch: to resume from the last checkpoint: {shlex.join(command)}"

    resumed = run(psgc(*command[1:]), folder)
    assert resumed.returncode == 0, resumed.said
    assert re.search("resuming from iteration (5|10),", resumed.stdout), "10 is written while iterations go on"
    assert not resumed.orphans
    outcome = Outcome(folder / "plain")
    assert outcome.numbers == [*range(ITERATIONS)]
    assert np.abs(outcome.params - np.load(folder / "undisturbed/params.npy")).max() <= CLOSE
