from pathlib import Path

import pytest
import yaml

from psgc.config import BuiltinProblem, Coding, Config, TorchConfig, from_yaml_text, load
from psgc.config.torch import TorchCoding
from psgc.errors import UserError

RUN = """\
problem: {kind: logistic}
data: {path: data/train.npz}
iterations: 10
optimizer: {kind: nesterov, lr: 1e-1}
coding:
  replication: 3
output: runs/x
"""


@pytest.fixture
def run_yaml(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(RUN)
    return Path("run.yaml")


def refusal(path, *overrides):
    with pytest.raises(UserError) as caught:
        load(path, overrides)
    assert caught.value.exit_code == 2
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_defaults(run_yaml):
    config = load(run_yaml)
    assert config.problem == BuiltinProblem(kind="logistic")
    assert (config.schedule, config.backend, config.dtype) == ("dynamic", "auto", "float64")
    assert (config.aggregation, config.transfer) == ("auto", "auto")
    assert list(config.coding.model_dump().values()) == [8, 3, "blocks", 1, "spread"]
    assert list(config.optimizer.model_dump().values()) == ["nesterov", 0.1, 0.9, 0.9, 0.999, 1e-8, 0.0, None, None]
    assert (config.batch, config.seed, config.stragglers.kind) == (None, 0, "none")
    assert (config.faults.collect_timeout, config.faults.adopt, config.faults.inject) == (30.0, True, [])


def test_overrides_take_effect_in_order(run_yaml):
    config = load(run_yaml, ["coding.parts=2", "coding.parts=3", "coding.assignment={kind: file, path: A.npy}"])
    assert config.coding.parts == 3
    assert not isinstance(config.coding.assignment, str)
    assert config.coding.assignment.path == "A.npy"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("  repli", "  repl", "run.yaml:6: coding.replcation: unknown key, did you mean 'replication'?"),
        (
            "problem: {kind: logistic}\n",
            "problem: ridge\n",
            "run.yaml:1: problem: expected a mapping, for example {kind: logistic}, got 'ridge'",
        ),
        ("iterations: 10", "iterations: 10\nlr: 0.1", "run.yaml:4: lr: unknown key, did you mean 'optimizer.lr'?"),
        (
            "iterations: 10",
            "iterations: 10\nscheduler: {torch: StepLR}",
            "run.yaml:4: scheduler: only a torch problem has it, problem: {torch: 'module:function'}",
        ),
        ("iterations: 10", "iterations: true", "run.yaml:3: iterations: expected a whole number >= 1, got true"),
        (
            "problem: {kind: logistic}\n",
            "",
            "run.yaml: problem: missing, expected a mapping, for example {kind: logistic}",
        ),
        (
            "data: {path: data/train.npz}\n",
            "",
            "run.yaml: data: missing, problem logistic needs data: {path: ...}",
        ),
    ],
)  # fmt: skip
def test_refused_files(run_yaml, old, new, message):
    assert RUN.count(old) == 1
    run_yaml.write_text(RUN.replace(old, new))
    assert refusal(run_yaml) == message


