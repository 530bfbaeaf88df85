"""TensorBoard's event files, read back as TensorBoard reads them."""

import io
import re
import signal
import struct
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from jax_uda import files, tensorboard
from jax_uda.data.label_spaces import LabelSpace, colorize
from jax_uda.pictures import write_png
from jax_uda.results import PseudoLabelCounts, stage_result

SPACE = LabelSpace("tiny", ("road", "sky", "car"), ((128, 64, 128), (70, 130, 180), (0, 0, 142)))
CONFUSION = np.array([[6, 2, 0], [0, 4, 0], [0, 0, 0]])
LABELS = np.arange(6, dtype=np.uint8).reshape(2, 3) % 3


def stages(num):
  counts = PseudoLabelCounts(np.array([60, 30, 0]), 200, CONFUSION)
  return [stage_result(f"stage_{i}", 40, 9.0, CONFUSION, SPACE.classes, {"": counts} if i else None) for i in range(num)]


def line(stage_index, step, **values):
  return {"stage": f"stage_{stage_index}", "stage_index": stage_index, "step": step, **values}


@pytest.fixture
def run(tmp_path):
  """A run in its second stage."""
  files.write_json(tmp_path / "config.json", {})
  files.write_classes(tmp_path, SPACE)
  files.write_json(tmp_path / "results.json", {"stages": stages(1)})
  log = files.MetricsLog(tmp_path / "metrics.jsonl")
  for stage_index, step in ((0, 20), (0, 40), (1, 20)):
    log.append(line(stage_index, step, loss=1 / step, by_class=[1, 2], broken=float("nan")))
  write_png(tmp_path / "pictures/image/town/a.png", np.full((2, 3, 3), (1, 2, 3), np.uint8))
  for folder in ("pictures/truth", "pictures/stage_0", "pictures/stage_1", "pseudo_labels/stage_1"):
    write_png(tmp_path / folder / "town/a.png", LABELS)
  return tmp_path


def events(folder):
  """{tag: {step: number or picture}} of all event files: records are a length, its check sum, an event and a check sum."""
  from tensorboardX.proto.event_pb2 import Event

  found = {}
  for path in sorted(folder.glob("events.out.tfevents.*")):
    data = path.read_bytes()
    while len(data) > 8:
      (length,) = struct.unpack("<Q", data[:8])
      if len(data) < 16 + length:
        break  # still being written
      event, data = Event.FromString(data[12 : 12 + length]), data[16 + length :]
      for value in event.summary.value:
        steps = found.setdefault(value.tag, {})
        assert event.step not in steps
        if value.HasField("image"):
          steps[event.step] = np.asarray(Image.open(io.BytesIO(value.image.encoded_image_string)))
        else:
          steps[event.step] = value.simple_value
  return found


def awaited(folder, whole):
  """`events` once they are whole, or as they are after some seconds: they are written by a thread."""
  deadline = time.monotonic() + 20
  while not whole(found := events(folder)) and time.monotonic() < deadline:
    time.sleep(0.1)
  return found


def test_everything_is_there_once(run, capsys):
  assert tensorboard.main([str(run)]) == 0
  assert capsys.readouterr().out == f"{run}/tensorboard: 3 log lines, 1 stages\n"
  found = events(run / "tensorboard")
  assert found["train/loss"] == pytest.approx({20: 1 / 20, 40: 1 / 40, 60: 1 / 20})
  assert found["scores/miou"] == {40: pytest.approx((6 / 8 + 4 / 6) / 2)} and found["iou/road"] == {40: 0.75}
  assert not [tag for tag in found if "car" in tag or "broken" in tag or "by_class" in tag or "step" in tag]
  np.testing.assert_array_equal(found["town/a/image"][40], np.full((2, 3, 3), (3, 2, 1)))
  for what in ("truth", "prediction"):
    np.testing.assert_array_equal(found[f"town/a/{what}"][40], colorize(LABELS, SPACE))
  assert tensorboard.main([str(run)]) == 0
  again = events(run / "tensorboard")
  assert again.keys() == found.keys() and again["train/loss"] == found["train/loss"]


def test_it_follows_a_run_on_and_back(run):
  mirror, log = tensorboard.Mirror(run), files.MetricsLog(run / "metrics.jsonl")
  assert mirror.update() == (3, 1) == mirror.update()
  log.append(line(1, 40, loss=1.0))
  files.write_json(run / "results.json", {"stages": stages(2)})
  assert mirror.update() == (4, 2)
  found = awaited(mirror.folder, lambda found: "town/a/pseudo_labels" in found)
  assert list(found["train/loss"]) == [20, 40, 60, 80] and list(found["scores/miou"]) == [40, 80]
  assert found["pseudo_labels/selected"] == {80: pytest.approx(0.45)}
  assert list(found["town/a/prediction"]) == [40, 80] and list(found["town/a/pseudo_labels"]) == [80]
  assert list(found["town/a/image"]) == [40]
  log.truncate(1, 20)
  log.append(line(1, 30, loss=2.0))
  assert mirror.update() == (4, 2)
  mirror.close()
  assert list(events(mirror.folder)["train/loss"]) == [20, 40, 60, 70]


def test_what_is_no_run_is_named(tmp_path, capsys, monkeypatch):
  assert tensorboard.main([str(tmp_path)]) == 2
  assert re.fullmatch(r"error: .*holds no run.*\n", capsys.readouterr().err)
  monkeypatch.setitem(sys.modules, "tensorboardX", None)
  assert tensorboard.main([str(tmp_path)]) == 2
  assert re.fullmatch(r"error: tensorboardX is not installed; pip install .*\n", capsys.readouterr().err)


def test_following_ends_by_a_signal(run):
  command = [sys.executable, "-m", "jax_uda.tensorboard", str(run), "--follow", "0.1"]
  following = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
  deadline = time.monotonic() + 60
  while not list(run.glob("tensorboard/events*")) and time.monotonic() < deadline:
    time.sleep(0.1)
  following.send_signal(signal.SIGTERM)
  assert following.wait(30) == 75 and events(run / "tensorboard")["train/loss"]
