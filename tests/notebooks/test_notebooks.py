"""The notebooks of colab/, each executed from top to bottom with small configs: `make test-notebooks`."""

import importlib.util
import json
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests import raw_trees

FOLDER = Path(__file__).parents[2] / "colab"
SMALL = [
  "--config.network.backbone=resnet10", "--config.network.width=0.125", "--config.network.num_stages=3",
  "--config.network.head_channels=8", "--config.network.head_dilation=1", "--config.network.dtype=float32",
  "--config.source_training.steps=2", "--config.source_training.batch=2",
  "--config.rounds.num=1", "--config.rounds.steps=2", "--config.rounds.batch=2",
]  # fmt: skip
SMALL_MLSL = [*SMALL, "--config.sisc.patches=2", "--config.weak_labels.width=0.05", "--config.pictures=2"]


def settings(name: str, place: Path) -> dict:
  """What the cell with the parameters is followed by."""
  if name == "quickstart":
    return {"FLAGS": [*SMALL_MLSL, "--config.source.num=6", "--config.target.num=4", "--config.test.num=2"]}
  if name == "your_own_images":
    return {"FLAGS": SMALL_MLSL}
  if name == "mlsl_tpu":
    raw_trees.make_gta5(place / "raw/GTA5")
    for split in ("train", "val"):
      raw_trees.make_cityscapes(place / "raw/Cityscapes", split)
    size = ["--config.canvas=(16,32)", "--config.augmentation.crop=(16,16)", "--config.sisc.size=(16,16)"]
    folders = {"RAW": "raw", "DATA": "data", "WORKDIR": "run"}
    return {"HEIGHT": 8, "FLAGS": [*SMALL_MLSL, *size], **{key: str(place / part) for key, part in folders.items()}}
  if name == "benchmark_vs_pytorch":
    size = ["--config.augmentation.crop=(32,32)", "--config.canvas=(32,64)"]
    return {"STEPS": 1, "DTYPE": "float32", "FLAGS": [*SMALL, "--config.rounds.num=0", *size]}
  raise AssertionError(f"say here what makes {name}.ipynb small")


def outputs(notebook) -> str:
  """All that the cells have shown."""
  return json.dumps([cell.get("outputs", []) for cell in notebook.cells])


@pytest.fixture(params=sorted(path.stem for path in FOLDER.glob("*.ipynb")))
def executed(request, tmp_path):
  """A notebook, and what it looks like after all cells have run in an empty folder."""
  notebook = nbformat.read(FOLDER / f"{request.param}.ipynb", as_version=4)
  nbformat.validate(notebook)
  assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells), "save it without outputs"
  place = [i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ())]
  assert len(place) == 1
  lines = [f"{name} = {value!r}" for name, value in settings(request.param, tmp_path).items()]
  notebook.cells.insert(place[0] + 1, nbformat.v4.new_code_cell("\n".join(lines)))
  NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
  return request.param, notebook


def test_every_cell_runs_and_shows_what_it_promises(executed):
  name, notebook = executed
  shown = outputs(notebook)
  promised = {
    "quickstart": ("IoU in %", "<iframe", "image/png"),
    "your_own_images": ("IoU in %", "<iframe", "image/png", "predictions/overlays"),
    "mlsl_tpu": ("not on Colab", "round_1", "IoU in %", "<iframe"),
    "benchmark_vs_pytorch": ("train: source, train", "GFLOP"),
  }[name]
  assert not [words for words in promised if words not in shown]
  if name == "benchmark_vs_pytorch":
    assert ("ratio" in shown) == (importlib.util.find_spec("torch") is not None)
