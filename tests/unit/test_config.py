from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from psgc.config import BuiltinProblem, PythonProblem, from_yaml_text, load
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
    assert (config.schedule, config.transfer, config.backend, config.dtype) == (
        "dynamic",
        "auto",
        "auto",
        "float64",
    )
    assert config.coding.model_dump() == {
        "chunks_per_worker": 8,
        "replication": 3,
        "assignment": "blocks",
        "parts": 1,
        "coding_matrix": "spread",
    }
    assert config.optimizer.model_dump() == {
        "kind": "nesterov",
        "lr": 0.1,
        "momentum": 0.9,
        "beta1": 0.9,
        "beta2": 0.999,
        "epsilon": 1e-8,
    }
    assert (config.batch, config.seed, config.stragglers.kind, config.faults.collect_timeout) == (
        None,
        0,
        "none",
        30.0,
    )
    assert (config.faults.adopt, config.faults.inject) == (True, [])
    assert config.data is not None
    assert (config.data.path, config.data.labels, config.output) == ("data/train.npz", None, "runs/x")


def test_a_config_is_read_only(run_yaml):
    with pytest.raises(ValidationError):
        load(run_yaml).seed = 3


def test_overrides_take_effect_in_order(run_yaml):
    config = load(run_yaml, ["coding.parts=2", "coding.parts=3", "coding.assignment={kind: file, path: A.npy}"])
    assert config.coding.parts == 3
    assert not isinstance(config.coding.assignment, str)
    assert config.coding.assignment.path == "A.npy"


def test_a_matrix_from_a_file_decides_its_own_replication(run_yaml):
    overrides = ["coding.assignment={kind: file, path: A.npy}", "coding.parts=5"]
    assert load(run_yaml, overrides).coding.parts == 5


def test_a_users_problem_needs_no_data(run_yaml):
    config = load(run_yaml, ["problem={python: 'my.models:Net', options: {width: 3, names: [a]}}", "data="])
    assert config.problem == PythonProblem(python="my.models:Net", options={"width": 3, "names": ["a"]})
    assert config.data is None
    assert from_yaml_text(config.to_yaml()) == config


@pytest.mark.parametrize(
    "override",
    [
        "problem={kind: mlp, hidden: 3, l2: 0.1}",
        "optimizer={kind: adam, lr: 3, beta1: 0, epsilon: 1e-30}",
        "optimizer={kind: sgd, lr: 1e-3}",
        "coding.assignment={kind: file, path: 1e3.npy}",
        "stragglers={kind: slow, seconds: {all: 0.5, 2: 1}}",
        "output='1e3'",
        'output="é: # 漢 2013-01-01"',
        "data={path: X.npy, labels: y.npy, test: T.npy, test_labels: t.npy}",
        "data={path: a.svm, index_base: auto}",
        "data={path: a.svm.gz, index_base: 0}",
        "data={path: X.npz, test: a.svm, index_base: 1}",
        "faults={adopt: false, inject: [{kind: kill, rank: 3, iteration: 5}, "
        "{kind: stop, rank: 1, iteration: 0, step: sending, seconds: 0.5}, "
        "{kind: flip, rank: 1, iteration: 0, step: sending}]}",
        "verify={every: 10, tolerance: 1e-6}",
        "verify=",
    ],
)
def test_the_resolved_text_reads_back_equal(run_yaml, override):
    config = load(run_yaml, [override])
    text = config.to_yaml()
    assert from_yaml_text(text) == config
    assert yaml.safe_load(text) == config.model_dump()  # any YAML 1.1 reader sees the same


