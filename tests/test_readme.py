"""What README.md says to write runs as it stands there."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import cv2
import jax.numpy as jnp
import numpy as np
import pytest

import jax_uda
from jax_uda import files, methods, run
from jax_uda.benchmark import __main__ as benchmark
from jax_uda.benchmark import selection
from jax_uda.config import load_config
from tests.tiny import picture, shrink

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
WITHOUT_THIS_PACKAGE = "import sys\nsys.modules.update(dict.fromkeys(('jax_uda', 'flax', 'tests')))\n"


def python_block(importing: str) -> str:
  """The one block of README.md that imports this."""
  blocks = [part.split("```")[0] for part in README.split("```python\n")[1:]]
  (block,) = [block for block in blocks if f"\n{importing}\n" in block]
  return block


def num_lines(block: str) -> int:
  return sum(bool(line.strip()) for line in block.splitlines())


@pytest.fixture
def place(workdir, exported, tmp_path, monkeypatch):
  """A folder with what the blocks open."""
  (tmp_path / "runs").mkdir()
  (tmp_path / "runs/demo").symlink_to(workdir)
  for suffix in ("", ".json"):
    (tmp_path / f"demo.stablehlo{suffix}").symlink_to(f"{exported}{suffix}")
  for name in ("photo.png", "photo.jpg"):
    cv2.imwrite(str(tmp_path / name), picture(32, 64)[..., ::-1])
  cv2.imwrite(str(tmp_path / "truth.png"), np.zeros((32, 64), np.uint8))
  monkeypatch.chdir(tmp_path)
  return tmp_path


def test_the_library(place, capsys):
  block = python_block("import jax_uda")
  assert num_lines(block) <= 15
  (place / "library.py").write_text(block)
  found = runpy.run_path(str(place / "library.py"))
  labels, selected, probabilities = (np.asarray(found[name]) for name in ("labels", "pseudo_labels", "probabilities"))
  assert labels.shape == selected.shape == (32, 64) and probabilities.shape == (32, 64, 19)
  np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-5)
  assert labels.dtype == selected.dtype == np.uint8
  kept = selected != 255
  assert 0.4 < kept.mean() < 0.7 and (selected == probabilities.argmax(-1))[kept].mean() > 0.9
  assert float(capsys.readouterr().out) == pytest.approx(np.mean(labels == 0) / (len(np.unique([*labels.ravel(), 0]))))
  assert set(jax_uda.__all__) <= set(dir(jax_uda)) and all(hasattr(jax_uda, name) for name in jax_uda.__all__)
  assert not hasattr(jax_uda, "absent")


def test_a_program_without_this_package(place):
  block = python_block("from jax import export")
  assert num_lines(block) <= 15
  (place / "plain.py").write_text(WITHOUT_THIS_PACKAGE + block + "np.save('labels.npy', labels)\n")
  subprocess.run([sys.executable, "plain.py"], check=True, cwd=place)
  expected = jax_uda.load("runs/demo").predict(cv2.imread("photo.png")[..., ::-1])
  np.testing.assert_array_equal(np.load("labels.npy"), expected)
  assert cv2.imread("colors.png").shape == (32, 64, 3)


def test_a_method_of_ones_own(tmp_path, monkeypatch):
  block, config_block = map(python_block, ("from jax_uda.methods import self_training", "from configs import demo"))
  assert num_lines(block) <= 45 and num_lines(config_block) <= 10
  (tmp_path / "max_squares.py").write_text(block)
  (tmp_path / "config.py").write_text(config_block)
  monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
  monkeypatch.delitem(sys.modules, "jax_uda.methods.max_squares", raising=False)
  ruff = [sys.executable, "-m", "ruff", "check", "--config", str(ROOT / "pyproject.toml"), str(tmp_path)]
  assert subprocess.run(ruff, capture_output=True).returncode == 0
  config = shrink(load_config(str(tmp_path / "config.py")))
  results = run.run(config, tmp_path / "run")
  assert results["method"] == "max_squares" and [stage["name"] for stage in results["stages"]] == ["source", "adapt"]
  lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
  assert all(0 < line["max_squares"] < 0.5 and line["loss"] > 0 for line in lines if line["stage"] == "adapt")
  assert sum(line["stage"] == "adapt" for line in lines) == 3


def test_images_of_other_kinds_are_an_error(workdir):
  network = jax_uda.load(workdir)
  wrong = [np.zeros((32, 64, 3)), np.zeros((32, 64), np.uint8), np.zeros((0, 4, 3), np.uint8)]
  for image in (*wrong, [[1]], jnp.zeros((8, 8, 3), jnp.uint8)):
    with pytest.raises(jax_uda.UserError, match=r"give a NumPy array uint8 \[H, W, 3\], RGB"):
      network.predict(image)
  network.predict(picture(9, 7))[:] = 255  # it is the caller's


@pytest.mark.parametrize(("fields", "said"), [
  ({"scales": ()}, "numbers above 0"), ({"scales": 0.5}, "numbers above 0"), ({"scales": (1.0, 0.0)}, "numbers above 0"),
  ({"window": 96}, "height and width"), ({"window": (0, 5)}, "height and width"),
  ({"scales": (0.5,), "window": (32, 32)}, "leave out one of the two"),
])  # fmt: skip
def test_manners_that_mean_nothing_are_an_error(fields, said):
  with pytest.raises(jax_uda.UserError, match=said):
    jax_uda.Manner(**fields)


def test_the_speed_tables_are_of_the_figures_that_were_kept():
  steps = [files.read_json(path) for path in sorted((ROOT / ".github/speed").glob("steps_*.json"))]
  assert len(steps) >= 4 and benchmark.table(steps) in README
  assert selection.table(files.read_json(ROOT / ".github/speed/selection.json")["rows"]) in README
