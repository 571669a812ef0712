"""Make the notebooks of their scripts and execute them; outputs are stored.

    python notebooks/build.py                 both
    python notebooks/build.py pdf_manuals     one

`# %%` begins a cell of code, `# %% [markdown]` one of text.
"""

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

FOLDER = Path(__file__).parent
NAMES = ("pdf_manuals", "finetune")
_TEXT = " [markdown]\n"


def read_script(path: Path) -> NotebookNode:
    """Turn a script into a notebook without outputs."""
    cells = []
    for number, part in enumerate(path.read_text(encoding="utf-8").split("# %%")[1:]):
        if part.startswith(_TEXT):
            lines = part.removeprefix(_TEXT).strip().split("\n")
            cell = new_markdown_cell("\n".join(line.removeprefix("#").removeprefix(" ") for line in lines))
        else:
            cell = new_code_cell(part.strip())
        cell.id = f"cell-{number}"  # the same at every build
        cells.append(cell)
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return new_notebook(cells=cells, metadata={"kernelspec": kernel, "language_info": {"name": "python"}})


def execute(name: str) -> NotebookNode:
    """Execute a script as a notebook, in its own folder; raises CellExecutionError when a cell fails.

    What goes to stderr (progress bars, warnings) is not kept.
    """
    notebook = read_script(FOLDER / f"{name}.py")
    NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": str(FOLDER)}}).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times of day, other at every build
        if cell.cell_type == "code":
            cell.outputs = [_without_twins(output) for output in cell.outputs if output.get("name") != "stderr"]
    return notebook


def _without_twins(output: NotebookNode) -> NotebookNode:
    """Leave a picture out that is stored in a second format too."""
    if "image/png" in output.get("data", {}):
        output.data.pop("image/jpeg", None)
    return output


def main(*names: str) -> None:
    """Build the notebooks of these names, by default all."""
    for name in names or NAMES:
        nbformat.write(execute(name), FOLDER / f"{name}.ipynb")
        print(f"{name}.ipynb: {(FOLDER / f'{name}.ipynb').stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main(*sys.argv[1:])