WHOLE = "run.yaml:3: iterations: expected a whole number >= 1"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("  repli", "  repl", "run.yaml:6: coding.replcation: unknown key, did you mean 'replication'?"),
        ("iterations: 10", "iterations: ten", f"{WHOLE}, got 'ten'"),
        ("iterations: 10", "iterations: 10.0", f"{WHOLE}, got 10.0"),
        ("iterations: 10", "iterations: true", f"{WHOLE}, got true"),
        ("iterations: 10", "iterations: '10'", f"{WHOLE}, got '10'"),
        ("iterations: 10", "iterations:", f"{WHOLE}, got nothing"),
        ("iterations: 10\n", "", "run.yaml: iterations: missing, expected a whole number >= 1"),
        (
            "problem: {kind: logistic}\n",
            "",
            "run.yaml: problem: missing, expected a mapping, for example {kind: logistic}",
        ),
        (
            "optimizer: {kind: nesterov, lr: 1e-1}\n",
            "",
            "run.yaml: optimizer: missing, expected a mapping, for example {kind: nesterov, lr: 0.5}",
        ),
        (
            "output: runs/x\n",
            "",
            "run.yaml: output: missing, expected the run directory, for example runs/quickstart",
        ),
        (
            "data: {path: data/train.npz}\n",
            "",
            "run.yaml: data: missing, problem logistic needs data: {path: ...}",
        ),
        (", lr: 1e-1", "", "run.yaml:4: optimizer.lr: missing, expected a number > 0"),
        (
            "kind: nesterov, ",
            "",
            "run.yaml:4: optimizer.kind: missing, expected sgd, momentum, nesterov or adam",
        ),
        ("lr: 1e-1", "lr: 0", "run.yaml:4: optimizer.lr: expected a number > 0, got 0"),
        ("coding:\n", "coding: [\n", "run.yaml:7: not valid YAML: expected ',' or ']', but got ':'"),
        ("output:", "seed: 1\nseed: 2\noutput:", "run.yaml:8: seed: given twice, first at run.yaml:7"),
        ("  replication: 3", "  replication: 3\n  parts: 4", "run.yaml:7: coding.parts: parts 4 is more than "
         "replication 3, each needs a holder"),
    ],
)  # fmt: skip
def test_refused_files(run_yaml, old, new, message):
    assert RUN.count(old) == 1
    run_yaml.write_text(RUN.replace(old, new))
    assert refusal(run_yaml) == message


NUMBER = "expected a number > 0"
NAMES = "expected blocks, cyclic, fractional, graph or {kind: file, path: ...}"
PROBLEMS = "expected least_squares, logistic, softmax, mlp or python: 'module:object'"


