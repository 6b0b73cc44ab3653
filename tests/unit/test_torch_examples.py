"""The models, data and losses of scripts/torch; tests/ranks runs the one of digits."""

import importlib
from pathlib import Path

import pytest
import torch

from psgc.torch.chunk_gradient import ChunkGradient
from psgc.torch.determinism import computed_twice
from psgc.torch.flat import FlatModel
from psgc.torch.loader import MicroBatch


@pytest.fixture
def script(monkeypatch):
    """Imports one of them; that of digits imports scikit-learn, which takes a second."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "scripts/torch")
    return importlib.import_module


def vector(model, loss, pieces):
    """Of a chunk, which is the same a second time."""
    flat = FlatModel(model)
    gradient = ChunkGradient(flat, model, loss)
    return computed_twice(
        model, flat.dim, lambda: pieces, lambda loaded: gradient.vector(loaded, (0, 0, 0), lambda: True, 15)
    )


def test_digits(script):
    digits = script("digits")
    train, test = digits.datasets()
    assert (len(train), len(test)) == (1437, 360)
    model = digits.network()
    made = vector(model, digits.loss, [MicroBatch(10, train[:10]), MicroBatch(5, train[10:15])])
    assert made[sum(map(torch.numel, model.parameters())) + 1] == 15  # examples
    right, count = digits.accuracy(model.eval(), test[:20])
    assert 0 <= right <= count == 20


def test_functions_of_the_standard_library(script):
    characters = script("characters")
    found = characters.functions(60)
    texts = [bytes(function.tolist()).decode() for function in found]
    assert [len(text) for text in characters.functions(60)] == [len(text) for text in texts]  # each time the same
    assert len(texts) == 60
    assert all(text.lstrip().startswith("def ") and "\n" in text for text in texts)
    assert max(map(len, texts)) == characters.LONGEST
    assert min(map(len, texts)) < characters.LONGEST / 2
    assert not any((function == characters.PADDING).any() for function in found)


def test_padding_changes_no_loss(script):
    characters = script("characters")
    torch.manual_seed(0)
    model = characters.Transformer().eval()
    rows = sorted(characters.functions(8), key=len)
    one_by_one = vector(
        model, characters.loss, [MicroBatch(1, characters.padded([row])) for row in (rows[0], rows[-1])]
    )
    together = vector(model, characters.loss, [MicroBatch(2, characters.padded([rows[0], rows[-1]]))])
    torch.testing.assert_close(one_by_one, together, rtol=1e-4, atol=1e-3)
    count = sum(map(torch.numel, model.parameters())) + 1
    assert one_by_one[count] == together[count] == len(rows[0]) + len(rows[-1]) - 2
    assert (
        vector(model.train(), characters.loss, [MicroBatch(len(rows), characters.padded(rows))]) is not None
    )  # with dropout