NUMBER = "expected a number > 0"
NAMES = "expected blocks, cyclic, fractional, graph or {kind: file, path: ...}"
PROBLEMS = "expected least_squares, logistic, softmax, mlp, python: 'module:object' or torch: 'module:function'"
APPROXIMATE = "recovery={mode: approximate, "
UNBIASED = f"{APPROXIMATE}deadline: 1, estimator: unbiased}}"
ONLY_KILL = "for rank 0, the server, expected kind: kill or stop, step: begin or summing or passing_on "
ONLY_KILL += "or passed_on or stepping"
FAULTS = [
    ("{kind: kill}", "expected a list of {kind, rank, iteration, step}, got a mapping"),
    ("[{kind: shoot, rank: 3, iteration: 5}]",
     "faults.inject.0.kind: expected kill, stop, exit, raise, hang, hold or flip, got 'shoot'"),
    ("[{kind: kill, rank: -1, iteration: 5}]", "faults.inject.0.rank: expected a whole number >= 0, got -1"),
    ("[{kind: kill, rank: 1, iteration: x}]", "faults.inject.0.iteration: expected a whole number >= 0, got 'x'"),
    *((f"[{{kind: {kind}, rank: 1, iteration: 1, step: begin}}]",
       f"faults.inject.0.step: kind {kind} needs step: gradient") for kind in ("raise", "hang", "hold")),
    ("[{kind: hold, rank: 1, iteration: 1}]", "faults.inject.0.kind: kind hold needs seconds"),
    ("[{kind: hold, rank: 1, iteration: 1, seconds: 0}]", f"faults.inject.0.seconds: {NUMBER}, got 0"),
    ("[{kind: kill, rank: 1, iteration: 1, seconds: 2}]", "faults.inject.0.seconds: kind kill does not use it"),
    ("[{kind: flip, rank: 1, iteration: 1, step: begin}]",
     "faults.inject.0.step: kind flip needs step: gradient, sending or stepping"),
    ("[{kind: kill, rank: 1, iteration: 1, error: sign}]", "faults.inject.0.error: kind kill does not use it"),
    ("[{kind: kill, rank: 0, iteration: 1}]", f"faults.inject.0.rank: {ONLY_KILL}"),
    ("[{kind: exit, rank: 0, iteration: 1, step: begin}]", f"faults.inject.0.rank: {ONLY_KILL}"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=-1", "expected a whole number >= 0, got -1"),
        ("batch=0", "expected a whole number >= 1 or {size: ROWS, epochs: NUMBER}, got 0"),
        ("coding.chunks_per_worker=many", "expected a whole number >= 1 or auto, got 'many'"),
        ("coding={chunks_per_worker: auto, assignment: {kind: file, path: A.npy}}",
         "coding.chunks_per_worker: an assignment from a file does not use it"),
        ("optimizer.lr=.inf", f"{NUMBER}, got inf"),
        ("optimizer.momentum=1", "expected a number >= 0 and < 1, got 1"),
        *((f"optimizer.{key}=0.5", "kind nesterov does not use it") for key in ("beta1", "beta2", "epsilon")),
        ("optimizer.weight_decay=-1", "expected a number >= 0, got -1"),
        ("optimizer.clip_norm=0", f"{NUMBER}, got 0"),
        ("problem.hidden=3", "kind logistic does not use it"),
        ("optimizer.schedule=cosine",
         "expected a mapping with the keys kind, warmup, every, factor, length, final, got 'cosine'"),
        ("optimizer.schedule={warmup: 3}",
         "optimizer.schedule.kind: missing, expected constant, step, cosine or linear"),
        ("optimizer.schedule={kind: cosine, every: 3}", "optimizer.schedule.every: kind cosine does not use it"),
        ("optimizer.schedule={kind: linear, warmup: 5, length: 5}",
         "optimizer.schedule.length: length 5 is all warmup, expected more than 5"),
        ("optimizer={kind: adam, lr: 1, momentum: 0.5}", "optimizer.momentum: kind adam does not use it"),
        ("stragglers={kind: trace, path: t, split: 2}", "stragglers.split: kind trace does not use it"),
        ("stragglers={kind: chunk_trace, path: t, chunk_costs: some}",
         "stragglers.chunk_costs: expected unknown, known or {known: RELATIVE_ERROR}, got 'some'"),
        ("stragglers={kind: chunk_trace, path: t, chunk_costs: {known: -1}}",
         "stragglers.chunk_costs.known: expected a number >= 0, got -1"),
        ("draws=piece", "only a torch problem has it, problem: {torch: 'module:function'}"),
        ("coding.chunks=8", "only a torch problem has it, problem: {torch: 'module:function'}; others have "
         "chunks_per_worker"),
        ("schedule=dynamics", "expected uncoded, full, random, static, skipping or dynamic, got 'dynamics'"),
        ("aggregation=ring", "expected server, allreduce or auto, got 'ring'"),
        ("faults.collect_timeout=0", f"{NUMBER}, got 0"),
        ("faults.adopt=1", "expected true or false, got 1"),
        ("coding.parts=4", "parts 4 is more than replication 3, each needs a holder"),
        ("coding.assignment=ring", f"{NAMES}, got 'ring'"),
        ("coding.assignment={kind: file}",
         "coding.assignment.path: missing, expected a .npy file with a 0/1 matrix, chunks x workers"),
        ("problem.kind=svm", f"{PROBLEMS}, got 'svm'"),
        ("problem={python: model.py}", "problem.python: expected 'module:object', got 'model.py'"),
        ("problem={python: 'a:b', kind: mlp}",
         "problem.kind: expected kind python, or no kind, with the key python, got 'mlp'"),
        ("data.path=''", "expected a path, got ''"),
        (r'output="a\0b"', r"expected a path, got 'a\x00b'"),
        ("data.test_labels=t.npy", "test_labels needs data.test"),
        ("data.index_base=2", "expected auto, 0 or 1, got 2"),
        ("data={path: X.NPY, index_base: 0}", "data.index_base: a .npz or .npy file does not use it"),
        ("verify={every: 0}", "verify.every: expected a whole number >= 1, got 0"),
        ("verify={every: 1, tolerance: -0.5}", "verify.tolerance: expected a number >= 0, got -0.5"),
        ("verify={every: 1, strikes: 0}", "verify.strikes: expected a whole number >= 1, got 0"),
        ("checkpoint.every=-1", "expected a whole number >= 0, got -1"),
        ("checkpoint.keep=0", "expected a whole number >= 1, got 0"),
        ("stragglers.kind=trace", "kind trace needs path: a .npy file, rounds x workers"),
        ("stragglers.kind=slow", "kind slow needs either factor or seconds, for example factor: {3: 10}"),
        ("stragglers.factor.3=2", "stragglers.factor: kind none does not use it"),
        ("stragglers.scale=2", "kind none does not use it"),
        ("stragglers={kind: slow, factor: {3: -1}}", f"stragglers.factor.3: {NUMBER}, got -1"),
        ("stragglers={kind: slow, seconds: {0: 1}}",
         "stragglers.seconds.0: expected a worker's rank (1, 2, ...) or 'all', got '0'"),
        ("stragglers={kind: slow, seconds: {3: 1}, factor: {3: 1}}",
         "stragglers.kind: kind slow needs either factor or seconds, for example factor: {3: 10}"),
        ("recovery={mode: approximate}",
         "recovery.mode: mode approximate needs deadline (seconds, or auto) or max_error (a number >= 0 and < 1)"),
        (APPROXIMATE + "deadline: 0}", "recovery.deadline: expected seconds > 0 or auto, got 0"),
        (APPROXIMATE + "max_error: 1}", "recovery.max_error: expected a number >= 0 and < 1, got 1"),
        ("recovery={deadline: 1}", "recovery.deadline: mode exact does not use it"),
        *((f"{APPROXIMATE}{ends}max_error: 0.1, estimator: unbiased}}",
           "recovery.estimator: unbiased needs a deadline and no max_error: a worker must not be late because of the "
           "others") for ends in ("", "deadline: 1, ")),
        (UNBIASED,
         "recovery.estimator: unbiased needs fixed queues, but schedule dynamic changes them; use uncoded, full, "
         "random or static"),
        *((f"faults.inject={faults}", message) for faults, message in FAULTS),
    ],
)  # fmt: skip
def test_refused_overrides(run_yaml, override, message):
    assert refusal(run_yaml, override) == f"--set {override}: {message}"


