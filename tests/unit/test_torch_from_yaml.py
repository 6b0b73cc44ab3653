"""Torch problems: what is refused of the YAML, and of what the user's function returns."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import psgc.torch
from psgc.checkpoints import Content, write_file
from psgc.cli import main
from psgc.config import TorchConfig, from_yaml_text, has_torch_problem, load
from psgc.errors import UserError
from psgc.run.inputs import open_problem
from psgc.torch import from_yaml
from psgc.torch.checkpoints import load_initial
from psgc.torch.settings import check_resumed
from psgc.torch.state import About, state_of
from psgc.torch.tensor_files import save_model, to_bytes
from tests.unit import torch_problem
from tests.unit.documents import blocks
from tests.unit.fake_mpirun import launch

ROOT = Path(__file__).parents[2]
FOLDER = str(Path(torch_problem.__file__).parent)
YAML = """\
problem: {torch: "torch_problem:build", options: {hidden: 5}}
optimizer:
  torch: AdamW
  lr: 1.0e-2
  betas: [0.8, 0.9]
  clip_norm: 0.5
scheduler: {torch: MultiStepLR, milestones: [2, 4]}
batch: {size: 100, epochs: 2}
coding: {chunks: 4, replication: 2}
output: out
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(YAML)
    monkeypatch.syspath_prepend(FOLDER)
    return tmp_path


def refusal(*overrides):
    with pytest.raises(UserError) as caught:
        from_yaml.train("run.yaml", overrides)
    assert caught.value.exit_code == 2
    assert len(str(caught.value).splitlines()) == 1
    assert not Path("out").exists()
    return str(caught.value)


def test_settings_are_written_and_read_again(folder):
    config = load("run.yaml")
    assert isinstance(config, TorchConfig)
    assert config.optimizer.arguments == {"lr": 0.01, "betas": [0.8, 0.9]}
    assert (config.coding.chunks, config.coding.parts, config.micro_batch) == (4, 1, None)
    text = config.to_yaml()
    assert from_yaml_text(text) == config
    assert not {"data", "iterations", "recovery", "assignment"} & set(text.replace(":", " ").split())


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data={path: x.npz}", "a torch problem has none, its function returns the dataset"),
        ("iterations=3", "a torch problem has batch: {size: ..., epochs: ...} instead"),
        ("dtype=float32", "a torch problem has none, it is that of the model's parameters"),
        ("recovery.mode=exact", "recovery: a torch problem has none, its gradients are exact"),
        (
            "coding.chunks_per_worker=3",
            "a torch problem has coding.chunks instead, a number for all workers together",
        ),
        ("coding.chunk=3", "unknown key, did you mean 'chunks'?"),
        ("optimizer={kind: adam, lr: 1}", "optimizer.kind: a torch problem has torch: NAME instead, a class of"),
        ("optimizer={lr: 1}", "optimizer.torch: missing, expected a class of torch.optim, for example AdamW"),
        ("optimizer.torch=3", "expected a class of torch.optim, for example AdamW, got 3"),
        ("batch=100", "expected a mapping, for example {size: 256, epochs: 10}, got 100"),
        ("autocast=float16", "expected none or bfloat16, got 'float16'"),
        ("coding.parts=3", "parts 3 is more than replication 2, each needs a holder"),
        ("problem.torch=build", "expected 'module:function', got 'build'"),
        # names
        ("optimizer.torch=Adamw", "no Adamw in torch.optim, did you mean AdamW?"),
        ("optimizer.torch=Optimizer", "no Optimizer in torch.optim, expected one of ASGD, Adadelta, "),
        ("scheduler.torch=MultistepLR", "no MultistepLR in torch.optim.lr_scheduler, did you mean MultiStepLR?"),
        ("optimizer.weigth_decay=1", "AdamW has no such argument, did you mean 'weight_decay'?"),
        ("optimizer.rate=1", "AdamW has no such argument, expected one of lr, betas, eps, weight_decay, "),
        ("optimizer.params=1", "AdamW has no such argument, expected one of lr, betas, eps, weight_decay, "),
        ("scheduler={torch: StepLR}", "StepLR needs the argument step_size"),
        # values
        ("optimizer.lr=-1", "AdamW fails with it: ValueError: Invalid learning rate: -1"),
        ("optimizer.lr=fast", "AdamW fails with it: TypeError: "),
        ("optimizer={torch: LBFGS}", "LBFGS fails when it steps: TypeError: LBFGS.step() missing "),
        ("optimizer={torch: SparseAdam}", "SparseAdam fails when it steps: RuntimeError: SparseAdam does not support"),
        ("scheduler={torch: LambdaLR, lr_lambda: x}", "LambdaLR fails when it steps: TypeError: 'str' object is not"),
        ("scheduler={torch: ReduceLROnPlateau}", "ReduceLROnPlateau fails when it steps: TypeError: "),
        ("scheduler={torch: OneCycleLR, max_lr: 1, total_steps: 5}", "is over after 5 steps, the run has 6"),
    ],
)  # fmt: skip
def test_wrong_settings(folder, override, said):
    assert refusal(override).startswith(f"--set {override}: {said}")


