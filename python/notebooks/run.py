"""Executes the notebooks, each from its beginning, and says which cell fails. They are kept without outputs."""

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

HERE = Path(__file__).resolve().parent


def main() -> int:
    """Execute them all."""
    n_failed = 0
    for path in sorted(HERE.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        if any(cell.get("outputs") for cell in notebook.cells):
            print(f"{path.name}: has outputs; clear them")
            n_failed += 1
        resources = {"metadata": {"path": str(HERE)}}
        try:
            NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
            print(f"{path.name}: {len(notebook.cells)} cells")
        except CellExecutionError as error:
            print(f"{path.name}: {error}")
            n_failed += 1
    return int(n_failed > 0)


if __name__ == "__main__":
    sys.exit(main())