APPROXIMATE = "recovery={mode: approximate, "
UNBIASED = f"{APPROXIMATE}deadline: 1, estimator: unbiased}}"
INJECT = "expected a list of {kind, rank, iteration, step}"
KINDS = "expected kill, stop, exit, raise, hang, hold or flip"
ONLY_THE_GRADIENT = "needs step: gradient"
ONLY_KILL = "rank 0, the server, computes nothing: expected kind: kill, step: begin"
FAULTS = [
    ("kill", f"{INJECT}, got 'kill'"),
    ("{kind: kill}", f"{INJECT}, got a mapping"),
    ("", f"{INJECT}, got nothing"),
    ("[kill]",
     "faults.inject.0: expected a mapping with the keys kind, rank, iteration, step, seconds, got 'kill'"),
    ("[{kind: shoot, rank: 3, iteration: 5}]", f"faults.inject.0.kind: {KINDS}, got 'shoot'"),
    ("[{rank: 3, iteration: 5}]", f"faults.inject.0.kind: missing, {KINDS}"),
    ("[{kind: kill, iteration: 5}]", "faults.inject.0.rank: missing, expected a rank, 0 for the server"),
    ("[{kind: kill, rank: -1, iteration: 5}]", "faults.inject.0.rank: expected a whole number >= 0, got -1"),
    ("[{kind: kill, rank: 1}]", "faults.inject.0.iteration: missing, expected a whole number >= 0"),
    ("[{kind: kill, rank: 1, iteration: x}]", "faults.inject.0.iteration: expected a whole number >= 0, got 'x'"),
    ("[{kind: kill, rank: 1, iteration: 1, when: begin}]",
     "faults.inject.0.when: unknown key, expected one of kind, rank, iteration, step, seconds"),
    ("[{kind: kill, rank: 1, iteration: 1, step: end}]",
     "faults.inject.0.step: expected begin, gradient, before_report, after_report, after_commit or sending, "
     "got 'end'"),
    ("[{kind: raise, rank: 1, iteration: 1, step: begin}]",
     f"faults.inject.0.step: kind raise {ONLY_THE_GRADIENT}"),
    ("[{kind: hang, rank: 1, iteration: 1, step: sending}]",
     f"faults.inject.0.step: kind hang {ONLY_THE_GRADIENT}"),
    ("[{kind: hold, rank: 1, iteration: 1, seconds: 2, step: after_report}]",
     f"faults.inject.0.step: kind hold {ONLY_THE_GRADIENT}"),
    ("[{kind: hold, rank: 1, iteration: 1}]", "faults.inject.0.kind: kind hold needs seconds"),
    ("[{kind: hold, rank: 1, iteration: 1, seconds: 0}]", f"faults.inject.0.seconds: {NUMBER}, got 0"),
    ("[{kind: kill, rank: 1, iteration: 1, seconds: 2}]", "faults.inject.0.seconds: kind kill does not use it"),
    ("[{kind: flip, rank: 1, iteration: 1}]",
     "faults.inject.0.step: kind flip needs step: sending"),
    ("[{kind: kill, rank: 0, iteration: 1}]", f"faults.inject.0.rank: {ONLY_KILL}"),
    ("[{kind: stop, rank: 0, iteration: 1, step: begin}]", f"faults.inject.0.rank: {ONLY_KILL}"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("iterations=99999999999", "expected a whole number >= 1 and <= 2147483647, got 99999999999"),
        ("seed=-1", "expected a whole number >= 0, got -1"),
        ("batch=0", "expected a whole number >= 1, got 0"),
        ("coding.chunks_per_worker=many", "expected a whole number >= 1 or auto, got 'many'"),
        ("coding.chunks_per_worker=0", "expected a whole number >= 1 or auto, got 0"),
        ("coding={chunks_per_worker: auto, assignment: {kind: file, path: A.npy}}",
         "coding.chunks_per_worker: an assignment from a file does not use it"),
        ("problem.l2=-1", "expected a number >= 0, got -1"),
        ("problem.l2=.nan", "expected a number >= 0, got nan"),
        ("optimizer.lr=.inf", f"{NUMBER}, got inf"),
        ("optimizer.lr=true", f"{NUMBER}, got true"),
        ("optimizer.momentum=1", "expected a number >= 0 and < 1, got 1"),
        ("optimizer.kind=adagrad", "expected sgd, momentum, nesterov or adam, got 'adagrad'"),
        ("optimizer.beta1=0.5", "kind nesterov does not use it"),
        ("stragglers=slow", "expected a mapping with the keys kind, factor, seconds, path, scale, got 'slow'"),
        ("schedule=dynamics", "expected uncoded, full, random, static, skipping or dynamic, got 'dynamics'"),
        ("schedule=[1]", "expected uncoded, full, random, static, skipping or dynamic, got a list"),
        ("transfer=3", "expected auto, per_chunk or combined, got 3"),
        ("backend=torch", "expected auto, numpy or cupy, got 'torch'"),
        ("dtype=float16", "expected float64 or float32, got 'float16'"),
        ("faults.collect_timeout=0", f"{NUMBER}, got 0"),
        ("faults.adopt=1", "expected true or false, got 1"),
        ("faults.adop=true", "unknown key, did you mean 'adopt'?"),
        ("report.every=2",
         "report: unknown key, expected one of problem, data, optimizer, iterations, "
         "batch, coding, schedule, transfer, backend, dtype, recovery, verify, trial, faults, checkpoint, "
         "stragglers, output, seed"),

        ("codng.parts=2", "codng: unknown key, did you mean 'coding'?"),
        ("coding.parts=4", "parts 4 is more than replication 3, each needs a holder"),
        ("coding.coding_matrix=identity", "expected spread or gaussian, got 'identity'"),
        ("coding.assignment=ring", f"{NAMES}, got 'ring'"),
        ("coding.assignment=3", f"{NAMES}, got 3"),
        ("coding.assignment={kind: file}",
         "coding.assignment.path: missing, expected a .npy file with a 0/1 matrix, chunks x workers"),
        ("coding.assignment={path: A.npy}", "coding.assignment.kind: missing, expected file"),
        ("coding.assignment={kind: cyclic, path: x}",
         "coding.assignment.kind: expected file, got 'cyclic'"),
        ("problem.kind=svm", f"{PROBLEMS}, got 'svm'"),
        ("problem={}", f"problem.kind: missing, {PROBLEMS}"),
        ("problem=mlp", "expected a mapping with the keys kind, l2, hidden, got 'mlp'"),
        ("problem.hidden=3", "kind logistic does not use it"),
        ("problem={python: model.py}", "problem.python: expected 'module:object', got 'model.py'"),
        ("problem={kind: python}", "problem.python: missing, expected 'module:object'"),
        ("problem={python: 'a:b', kind: mlp}",
         "problem.kind: expected kind python, or no kind, with the key python, got 'mlp'"),
        ("problem={python: 'a:b', options: 3}",
         "problem.options: expected a mapping of keyword arguments, got 3"),
        ("data={}",
         "data.path: missing, expected a file: .npz, .npy (with labels: another .npy) or LIBSVM text"),
        ("data.path=", "expected a path, got nothing"),
        ("data.path=''", "expected a path, got ''"),
        (r'output="a\nb"', r"expected a path, got 'a\nb'"),
        (r'output="a\0b"', r"expected a path, got 'a\x00b'"),
        (r'output="\ud800"', r"expected a path, got '\ud800'"),
        ("data.test_labels=t.npy", "test_labels needs data.test"),
        ("data.index_base=2", "expected auto, 0 or 1, got 2"),
        ("data.index_base=true", "expected auto, 0 or 1, got true"),
        ("data.index_base=0", "a .npz or .npy file does not use it"),
        ("verify=yes", "expected a mapping with the keys every, tolerance, strikes, got 'yes'"),
        ("verify={}",
         "verify.every: missing, expected a whole number >= 1: each chunk is checked once in so many iterations"),
        ("verify={every: 0}", "verify.every: expected a whole number >= 1, got 0"),
        ("verify={every: 1, tolerance: -0.5}", "verify.tolerance: expected a number >= 0, got -0.5"),
        ("verify={every: 1, strikes: 0}", "verify.strikes: expected a whole number >= 1, got 0"),
        ("verify={evry: 1}", "verify.evry: unknown key, did you mean 'every'?"),
        ("checkpoint.every=-1", "expected a whole number >= 0, got -1"),
        ("checkpoint.keep=0", "expected a whole number >= 1, got 0"),
        ("stragglers.kind=traces", "expected none, slow, exponential or trace, got 'traces'"),
        ("stragglers.kind=trace", "kind trace needs path: a .npy file, rounds x workers"),
        ("stragglers.kind=slow", "kind slow needs either factor or seconds, for example factor: {3: 10}"),
        ("stragglers.factor.3=2", "stragglers.factor: kind none does not use it"),
        ("stragglers={kind: slow, factor: 3}",
         "stragglers.factor: expected a mapping {rank or all: a number > 0}, got 3"),
        ("stragglers={kind: slow, factor: {}}",
         "stragglers.factor: expected a mapping {rank or all: a number > 0}, got a mapping"),
        ("stragglers={kind: slow, factor: {3: -1}}", f"stragglers.factor.3: {NUMBER}, got -1"),
        ("stragglers={kind: slow, seconds: {0: 1}}",
         "stragglers.seconds.0: expected a worker's rank (1, 2, ...) or 'all', got '0'"),
        ("stragglers={kind: slow, seconds: {3: 1}, factor: {3: 1}}",
         "stragglers.kind: kind slow needs either factor or seconds, for example factor: {3: 10}"),
        ("recovery={mode: approximate}",
         "recovery.mode: mode approximate needs deadline (seconds, or auto) or max_error (a number >= 0 and < 1)"),
        (APPROXIMATE + "deadline: 0}", "recovery.deadline: expected seconds > 0 or auto, got 0"),
        (APPROXIMATE + "deadline: soon}", "recovery.deadline: expected seconds > 0 or auto, got 'soon'"),
        (APPROXIMATE + "deadline: true}", "recovery.deadline: expected seconds > 0 or auto, got true"),
        (APPROXIMATE + "deadline: .inf}", "recovery.deadline: expected seconds > 0 or auto, got inf"),
        (APPROXIMATE + "max_error: 1}", "recovery.max_error: expected a number >= 0 and < 1, got 1"),
        ("recovery={deadline: 1}", "recovery.deadline: mode exact does not use it"),
        ("recovery={max_error: 0.1}", "recovery.max_error: mode exact does not use it"),
        (APPROXIMATE + "max_error: 0.1, estimator: unbiased}",
         "recovery.estimator: unbiased needs a deadline and no max_error: a worker must not be late because of the "
         "others"),
        (UNBIASED,
         "recovery.estimator: unbiased needs fixed queues, but schedule dynamic changes them; use uncoded, full, "
         "random or static"),
        *((f"faults.inject={faults}", message) for faults, message in FAULTS),
    ],
)  # fmt: skip
def test_refused_overrides(run_yaml, override, message):
    assert refusal(run_yaml, override) == f"--set {override}: {message}"


