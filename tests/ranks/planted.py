"""Files that are named like modules that psgc imports, and tell when somebody runs them."""

from pathlib import Path

NAMES = ("argparse", "cupy", "json", "mpi4py", "networkx", "numpy", "pydantic", "rich", "scipy", "yaml")


def plant(folder: Path, report: Path) -> None:
    """Puts them into `folder`; each one that is run leaves a file of its name in `report`."""
    report.mkdir(exist_ok=True)
    for name in NAMES:
        (folder / f"{name}.py").write_text(f"open({str(report / name)!r}, 'w')\nraise SystemExit('planted')\n")