def test_every_key_of_torch_alone_is_refused_as_such():
    for torch, usual in ((TorchConfig, Config), (TorchCoding, Coding)):
        assert set(usual.unused) == set(torch.model_fields) - set(usual.model_fields)


def test_a_fault_in_the_file_is_blamed_by_its_line(run_yaml):
    faults = ["{kind: kill, rank: 0, iteration: 2, step: begin}", "{kind: hold, rank: 1, iteration: 2}"]
    run_yaml.write_text(RUN + "faults:\n  inject:\n" + "".join(f"  - {fault}\n" for fault in faults))
    assert refusal(run_yaml) == "run.yaml:11: faults.inject.1.kind: kind hold needs seconds"


FAULT = "faults.inject=[{kind: %s, rank: 1, iteration: 1, step: %s}]"
FLIP, AFTER_COMMIT = FAULT % ("flip", "sending"), FAULT % ("kill", "after_commit")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([UNBIASED, "schedule=static", "transfer=combined"],
         "--set transfer=combined: recovery.estimator: unbiased weights single chunks, which combined does not send; "
         "use per_chunk"),
        (["batch=3", "coding.chunks_per_worker=auto"],
         "--set batch=3: batch is a number of rows of each chunk, which needs a number as coding.chunks_per_worker, "
         "not auto"),
        (["batch={size: 4096, epochs: 10}"],
         "--set batch={size: 4096, epochs: 10}: batch.epochs says how long the run is; leave out iterations, or give "
         "batch a number of rows"),
        (["batch={size: 4096, epochs: 10}", "iterations=null", "data=null", "problem={python: 'a:B'}"],
         "--set batch={size: 4096, epochs: 10}: epochs are over the rows of data: {path: ...}, which is missing"),
        (["evaluate.every=5", "data={path: train.npz}"],
         "--set evaluate.every=5: evaluate: held-out rows are needed, data: {path: ..., test: ...}"),
        (["iterations=null"],
         "--set iterations=null: missing, expected a whole number >= 1, or batch: {size: ..., epochs: ...}"),
        ([AFTER_COMMIT, "transfer=per_chunk"],
         f"--set {AFTER_COMMIT}: faults: faults.inject: per_chunk has no step after_commit"),
        ([FLIP, "transfer=combined"],
         f"--set {FLIP}: faults: faults.inject: kind flip changes coded gradients at sending, which combined does not "
         "send"),
        (["verify.every=7", "coding.parts=2", "transfer=combined"],
         "--set transfer=combined: verify: with parts 2 it compares coded gradients, which combined does not send; "
         "use per_chunk"),
        (["verify.every=7", "schedule=uncoded"],
         "--set verify.every=7: verify: schedule uncoded has no second copy to compare with"),
        *(([f"verify.{given}"],
           f"--set verify.{given}: verify.every: expected a whole number >= 1, or idle: true in its place")
          for given in ("idle=false", "strikes=2")),
        (["verify.idle=true", "verify.tolerance=0.1"],
         "--set verify.tolerance=0.1: idle: true, which compares bits, does not use it"),
        *((["verify.idle=true", other],
           "--set verify.idle=true: verify: idle compares gradients that workers keep: it needs parts 1 and transfer "
           "combined")
          for other in ("coding.parts=2", "transfer=per_chunk", FLIP)),
        (["verify.every=7", "coding.replication=1"],
         "--set verify.every=7: verify: replication 1 with parts 1 leaves no copy to compare with, expected "
         "replication >= 2"),
        (["verify.every=7", "coding.parts=3"],
         "--set verify.every=7: verify: replication 3 with parts 3 leaves no copy to compare with, expected "
         "replication >= 4"),
        (["aggregation=allreduce", "transfer=per_chunk"],
         "--set aggregation=allreduce: allreduce sums accumulators, which per_chunk does not have; use transfer "
         "combined or auto"),
        (["aggregation=allreduce", UNBIASED, "schedule=static"],
         "--set aggregation=allreduce: allreduce sums accumulators, but estimator unbiased weights single chunks; use "
         "server"),
        (["aggregation=allreduce", "verify.every=7", "coding.parts=2"],
         "--set aggregation=allreduce: allreduce sends no coded gradients, which verify compares; with parts 1 it "
         "compares sketches"),
        (["aggregation=allreduce", FLIP],
         "--set aggregation=allreduce: allreduce sends no coded gradients, which kind flip of faults.inject changes at "
         "sending; use server"),
        (["reproducible=true", "coding.parts=2"],
         "--set reproducible=true: with parts 2 the rounding depends on which workers were fast; use parts: 1"),
        (["reproducible=true", "recovery={mode: approximate, deadline: 5.0}"],
         "--set reproducible=true: approximate leaves out what is late; use recovery: {mode: exact}"),
        (["reproducible=true", "coding.chunks_per_worker=auto"],
         "--set reproducible=true: chunks_per_worker auto follows from times, and the sum from the number of chunks; "
         "give a number"),
        *(([f"aggregation={name}", FAULT % (kind, step)],
           f"--set {FAULT % (kind, step)}: faults: faults.inject: workers have a step {step} only with aggregation "
           "allreduce")
          for name, kind, step in [("server", "kill", "summing"), ("auto", "stop", "passing_on")]),
    ],
)  # fmt: skip
def test_settings_that_contradict_each_other(run_yaml, overrides, message):
    assert refusal(run_yaml, *overrides) == message


