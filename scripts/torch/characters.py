"""Train a small transformer to write Python: on the functions of the standard library, character by character.

    python scripts/torch/characters.py                  in one process
    psgc launch scripts/torch/characters.py -n 4        the same steps on four workers

The functions have very different lengths, and are padded within a micro-batch only. So chunks take very different
times, and who is done with their own does those of others.
"""

import argparse
import re
import sysconfig
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

import psgc.torch

FUNCTION = re.compile(r"^( *)def .+\n(?:\1 .*\n|\n)+", re.MULTILINE)
LONGEST = 256  # characters; the rest of a function is cut off
PADDING = 0  # not a character of any function


def functions(limit: int) -> list[Tensor]:
    """The first `limit` functions of the standard library of this Python: a tensor of characters each."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    found = (match[0] for file in files for match in FUNCTION.finditer(file.read_text("utf-8")))
    return [torch.tensor(list(text[:LONGEST].encode("ascii", "replace"))) for text in islice(found, limit)]


def padded(rows: list[Tensor]) -> Tensor:
    return pad_sequence(rows, batch_first=True, padding_value=PADDING)


class Transformer(nn.Module):
    def __init__(self, width: int = 64, heads: int = 4, layers: int = 2) -> None:
        super().__init__()
        self.characters, self.places = nn.Embedding(128, width), nn.Embedding(LONGEST, width)
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, 0.1, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.next = nn.Linear(width, 128, bias=False)
        self.characters.weight = self.next.weight

    def forward(self, x: Tensor) -> Tensor:
        """Scores (batch, length, 128) of what follows each of the characters (batch, length)."""
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        return self.next(self.layers(self.characters(x) + self.places.weight[: x.shape[1]], mask, is_causal=True))


def loss(model, batch):
    x, y = batch[:, :-1], batch[:, 1:]
    return F.cross_entropy(model(x).flatten(0, 1), y.flatten(), ignore_index=PADDING, reduction="sum"), (y > 0).sum()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--functions", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=120, help="functions a step (default: %(default)s)")
    parser.add_argument("--output", default="runs/torch-characters", help="run directory (default: %(default)s)")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    model = Transformer()
    run = psgc.torch.init(model, functions(arguments.functions), loss, output=arguments.output, collate_fn=padded)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=0.01)
    run.attach(optimizer)
    for batch in run.batches(arguments.batch):
        run.backward(batch)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    run.save(f"{arguments.output}/model.safetensors")


if __name__ == "__main__":
    main()
