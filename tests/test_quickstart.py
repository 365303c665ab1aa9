"""Executes `samples/quickstart.ipynb`, at a size that takes seconds."""

import re
import shutil

import pytest

from tests.docs_code import ROOT

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

NOTEBOOK = ROOT / "samples/quickstart.ipynb"
# a smaller network and fewer steps
SMALLER = {
    "num_clips=600": "num_clips=60",
    "**small.unet,": '**small.unet | {"dim": 4, "dim_mults": (1,)},',
    "**small.trainer,": '**small.trainer | {"train_num_steps": 2, "warmup_steps": 1},',
    "save_and_sample_every=500": "save_and_sample_every=2, num_sample_rows=1, num_workers=0",
    "small.sampling_steps": "2",
    "steps=20": "steps=2",
}


def read():
    return nbformat.read(NOTEBOOK, as_version=4)


def codes(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shown(cell):
    """What a cell shows, by its kind."""
    return {kind: data for output in cell.outputs for kind, data in output.get("data", {}).items()}


# what the kernel's packages do, in the process of the tests
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_notebook_runs(tmp_path, monkeypatch):
    # the kernel imports what is tested here
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = read()
    for large, small in SMALLER.items():
        assert any(large in cell.source for cell in codes(notebook)), large
        for cell in codes(notebook):
            cell.source = cell.source.replace(large, small)
    shutil.copytree(NOTEBOOK.with_name("moving_digits"), tmp_path / "moving_digits")
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=300, resources=resources).execute()
    grids = [data["text/html"] for cell in codes(notebook) if "text/html" in (data := shown(cell))]
    assert len(grids) == 5
    assert all(grid.startswith('<img src="data:image/webp') for grid in grids)
    assert (tmp_path / "quickstart/results/model-1.pt").is_file()


def test_its_outputs_are_those_of_one_run():
    assert NOTEBOOK.stat().st_size < 2**20
    cells = codes(read())
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert sum("text/html" in shown(cell) for cell in cells) == 5
    assert any("image/png" in shown(cell) for cell in cells)
    kinds = {output.output_type for cell in cells for output in cell.outputs}
    assert "error" not in kinds
    text = NOTEBOOK.read_text(encoding="utf-8")
    # of somebody's machine
    assert not re.search(r"/(home|work|root|tmp|usr|Users)/|site-packages", text)
