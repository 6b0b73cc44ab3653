"""Which checkpoints a run can go on from, and with which chunks."""

from pathlib import Path

import numpy as np
import pytest

from psgc.config import from_yaml_text
from psgc.errors import UserError
from psgc.run import resume
from psgc.run.checkpoint import Checkpoint
from psgc.run.inputs import Given

CONFIG = """
problem: {kind: softmax, l2: 0.1}
data: {path: data.npz}
optimizer: {kind: momentum, lr: 0.5}
iterations: 40
output: runs/out
"""


def config(**changes):
    """The run's settings; dotted keys with two underscores."""
    text = from_yaml_text(CONFIG).model_dump()
    for key, value in changes.items():
        *sections, last = key.split("__")
        place = text
        for section in sections:
            place = place[section]
        place[last] = value
    return type(from_yaml_text(CONFIG)).model_validate(text)


def checkpoint(num_chunks=64, num_workers=8, text=None, **changes):
    values = {
        "iteration": 10,
        "params": np.zeros(6),
        "optimizer": {"velocity": np.zeros(6)},
        "estimates": {1: 0.5, 8: 0.25},
        "num_chunks": num_chunks,
        "num_workers": num_workers,
        "seed": 0,
        "seconds": 1.0,
        "data": "this",
        "config": text or config().to_yaml(),
        "version": "0.1.0",
    }
    return Checkpoint(**values | changes)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"iterations": 5, "schedule": "static", "transfer": "combined", "output": "elsewhere", "backend": "numpy"},
        {"aggregation": "allreduce"},
        {"optimizer__lr": 0.01, "optimizer__momentum": 0.5},
        {"coding__replication": 2, "coding__parts": 2, "coding__chunks_per_worker": 3, "coding__assignment": "cyclic"},
        {"checkpoint__every": 1, "faults__collect_timeout": 1.0, "data__path": "moved.npz"},
        {"stragglers": {"kind": "slow", "factor": {"3": 10.0}}},
    ],
)
def test_what_may_change(changes):
    resume.check(checkpoint(), config(**changes), 6, "this")


def test_the_number_of_epochs_may_change_and_the_size_of_their_batches_may_not():
    def with_epochs(size, epochs):
        return config(batch={"size": size, "epochs": epochs}, iterations=None)

    before = checkpoint(text=with_epochs(64, 2).to_yaml())
    resume.check(before, with_epochs(64, 5), 6, "this")
    other = '{"size": 32, "shuffle": true}'
    for settings, shown in ((with_epochs(32, 2), other), (config(), "null"), (config(batch=64), "64")):
        with pytest.raises(UserError, match=f"^batch: {shown} does not match .*, which has {{"):
            resume.check(before, settings, 6, "this")


def test_a_checkpoint_with_another_aggregation_or_from_before_there_were_several():
    text = config(aggregation="server").to_yaml()
    for before in (text, text.replace(": server", ": allreduce"), text.replace("aggregation: server\n", "")):
        resume.check(checkpoint(text=before), config(aggregation="server"), 6, "this")
    assert len(before) < len(text)


def test_a_checkpoint_from_before_it_was_recorded_what_psgc_train_was_given():
    now = config(problem={"kind": "script", "script": "a.py", "of": "Ridge"})
    text = now.to_yaml()
    before = text.replace(", of: Ridge", "").replace("  of: Ridge\n", "")
    assert len(before) < len(text)
    resume.check(checkpoint(text=before), now, 6, "this")
    with pytest.raises(UserError, match=r"^problem: .*Ridge.* does not match .*, which has .*Lasso"):
        resume.check(checkpoint(text=text.replace("Ridge", "Lasso")), now, 6, "this")


@pytest.mark.parametrize(
    ("changes", "dim", "data", "text"),
    [
        ({"seed": 1}, 6, "this", "seed: 1 does not match "),
        ({"batch": 5}, 6, "this", "batch: 5 does not match "),
        ({"dtype": "float32"}, 6, "this", "dtype: float32 does not match "),
        ({"optimizer": {"kind": "sgd", "lr": 0.5}}, 6, "this", "optimizer.kind: sgd does not match "),
        ({"problem__l2": 0.2}, 6, "this", 'problem: {"kind": "softmax", "l2": 0.2, "hidden": 64} does not match '),
        ({}, 7, "this", "parameters: 7 does not match "),
        ({}, 6, "that", "data: that does not match "),
    ],
)
def test_what_may_not_is_named_with_both_values(changes, dim, data, text):
    with pytest.raises(UserError) as caught:
        resume.check(checkpoint(), config(**changes), dim, data)
    line = str(caught.value)
    assert line.startswith(text + "the checkpoint of iteration 10 in runs/out, which has ")
    assert line.endswith("; set it back, or leave out --resume to start from the beginning")
    assert len(line.splitlines()) == 1


@pytest.mark.parametrize(
    ("kind", "state"),
    [
        ("momentum", {}),
        ("momentum", {"velocity": np.zeros(6), "more": 1}),
        ("adam", {"first": 0.0, "second": 0.0, "steps": np.zeros(6)}),
        ("adam", {"first": 0.0, "second": 0.0, "steps": 1.5}),
    ],
)
def test_a_state_of_another_optimizer_is_refused(kind, state):
    settings = config(optimizer={"kind": kind, "lr": 0.5})
    with pytest.raises(UserError, match=f"does not hold the state of the optimizer {kind}; leave out --resume"):
        resume.check(checkpoint(text=settings.to_yaml(), optimizer=state), settings, 6, "this")


