"""The models and the reader in docs/: gradients are those of their losses, and the YAML beside them names them."""

import sys
from pathlib import Path

import numpy as np
import pytest

from psgc.backend import Backend
from psgc.config import BuiltinProblem, PythonProblem, checked_settings
from psgc.data import ChunkSource, Dataset
from psgc.errors import UserError
from psgc.problems import evaluate, load_python, prepare_evaluation
from psgc.run.inputs import open_problem, open_test
from psgc.yaml_source import YamlSource
from tests.unit.documents import blocks

DOCS = Path(__file__).parents[2] / "docs"
RNG = np.random.default_rng(0)
DATA = Dataset("rows", 40, 3, False, RNG.normal(5.0, 2.0, (40, 3)), RNG.standard_normal(40))


@pytest.fixture
def module(tmp_path, monkeypatch):
    """The folder of my_model.py and my_data.py, as the pages have them."""
    (tmp_path / "my_model.py").write_text("".join(blocks(DOCS / "model.md")))
    (tmp_path / "my_data.py").write_text("".join(blocks(DOCS / "data.md")))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "my_model", raising=False)
    yield tmp_path
    for name in ("my_model", "my_data"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", ["Ridge", "Normalised"])
def test_the_gradients_of_the_models_are_those_of_their_losses(name, module):
    problem = load_python(f"my_model:{name}", {"features": 3, "l2": 0.1}, str(module))
    chunk, params = ChunkSource(DATA, 4, "float64", Backend()).chunk(1), RNG.standard_normal(3)
    compute = evaluate(problem)
    gradient = compute(params, chunk, RNG)[1]
    for at, step in enumerate(np.eye(3) * 1e-5):
        slope = (compute(params + step, chunk, RNG)[0] - compute(params - step, chunk, RNG)[0]) / 2e-5
        assert gradient[at] == pytest.approx(slope)


def test_the_model_with_state_evaluates_by_the_training_data(module):
    problem = load_python("my_model:Normalised", {"features": 3}, str(module))
    source = ChunkSource(DATA, 4, "float64", Backend())
    prepare_evaluation(problem, np.ones(3), source.each())
    np.testing.assert_allclose(problem.mean, DATA.features.mean(0))
    assert np.isfinite(problem.loss(np.ones(3), source.chunk(0)))


def settings_in(page):
    """The settings in the YAML of a page, with usual ones for what it leaves out."""
    (text,) = [text for text in blocks(DOCS / page, "yaml") if "python:" in text]
    usual = {"problem": "{kind: logistic}", "optimizer": "{kind: sgd, lr: 1}", "iterations": 1, "output": "runs/mine"}
    missing = [f"{key}: {value}\n" for key, value in usual.items() if f"\n{key}:" not in f"\n{text}"]
    return checked_settings(YamlSource(text + "".join(missing), page))


def test_the_reader_reads(module):
    Path("data").mkdir()
    np.save("data/images.npy", RNG.integers(0, 255, (320, 8, 8), np.uint8))
    np.save("data/labels.npy", RNG.integers(0, 10, 320))
    config = settings_in("data.md")
    of_users = config.model_copy(update={"problem": PythonProblem(python="my_model:Ridge", options={"features": 64})})
    dataset, problem = open_problem(of_users, "run.yaml")
    test = open_test(of_users, problem, dataset, Backend())
    assert (dataset.features.shape, test.num_rows) == ((20, 8, 8), 300)
    assert ChunkSource(dataset, 2, "float32", Backend()).chunk(0).X.dtype == np.uint8
    with pytest.raises(UserError, match="softmax needs"):
        open_problem(config.model_copy(update={"problem": BuiltinProblem(kind="softmax")}), "run.yaml")


def test_the_model_is_named(module):
    named = settings_in("model.md").problem
    assert load_python(named.python, named.options, str(module)).dim == 20