@pytest.mark.parametrize("given", ["deadline: 0.5, max_error: 0.01", "deadline: auto", "max_error: 0", "deadline: 2"])
def test_accepted_recovery(run_yaml, given):
    config = load(run_yaml, [f"{APPROXIMATE}{given}}}"])
    assert from_yaml_text(config.to_yaml()) == config


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
        ([AFTER_COMMIT, "transfer=per_chunk"],
         f"--set {AFTER_COMMIT}: faults: faults.inject: per_chunk has no step after_commit"),
        ([FLIP, "transfer=combined"],
         f"--set {FLIP}: faults: faults.inject: kind flip changes coded gradients, which combined only sends with "
         "verify"),
        (["verify.every=7", "schedule=uncoded"],
         "--set verify.every=7: verify: schedule uncoded has no second copy to compare with"),
        (["verify.every=7", "coding.replication=1"],
         "--set verify.every=7: verify: replication 1 with parts 1 leaves no copy to compare with, expected "
         "replication >= 2"),
        (["verify.every=7", "coding.parts=3"],
         "--set verify.every=7: verify: replication 3 with parts 3 leaves no copy to compare with, expected "
         "replication >= 4"),
    ],
)  # fmt: skip
def test_settings_that_contradict_each_other(run_yaml, overrides, message):
    assert refusal(run_yaml, *overrides) == message