def test_a_schedule_may_be_over_with_the_last_step(folder):
    from_yaml.train("run.yaml", ["scheduler={torch: OneCycleLR, max_lr: 1, total_steps: 6}"])


def test_the_line_of_a_wrong_argument_is_named(folder):
    Path("run.yaml").write_text(YAML.replace("betas", "beta"))
    assert refusal() == "run.yaml:5: optimizer.beta: AdamW has no such argument, did you mean 'betas'?"


@pytest.mark.parametrize(
    ("problem", "said"),
    [
        ("{torch: 'nowhere:build'}", "nowhere:build: no module 'nowhere' installed, beside the YAML or here"),
        ("{torch: 'broken:build'}", "broken:build: importing broken failed: ZeroDivisionError: division by zero"),
        ("{torch: 'torch_problem:bild'}", "torch_problem:bild: torch_problem (FOLDER/torch_problem.py) has no bild, "
            "did you mean build?"),
        ("{torch: 'torch_problem:torch'}", "torch_problem:torch: is a module, expected a function"),
        (
            "{torch: 'torch_problem:build', options: {width: 3}}",
            "torch_problem:build: calling it with {'width': 3} failed: TypeError: build() got an unexpected keyword "
            "argument 'width'",
        ),
        ("{torch: 'torch_problem:data'}", "torch_problem:data returned a TensorDataset; EXPECTED"),
        ("{torch: 'torch_problem:pair'}", "torch_problem:pair returned a tuple of 2; EXPECTED"),
        ("{loss: nothing}", "torch_problem:returns returned a mapping without loss; EXPECTED"),
        ("{losses: 3}", "torch_problem:returns returned a mapping with losses; EXPECTED"),
        ("{model: 3}", "torch_problem:returns returned a int as model, expected a torch.nn.Module"),
        ("{torch: 'torch_problem:frozen'}", "torch_problem:frozen returned a model without trainable parameters"),
        ("{loss: 3}", "torch_problem:returns returned a int as loss, expected a function"),
        ("{cost_fn: 3}", "torch_problem:returns returned a int as cost_fn, expected a function"),
        ("{metrics: 3}", "torch_problem:returns returned a int as metrics, expected a function"),
        ("{test: nothing}", "torch_problem:returns returned metrics without test, the dataset to evaluate them on"),
        (
            "{dataset: 3}",
            "torch_problem:returns: dataset: the dataset (int) has no __getitem__; expected a map-style dataset, with "
            "__len__ and __getitem__",
        ),
        ("{test: []}", "torch_problem:returns: test: the dataset (list) is empty, expected at least one example"),
    ],
)  # fmt: skip
def test_wrong_functions(folder, problem, said):
    Path("broken.py").write_text("1 / 0")
    if "torch:" not in problem:
        problem = f"{{torch: 'torch_problem:returns', options: {problem}}}"
    expected = said.replace("EXPECTED", from_yaml.EXPECTED).replace("FOLDER", FOLDER)
    assert refusal(f"problem={problem}") == f"problem.torch: {expected}"


@pytest.fixture
def made(folder):
    """A run directory with the settings of the run."""
    Path("out").mkdir()
    Path("out/config.yaml").write_text(load("run.yaml").to_yaml())
    return Path("out")


def test_what_may_change_in_a_resumed_run(made):
    changed = ["optimizer.clip_norm=3", "batch.epochs=5", "coding.replication=1", "micro_batch=7", "initial=gone.npy"]
    changed += ["schedule=uncoded", "transfer=per_chunk", "reproducible=true", "trial=false", "checkpoint.every=1"]
    changed += ["faults={collect_timeout: 9}", "stragglers={kind: slow, factor: {1: 2}}", "output=moved", "metrics={}"]
    check_resumed(load("run.yaml", changed), made, 4)
    check_resumed(load("run.yaml", ["seed=3"]), Path("elsewhere"), 4)  # there is nothing to compare with


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("problem.torch=torch_problem:slow", "problem.torch: torch_problem:slow does not match {}torch_problem:build"),
        ("problem.options.hidden=6", "problem.options.hidden: 6 does not match {}5"),
        ("problem.options.dropout=0.5", "problem.options.dropout: 0.5 does not match {}null"),
        ("optimizer.lr=0.2", "optimizer.lr: 0.2 does not match {}0.01"),
        ("optimizer.betas=[0.8, 0.8]", "optimizer.betas: [0.8, 0.8] does not match {}[0.8, 0.9]"),
        ("scheduler=", "scheduler.torch: null does not match {}MultiStepLR"),
        ("batch.size=64", "batch.size: 64 does not match {}100"),
        ("batch.shuffle=false", "batch.shuffle: false does not match {}true"),
        ("autocast=bfloat16", "autocast: bfloat16 does not match {}none"),
        ("buffers=chunk", "buffers: chunk does not match {}null"),
        ("draws=piece", "draws: piece does not match {}chunk"),
        ("coding.chunks=5", "coding.chunks: 5 does not match {}4"),
        ("seed=1", "seed: 1 does not match {}0"),
    ],
)
def test_what_a_checkpoint_depends_on_stays_in_a_resumed_run(made, setting, said):
    with pytest.raises(UserError) as caught:
        check_resumed(load("run.yaml", [setting]), made, 4)
    assert str(caught.value) == (
        said.format("the checkpoint of step 4 in out, which has ")
        + "; set it back, or leave out --resume to start from the beginning"
    )