@pytest.mark.parametrize(
    "overrides",
    [
        ["problem={python: 'my.models:Net', options: {width: 3, names: [a]}}", "data="],
        ["problem={kind: mlp, hidden: 3, l2: 0.1}"],
        ["optimizer={kind: adam, lr: 3, beta1: 0, epsilon: 1e-30}"],
        ["optimizer={kind: sgd, lr: 1, weight_decay: 0.1, schedule: {kind: step, warmup: 3, every: 5}}"],
        ["optimizer={kind: sgd, lr: 1, clip_norm: 2, schedule: {kind: cosine, length: 70, final: 0.5}}"],
        ["coding.assignment={kind: file, path: 1e3.npy}", "coding.parts=5"],
        ["stragglers={kind: slow, seconds: {all: 0.5, 2: 1}}"],
        ["output='1e3'"],
        ['output="é: # 漢 2013-01-01"'],
        ["data={path: X.npy, labels: y.npy, test: T.npy, test_labels: t.npy}"],
        ["data={path: a.svm, index_base: auto}"],
        ["data={path: X.npz, test: T.npz}", "evaluate.every=5"],
        ["data={path: a.svm.gz, index_base: 0}"],
        ["data={path: X.npz, test: a.svm, index_base: 1}"],
        ["faults={adopt: false, inject: [{kind: stop, rank: 1, iteration: 0, step: sending, seconds: 0.5}]}"],
        ["verify={every: 10, tolerance: 1e-6}"],
        ["verify="],
        ["verify.idle=true", "schedule=uncoded"],
        ["verify={idle: true, strikes: 1}", "coding.replication=1", FAULT % ("flip", "gradient")],
        *(
            [f"{APPROXIMATE}{given}}}"]
            for given in ("deadline: 0.5, max_error: 0.01", "deadline: auto", "max_error: 0")
        ),
        [AFTER_COMMIT, "transfer=combined"],
        [FLIP],
        ["aggregation=allreduce", AFTER_COMMIT],
        *(["aggregation=allreduce", FAULT % ("stop", step)] for step in ("summing", "passing_on", "passed_on")),
        *([f"aggregation={name}", FAULT % ("flip", "stepping")] for name in ("auto", "server", "allreduce")),
        ["aggregation=server", FAULT % ("exit", "passed_on")],
        ["verify.every=7", "coding.parts=2"],
        ["verify.every=7", "transfer=combined"],
        ["aggregation=allreduce", "transfer=combined", "coding.parts=2", f"{APPROXIMATE}deadline: 1}}"],
        ["aggregation=allreduce", "verify.every=7"],
        *([f"aggregation={name}", UNBIASED, "schedule=static", "transfer=per_chunk"] for name in ("auto", "server")),
    ],
)
def test_settings_that_agree_read_back_equal(run_yaml, overrides):
    config = load(run_yaml, overrides)
    text = config.to_yaml()
    assert from_yaml_text(text) == config
    assert yaml.safe_load(text) == config.model_dump()  # any YAML 1.1 reader sees the same


def test_of_two_keys_that_clash_the_overridden_one_is_blamed(run_yaml):
    run_yaml.write_text(RUN.replace("  replication: 3", "  replication: 3\n  parts: 3"))
    assert refusal(run_yaml, "coding.replication=2") == (
        "--set coding.replication=2: parts 3 is more than replication 2, each needs a holder"
    )


def test_files_that_cannot_be_read(run_yaml):
    run_yaml.write_bytes(b"\xff\xfe")
    assert refusal(run_yaml) == "run.yaml: not UTF-8 text, expected YAML"
    run_yaml.write_text("- 1\n")
    assert refusal(run_yaml).startswith("run.yaml: expected a mapping with the keys problem, data, ")
    assert refusal("other.yaml") == "other.yaml: no such file"
    assert refusal(".") == ".: cannot be read: is a directory"
    assert refusal("a\0b") == r"a\x00b: cannot be read: not a path"
