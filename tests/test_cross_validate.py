"""Folds: their configs, what they share, and the pooled scores."""

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from jax_uda import cross_validate, evaluate, files, metrics, run
from jax_uda.config import load_config
from jax_uda.data.label_spaces import CITYSCAPES19, protocol, protocol_rows
from jax_uda.errors import UserError
from tests.tiny import tiny


def fold_matrix(fold: int, stage: str) -> np.ndarray:
  return np.random.default_rng([fold, len(stage)]).integers(0, 50, (19, 19))


@pytest.fixture
def runs(monkeypatch) -> list:
  """The configs and work directories of the runs that were asked for; each leaves what a run does."""
  asked = []

  def fake(config, workdir):
    asked.append((config, workdir))
    fold = int(workdir.name.removeprefix("fold_"))
    files.write_classes(workdir, CITYSCAPES19)
    for stage in ("source", "round_1", "round_2"):
      evaluate.write_confusion(workdir, stage, fold_matrix(fold, stage), CITYSCAPES19)
    return {"seconds": 2.0, "stages": [{"name": name} for name in ("source", "round_1", "round_2")]}

  monkeypatch.setattr(run, "run", fake)
  return asked


def test_each_fold_is_a_run_that_starts_from_the_first_ones_source_stage(runs, tmp_path):
  config = load_config("configs/cbst_nthu.py")
  cross_validate.cross_validate(config, 3, tmp_path)
  assert [Path(workdir) for _, workdir in runs] == [tmp_path / f"fold_{k}" for k in range(3)]
  for fold, (one, _) in enumerate(runs):
    assert one.target.split == f"train{fold}" and one.test.split == f"test{fold}"
    assert one.start_from == (str(tmp_path / "fold_0") if fold else "")
    assert one.target.domain == one.test.domain == "Rome" and one.source == config.source
  assert config.target.split == "train0" and config.start_from == ""


def test_the_first_fold_may_itself_start_from_another_run(runs, tmp_path):
  config = load_config("configs/cbst_nthu.py", [f"start_from={tmp_path}/other"])
  cross_validate.cross_validate(config, 2, tmp_path)
  assert [one.start_from for one, _ in runs] == [f"{tmp_path}/other", f"{tmp_path}/fold_0"]


def test_matrices_are_pooled_before_anything_is_divided(runs, tmp_path, capsys):
  config = load_config("configs/cbst_nthu.py", ["protocols=nthu13,cityscapes19"])
  results = cross_validate.cross_validate(config, 4, tmp_path)
  assert results["folds"] == len(runs) == 4 and results["protocol"] == "nthu13" and results["seconds"] == 8
  assert [stage["name"] for stage in results["stages"]] == ["source", "round_2"]
  assert results["final"] == results["stages"][-1]
  scored = protocol("nthu13", CITYSCAPES19)
  for stage in results["stages"]:
    pooled = sum(fold_matrix(fold, stage["name"]) for fold in range(4))
    folded = metrics.fold(pooled, protocol_rows(scored, CITYSCAPES19), 13)
    assert stage["miou"] == pytest.approx(metrics.mean_iou(folded, range(13)))
    assert list(stage["iou"].values()) == pytest.approx(metrics.iou(folded)[:13].tolist())
    assert stage["other_protocols"]["cityscapes19"]["miou"] == pytest.approx(metrics.mean_iou(pooled))
  assert json.loads((tmp_path / "results.json").read_text()) == files.plain(results)
  with open(tmp_path / "results.csv") as file:
    rows = list(csv.DictReader(file))
  assert [row["class"] for row in rows] == list(scored.classes)
  assert [float(row["round_2"]) for row in rows] == pytest.approx(list(results["final"]["iou"].values()))
  shown = capsys.readouterr().out
  assert "fold 3, 4 of 4" in shown and "nthu13, 4 folds together" in shown and "mIoU" in shown


def test_what_a_user_can_mend(tmp_path, capsys):
  with pytest.raises(UserError, match=r"test.split 'all'; let both end in a number"):
    cross_validate.cross_validate(load_config("configs/cbst_nthu.py", ["test.split=all"]), 2, tmp_path)
  flags = ["--config=configs/cbst_nthu.py", f"--workdir={tmp_path}/run"]
  assert cross_validate.main([*flags, "--config.target.split=all"]) == 2
  assert "let both end in a number" in capsys.readouterr().err
  for wrong in ("--folds=0", "--folds=x", "--fold=2"):
    with pytest.raises(SystemExit) as error:
      cross_validate.main([*flags, wrong])
    assert error.value.code == 2 and "--fold" in capsys.readouterr().err


def test_two_folds_in_earnest(tmp_path):
  """On noise in CamVid's layout, whose folders are its splits; the second time nothing is left to do."""
  rng = np.random.default_rng(0)
  for split in ("day", "adapt0", "adapt1", "held0", "held1"):
    for name, shape, most in ((split, (32, 64, 3), 255), (f"{split}annot", (32, 64), 11)):
      (tmp_path / name).mkdir()
      for i in range(2 if split.startswith("held") else 4):
        cv2.imwrite(str(tmp_path / name / f"{split}_{i}.png"), rng.integers(0, most, shape, np.uint8))
  config = tiny("self_training")
  config.rounds.statistics_steps = 0
  for role, split in (("source", "day"), ("target", "adapt0"), ("test", "held0")):
    config[role].update({"kind": "camvid", "dir": str(tmp_path), "split": split, "height": 0, "width": 0, "num": 0})
  results = cross_validate.cross_validate(config, 2, tmp_path / "runs")
  folds = [json.loads((tmp_path / f"runs/fold_{k}/results.json").read_text()) for k in range(2)]
  assert [stage["name"] for stage in results["stages"]] == ["source", "round_1"]
  assert folds[1]["config"]["start_from"] == str(tmp_path / "runs/fold_0")
  stages = {record["stage"] for record in files.MetricsLog(tmp_path / "runs/fold_1/metrics.jsonl").read()}
  assert stages == {"round_1"}
  for stage in results["stages"]:
    matrices = [evaluate.read_confusion(tmp_path / f"runs/fold_{k}", stage["name"]) for k in range(2)]
    assert [matrix.sum() for matrix in matrices] == [2 * 32 * 64] * 2
    assert stage["miou"] == pytest.approx(metrics.mean_iou(sum(matrices)))
  before = [(tmp_path / f"runs/fold_{k}/results.json").read_bytes() for k in range(2)]
  assert files.plain(cross_validate.cross_validate(config, 2, tmp_path / "runs")) == files.plain(results)
  assert before == [(tmp_path / f"runs/fold_{k}/results.json").read_bytes() for k in range(2)]
