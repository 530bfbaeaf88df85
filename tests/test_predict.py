"""Predictions of images of one's own."""

import json
import shutil
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest
from PIL import Image

from jax_uda import export, predict, trained
from jax_uda.data.label_spaces import CITYSCAPES19, colorize
from jax_uda.errors import UserError
from jax_uda.trained import Manner
from tests.tiny import picture


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Images of several sizes, one of them on its side; one that is none; and what is no image."""
  folder = tmp_path_factory.mktemp("images")
  (folder / "night/left").mkdir(parents=True)
  Image.fromarray(picture(32, 64)).save(folder / "a.png")
  Image.fromarray(picture(32, 64)[:, :, 0]).save(folder / "grey.png")
  Image.fromarray(picture(75, 41, seed=1)).save(folder / "night/left/b.PNG")
  exif = Image.Exif()
  exif[0x0112] = 6  # to be turned clockwise
  Image.fromarray(picture(40, 88, seed=2)).save(folder / "night/c.jpg", exif=exif, quality=100)
  (folder / "torn.png").write_bytes((folder / "a.png").read_bytes()[:200])
  (folder / "notes.txt").write_text("no image")
  return folder


IMAGES = {
  "a": picture(32, 64),
  "grey": picture(32, 64)[:, :, :1],
  "night/left/b": picture(75, 41, seed=1),
  "night/c": picture(40, 88, seed=2),
}
SIZES = {"a": (32, 64), "grey": (32, 64), "night/left/b": (75, 41), "night/c": (88, 40)}


def read(path):
  return cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)


def test_a_folder_of_images_of_several_sizes(workdir, folder, tmp_path, capsys):
  out = tmp_path / "out"
  status = predict.main(["--workdir", str(workdir), "--images", str(folder), "--out", str(out), "--maps"])
  assert status == 0
  said = capsys.readouterr()
  assert "1 could not be read" in said.out and "passed over: unreadable image" in said.out and "torn.png" in said.out
  assert "predicting" in said.err
  expected = {"labels", "colors", "overlays", "maps/confidence", "maps/agreement"}
  written = {path.relative_to(out).as_posix() for path in out.rglob("*.png")}
  assert written == {f"{what}/{name}.png" for what in expected for name in SIZES}
  assert json.loads((out / "classes.json").read_text())["classes"] == list(CITYSCAPES19.classes)
  for name, size in SIZES.items():
    labels = cv2.imread(str(out / "labels" / f"{name}.png"), cv2.IMREAD_UNCHANGED)
    assert labels.shape == size and labels.dtype == np.uint8 and labels.max() < 19
    colors, overlay = (read(out / what / f"{name}.png") for what in ("colors", "overlays"))
    np.testing.assert_array_equal(colors, colorize(labels, CITYSCAPES19))
    seen = 2 * overlay.astype(int) - colors  # the image, as it is looked at
    if name == "night/c":
      seen = np.rot90(seen)  # back
    assert np.quantile(np.abs(seen - IMAGES[name]), 0.5 if name == "night/c" else 1) <= 2  # JPEG blurs edges of colour
    maps = (out / "maps" / what / f"{name}.png" for what in ("confidence", "agreement"))
    confidence, agreement = (cv2.imread(str(path), -1) for path in maps)
    assert confidence.shape == agreement.shape == size
    assert confidence.min() >= 255 // 19 and len(np.unique(confidence)) > 2  # of 19 classes
  assert set(np.unique(cv2.imread(str(out / "maps/agreement/a.png"), -1))) <= {0, 255}  # not resized
  made = json.loads((out / "predictions.json").read_text())
  assert made["stage"] == "source" and made["flip"] is False


def test_what_is_predicted_does_not_hang_on_the_other_images(workdir, folder, tmp_path):
  for out, images in ((tmp_path / "all", [folder]), (tmp_path / "one", [folder / "night/left/b.PNG"])):
    predict.predict(workdir, map(str, images), out)
  alone = cv2.imread(str(tmp_path / "one/labels/b.png"), -1)
  np.testing.assert_array_equal(alone, cv2.imread(str(tmp_path / "all/labels/night/left/b.png"), -1))


def test_windows_and_mirror_images(workdir, folder, tmp_path):
  """As scoring sees the same images."""
  manner = Manner(window=(32, 32), flip=True)
  assert predict.predict(workdir, [str(folder / "*.png")], tmp_path, manner=manner)[0].count("torn.png") == 1
  assert {path.name for path in (tmp_path / "labels").iterdir()} == {"a.png", "grey.png"}
  (expected,) = trained.predictions(trained.load(workdir), predict.open_images([str(folder / "a.png")]), manner)
  found = cv2.imread(str(tmp_path / "labels/a.png"), -1)
  np.testing.assert_array_equal(found, np.asarray(expected.labels((32, 64)))[:32, :64])


@pytest.mark.parametrize("flags", [[], ["--flip", "--scales", "1,2"], ["--sliding", "32x40"]])
def test_an_exported_file_predicts_what_its_run_does(flags, workdir, exported, folder, tmp_path):
  for origin in (["--workdir", workdir], ["--model", exported]):
    flag, path = origin
    assert predict.main([*map(str, (flag, path, "--images", folder, "--out", tmp_path / flag[2:], "--maps", *flags))]) == 0
  written = sorted(path.relative_to(tmp_path / "model") for path in (tmp_path / "model").rglob("*.png"))
  assert {path.parts[0] for path in written} == {"labels", "colors", "overlays", "maps"} and len(written) == 4 * len(SIZES)
  for path in written:
    ours, theirs = (cv2.imread(str(tmp_path / origin / path), -1) for origin in ("workdir", "model"))
    np.testing.assert_array_equal(ours, theirs, err_msg=str(path))
  made = json.loads((tmp_path / "model/predictions.json").read_text())
  assert made["stage"] == "source" and made["origin"] == str(exported)


def test_earlier_predictions_and_hidden_folders_are_no_images(workdir, tmp_path):
  (tmp_path / ".venv").mkdir()
  for path in ("a.png", ".venv/b.png"):
    Image.fromarray(picture(32, 64)).save(tmp_path / path)
  for _ in range(2):
    predict.predict(workdir, [str(tmp_path)], tmp_path / "out", maps=True)
  assert [path.name for path in tmp_path.rglob("*.png") if path.parent.name == "labels"] == ["a.png"]
  with pytest.raises(UserError, match="has the images in it"):
    predict.predict(workdir, [str(tmp_path)], tmp_path)
  assert list(predict.find_images([str(tmp_path / "out")])) == [
    f"{kind}/a" for kind in ("colors", "labels", "maps/agreement", "maps/confidence", "overlays")
  ]


def test_equal_images_have_equal_maps_wherever_they_are(workdir):
  network = trained.load(workdir)
  batch = {"image": np.stack(8 * [picture(32, 64)]), "size": np.int32(8 * [(32, 64)])}  # two a device
  (drawn,) = trained.draw_maps(network, batch).values()
  assert 0 < drawn.mean() < 1 and all(np.array_equal(one, drawn[0]) for one in drawn)


def test_names(folder, tmp_path):
  assert list(predict.find_images([str(folder / "night"), str(folder / "a.png")])) == ["c", "left/b", "a"]
  assert list(predict.find_images([str(folder / "n*" / "*.jpg")])) == ["night/c"]
  assert list(predict.find_images([str(folder / "*")])) == ["a", "grey", "torn"]  # no folder, no text
  for name in ("same.png", "same.jpg"):
    Image.fromarray(picture(8, 8)).save(tmp_path / name)
  assert list(predict.find_images([str(tmp_path)])) == ["same.jpg", "same.png"]
  assert list(predict.find_images([str(tmp_path), str(tmp_path / "same.png")])) == ["same.jpg", "same.png"]
  (tmp_path / "other").mkdir()
  Image.fromarray(picture(8, 8)).save(tmp_path / "other/same.png")
  with pytest.raises(UserError, match=r"both called same\.png"):
    predict.find_images([str(tmp_path / "same.png"), str(tmp_path / "other/same.png")])


@pytest.mark.parametrize(("images", "said"), [("absent/*.png", "no such file"), ("", "no image")])
def test_no_images(images, said, tmp_path):
  with pytest.raises(UserError, match=said):
    predict.find_images([str(tmp_path / images)])


def test_only_predictions_are_written_over(workdir, folder, tmp_path, capsys):
  images = ["--images", folder / "a.png"]
  (tmp_path / "data/labels").mkdir(parents=True)
  assert "has labels of another origin" in one_line(capsys, "--workdir", workdir, *images, "--out", tmp_path / "data")
  assert "has config.json, classes.json of" in one_line(capsys, "--workdir", workdir, *images, "--out", workdir)
  for _ in range(2):
    assert predict.main([*map(str, ("--workdir", workdir, *images, "--out", tmp_path / "mine"))]) == 0
  before = (tmp_path / "mine/predictions.json").read_bytes()
  said = one_line(capsys, "--workdir", workdir, *images, "--out", tmp_path / "mine", "--flip")
  assert "has predictions made otherwise (flip: False -> True)" in said
  assert (tmp_path / "mine/predictions.json").read_bytes() == before


def one_line(capsys, *argv):
  assert predict.main([*map(str, argv)]) == 2
  *progress, said = capsys.readouterr().err.splitlines()
  assert said.startswith("error: ") and all("predicting" in line for line in progress)
  return said


def test_what_a_person_can_mend_is_one_line(workdir, folder, tmp_path, capsys):
  image, out = ["--images", folder / "a.png"], ["--out", tmp_path / "out"]
  assert "holds no run" in one_line(capsys, "--workdir", tmp_path, *image, *out)
  assert "no checkpoint of the end of 'end'" in one_line(capsys, "--workdir", workdir, *image, *out, "--stage", "end")
  assert "what can be is eval_batch, threads" in one_line(capsys, "--workdir", workdir, *image, *out, "--config.seed=1")
  assert "none of the 1 images" in one_line(capsys, "--workdir", workdir, "--images", folder / "torn.png", *out)
  assert "leave out --scales" in one_line(
    capsys, "--workdir", workdir, *image, *out, "--scales", "0.5", "--sliding", "32x32"
  )


def test_an_exported_file_that_will_not_do_is_one_line(workdir, exported, folder, tmp_path, capsys):
  there = ["--images", folder / "a.png", "--out", tmp_path / "out"]
  (tmp_path / "torn").write_bytes(exported.read_bytes()[:999])
  shutil.copy(f"{exported}.json", tmp_path / "torn.json")
  (tmp_path / "encoder.safetensors").write_bytes(b"")
  export.export(workdir, tmp_path / "fixed.stablehlo", size=(32, 64))
  for name in ("alone", "poor", "other"):
    (tmp_path / name).write_bytes(exported.read_bytes())
  (tmp_path / "poor.json").write_text('{"name": "", "classes": ["a"]}')
  meaning = json.loads(Path(f"{exported}.json").read_text())
  (tmp_path / "other.json").write_text(json.dumps({**meaning, "classes": meaning["classes"][:3]}))
  for flags, said in (
    (["--model", tmp_path / "absent"], "absent is not there; check the path"),
    (["--model", tmp_path], "name a run's folder by --workdir, or a file of jax_uda.export by --model"),
    (["--workdir", exported], "name a run's folder by --workdir, or a file of jax_uda.export by --model"),
    (["--model", tmp_path / "torn"], "torn is damaged or no file of jax_uda.export"),
    (["--model", tmp_path / "poor"], "poor.json is no description of a network (KeyError('colors'))"),
    (["--model", tmp_path / "other"], "other.json has 3 classes, the network in"),
    (["--model", tmp_path / "encoder.safetensors"], "holds weights alone"),
    (["--model", tmp_path / "alone"], "alone.json is not there"),
    (["--model", exported, "--stage", "source"], "holds one network"),
    (["--model", tmp_path / "fixed.stablehlo", "--scales", "2"], "sees 32x64 pixels, not 64x128; export it without --size"),
    (["--model", exported, "--config.seed=1"], "what can be is eval_batch, threads"),
  ):
    assert said in one_line(capsys, *flags, *there)


@pytest.mark.parametrize("error", [jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: no 9 bytes are left."), MemoryError()])
@pytest.mark.parametrize(("where", "flags", "advice"), [
  ("load", [], "turn down --scales, or"),
  ("predictions", [], "turn down --scales, or"),
  ("predictions", ["--sliding", "32x32", "--config.eval_batch=3"], "turn down --config.eval_batch=3, --sliding, or"),
])  # fmt: skip
def test_too_little_memory_is_told_in_one_line(error, where, flags, advice, workdir, folder, tmp_path, capsys, monkeypatch):
  def full(*_):
    raise error

  monkeypatch.setattr(trained, where, full)
  said = one_line(capsys, "--workdir", workdir, "--images", folder, "--out", tmp_path, *flags)
  assert f"out of memory; {advice} give smaller images" in said
