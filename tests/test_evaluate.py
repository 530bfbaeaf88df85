"""Scoring: views and windows against the same by hand, and the command on a tiny run."""

import csv
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as official

from jax_uda import evaluate, experiment, inference, metrics, run
from jax_uda.data import sources, transforms
from jax_uda.data.label_spaces import CITYSCAPES19, CITYSCAPES_IDS, LabelSpace, protocol
from jax_uda.errors import UserError
from jax_uda.stopping import StopSignal
from jax_uda.trained import Manner, TrainedNetwork, predictions
from tests import scored_by_processes
from tests.tiny import picture, tiny

# --- networks that are easy to work by hand ---

STATE = {"none": np.float32(0)}  # theirs
CLASSES = 3
WEIGHTS = np.random.default_rng(7).normal(size=(3, CLASSES)).astype(np.float32)


def cells(state, images):
  """The mean colour of each cell of 8x8, times some weights: mirrored images give mirrored logits."""
  del state
  batch, height, width, _ = images.shape
  padded = jnp.pad(images, ((0, 0), (0, -height % 8), (0, -width % 8), (0, 0)))
  grouped = padded.reshape(batch, padded.shape[1] // 8, 8, padded.shape[2] // 8, 8, 3)
  return 3 * grouped.mean((2, 4)) @ WEIGHTS


def left_and_right(state, images):
  """As `cells`, but it also sees where in its input it is, and so is not symmetric."""
  logits = cells(state, images)
  return logits + jnp.linspace(-2, 2, logits.shape[2])[:, None] * jnp.arange(CLASSES)


def always_two(state, images):
  return jnp.zeros_like(cells(state, images)).at[..., 2].set(5.0)


class Images:
  """Images in memory, with or without labels."""

  label_space = LabelSpace("abc", ("a", "b", "c"), ((1, 2, 3),) * CLASSES)

  def __init__(self, images, labels=None):
    self.images, self.labels = images, labels

  def __len__(self):
    return len(self.images)

  def __getitem__(self, index):
    example = {"image": self.images[index], "id": f"image_{index}"}
    return example if self.labels is None else {**example, "label": self.labels[index]}


def noise(*sizes: tuple[int, int]) -> list[np.ndarray]:
  return [picture(*size, seed) for seed, size in enumerate(sizes)]


def network_of(predict, canvas=(32, 64)) -> TrainedNetwork:
  return TrainedNetwork(Images.label_space, "", canvas, inference.low_outputs(predict), STATE, threads=1)


def predicted(predict, images, manner, canvas=(32, 64), sizes=None) -> list[np.ndarray]:
  found = list(predictions(network_of(predict, canvas), Images(images), manner))
  assert [one.size for one in found] == [image.shape[:2] for image in images]
  sizes = sizes or [one.size for one in found]
  return [np.asarray(one.labels(size))[: size[0], : size[1]] for one, size in zip(found, sizes, strict=True)]


def softmax(logits: np.ndarray) -> np.ndarray:
  exponent = np.exp(logits - logits.max(-1, keepdims=True))
  return exponent / exponent.sum(-1, keepdims=True)


def interpolated(maps: np.ndarray, size: tuple[int, int], scale: tuple[float, float]) -> np.ndarray:
  """Bilinear, with half-pixel centres."""
  for axis in range(2):
    at = np.clip((np.arange(size[axis]) + 0.5) / scale[axis] - 0.5, 0, maps.shape[axis] - 1)
    low = np.minimum(np.floor(at).astype(int), max(maps.shape[axis] - 2, 0))
    part = (at - low).reshape(-1, *[1] * (2 - axis))
    high = np.minimum(low + 1, maps.shape[axis] - 1)
    maps = np.take(maps, low, axis) * (1 - part) + np.take(maps, high, axis) * part
  return maps


def by_hand(predict, image: np.ndarray, canvas: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
  """Softmax [H, W, C] of one image that is fitted to a canvas, at a resolution."""
  fitted = transforms.fit(image, None, canvas)
  shown = np.asarray(transforms.normalise(fitted["image"])).copy()
  shown[fitted["size"][0] :], shown[:, fitted["size"][1] :] = 0, 0
  low = softmax(np.asarray(predict(STATE, jnp.asarray(shown)[None])[0], np.float64))
  return interpolated(low, size, tuple(8 * n / part for n, part in zip(size, fitted["size"], strict=True)))


def assert_agree(labels: np.ndarray, scores: np.ndarray) -> None:
  """Equal to the argmax, but for pixels where two classes come to the same within float16's reach."""
  highest = np.sort(scores, axis=-1)
  clear = highest[..., -1] - highest[..., -2] > 2e-3
  assert clear.mean() > 0.9
  np.testing.assert_array_equal(labels[clear], scores.argmax(-1)[clear])


# --- whole images ---


def test_scales_average_softmax_at_full_resolution():
  images, canvas, scales = noise((32, 50), (90, 130), (20, 64)), (32, 64), (0.5, 1.0, 1.75)
  canvases = [inference.scaled_canvas(canvas, scale) for scale in scales]
  assert canvases == [(16, 32), (32, 64), (56, 112)]
  for image, labels in zip(images, predicted(left_and_right, images, Manner(scales)), strict=True):
    each = [by_hand(left_and_right, image, one, image.shape[:2]) for one in canvases]
    assert_agree(labels, np.mean(each, axis=0))
  views = [{"low": np.log(softmax(np.ones((4, 8, 3)) * i)), "stride": 8, "size": np.int32([32, 64])} for i in range(2)]
  total = inference.sum_of_views(views, (40, 70))
  assert total.shape == (64, 128, 3)
  np.testing.assert_allclose(total[:40, :70], 2 / 3, rtol=1e-6)


def test_scaled_canvases_are_multiples_of_8_and_the_canvas_itself_is_left_alone():
  assert inference.scaled_canvas((180, 244), 1.0) == (180, 244)
  assert inference.scaled_canvas((180, 244), 0.5) == (88, 120)
  assert inference.scaled_canvas((16, 16), 0.01) == (8, 8)


@pytest.mark.parametrize("scales", [(1.0,), (0.5, 1.0, 1.5)])
def test_a_mirrored_image_gives_exactly_the_mirrored_labels(scales):
  """Whatever the network sees, on canvases with padding at the right, and at the bottom."""
  images = noise((32, 50), (20, 64), (31, 61))
  labels = predicted(left_and_right, images, Manner(scales, flip=True))
  mirrored = predicted(left_and_right, [image[:, ::-1] for image in images], Manner(scales, flip=True))
  for one, other in zip(labels, mirrored, strict=True):
    assert len(np.unique(one)) > 1
    np.testing.assert_array_equal(one, other[:, ::-1])
  plain = predicted(left_and_right, images, Manner(scales))
  assert any((one != other).any() for one, other in zip(plain, labels, strict=True))


def test_a_symmetric_network_gains_nothing_from_the_mirror_image():
  images = noise((32, 48), (24, 64))  # whole cells, padding beside and below them
  manners = (Manner(), Manner(flip=True))
  for one, other in zip(*(predicted(cells, images, manner) for manner in manners), strict=True):
    np.testing.assert_array_equal(one, other)


def test_mirroring_stays_within_the_content():
  canvas = jnp.arange(12).reshape(2, 6)
  np.testing.assert_array_equal(inference.mirror(canvas, jnp.int32(4))[:, :4], [[3, 2, 1, 0], [9, 8, 7, 6]])
  assert set(np.ravel(inference.mirror(canvas, jnp.int32(4))[:, 4:])) == {4, 5, 10, 11}


def test_labels_come_at_any_resolution_whatever_they_are_computed_in():
  low = np.random.default_rng(0).normal(size=(4, 8, 5)).astype(np.float16)
  for size in ((64, 128), (65, 128), (100, 40), (7, 200)):
    found = inference.predicted_labels({"low": low, "stride": 8, "size": np.int32([30, 64])}, size)
    assert found.shape == size and found.dtype == np.uint8
    scale = tuple(8 * n / part for n, part in zip(size, (30, 64), strict=True))
    wanted = np.argmax(interpolated(np.exp(low.astype(np.float64)), size, scale), -1)
    assert (found != wanted).mean() < 1e-3
  assert inference.rounded_up((1, 64)) == (64, 64) and inference.rounded_up((65, 200)) == (128, 256)


def test_many_sizes_share_a_compilation():
  before = inference._add_view._cache_size()
  low = np.zeros((2, 2, 11), np.float16)
  for height in range(65, 129, 7):
    inference.predicted_labels({"low": low, "stride": 8, "size": np.int32([16, 16])}, (height, 20 + height // 3))
  assert inference._add_view._cache_size() == before + 1


# --- windows ---


def windows_by_hand(predict, image: np.ndarray, window: tuple[int, int]) -> np.ndarray:
  height, width = image.shape[:2]
  total, count = np.zeros((height, width, CLASSES)), np.zeros((height, width, 1))
  for top in sorted({*range(0, height - window[0], window[0] // 2), height - window[0]}):
    for left in sorted({*range(0, width - window[1], window[1] // 2), width - window[1]}):
      rows, columns = slice(top, top + window[0]), slice(left, left + window[1])
      total[rows, columns] += by_hand(predict, image[rows, columns], window, window)
      count[rows, columns] += 1
  assert count.min() >= 1
  return total / count


@pytest.mark.parametrize("size", [(64, 96), (70, 101), (32, 49)])
def test_windows_that_see_where_they_are_average_as_by_hand(size):
  (image,) = noise(size)
  (labels,) = predicted(left_and_right, [image], Manner(window=(32, 48)))
  assert_agree(labels, windows_by_hand(left_and_right, image, (32, 48)))


def test_windows_with_mirror_images():
  """Of an image whose windows, cut from the left, lie as those of its mirror image do."""
  (image,) = noise((70, 128))
  manner = Manner(flip=True, window=(32, 64))
  (labels,), (mirrored,) = (predicted(left_and_right, [one], manner) for one in (image, image[:, ::-1]))
  assert len(np.unique(labels)) == CLASSES
  assert (labels != mirrored[:, ::-1]).mean() < 1e-3  # sums of three windows round by their order


def test_a_constant_network_is_constant_everywhere():
  for window in ((32, 48), (33, 47), (8, 8), (500, 500)):
    for labels in predicted(always_two, noise((70, 101), (20, 30), (64, 64)), Manner(window=window)):
      assert (labels == 2).all()


def test_a_window_larger_than_the_image_is_clipped():
  (image,) = noise((64, 64))
  cut, boxes = inference.windows(image, (1000, 2000))
  assert cut["image"].shape == (1, 64, 64, 3) and boxes.tolist() == [[0, 0]]
  cut, boxes = inference.windows(image[:50], (1000, 40))
  assert cut["image"].shape == (3, 64, 40, 3) and cut["size"].tolist() == [[50, 40]] * 3
  assert boxes.tolist() == [[0, 0], [0, 20], [0, 24]]
  (whole,) = predicted(left_and_right, [image], Manner(), canvas=(64, 64))
  (windowed,) = predicted(left_and_right, [image], Manner(window=(1000, 2000)), canvas=(64, 64))
  np.testing.assert_array_equal(whole, windowed)


@pytest.mark.parametrize("manner", [Manner(), Manner(window=(32, 48))])
def test_a_label_of_another_resolution_is_scored_at_its_own(manner):
  images = noise((64, 96), (64, 96))
  sizes = [(128, 192), (32, 48)]
  labels = predicted(cells, images, manner, canvas=(64, 96), sizes=sizes)
  assert [one.shape for one in labels] == sizes
  for image, one in zip(images, labels, strict=True):
    wanted = by_hand(cells, image, (64, 96), one.shape)
    if manner.window:
      zoom = tuple(n / part for n, part in zip(one.shape, (64, 96), strict=True))
      wanted = interpolated(windows_by_hand(cells, image, manner.window), one.shape, zoom)
    assert_agree(one, wanted)
  with StopSignal() as stop:
    dataset, kept = Images(images, labels), []
    found = evaluate.score(network_of(cells, (64, 96)), dataset, "test", stop, manner, kept.append)
  assert metrics.pixel_accuracy(found) == 1 and found.sum() == 128 * 192 + 32 * 48
  assert [one.id for one in kept] == ["image_0", "image_1"]


# --- label spaces and protocols ---


def write_folder(root: Path, classes: str, value: int) -> None:
  for part, image in (("images", np.full((16, 24, 3), 99, np.uint8)), ("labels", np.full((16, 24), value, np.uint8))):
    (root / part).mkdir(parents=True)
    cv2.imwrite(str(root / part / "a.png"), image)
  rows = [f"{name},{i},{i},0,0" for i, name in enumerate(classes.split())]
  (root / "classes.csv").write_text("\n".join(["name,id,red,green,blue", *rows]))


def test_labels_are_mapped_to_the_sources_classes_by_name(mlsl_config, tmp_path, capsys):
  write_folder(tmp_path / "source", "car sky tree", 0)
  write_folder(tmp_path / "target", "tree house car", 0)
  write_folder(tmp_path / "test", "house sky", 0)
  config = mlsl_config.copy_and_resolve_references()
  for role in ("source", "target", "test"):
    config[role].update({"kind": "folder", "dir": str(tmp_path / role), "height": 0, "width": 0})
  found = experiment.open_experiment(config)
  assert found.space.classes == ("car", "sky", "tree") and found.config.num_classes == 3
  assert "label" not in found.datasets["target"][0]
  assert (found.datasets["target_truth"][0]["label"] == 2).all()  # tree
  assert (found.datasets["test"][0]["label"] == 255).all()  # a house, which the network does not know
  assert len(found.datasets["test"]) == 1 and found.datasets["test"].label_space == found.space
  assert "test: house: not among the source's classes" in capsys.readouterr().out
  assert sources.open_source(config.test, "")[0]["label"].max() == 0


def test_protocols_that_do_not_fit_are_refused_before_anything_is_run(mlsl_config):
  config = mlsl_config.copy_and_resolve_references()
  config.protocols = "synthia16, synthia13"
  assert [one.name for one in experiment.open_experiment(config).protocols] == ["synthia16", "synthia13"]
  for wrong in ("synthia14", "ade150"):
    config.protocols = wrong
    with pytest.raises(UserError, match=wrong):
      experiment.open_experiment(config)


def test_absent_classes_count_as_zero_only_if_asked_and_only_where_something_was_scored():
  space = CITYSCAPES19
  confusion = np.diag([4] * 2 + [0] * 17)
  protocols = [protocol("", space)]
  for as_zero, wanted in ((False, 1.0), (True, 2 / 19)):
    (found,) = evaluate.by_protocol(confusion, space, protocols, as_zero).values()
    assert found["miou"] == pytest.approx(wanted) and found["iou"]["train"] is None and found["pixel_accuracy"] == 1
    (nothing,) = evaluate.by_protocol(None, space, protocols, as_zero).values()
    assert nothing["miou"] is None and nothing["pixel_accuracy"] is None


# --- the command ---


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
  workdir = tmp_path_factory.mktemp("finished")
  config = tiny("self_training")
  config.rounds.update({"num": 2, "statistics_steps": 0})
  config.protocols = "nthu13, cityscapes19"
  run.run(config, workdir)
  return workdir


def results(workdir: Path) -> dict:
  return json.loads((workdir / "results.json").read_text())


def scored(workdir: Path, *flags: str) -> dict:
  """The entry that a successful evaluation adds."""
  before = len(results(workdir).get("evaluations", []))
  assert evaluate.main([f"--workdir={workdir}", *flags]) == 0
  entries = results(workdir)["evaluations"]
  assert len(entries) == before + 1
  return entries[-1]


def failure(capsys, *flags: str) -> str:
  assert evaluate.main(flags) == 2
  shown = capsys.readouterr().err.strip().splitlines()
  assert len(shown) == 1 and shown[0].startswith("error: ")
  return shown[0]


def test_a_run_is_scored_under_its_protocols(finished):
  found = results(finished)
  assert found["protocol"] == "nthu13"
  for stage in found["stages"]:
    confusion = json.loads((finished / f"scores/{stage['name']}.json").read_text())
    assert confusion["classes"] == list(CITYSCAPES19.classes)
    np.testing.assert_array_equal(evaluate.read_confusion(finished, stage["name"]), confusion["confusion"])
    assert np.sum(confusion["confusion"]) <= 3 * 32 * 64
    assert len(stage["iou"]) == 13 and stage["other_protocols"].keys() == {"cityscapes19"}
    other = stage["other_protocols"]["cityscapes19"]
    assert other["miou"] == pytest.approx(metrics.mean_iou(confusion["confusion"])) and len(other["iou"]) == 19
    assert other["pixel_accuracy"] == pytest.approx(metrics.pixel_accuracy(confusion["confusion"]))
  assert "mIoU in %, cityscapes19" in (finished / "report.html").read_text()


def test_scored_again_a_stage_has_the_same_scores(finished, capsys):
  stages = results(finished)["stages"]
  for flags, stage in (((), stages[-1]), (("--stage=source",), stages[0])):
    entry = scored(finished, *flags)
    assert {name: entry[name] for name in ("miou", "pixel_accuracy", "iou")} == {
      name: stage[name] for name in ("miou", "pixel_accuracy", "iou")
    }
    assert (entry["stage"], entry["protocol"]) == (stage["name"], "nthu13")
    assert (entry["scales"], entry["flip"], entry["sliding"]) == ([1.0], False, None)
    shown = capsys.readouterr().out
    assert "IoU in %" in shown and stage["name"] in shown and "mIoU" in shown
    with open(finished / f"evaluation_{stage['name']}_nthu13.csv") as file:
      rows = list(csv.DictReader(file))
    assert {row["class"]: float(row["IoU"]) if row["IoU"] else None for row in rows} == stage["iou"]


def test_scored_in_other_manners(finished):
  entry = scored(finished, "--scales=0.5,0.75,1.0", "--flip", "--protocol=synthia13")
  assert entry["scales"] == [0.5, 0.75, 1.0] and entry["flip"] and 0 <= entry["miou"] <= 1
  assert len(entry["iou"]) == 13 and "wall" not in entry["iou"]
  assert (finished / "evaluation_round_2_synthia13_0.5-0.75-1_flip.csv").exists()
  entry = scored(finished, "--sliding=24x48", "--flip", "--protocol=cityscapes19", "--config.test.num=2")
  assert entry["sliding"] == [24, 48] and entry["overrides"] == ["test.num=2"] and 0 <= entry["miou"] <= 1
  assert (finished / "evaluation_round_2_cityscapes19_24x48_flip_test.num-2.csv").exists()


def test_predictions_as_cityscapes_ids_are_scored_alike_by_cityscapes(finished, tmp_path, monkeypatch):
  entry = scored(finished, "--protocol=cityscapes19", f"--predictions={tmp_path}/ids", "--ids=cityscapes")
  scored(finished, f"--predictions={tmp_path}/train")
  test = sources.open_source(tiny("self_training").test, "")
  for one in map(test.__getitem__, range(3)):
    cv2.imwrite(str(tmp_path / f"{one['id']}.png"), CITYSCAPES_IDS[one["label"]])
    ids, train = (cv2.imread(str(tmp_path / kind / f"{one['id']}.png"), -1) for kind in ("ids", "train"))
    assert train.shape == (32, 64) and train.max() < 19
    np.testing.assert_array_equal(CITYSCAPES_IDS[train], ids)
  for name, value in (("evalInstLevelScore", False), ("JSONOutput", False), ("quiet", True), ("evalLabels", [])):
    monkeypatch.setattr(official.args, name, value)
  truths = sorted(map(str, tmp_path.glob("*.png")))
  theirs = official.evaluateImgLists(sorted(map(str, tmp_path.glob("ids/*.png"))), truths, official.args)
  for name, value in entry["iou"].items():
    np.testing.assert_allclose(np.nan if value is None else value, theirs["classScores"][name], rtol=1e-12)
  assert entry["miou"] == pytest.approx(theirs["averageScoreClasses"], rel=1e-12)


def test_predictions_of_images_without_labels_at_their_own_sizes(finished, tmp_path, capsys):
  (tmp_path / "photos/images").mkdir(parents=True)
  sizes = {"a": (40, 100), "b": (64, 64), "c": (21, 30)}
  for name, size in sizes.items():
    cv2.imwrite(str(tmp_path / f"photos/images/{name}.png"), noise(size)[0])
  flags = [f"--workdir={finished}", "--config.test.kind=folder", f"--config.test.dir={tmp_path}/photos"]
  flags += ["--config.test.height=0", "--config.test.width=0"]
  before = results(finished)
  for i, manner in enumerate(([], ["--sliding=32x32"])):
    assert evaluate.main([*flags, *manner, f"--predictions={tmp_path}/{i}"]) == 0
    for name, size in sizes.items():
      assert cv2.imread(str(tmp_path / f"{i}/{name}.png"), -1).shape == size
  assert results(finished) == before
  capsys.readouterr()
  assert "--predictions" in failure(capsys, *flags)


@pytest.mark.parametrize(("flag", "said"), [
  ("--scales=0.5,x", "--scales: '0.5,x'"), ("--scales=0", "--scales: '0'"), ("--scales=1,-1", "above 0"),
  ("--scales=nan", "above 0"), ("--scales=", "above 0"), ("--sliding=512", "HEIGHTxWIDTH"),
  ("--sliding=0x8", "HEIGHTxWIDTH"), ("--protocol=nthu14", "'nthu14'"), ("--protocol=camvid11", "pavement"),
  ("--stage=round_7", "source, round_2"), ("--stage=round_1", "source, round_2"), ("--config.seed=3", "test.FIELD, "),
  ("--config.test.kind=", "nothing to score"), ("--config.test.numm=3", "did you mean test.num?"),
])  # fmt: skip
def test_what_a_user_can_mend(finished, capsys, flag, said):
  assert said in failure(capsys, f"--workdir={finished}", flag)


def test_where_there_is_no_run(finished, tmp_path, capsys):
  assert "holds no run" in failure(capsys, f"--workdir={tmp_path}")
  for file in ("config.json", "classes.json", "results.json"):
    (tmp_path / file).write_text((finished / file).read_text())
  assert "no finished stage" in failure(capsys, f"--workdir={tmp_path}")
  assert "leave out" in failure(capsys, f"--workdir={finished}", "--sliding=16x16", "--scales=0.5")
  with pytest.raises(SystemExit) as error:
    evaluate.main(["--workdir=x", "--ids=colours"])
  assert error.value.code == 2 and capsys.readouterr().err.startswith("error: ")


def test_scoring_needs_neither_source_nor_weights(finished, tmp_path, monkeypatch):
  """As on another machine: only the work directory and the test set are there."""
  config = json.loads((finished / "config.json").read_text())
  config["weights"] = config["source"]["dir"] = config["target"]["dir"] = "/nowhere"
  config["source"]["kind"] = config["target"]["kind"] = "folder"
  del config["protocols"], config["absent_as_zero"]  # of a run from before there were such fields
  monkeypatch.setattr(evaluate.files, "write_json", lambda *_: None)
  (tmp_path / "checkpoints").symlink_to(finished / "checkpoints")
  for file in ("classes.json", "results.json"):
    (tmp_path / file).write_text((finished / file).read_text())
  (tmp_path / "config.json").write_text(json.dumps(config))
  entry = evaluate.evaluate(tmp_path)
  assert entry["protocol"] == "cityscapes19"
  assert entry["iou"] == results(finished)["final"]["other_protocols"]["cityscapes19"]["iou"]
  assert jax.device_count() == 4


def test_processes_score_together():
  """Two processes of a device each find what one of four finds, each all of it."""
  script = Path(__file__).parent / "scored_by_processes.py"
  environment = {**os.environ, "PYTHONPATH": str(script.parents[1])}
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = str(free.getsockname()[1])

  commands = [[sys.executable, script, str(index), "2", port] for index in range(2)]
  both = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for command in commands]
  alone = scored_by_processes.scored()
  both = [json.loads(process.communicate(timeout=240)[0].splitlines()[-1]) for process in both]
  assert both[0] == both[1] and both[0]["confusion"] == alone["confusion"]
  assert np.count_nonzero(np.sum(alone["confusion"], axis=0)) > 3  # classes are predicted
  np.testing.assert_array_equal(both[0]["big"], 2 * np.array(alone["confusion"]))


def test_a_run_that_lacks_the_newest_fields_is_scored_with_their_defaults(finished, tmp_path):
  copy = shutil.copytree(finished, tmp_path / "older")
  content = json.loads((copy / "config.json").read_text())
  del content["mining"], content["optimizer"]["bias_multiplier"], content["eval_flip"]
  (copy / "config.json").write_text(json.dumps(content))
  entry, other = scored(copy), scored(finished)
  assert entry["miou"] == other["miou"]
