"""A run as a user has it: files, resuming, refusals."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jax_uda import cross_validate, experiment, ladder, run
from jax_uda.errors import UserError
from tests import tiny_mlsl
from tests.conftest import CACHE
from tests.tiny import tiny

ROOT = Path(__file__).parent.parent


def start(moment: str, workdir: Path, *flags: str) -> subprocess.CompletedProcess:
  """A process of its own that runs the tiny MLSL config on one device, and dies at the moment."""
  environment = {
    **os.environ,
    "JAX_PLATFORMS": "cpu",
    "JAX_NUM_CPU_DEVICES": "1",
    "JAX_COMPILATION_CACHE_DIR": CACHE,  # so that only the first of these processes compiles
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "PYTHONPATH": str(ROOT),
  }
  command = [sys.executable, ROOT / "tests/killed_run.py", moment, "--config=tests/tiny_mlsl.py", f"--workdir={workdir}"]
  return subprocess.run([*command, *flags], cwd=ROOT, env=environment, capture_output=True, text=True)


def last_state(workdir: Path) -> dict:
  places = sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())
  with ocp.CheckpointManager(workdir / "checkpoints") as manager:
    return manager.restore(places[-1], args=ocp.args.Composite(state=ocp.args.StandardRestore()))["state"]


def records(workdir: Path) -> list[dict]:
  return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def without_times(value):
  if isinstance(value, dict):
    of_the_machine = ("waiting_for_data", "device")
    return {name: without_times(x) for name, x in value.items() if "second" not in name and name not in of_the_machine}
  return [without_times(x) for x in value] if isinstance(value, list) else value


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
  workdir = tmp_path_factory.mktemp("undisturbed")
  done = start("never", workdir)
  assert done.returncode == 0, done.stderr
  return workdir


def test_a_run_leaves_what_it_promises(undisturbed):
  results = json.loads((undisturbed / "results.json").read_text())
  assert results["method"] == "mlsl" and results["protocol"] == "cityscapes19"
  assert [stage["name"] for stage in results["stages"]] == ["source", "statistics", "round_1"]
  assert results["final"] == results["stages"][-1]
  for stage in results["stages"]:
    assert stage["steps"] == {"source": 3, "statistics": 2, "round_1": 3 + 2}[stage["name"]]
    assert len(stage["iou"]) == 19 and 0 <= stage["pixel_accuracy"] <= 1
  assert results["stages"][0]["pseudo_labels"] is None
  assert 0 < results["final"]["pseudo_labels"]["selected"] < 1
  assert 0 <= results["final"]["pseudo_labels"]["accuracy"] <= 1
  labels = sorted((undisturbed / "pseudo_labels/round_1").glob("*.png"))
  assert len(labels) == 5
  for path in labels:
    label = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert label.shape == (32, 64) and set(np.unique(label)) <= {*range(19), 255}
  kept = [path.name for path in (undisturbed / "checkpoints").iterdir() if path.name.isdigit()]
  assert len(kept) == 3  # the last two, and the end of the source stage
  assert (undisturbed / "report.html").exists() and not list(undisturbed.glob("spill*"))


def test_killed_anywhere_and_resumed_the_weights_are_the_same(undisturbed, tmp_path):
  for moment in ("saving", "scoring", "labelling"):
    assert start(moment, tmp_path).returncode == -signal.SIGKILL, moment
  done = start("terminated", tmp_path)
  assert done.returncode == 75 and "run the same command again" in done.stderr
  done = start("never", tmp_path)
  assert done.returncode == 0 and "resuming at stage round_1" in done.stdout, done.stderr
  jax.tree.map(np.testing.assert_array_equal, last_state(tmp_path), last_state(undisturbed))
  for path in (undisturbed / "pseudo_labels/round_1").glob("*.png"):
    assert path.read_bytes() == (tmp_path / "pseudo_labels/round_1" / path.name).read_bytes()
  positions = [(record["stage_index"], record["step"]) for record in records(tmp_path)]
  assert positions == [(0, 1), (0, 2), (0, 3), (1, 1), (1, 2), (2, 1), (2, 2), (2, 3), (2, 4), (2, 5)]
  assert without_times(records(tmp_path)) == without_times(records(undisturbed))
  mine, other = (json.loads((w / "results.json").read_text()) for w in (tmp_path, undisturbed))
  assert without_times(mine) == without_times(other)


def test_a_finished_run_run_again_changes_nothing(undisturbed):
  before = (undisturbed / "metrics.jsonl").read_bytes(), (undisturbed / "results.json").read_bytes()
  done = start("never", undisturbed)
  assert done.returncode == 0 and "report:" in done.stdout and "this run is finished" in done.stdout
  assert before == ((undisturbed / "metrics.jsonl").read_bytes(), (undisturbed / "results.json").read_bytes())


def test_scores_that_someone_took_away_are_missed(undisturbed, tmp_path):
  shutil.copytree(undisturbed, tmp_path / "run")
  (tmp_path / "run/results.json").unlink()
  with pytest.raises(UserError, match=r"results\.json lacks what came before round_1"):
    run.run(tiny_mlsl.get_config(), tmp_path / "run")


def test_another_config_is_refused_with_the_differences(undisturbed):
  config = tiny_mlsl.get_config()
  config.seed, config.sisc.patches = 7, 2
  with pytest.raises(UserError, match=r"seed: 0 -> 7; sisc\.patches: 3 -> 2"):
    run.run(config, undisturbed)


def test_start_from_takes_over_the_source_stage_and_four_devices_label_as_one(undisturbed, tmp_path):
  config = tiny_mlsl.get_config()
  config.start_from = str(undisturbed)
  results = run.run(config, tmp_path / "next")
  first = json.loads((undisturbed / "results.json").read_text())["stages"][0]
  assert without_times(results["stages"][0]) == without_times(first)
  assert {record["stage"] for record in records(tmp_path / "next")} == {"statistics", "round_1"}
  for path in (undisturbed / "pseudo_labels/round_1").glob("*.png"):  # made by a process with one device
    one, four = (cv2.imread(str(w / "pseudo_labels/round_1" / path.name), -1) for w in (undisturbed, tmp_path / "next"))
    assert (one != four).mean() < 1e-3
  config.optimizer.momentum = 0.5
  with pytest.raises(UserError, match=r"other source settings \(optimizer.momentum: 0.9 -> 0.5\)"):
    run.run(config, tmp_path / "refused")
  config.start_from = str(tmp_path)
  with pytest.raises(UserError, match="holds no run"):
    run.run(config, tmp_path / "nowhere")


def test_a_part_of_a_run_goes_on_later(undisturbed, tmp_path, capsys):
  config = tiny_mlsl.get_config()
  config.start_from, config.stop_after = str(undisturbed), "statistics"
  results = run.run(config, tmp_path)
  assert [stage["name"] for stage in results["stages"]] == ["source", "statistics"] and results["final"] is None
  said = capsys.readouterr().out
  assert "ends after statistics" in said and f"report: {tmp_path}/report.html" in said
  config.stop_after = "round_2"
  with pytest.raises(UserError, match=r"config\.stop_after: there is no stage 'round_2'; choose from source, .*round_1"):
    run.run(config, tmp_path)
  config.stop_after = "source"  # it is further already
  assert run.run(config, tmp_path)["stages"] == results["stages"]
  assert "ends after source" in capsys.readouterr().out
  with pytest.raises(UserError, match=r"variant 'a': config\.stop_after: .* go to their ends"):
    ladder.variant_config("tests/tiny_mlsl.py", ["stop_after=source"], ladder.Variants({"a": {}}), "a", 0)
  with pytest.raises(UserError, match=r"config\.stop_after: folds go to their ends"):
    cross_validate.cross_validate(config, 2, tmp_path / "folds")
  config.stop_after = ""
  results = run.run(config, tmp_path)
  assert "resuming at stage statistics" in capsys.readouterr().out and results["final"]["name"] == "round_1"
  positions = [(record["stage_index"], record["step"]) for record in records(tmp_path)]
  assert len(set(positions)) == len(positions) and positions[-1] == (2, 5)
  assert results["final"]["device"].startswith("4 × ")


def test_a_loss_that_is_not_finite_ends_the_run(mlsl_config, tmp_path):
  config = mlsl_config.copy_and_resolve_references()
  config.source_training.rate = 1e30
  with pytest.raises(UserError, match=r"stage source, step \d: .*loss is .*(nan|inf).*checkpoints"):
    run.run(config, tmp_path)
  assert not [record for record in records(tmp_path) if record["step"] == 3]


def test_a_disk_that_cannot_be_written_is_told(mlsl_config, tmp_path):
  (tmp_path / "file").write_text("in the way")
  with pytest.raises(UserError, match="file"):
    run.run(mlsl_config, tmp_path / "file/run")


def test_oracle_trains_on_the_true_labels(mlsl_config, tmp_path):
  config = mlsl_config.copy_and_resolve_references()
  config.mode = "oracle"
  config.rounds.source_share_max = 0.2
  results = run.run(config, tmp_path)
  assert results["final"]["pseudo_labels"] is None and not (tmp_path / "pseudo_labels").exists()
  assert all(r["target_kept"] > 0.9 for r in records(tmp_path) if r["stage"] == "round_1" and "target_kept" in r)
  assert any("target_kept" in r for r in records(tmp_path))


def test_self_training_with_one_threshold_the_spatial_prior_and_the_easiest_images(tmp_path, capsys):
  config = tiny("self_training")
  config.labels.update({"threshold": "global", "prior": True, "portion": 0.4, "flip": True, "scales": "0.5,1"})
  config.rounds.target_share = 0.4
  config.mining.update({"probability": 1.0, "on": "both"})
  results = run.run(config, tmp_path)
  assert cv2.imread(str(tmp_path / "pictures/extra/prior.png")).shape[2] == 3
  with np.load(tmp_path / "label_statistics.npz") as found:
    prior = found["prior"]
  assert prior.shape == (4, 8, 19)
  mass = prior.sum((0, 1))
  np.testing.assert_allclose(mass[mass > 0], 1, rtol=1e-5)
  record = json.loads((tmp_path / "pseudo_labels/round_1.json").read_text())
  assert len(set(record["thresholds"])) == 1 and record["portion"] == 0.4
  assert len(record["chosen"]) == 2 and set(record["chosen"]) <= set(range(5))
  assert set(record["seconds"]) == {"network", "pools", "labels"}
  np.testing.assert_allclose(sum(record["shares"]), 1, rtol=1e-5)
  said = capsys.readouterr().out
  assert "round_1: trains on the 2 easiest of 5 images" in said
  assert re.search(r"round_1: crops are centred on ([\w ]+ [\d.]+%( \(rare\))?(, )?){5,}\n", said)
  assert results["final"]["pseudo_labels"]["selected"] <= 0.41  # ties of the threshold are left out


def test_a_source_without_labelled_pixels_is_refused_and_few_of_them_are_told(tmp_path, capsys):
  for part in ("images", "labels"):
    (tmp_path / part).mkdir()
  for i in range(3):
    cv2.imwrite(str(tmp_path / f"images/{i}.png"), np.zeros((32, 64, 3), np.uint8))
    cv2.imwrite(str(tmp_path / f"labels/{i}.png"), np.full((32, 64, 3), (0, 0, 200), np.uint8))  # BGR
  classes = tmp_path / "classes.csv"
  classes.write_text("name,id,red,green,blue\nroad,0,0,0,200\n")  # as OpenCV has it
  config = tiny("mlsl")
  config.source.update({"kind": "folder", "dir": str(tmp_path)})
  config.target = config.source
  config.test.kind = ""
  with pytest.raises(UserError, match=r"config\.source: none of the pixels of 3 source images has a label; .*classes\.csv"):
    run.run(config, tmp_path / "run")
  classes.write_text("name,id,red,green,blue\nroad,0,200,0,0\n")
  opened = experiment.open_experiment(config)
  experiment.look_at_labels(opened)
  assert capsys.readouterr().out == ""
  cv2.imwrite(str(tmp_path / "labels/0.png"), np.zeros((32, 64, 3), np.uint8))
  cv2.imwrite(str(tmp_path / "labels/1.png"), np.zeros((32, 64, 3), np.uint8))
  experiment.look_at_labels(experiment.open_experiment(config))
  assert "only 33% of the pixels of 3 source images have a label" in capsys.readouterr().out


def test_images_of_other_sizes_and_no_labels(tmp_path):
  """A folder target without labels, its images of several sizes, none of them the canvas'."""
  images = tmp_path / "photos/images"
  images.mkdir(parents=True)
  for i, size in enumerate(((40, 100), (64, 64), (20, 30))):
    cv2.imwrite(str(images / f"{i}.png"), np.random.default_rng(i).integers(0, 255, (*size, 3)).astype(np.uint8))
  config = tiny("mlsl")
  config.target.update({"kind": "folder", "dir": str(tmp_path / "photos")})
  config.test.kind = ""
  results = run.run(config, tmp_path / "run")
  assert results["final"]["miou"] is None and results["final"]["pseudo_labels"]["accuracy"] is None
  # As large as fits into the canvas of 32x64, aspect kept.
  for i, size in enumerate(((26, 64), (32, 32), (32, 48))):
    assert cv2.imread(str(tmp_path / f"run/pseudo_labels/round_1/{i}.png"), cv2.IMREAD_UNCHANGED).shape == size
