"""The steps of a stage, as `training.train` takes them."""

import json
import time

import cv2
import numpy as np
import pytest

from jax_uda import experiment, files, labelling, run, training
from jax_uda.errors import UserError
from tests.tiny import tiny


@pytest.fixture
def config(tmp_path):
  """Seven labelled images in a folder, the third of them cut short."""
  for folder in ("images", "labels"):
    (tmp_path / "data" / folder).mkdir(parents=True)
  for i in range(7):
    rng = np.random.default_rng(i)
    cv2.imwrite(str(tmp_path / f"data/images/{i}.png"), rng.integers(0, 255, (32, 64, 3)).astype(np.uint8))
    cv2.imwrite(str(tmp_path / f"data/labels/{i}.png"), rng.integers(0, 2, (32, 64)).astype(np.uint8))
  (tmp_path / "data/classes.csv").write_text("name,id,red,green,blue\nroad,0,1,2,3\nsky,1,4,5,6\n")
  broken = tmp_path / "data/images/2.png"
  broken.write_bytes(broken.read_bytes()[:100])
  config = tiny("self_training")
  for role in ("source", "target"):
    config[role].update({"kind": "folder", "dir": str(tmp_path / "data")})
  config.test.kind = ""
  return config


def streamed(config, workdir, index, name, count=6):
  """The first batches of a stream."""
  opened = experiment.tolerant(experiment.open_experiment(config), workdir)
  stream = training._open_streams(opened, workdir, index, start=0)[name]
  return [next(stream) for _ in range(count)]


def test_a_bad_image_is_an_error_unless_some_are_allowed(config, tmp_path, capsys):
  with pytest.raises(UserError, match=r"unreadable image: .*2\.png") as error:
    streamed(config, tmp_path, 0, "train")
  assert "allow more than config.max_bad_images=0" in str(error.value)
  config.max_bad_images = 1
  streamed(config, tmp_path, 0, "train")
  streamed(config, tmp_path, 1, "whole")  # of another stage, and of the target: the same file
  assert capsys.readouterr().out.count("passed over") == 1
  (named,) = json.loads((tmp_path / "bad_images.json").read_text())
  assert "2.png" in named


def test_an_image_taken_for_a_bad_one_comes_with_its_own_pseudo_label(config, tmp_path):
  config.max_bad_images = 1
  config.rounds.paired = True
  folder = tmp_path / "pseudo_labels/round_1"
  folder.mkdir(parents=True)
  for i in (0, 1, 3, 4, 5, 6):  # none of the bad image
    cv2.imwrite(str(folder / f"{i}.png"), np.full((32, 64), i, np.uint8))
  chosen = labelling.easiest([0, 1, 3, 4, 5, 6], [0.0] * 6, 7)  # as many as were planned
  (tmp_path / "pseudo_labels/round_1.json").write_text(json.dumps({"chosen": chosen}))
  images = {i: cv2.imread(str(tmp_path / f"data/images/{i}.png")) for i in (0, 1, 3, 4, 5, 6)}
  seen = []
  for batch in streamed(config, tmp_path, 2, "target", count=7):  # four epochs
    for image, label in zip(batch["image"], batch["label"], strict=True):
      np.testing.assert_array_equal(image[..., ::-1], images[label[0, 0]])
      seen.append(int(label[0, 0]))
  assert {i: seen.count(i) for i in images} == {0: 8, 1: 4, 3: 4, 4: 4, 5: 4, 6: 4}


@pytest.mark.parametrize(("paired", "share"), [(True, 0.6), (False, 1.0)])
def test_a_run_passes_over_a_bad_image_everywhere(config, tmp_path, paired, share):
  config.max_bad_images = 1
  config.rounds.update({"paired": paired, "target_share": share, "steps": 0, "epochs": 1})
  results = run.run(config, tmp_path / "run")
  stage = results["stages"][-1]
  labels = sorted(path.stem for path in (tmp_path / f"run/pseudo_labels/{stage['name']}").iterdir())
  assert labels == ["0", "1", "3", "4", "5", "6"]
  assert 0 < stage["pseudo_labels"]["selected"] < 1 and 0 <= stage["pseudo_labels"]["accuracy"] <= 1
  assert 0 <= stage["waiting_for_data"] <= 1


def test_log_lines_add_up_to_the_stages_share_of_waiting(tmp_path):
  assert training.waiting_for_data(tmp_path, 0) is None
  stage = experiment.open_experiment(tiny("self_training")).stages[0]
  log, window = files.MetricsLog(tmp_path / "metrics.jsonl"), training._Window(stage, 0)
  for step, waits in ((1, 0.2), (2, 0.0)):
    with window.waiting():
      time.sleep(waits)
    time.sleep(0.05)
    window.add(step, {"loss": (np.float32(6), np.int32(3))}, images=4)
    log.append(window.close("none"))
  first, second = log.read()
  assert first["loss"] == 2 and first["images_per_second"] * first["seconds"] == pytest.approx(4)
  assert first["seconds"] >= 0.25 and first["waiting_for_data"] > 0.3 > second["waiting_for_data"]
  waited = sum(line["seconds"] * line["waiting_for_data"] for line in (first, second))
  assert training.waiting_for_data(tmp_path, 0) == pytest.approx(waited / (first["seconds"] + second["seconds"]))
  assert training.waiting_for_data(tmp_path, 1) is None
