"""psgc.torch under a real mpirun: every rank makes the same steps as one process does, whoever dies."""

import json
import os
import re
import signal
import socket
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from psgc import replay
from psgc.tools.run_directory import read_run
from psgc.torch.sampling import Sampler
from tests.ranks.mpirun import MpiRun, mpirun, psgc, run, wait_until
from tests.ranks.prepared import TORCH, prepared

ROOT = Path(__file__).parents[2]
SCRIPT = str(Path(__file__).with_name("torch_script.py"))
TIMEOUT = 100  # seconds: each rank imports torch
RESULT = re.compile("rank [0-9]+ [0-9a-f]{64} ")  # not what is said of a rank

pytestmark = pytest.mark.timeout(300)  # a fixture and two runs


def trained(folder, ranks, code=0, env=None, **settings):
    """Rank -> (digest, right, losses) of the ranks that came to the end, and what was said."""
    python, arguments = prepared(TORCH), [SCRIPT, json.dumps(settings)]
    command = mpirun(ranks, arguments, True, python) if ranks else [python, *arguments]
    return results_of(command, folder, code, env)


def results_of(command, folder, code=0, env=None):
    finished = run(command, folder, TIMEOUT, env=env, code=code)
    lines = [line.split() for line in finished.stdout.splitlines() if RESULT.match(line)]
    ended = {int(rank): (digest, float(right), [*map(float, losses)]) for _, rank, digest, right, *losses in lines}
    return ended, [line for line in finished.lines if not RESULT.match(line)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Digest and losses of one process."""
    ended, said = trained(tmp_path_factory.mktemp("alone"), 0, transfer="per_chunk")
    assert not said
    return ended[0]


def assert_equal(ended, ranks, alone):
    """All these ranks have the same parameters, and rank 0 the losses that one process has (others may fall behind)."""
    assert ended.keys() == ranks
    assert len({(digest, right) for digest, right, _ in ended.values()}) == 1
    assert ended[0][2] == pytest.approx(alone[2], rel=1e-6)


@pytest.mark.faults
@pytest.mark.parametrize("steps", [1, 9], ids=["nine steps", "the last step"])
def test_the_others_have_ended_when_a_worker_has_done_its_chunk(tmp_path, alone, steps):
    """Its script makes the steps that it has the sums for, or ends at the next call. Nobody kills it."""
    what = {**dict.fromkeys([0, 1], ("waits in a chunk", steps, 2)), 2: ["pauses in a chunk", steps, 5]}
    ended, said = trained(tmp_path, 3, aggregation="allreduce", what=what)
    assert_equal(ended, {0, 1, 2} if steps == 9 or 2 in ended else {0, 1}, alone)
    assert not said
    assert (tmp_path / "ended-2").exists()


@pytest.mark.faults
def test_a_worker_that_hangs_in_the_last_chunk_keeps_nobody(tmp_path, alone):
    what = {**dict.fromkeys([0, 1], ("waits in a chunk", 9, 2)), 2: ["pauses in a chunk", 9, 1000]}
    ended, said = trained(tmp_path, 3, aggregation="server", transfer="per_chunk", what=what)
    assert ended == dict.fromkeys([0, 1], alone)
    assert not said


@pytest.mark.faults
@pytest.mark.parametrize(("aggregation", "aware"), [("server", "0"), ("allreduce", "1")])
def test_a_model_on_a_gpu_has_its_vectors_summed_there(tmp_path, alone, aggregation, aware):
    """CuPy is the stand-in (tests/stand_in). The script looks for copies to the host, other than to its shared memory.

    With "0" they are also copied in order to be sent.
    """
    env = {"PYTHONPATH": f"{ROOT / 'tests/stand_in'}:{ROOT}", "PSGC_CUDA_AWARE": aware}
    # with the pause nobody falls behind: the state that such a rank is given goes through the host
    pause = 0.3 if aggregation == "allreduce" else 0.0
    ended, said = trained(
        tmp_path, 3, env=env, aggregation=aggregation, transfer="combined", device="staged", pause=pause
    )
    assert_equal(ended, {0, 1, 2}, alone)
    assert not said


@pytest.mark.faults
def test_a_script_that_raises_on_one_worker_is_given_up_and_the_others_go_on(tmp_path, alone):
    settings = {"aggregation": "server", "transfer": "per_chunk", "what": {2: ["raises", 2]}, "pause": 0.1}
    ended, said = launched(tmp_path, 3, output="run", **settings)  # with exit code 0
    assert ended == dict.fromkeys([0, 1], alone)
    (line,) = [line for line in said if "lost in iteration" in line]
    assert line.startswith(f"worker 3 on {socket.gethostname()} lost in iteration ")
    assert "its script raised ValueError: no such thing, " in line
    assert json.loads((tmp_path / "run/summary.json").read_text())["exit_code"] == 0


@pytest.mark.faults
def test_a_script_that_raises_on_rank_0_ends_the_run(tmp_path):
    ended, said = trained(tmp_path, 2, code=1, aggregation="allreduce", what={0: ["raises", 2]})
    assert not ended
    assert said[-1] == "ValueError: no such thing"
    assert said[0] == "Traceback (most recent call last):"


@pytest.mark.faults
@pytest.mark.parametrize("what", [{0: ["leaves", 2]}, {1: ["skips", 2]}], ids=["leaves early", "skips a batch"])
def test_a_script_that_makes_other_calls_on_one_rank_ends_the_run(tmp_path, what):
    # with the pause nobody falls behind, which would leave the mistake out
    ended, said = trained(tmp_path, 2, code=2, aggregation="allreduce", what=what, pause=0.2)
    assert not ended
    assert any("its script makes another call than that of rank 0" in line for line in said)


@pytest.mark.faults
def test_the_sum_of_another_call_is_not_taken_for_that_of_this_one(tmp_path):
    """Rank 0 has made its evaluation alone, and has ended, when rank 1 asks for a gradient."""
    what = {0: ["leaves", 2], 1: ["is late", 2]}
    ended, said = trained(tmp_path, 2, code=None, aggregation="allreduce", what=what)  # 0 if the run was over before
    assert [*ended] == [0]
    assert any("its script makes another call than that of rank 0" in line for line in said), said


@pytest.mark.faults
@pytest.mark.parametrize("aggregation", ["server", "allreduce"])
def test_a_script_that_ends_earlier_on_rank_0_is_told_on_the_other_ranks(tmp_path, aggregation):
    ended, said = trained(tmp_path, 3, aggregation=aggregation, what={0: ["ends", 4]}, pause=0.1)
    assert not ended
    host = socket.gethostname()
    text = "the script of rank 0 has ended after 4 calls, this one makes another"
    assert sorted(said) == [f"psgc: rank {rank} on {host}: {text}" for rank in (1, 2)]


def launched(folder, ranks, *options, code=0, script=SCRIPT, **settings):
    command = psgc("launch", script, "-n", str(ranks), *options, "--", json.dumps(settings), python=prepared(TORCH))
    return results_of(command, folder, code)


@pytest.mark.faults
def test_ctrl_c_is_told_as_such(tmp_path):
    """The ranks get another signal from `psgc launch`."""
    settings = json.dumps({"output": "run", "pause": 0.1, "epochs": 100})
    command = psgc("launch", SCRIPT, "-n", "3", "--", settings, python=prepared(TORCH))
    rows = tmp_path / "run/iterations.csv"
    with MpiRun(command, tmp_path) as running:
        wait_until(lambda: rows.exists() and rows.read_text().count("\n") > 3, TIMEOUT)
        os.kill(running.process.pid, signal.SIGINT)
        finished = running.wait(timeout=TIMEOUT, code=130)
    (line,) = finished.stderr.splitlines()
    assert line.startswith("psgc launch: stopped by Ctrl-C (SIGINT); to resume from the last checkpoint: psgc launch ")
    assert "SIGUSR1" not in finished.said
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert (summary["status"], summary["reason"]) == ("interrupted", "stopped by Ctrl-C (SIGINT)")


@pytest.mark.parametrize("aggregation", ["server", pytest.param("allreduce", marks=pytest.mark.faults)])
def test_the_longest_chunk_is_begun_first_where_the_script_says_what_examples_cost(tmp_path, alone, aggregation):
    costs = [1.0 + row % 25 for row in range(250)]
    slow = {"kind": "slow", "seconds": {"all": 0.02}}  # a chunk takes longer than a rank waits for a core
    ended, _ = trained(tmp_path, 3, costs=costs, output="run", aggregation=aggregation, replication=2, stragglers=slow)
    assert_equal(ended, {0, 1, 2}, alone)
    assert json.loads((tmp_path / "rows.json").read_text()) == [*range(len(alone[2]) + 1)]  # and the evaluation
    recorded = read_run(tmp_path / "run")
    assert recorded.evaluations.tolist() == [False] * len(alone[2]) + [True]
    assert recorded.iterations["test_accuracy"][-1] == pytest.approx(alone[1])
    assert np.isnan(recorded.iterations["test_accuracy"][:-1]).all()
    assert recorded.evaluated == [(len(alone[2]), 2, "accuracy", pytest.approx(alone[1]))]
    tried = replay(tmp_path / "run", chunks=[6], schedule=["static"], parts=[1])
    assert tried["iterations"] == len(alone[2]) - 1  # without the first
    assert {row["chunks"] for row in tried["rows"]} == {6, 12}
    steps = []
    sampler = Sampler(250, seed=0)
    for batch in sampler.batches(60, epochs=2):
        steps.append([sum(costs[row] for row in batch.chunk(chunk, 12)) for chunk in range(12)])
        sampler.position = batch.after
    with np.load(tmp_path / "run/timeline.npz") as timeline:
        columns = [timeline[name].tolist() for name in ("iteration", "worker", "start", "chunk")]
    begun = {}  # (step, worker) -> the first chunk
    for step, worker, _, chunk in sorted(zip(*columns, strict=True)):
        begun.setdefault((step, worker), chunk)
    longest = [of.index(max(of)) for of in steps]
    first = [longest[step] in {begun.get((step, worker)) for worker in (1, 2, 3)} for step in range(1, len(steps))]
    assert sum(first) >= 6, first  # of 9, without costs 1 to 4; a worker that stalls in it may abandon it


@pytest.mark.faults
def test_a_script_that_calls_sys_exit_has_failed(tmp_path):
    ended, _ = launched(tmp_path, 2, code=1, output="run", what={0: ["exits", 2]})
    assert not ended
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert (summary["status"], summary["reason"]) == ("failed", "its script called sys.exit(3)")


@pytest.mark.faults
def test_the_example_of_digits(tmp_path):
    script = str(Path(__file__).parents[2] / "scripts/torch/digits.py")
    command = psgc("launch", script, "-n", "2", "--", "--epochs", "1", "--output", "out", python=prepared(TORCH))
    finished = run(command, tmp_path, TIMEOUT, code=0)
    assert finished.stdout.count("accuracy on 360 images that it was not trained on: ") == 1
    assert load_file(tmp_path / "out/model.safetensors")["0.weight"].shape == (16, 1, 3, 3)
    assert json.loads((tmp_path / "out/summary.json").read_text())["status"] == "done"


@pytest.mark.faults
def test_a_run_with_too_few_workers_left_says_how_to_go_on(tmp_path):
    """More workers would help, so a job goes back into the queue."""
    kill = {"inject": [{"kind": "kill", "rank": 2, "iteration": 3}]}
    settings = {"output": "out", "parts": 2, "checkpoint_every": 1, "faults": kill}
    command = psgc("launch", SCRIPT, "-n", "2", "--", json.dumps(settings), python=prepared(TORCH))
    finished = run(command, tmp_path, TIMEOUT, code=1)
    assert json.loads((tmp_path / "out/summary.json").read_text())["too_few_workers"] is True
    assert finished.stderr.splitlines()[-1].startswith("psgc launch: to resume from the last checkpoint: psgc launch ")
