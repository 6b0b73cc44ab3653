"""What scripts/bench_torch.py trains: a perceptron, and a character transformer on texts of very different length."""

import ast
import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

WIDTH = 64  # of the transformer
LONGEST = 2048  # characters of a text that are kept
PADDING = 0  # no text has this byte
FIRST = 1  # nor this one, which comes before every text


@dataclass(frozen=True)
class Task:
    """A model and its data, the same on every rank.

    loss: of (model, micro-batch), the sum and the number of terms; count: the number of terms of examples. batch: the
    examples of a step, of which `at_once` go through the model together, at most; chunks: of psgc, in a step; None: all
    that a rank has, and psgc's defaults. cost: how long examples that go through the model together take, as psgc is
    told.
    """

    model: nn.Module
    dataset: Any
    loss: Callable[[nn.Module, Any], tuple[Tensor, int]]
    count: Callable[[Sequence[int]], int]
    collate: Callable[[Any], Any]
    optimizer: Callable[[Any], torch.optim.Optimizer]
    batch: int
    at_once: int | None = None
    chunks: int | None = None
    cost: Callable[[Sequence[int]], float] | None = None


def perceptron(steps: int, batch: int, inputs: int = 784, hidden: int = 512, batches: int = 2) -> Task:
    """Three layers, 669,706 parameters; an epoch has two steps. psgc has its defaults."""

    def loss(model: nn.Module, examples: tuple[Tensor, Tensor]) -> tuple[Tensor, int]:
        x, y = examples
        return F.cross_entropy(model(x), y, reduction="sum"), len(y)

    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batches * batch, inputs, generator=generator)
    y = (x @ torch.randn(inputs, 10, generator=generator)).argmax(1)
    torch.manual_seed(0)
    layers = [nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 10)]
    return Task(
        model=nn.Sequential(*layers),
        dataset=range(len(y)),
        loss=loss,
        count=len,
        collate=lambda rows: (x[rows], y[rows]),
        optimizer=lambda params: torch.optim.SGD(params, 0.02, momentum=0.9),
        batch=batch,
    )


def tuned(steps: int, batch: int) -> Task:
    """The perceptron with settings that were tried out."""
    return replace(perceptron(steps, batch), at_once=1024, chunks=12)  # as many for each of four workers as of three


def small(steps: int, batch: int) -> Task:
    """Three layers, 85,002 parameters, as somebody tries first; an epoch has forty steps."""
    return perceptron(steps, batch, 64, 256, 40)


class Texts:
    """Texts as bytes, FIRST before each."""

    def __init__(self, texts: Sequence[str]) -> None:
        starts = (bytes([FIRST]) + text.encode("ascii", "replace") for text in texts)
        self.texts = [torch.frombuffer(bytearray(text[: LONGEST + 1]), dtype=torch.uint8) for text in starts]

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, row: int) -> Tensor:
        return self.texts[row].long()


class Transformer(nn.Module):
    """Predicts each next byte. Attention is causal, so padding at the end changes nothing before it."""

    def __init__(self, width: int = WIDTH, layers: int = 2) -> None:
        super().__init__()
        self.byte, self.place = nn.Embedding(128, width), nn.Embedding(LONGEST, width)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 128)

    def forward(self, texts: Tensor) -> Tensor:
        """texts: (texts, length). Returns logits, (texts, length, 128)."""
        x = self.byte(texts) + self.place(torch.arange(texts.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class _Block(nn.Module):
    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norms[0](x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norms[1](x))


def transformer(steps: int, batch: int = 32) -> Task:
    """Two layers; each step has functions of its own."""
    dataset = Texts(functions(batch * steps))

    def loss(model: nn.Module, texts: Tensor) -> tuple[Tensor, int]:
        logits, following = model(texts[:, :-1]), texts[:, 1:]
        total = F.cross_entropy(logits.transpose(1, 2), following, ignore_index=PADDING, reduction="sum")
        return total, int((following != PADDING).sum())

    def cost(rows: Sequence[int]) -> float:  # padded to the longest; attention takes its square
        length = max(len(dataset.texts[row]) for row in rows)
        return len(rows) * length * (length + 6 * WIDTH)

    torch.manual_seed(0)
    return Task(
        model=Transformer(),
        dataset=dataset,
        loss=loss,
        count=lambda rows: sum(len(dataset.texts[row]) - 1 for row in rows),
        collate=lambda texts: pad_sequence(texts, batch_first=True, padding_value=PADDING),
        optimizer=lambda params: torch.optim.AdamW(params, 1e-3),
        batch=batch,
        at_once=2,
        chunks=16,
        cost=cost,
    )


def functions(number: int) -> list[str]:
    """The source of so many functions of Python's standard library, evenly from all that its first modules have."""
    found = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        nodes = (node for node in ast.walk(ast.parse("".join(lines))) if isinstance(node, ast.FunctionDef))
        found += ["".join(lines[node.lineno - 1 : node.end_lineno]) for node in nodes]
    return [found[i * len(found) // number] for i in range(number)]


TASKS: dict[str, Callable[[int, int], Task]] = {
    "perceptron": tuned,
    "defaults": perceptron,
    "small": small,
    "transformer": transformer,
}