def test_the_steps_are_those_of_a_script(folder, one_process, capsys, monkeypatch):
    """Also what is resumed: nothing is left to do, and `initial` counts no more."""
    settings = ["problem.torch=torch_problem:negating", "seed=3", "batch.shuffle=false"]
    settings += ["autocast=bfloat16", "micro_batch=40"]

    def cast(model, batch):
        with torch.autocast("cpu", torch.bfloat16):
            return torch_problem.loss(model, batch)

    torch.manual_seed(3)
    model, data = torch_problem.network(5), torch_problem.data()
    run = psgc.torch.init(model, data, cast, chunks=4, seed=3, micro_batch=40, collate_fn=torch_problem.negated)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2, (0.8, 0.9))
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 4])
    run.attach(optimizer, schedule)
    for batch in run.batches(100, epochs=2, shuffle=False):
        run.backward(batch)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.01)
        optimizer.step()
        schedule.step()
    run.end(False)
    for more, epochs in ([], ["1", "2"]), (["initial=gone.safetensors"], ["2"]):
        run = from_yaml.train("run.yaml", [*settings, "optimizer.clip_norm=0.01", *more])
        run.end(False)
        run.engine.end()
        torch.testing.assert_close(load_file("out/model.safetensors"), dict(model.state_dict()), rtol=0, atol=0)
        assert re.findall("^epoch (.)  right", capsys.readouterr().out, re.MULTILINE) == epochs
        monkeypatch.setenv("PSGC_RESUME", "1")
    with pytest.raises(UserError, match=r"^batch\.shuffle: true does not match the checkpoint of step 6 in out, "):
        from_yaml.train("run.yaml", [*settings, "batch.shuffle=true"])


def test_launch_has_ranks_train_as_with_other_yaml_files(mpirun, capsys):
    mpirun("exit 9")
    Path("run.yaml").write_text(YAML)
    assert launch("run.yaml", 3, ["seed=2"], print_only=True) == 0
    out, err = capsys.readouterr()
    assert out.endswith(" -P -m psgc train run.yaml --set seed=2\n")
    assert err == ""


def test_only_these_commands_take_torch_problems(folder):
    config = load("run.yaml")
    assert not has_torch_problem("nowhere.yaml")
    assert has_torch_problem("run.yaml")
    assert not has_torch_problem("run.yaml", ["problem={kind: logistic}"])
    with pytest.raises(UserError, match=r"^problem: torch_problem:build is a torch problem, which only psgc train, "):
        open_problem(config, "run.yaml")


def test_submit_refuses_what_the_job_would_refuse(folder, capsys):
    job = ["submit", "run.yaml", "--nodes", "1", "--ranks-per-node", "3", "--time", "1:00:00"]
    cases = {
        "optimizer.torch=Adamw": "--set optimizer.torch=Adamw: no Adamw in torch.optim, did you mean AdamW?",
        "coding={replication: 4, parts: 4}": "parts: 4 is too large for 3 workers, expected at most 3",
    }
    for override, said in {**cases, "seed=3": ""}.items():
        with pytest.raises(SystemExit) as end:
            main([*job, "--set", override])
        assert (end.value.code, capsys.readouterr().err) == ((2, f"psgc: {said}\n") if said else (0, ""))


