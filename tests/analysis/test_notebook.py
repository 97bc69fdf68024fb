"""The example notebook runs on any run, cell by cell, and is kept without outputs."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from analysis import load_run
from tests.analysis.made_run import MIB, make_run

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "docs" / "notebooks" / "analysis.ipynb"


def text_of(cell: nbformat.NotebookNode) -> str:
    found = [output.get("text") or str(output.get("data", {}).get("text/plain", "")) for output in cell.outputs]
    return "".join(found)


@pytest.mark.slow
def test_the_notebook_runs_on_a_made_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make_run(tmp_path, sizes=(MIB, 2 * MIB))
    monkeypatch.setenv("OFFLOAD_SWEEP_RUN", str(made.parent))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    told = "\n".join(map(text_of, cells))
    assert all(trial.id in told for trial in load_run(made).published if trial.state == "valid")
    assert "reads in load, the most frequent sizes:" in told
    drawn = [cell for cell in cells if "run.figure(" in cell.source]
    assert len(drawn) == 2
    for cell in drawn:
        (output,) = cell.outputs
        assert "vegaEmbed" in output.data["text/html"]
    assert not [output for cell in cells for output in cell.outputs if output.get("name") == "stderr"]


def test_the_notebook_is_kept_without_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not [cell for cell in cells if cell.outputs or cell.execution_count]
    assert [cell.metadata.get("tags") for cell in cells if "OFFLOAD_SWEEP_RUN" in cell.source] == [["parameters"]]
