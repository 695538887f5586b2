"""The notebooks run from another folder on small runs, and what they show as stored names no folder of a machine."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_config

import jaxmlic
from jaxmlic.errors import UserError

FOLDER = Path(jaxmlic.__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


@pytest.fixture(scope="module")
def folder(data_dir, finished_run, tmp_path_factory):
    """A run of a linear head and one of CNN-RNN, with all checkpoints kept."""
    folder = tmp_path_factory.mktemp("notebook runs")
    shutil.copytree(finished_run, folder / "linear")
    config = tiny_config(data_dir, **{"train.keep_every": 1})
    with config.unlocked():
        config.head = "cnn_rnn"
        config.model = {"embedding_size": 4, "recurrent_size": 8, "max_length": 3, "beam_size": 2}
        config.loss = {}
    jaxmlic.train(config, folder / "cnn_rnn")
    return folder


PARAMETERS = {
    "label_embeddings": "RUNS = {'linear': '', 'cnn_rnn': ''}\nFIELDS = {}\nLABELS = ['red', 'blue']\nIMAGES = 2",
    "own_photographs": "RUN, OTHER = FOLDER / 'cnn_rnn', None\nPHOTOGRAPHS, COUNT = '', 2",
}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_in_another_folder(path, folder, tmp_path, monkeypatch):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    book = nbformat.read(path, as_version=4)
    [parameters] = [cell for cell in book.cells if "parameters" in cell.metadata.get("tags", [])]
    parameters.source = f"from pathlib import Path\nFOLDER = Path({str(folder)!r})\n{PARAMETERS[path.stem]}"
    for cell in book.cells:  # UMAP compiles for a minute
        cell.source = cell.source.replace("embeddings.METHODS", "['pca']")
    nbclient.NotebookClient(book, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    written = [path.name for path in tmp_path.iterdir()]
    assert written in ([], ["ipython"])
    pictures = [out for cell in book.cells for out in cell.get("outputs", []) if "image/png" in out.get("data", {})]
    assert len(pictures) >= 4


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_with_its_outputs(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    outputs = [out for cell in code for out in cell["outputs"]]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert not [out for out in outputs if out["output_type"] == "error" or out.get("name") == "stderr"]
    assert sum("image/png" in out.get("data", {}) for out in outputs) >= 4
    texts = ["".join(out.get("text", "")) + "".join(out.get("data", {}).get("text/plain", "")) for out in outputs]
    assert not [text for text in texts if re.search(r"/(home|root|tmp|work|Users|usr|mnt|var)/", text)]


def test_checkpoints_that_are_kept(folder, finished_run):
    run = jaxmlic.load(folder / "cnn_rnn")
    assert run.steps == [4, 8, 12, 16]
    assert len(jaxmlic.load(finished_run).steps) <= 3  # the best and the last two
    first = jaxmlic.load(folder / "cnn_rnn", step=4)
    assert first.step == 4
    assert not np.array_equal(first.label_table(), run.label_table())
    assert {name: table.shape for name, table in run.label_embeddings().items()} == {
        "label_embedding": (3, 4),
        "label_embedding_end": (1, 4),
        "label_embedding_start": (1, 4),
    }
    with pytest.raises(UserError, match="keeps no checkpoint of step 5; it has: 4, 8, 12, 16"):
        jaxmlic.load(folder / "cnn_rnn", step=5)


def test_what_a_recurrent_head_shows(folder):
    run = jaxmlic.load(folder / "cnn_rnn")
    image = np.full((9, 9, 3), 120, np.uint8)
    found = run.attention(image)
    steps = run.trace(image)["steps"]
    assert found.form == "steps" and [name.split(" ", 1)[1] for name in found.maps] == [s["taken"] for s in steps]
    predicted = run.predict(image)
    assert predicted.threshold is None and predicted.label_paths[0] == [
        s["taken"] for s in steps if s["taken"] != "END"
    ]
    near = run.nearest_to(image, 3)
    joint = run.image_embeddings(image, space="labels")[0]
    table = run.label_table()
    cosines = table @ joint / np.linalg.norm(table, axis=1) / np.linalg.norm(joint)
    assert [name for name, _ in near] == [run.class_names[i] for i in np.argsort(-cosines)]
    np.testing.assert_allclose([value for _, value in near], np.sort(cosines)[::-1], rtol=1e-5)
