"""Write scikit-learn's digits (1797 images, 8 x 8 pixels, 10 classes) as data for `problem: {kind: softmax}`.

    python scripts/make_digits.py [--out data]

makes digits-train.npz and digits-test.npz: pixels scaled to 0..1, four fifths for training, split by class
with a fixed seed.
"""

import argparse
from pathlib import Path

from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from psgc.data import write_dense


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("data"), help="directory to write to (default: data)")
    out = parser.parse_args(arguments).out
    X, y = load_digits(return_X_y=True)
    X_train, X_test, y_train, y_test = train_test_split(X / 16, y, test_size=0.2, random_state=0, stratify=y)
    for name, rows, labels in (("train", X_train, y_train), ("test", X_test, y_test)):
        path = out / f"digits-{name}.npz"
        write_dense(path, rows, labels)
        print(f"{path}: {rows.shape[0]} rows, {rows.shape[1]} features, 10 classes")


if __name__ == "__main__":
    main()