def test_the_page_of_docs_trains(folder, one_process, capsys):
    page = ROOT / "docs/pytorch.md"
    (text,) = [text for text in blocks(page) if text.startswith("# my_model.py")]
    Path("my_model.py").write_text(text)
    Path("run.yaml").write_text(blocks(page, "yaml")[0])
    run = from_yaml.train("run.yaml", ["batch.epochs=2", "micro_batch=20", "coding.chunks=2", "autocast=bfloat16"])
    run.end(False)
    run.engine.end()
    metrics = json.loads(Path("runs/my_model/summary.json").read_text())["metrics"]
    assert (metrics.keys(), metrics["epoch"]) == ({"epoch", "accuracy"}, 2)
    assert f"\n  accuracy           {metrics['accuracy']:.4f}\n" in capsys.readouterr().out
    rows = [row.split(",") for row in Path("runs/my_model/evaluations.csv").read_text().splitlines()[1:]]
    assert [row[1:3] for row in rows] == [["1", "accuracy"], ["2", "accuracy"]]
    assert float(rows[-1][3]) == metrics["accuracy"]
    assert isinstance(load("runs/my_model/config.yaml"), TorchConfig)
    assert load_file("runs/my_model/model.safetensors").keys() == {"0.weight", "0.bias", "2.weight", "2.bias"}


@pytest.mark.parametrize("name", ["left", "left/model.safetensors", "checkpoint", "left/checkpoints"])
def test_a_model_begins_with_what_another_run_has_left(folder, name):
    model = torch_problem.network(5)
    Path("left/checkpoints").mkdir(parents=True)
    Path("checkpoint/checkpoints").mkdir(parents=True)
    save_model(Path("left/model.safetensors"), model)
    write_file(Content(7, [to_bytes(state_of(model, [], About()))], {}), Path("checkpoint/checkpoints"))
    if name == "left/checkpoints":
        wanted = "left/checkpoints: expected a run directory, but it holds neither model.safetensors nor a checkpoint"
        assert refusal(f"initial={name}") == f"initial: {wanted}"
        return
    other = torch_problem.network(5)
    load_initial(name, other)
    assert all((other.state_dict()[key] == value).all() for key, value in model.state_dict().items())
    with pytest.raises(UserError, match=r"0.weight has the shape \(5, 8\), that of the model \(6, 8\)$"):
        load_initial(name, torch_problem.network(6))
    with pytest.raises(UserError, match=r"^initial: a{300}: file name too long; expected a safetensors file of the mo"):
        load_initial(300 * "a", other)
    assert "0.weight has the shape (5, 8), that of the model (7, 8)" in refusal(
        "problem.options.hidden=7", f"initial={name}"
    )


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_model_does_not_begin_with_a_damaged_checkpoint(folder, monkeypatch, capsys, rank):
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", rank)
    older, newer = torch_problem.network(5), torch_problem.network(5)
    Path("left/checkpoints").mkdir(parents=True)
    for step, model in ((7, older), (9, newer)):
        newest = write_file(Content(step, [to_bytes(state_of(model, [], About()))], {}), Path("left/checkpoints"))
    content = newest.read_bytes()
    newest.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    load_initial("left", newer)
    assert all((newer.state_dict()[key] == value).all() for key, value in older.state_dict().items())
    said = f"psgc: initial: {newest}: damaged, its checksum is wrong; trying the one before it\n"
    assert capsys.readouterr().err == (said if rank == "0" else "")


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_that_has_no_checkpoint_yet_begins_with_what_another_one_has_left(
    folder, one_process, monkeypatch, resume
):
    model = torch_problem.network(5)
    save_model(Path("model.safetensors"), model)
    monkeypatch.setenv(*("PSGC_RESUME", "1") if resume else ("NO", ""))
    from_yaml.train("run.yaml", ["initial=model.safetensors", "optimizer={torch: SGD, lr: 1.0e-30}", "scheduler="])
    torch.testing.assert_close(load_file("out/model.safetensors"), model.state_dict())


def test_a_model_that_cannot_be_begun_with_is_named(folder):
    Path("text.safetensors").write_text("text")
    assert refusal("initial=text.safetensors").startswith("initial: text.safetensors: not a whole safetensors file: ")
    assert refusal("initial=gone.npy").startswith("initial: gone.npy: cannot read it: no such file or directory; expec")
    model = torch_problem.network(5)
    for name in ("nan", "inf"):
        model[3].bias.data[1] = float(name)
        save_model(Path(f"{name}.safetensors"), model)
        assert refusal(f"initial={name}.safetensors") == (
            f"initial: {name}.safetensors: 3.bias holds NaN or infinity, expected finite numbers"
        )


def test_the_example_makes_the_steps_of_its_script(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts/torch")
    config = load(ROOT / "scripts/torch/digits.yaml")
    parts = from_yaml.make_parts(config, ".")
    assert config.scheduler.arguments["T_max"] == config.batch.epochs * -(-len(parts.dataset) // config.batch.size)
    optimizer, scheduler = from_yaml.optimizer_and_scheduler(config, lambda key, text: UserError(text))
    assert scheduler.made(optimizer.made(parts.model.parameters())).get_last_lr() == [3e-3]