def test_settings_of_another_version_are_refused():
    with pytest.raises(UserError, match=r"this version of psgc cannot resume it \(9.9 wrote it\)$"):
        resume.check(checkpoint(text=CONFIG + "novelty: 3\n", version="9.9"), config(), 6, "this")


# the plan


@pytest.mark.parametrize(
    ("assignment", "num_workers"),
    [*(("blocks", workers) for workers in (3, 5, 7, 8, 9, 16)), ("cyclic", 6), ("fractional", 6), ("graph", 4)],
)
@pytest.mark.parametrize("schedule", ["uncoded", "static", "dynamic"])
def test_the_chunks_stay_whatever_the_number_of_workers(assignment, num_workers, schedule):
    settings = config(schedule=schedule, coding__assignment=assignment)
    plan, remark = resume.plan_for(settings, num_workers, checkpoint())
    assert (plan.num_chunks, plan.num_workers, remark) == (64, num_workers, "")
    assert sorted({chunk for queue in plan.queues.values() for chunk in queue}) == list(range(64))


@pytest.mark.parametrize(
    ("changes", "num_workers", "chunks", "reason"),
    [
        ({"coding__assignment": "cyclic"}, 7, 56, "cyclic: 64 chunks x replication 3 copies cannot be shared equally"),
        ({"coding__assignment": "fractional"}, 9, 72, "fractional: 64 chunks cannot be shared equally by 3 groups"),
        ({"coding__assignment": "graph"}, 6, 48, "graph: 64 chunks cannot be shared equally by 6 workers"),
        ({"coding__chunks_per_worker": 4}, 8, 32, "coding.chunks_per_worker has changed"),
    ],
)
def test_where_they_cannot_stay_it_is_said(changes, num_workers, chunks, reason):
    plan, remark = resume.plan_for(config(**changes), num_workers, checkpoint())
    assert plan.num_chunks == chunks
    assert remark.startswith(f"{chunks} chunks instead of 64 from now on ({reason}")
    assert remark.endswith("results will differ in rounding")
    assert resume.plan_for(config(**changes, batch=3), num_workers, checkpoint())[1].endswith("in what is sampled")
    estimates = resume.estimates_for(plan, checkpoint())
    assert estimates[1] * chunks == pytest.approx(0.5 * 64)


def test_a_number_of_workers_that_fits_nothing_is_the_users_mistake():
    with pytest.raises(UserError, match=r"^coding\.replication: 3 is too large for 2 workers"):
        resume.plan_for(config(), 2, checkpoint())


# the command, and the end


def test_the_command_can_be_pasted():
    assert resume.command(Given("run.yaml"), 9) == "psgc launch run.yaml -n 9 --resume"
    assert resume.command(Given("my run.yaml", overrides=["a.b=1", "c=[x, y]"]), 3) == (
        "psgc launch 'my run.yaml' -n 3 --set a.b=1 --set 'c=[x, y]' --resume"
    )
    assert resume.command(Given("a.py", arguments=["--lr", "1"]), 3) == "psgc launch a.py -n 3 --resume -- --lr 1"
    assert resume.command(Given("program.py", problem=object()), 3) == "psgc.train(..., resume=True)"


@pytest.mark.parametrize(
    ("text", "done"),
    [
        ('{"status": "done"}', True),
        ('{"status": "done", "evaluating": true}', False),
        ('{"status": "failed"}', False),
        ("{", False),
        ("[]", False),
        ("{}", False),
    ],
)
def test_only_a_whole_summary_says_done(tmp_path, text, done):
    assert not resume.is_done(tmp_path)
    (tmp_path / "summary.json").write_text(text)
    assert resume.is_done(tmp_path) == done


@pytest.mark.parametrize(
    ("rows", "status", "first", "ahead"),
    [
        (None, None, 10, [10, 12, 13, 40]),  # nothing is known of the run
        ("", None, 10, [10, 12, 13, 40]),
        ("\n", None, 10, [10, 12, 13, 40]),
        ("\n5,0.1\n", None, 10, [10, 12, 13, 40]),
        # a server that dies when iteration 12 begins has not written the row of iteration 11 yet
        ("\n9,0.1\n10,0.1\n", None, 10, [13, 40]),
        ("\n9,0.1\n10,0.1\n", "failed", 10, [13, 40]),
        ("\n39,0.1\n", "done", 40, [40]),  # it is extended
    ],
)
def test_a_fault_that_has_happened_does_not_happen_again(tmp_path, monkeypatch, rows, status, first, ahead):
    monkeypatch.chdir(tmp_path)
    at = [{"kind": "kill", "rank": 0, "iteration": i, "step": "begin"} for i in (5, 9, 10, 12, 13, 40)]
    settings = config(faults__inject=at, output="out")
    Path("out").mkdir()
    if rows is not None:
        Path("out/iterations.csv").write_text(rows and f"iteration,loss{rows}")
    if status is not None:
        Path("out/summary.json").write_text(f'{{"status": "{status}"}}')
    reached = resume.reached(Path("out"), first)
    assert [fault.iteration for fault in resume.with_faults_from(settings, reached).faults.inject] == ahead
