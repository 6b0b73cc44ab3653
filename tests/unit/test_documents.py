"""Every block of code on every page is run or checked, by its language. A block that no runner knows fails.

bash: `document_commands.check`, line by line. python: all blocks of a page, one after the other, in a folder with small
data and a run; what every rank calls is run by tests/ranks. yaml: read as settings. text: output and drawings, in which
there is nothing to run.
"""

import os
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

import psgc.torch
from psgc.config import checked_settings, load
from psgc.data import write_dense
from psgc.simulation import settings as simulation
from psgc.yaml_source import YamlSource
from tests.unit import document_commands
from tests.unit.documents import PAGES, ROOT, all_blocks, blocks, commands_in_sentences, named_files, shell_lines
from tests.unit.recorded_runs import record

BLOCKS = all_blocks()
TORCH, TRAINERS = "docs/api/torch.md", "docs/trainers.md"
FROM_DDP = "docs/from-ddp.md"
IN_RANKS = "psgc.train("  # tests/ranks/test_documents.py runs these programs
LANGUAGES = ("bash", "python", "text", "yaml")
RNG = np.random.default_rng(0)


def of(language):
    return [block for block in BLOCKS if block.language == language and IN_RANKS not in block.text]


def pages_with_python():
    return sorted({block.page for block in of("python")})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the pages take for granted: run.yaml, its data, train.py, a recorded run, and the scripts."""
    folder = tmp_path_factory.mktemp("pages")
    document_commands.prepare(folder)
    (folder / "data").mkdir()
    for name in ("digits-train", "digits-test"):
        write_dense(folder / f"data/{name}.npz", RNG.random((320, 64)), np.arange(320) % 10)
    (folder / "run.yaml").write_text(blocks(ROOT / "README.md", "yaml")[0])
    (folder / "sim.yaml").write_text((folder / "scripts/simulate.yaml").read_text())
    (folder / "train.py").write_text(blocks(ROOT / "docs/pytorch.md")[0])
    for name, text in named_files().items():
        (folder / name).write_text(text)
    np.save(folder / "assignment.npy", np.ones((6, 3)))
    for name, iterations in {"quickstart": 5, "mine": 3, "mine/0": 3, "mine/1": 3, "sweep/0": 3, "sweep/1": 3}.items():
        record(folder / "runs" / name, workers=4, chunks_per_worker=4, iterations=iterations)
    return folder


@pytest.fixture
def inside(folder, monkeypatch):
    """In that folder, where runs need no ranks: they leave what the recorded one has left."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr("psgc.library.launching.command", SimpleNamespace(launch=recorded))
    monkeypatch.setattr("psgc.cli.sweep.launch", recorded)
    monkeypatch.setattr("psgc.cli.limit_threads", lambda: None)  # for the whole process
    monkeypatch.setattr("psgc.tools.report.pictures", lambda run, iteration: [])  # they take their time
    return folder


def recorded(program, placement, **others):
    """In place of launching ranks: the settings are read, and the run directory is there."""
    output = Path(load(program.path, program.overrides).output)
    if not output.exists():
        record(output.absolute(), workers=placement.ranks - 1, chunks_per_worker=2, iterations=3)
    return 0


def test_every_block_has_a_language_that_is_run():
    assert len(BLOCKS) > 50
    assert [f"{block}: {block.language or 'no language'}" for block in BLOCKS if block.language not in LANGUAGES] == []


@pytest.mark.parametrize("block", of("text"), ids=str)
def test_output_and_drawings_hide_no_commands(block):
    assert [line for line in block.text.splitlines() if line.startswith(("$ ", "make ", "python ", "pip "))] == []


@pytest.mark.parametrize("block", of("bash"), ids=str)
def test_the_commands_work(block, inside):
    for line in shell_lines(block.text):
        document_commands.check(line)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_commands_in_sentences_are_there(page, inside):
    for command in commands_in_sentences(page):
        document_commands.check_in_sentence(command)


USUAL = {
    "problem": "{kind: logistic}",
    "data": "{path: rows.npz}",
    "optimizer": "{kind: sgd, lr: 1}",
    "iterations": "1",
    "output": "runs/mine",
}


def settings_in(block):
    """The settings in a YAML block, with usual ones for what it leaves out."""
    said = yaml.safe_load(block.text)
    usual = dict(USUAL)
    if "torch" in said.get("problem", {}):
        usual = {"optimizer": "{torch: SGD, lr: 1}", "batch": "{size: 4, epochs: 1}", "output": "runs/mine"}
    elif "epochs" in (said["batch"] if isinstance(said.get("batch"), dict) else {}):
        del usual["iterations"]
    missing = "".join(f"{key}: {value}\n" for key, value in usual.items() if key not in said)
    return checked_settings(YamlSource(block.text + missing, str(block)))


@pytest.mark.parametrize("block", of("yaml"), ids=str)
def test_the_settings_are_right(block, inside):
    if {"network", "schedules", "speeds"} & yaml.safe_load(block.text).keys():
        Path("sim.yaml").write_text(block.text)
        simulation.load("sim.yaml", [])
    else:
        settings_in(block)


@pytest.mark.parametrize("page", pages_with_python())
def test_the_python_of_a_page_runs(page, inside, one_process, tmp_path, monkeypatch):
    own, scope = [block for block in of("python") if block.page == page], {}
    if page in (TORCH, TRAINERS, FROM_DDP):
        monkeypatch.chdir(tmp_path)
    if page == TRAINERS:
        warnings.simplefilter("ignore")  # theirs
        for package in ("lightning", "transformers"):
            pytest.importorskip(package)
    elif page == FROM_DDP:  # both scripts, each in one process
        for name, value in {"RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 0}.items():
            monkeypatch.setenv(name, str(value))
    elif page == "README.md":
        scope = named_in_the_readme()
    try:
        for block in own:
            if "safe_open(path" in block.text:  # of a run that has ended
                end(scope)
                scope["path"] = max(Path("runs/example/checkpoints").iterdir())
            exec(compile("\n" * block.line + block.text, block.page, "exec"), scope)
            if page == FROM_DDP:
                assert scope["accuracy"] > 0.8
                scope["accuracy"] = 0.0
    finally:
        end(scope)


def end(scope):
    """The run in the scope ends, if there is one."""
    if isinstance(run := scope.pop("run", None), psgc.torch.ScriptRun):
        run.end(False)
        run.engine.end()


def named_in_the_readme():
    """A model, data and a loss, from docs/api/torch.md."""
    text = blocks(ROOT / TORCH)[0]
    scope = {}
    exec(text.partition("run = ")[0], scope)
    return scope