@pytest.mark.parametrize(
    "overrides",
    [[AFTER_COMMIT, "transfer=combined"], [FLIP, "transfer=combined", "verify={every: 3}"], ["verify.every=7"]],
)
def test_settings_that_agree(run_yaml, overrides):
    load(run_yaml, overrides)


def test_of_two_keys_that_clash_the_overridden_one_is_blamed(run_yaml):
    run_yaml.write_text(RUN.replace("  replication: 3", "  replication: 3\n  parts: 3"))
    assert refusal(run_yaml, "coding.replication=2") == (
        "--set coding.replication=2: parts 3 is more than replication 2, each needs a holder"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "run.yaml: empty, expected a mapping with the keys problem, data, "),
        (b"# nothing\n", "run.yaml: empty, expected a mapping with the keys problem, data, "),
        (b"- 1\n", "run.yaml: expected a mapping with the keys problem, data, "),
        (b"\xff\xfe", "run.yaml: not UTF-8 text, expected YAML"),
    ],
)
def test_files_that_are_no_mapping(run_yaml, content, message):
    run_yaml.write_bytes(content)
    assert refusal(run_yaml).startswith(message)


def test_files_that_cannot_be_read(run_yaml):
    assert refusal("other.yaml") == "other.yaml: no such file"
    assert refusal(".") == ".: cannot be read: is a directory"
    assert refusal("a\0b") == r"a\x00b: cannot be read: not a path"
