"""Runs docs/notebook.ipynb in an empty folder, and writes its outputs into it: python scripts/run_notebook.py"""

import os
import tempfile
from pathlib import Path

import nbclient
import nbformat

NOTEBOOK = Path(__file__).parents[1] / "docs/notebook.ipynb"


def executed(folder: str) -> nbformat.NotebookNode:
    """The notebook with its outputs, run in this folder. Raises nbclient.exceptions.CellExecutionError."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3", record_timing=False)
    client.execute(cwd=folder)
    notebook.metadata = {"kernelspec": notebook.metadata["kernelspec"], "language_info": {"name": "python"}}
    return notebook


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        notebook = executed(folder)
    new = NOTEBOOK.with_suffix(".new")
    nbformat.write(notebook, new)
    os.replace(new, NOTEBOOK)


if __name__ == "__main__":
    main()
