import errno
import importlib
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from data_prep import core
from jax_uda.data.label_spaces import CITYSCAPES19
from jax_uda.data.sources import FileSource, PreparedSource, open_source
from jax_uda.errors import UserError
from tests import raw_trees

# Each data set: its raw tree, and the specs of what is prepared from it.


def gta5(root):
  raw_trees.make_gta5(root)
  return [{}]


def synthia(root):
  raw_trees.make_synthia(root)
  return [{}]


def cityscapes(root):
  for split in ("train", "val", "test"):
    raw_trees.make_cityscapes(root, split, labelled=split != "test")
  return [{"split": split} for split in ("train", "val", "test")]


def bdd100k(root, first=False):
  for split in ("train", "val"):
    raw_trees.make_bdd100k(root, split, first)
  return [{"split": split} for split in ("train", "val")]


def nthu(root):
  cities = ("Rome", "Rio", "Tokyo", "Taipei")
  for city in cities:
    raw_trees.make_nthu(root, city)
  parts = [{"domain": city, "split": "all"} for city in cities]
  return [*parts, {"domain": "Rio", "split": "train1"}, {"domain": "Rio", "split": "test1"}]


def ade20k(root):
  for split in ("training", "validation"):
    raw_trees.make_ade20k(root, split)
  return [{"split": split} for split in ("training", "validation")]


def camvid(root):
  for split in ("train", "val", "test"):
    raw_trees.make_camvid(root, split)
  (root / "day_to_dusk").mkdir()
  for name in ("source_day", "target_dusk_test"):
    (root / f"day_to_dusk/{name}.txt").write_text(
      "test/0001TP_006690.png testannot/0001TP_006690.png\ntrain/Seq05VD_f00000.png trainannot/Seq05VD_f00000.png\n")
  return [{"split": split} for split in ("train", "val", "test")] + [
    {"list": f"day_to_dusk/{name}.txt"} for name in ("source_day", "target_dusk_test")]


def make(kind, root):
  """Writes the raw tree below root / "raw"; returns the specs, whose dir is missing."""
  return [{"kind": kind, "height": 0} | fields for fields in globals()[kind](root / "raw")]


def command(kind, root, *flags):
  return importlib.import_module(f"data_prep.{kind}").main(
    ["--raw", str(root / "raw"), "--out", str(root / "out"), "--workers", "1", *flags])


def error_line(kind, root, capsys, *flags):
  assert command(kind, root, *flags) == 2
  line = capsys.readouterr().err.splitlines()[-1]
  assert line.startswith("error: ") and ";" in line
  return line


def summary(kind, root):
  return (root / f"out/{kind}/1.0.0/summary.txt").read_text()


def files(folder):
  return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def assert_equal_sources(raw, prepared):
  assert isinstance(raw, FileSource) and isinstance(prepared, PreparedSource)
  assert len(raw) == len(prepared) > 0 and raw.label_space == prepared.label_space
  for one, other in zip(raw, prepared, strict=True):
    assert one.keys() == other.keys() and one["id"] == other["id"]
    np.testing.assert_array_equal(one["image"], other["image"], strict=True)
    if "label" in one:
      np.testing.assert_array_equal(one["label"], other["label"], strict=True)


def assert_prepared_equals_raw(spec, root):
  raw = open_source({**spec, "dir": "raw"}, root)
  for folder in (f"out/{spec['kind']}", f"out/{spec['kind']}/1.0.0"):
    assert_equal_sources(raw, open_source({**spec, "dir": folder}, root))


# Each data set, read back


@pytest.mark.parametrize("height", [0, 2, 20])
@pytest.mark.parametrize("kind", ["gta5", "synthia", "cityscapes", "bdd100k", "nthu", "ade20k", "camvid"])
def test_prepared_reads_as_raw(kind, height, tmp_path, capsys):
  specs = make(kind, tmp_path)
  assert command(kind, tmp_path, "--height", str(height)) == 0
  assert "skipped pairs" in capsys.readouterr().out
  assert core.SKIPPED not in summary(kind, tmp_path)
  for spec in specs:
    spec = {**spec, "height": height}
    assert_prepared_equals_raw(spec, tmp_path)
    assert not height or open_source({**spec, "dir": f"out/{kind}"}, tmp_path)[0]["image"].shape[0] == height
  assert [path.name for path in (tmp_path / "out" / kind).iterdir()] == ["1.0.0"]


def test_expected_pixels_ids_and_order(tmp_path):
  expected = raw_trees.make_synthia(tmp_path / "raw")
  assert command("synthia", tmp_path) == 0
  prepared = open_source({"kind": "synthia", "dir": "out/synthia"}, tmp_path)
  for example, (name, image, label) in zip(prepared, expected, strict=True):
    assert example["id"] == name
    np.testing.assert_array_equal(example["image"], image, strict=True)
    np.testing.assert_array_equal(example["label"], label, strict=True)


def test_first_layout_of_bdd100k(tmp_path):
  specs = bdd100k(tmp_path / "raw", first=True)
  assert command("bdd100k", tmp_path) == 0
  for fields in specs:
    assert_prepared_equals_raw({"kind": "bdd100k", **fields}, tmp_path)


def test_unscaled_images_keep_their_bytes(tmp_path):
  bdd100k(tmp_path / "raw")
  assert command("bdd100k", tmp_path) == 0
  records = open_source({"kind": "bdd100k", "dir": "out/bdd100k", "split": "val"}, tmp_path).records
  originals = sorted((tmp_path / "raw/images/10k/val").iterdir())
  assert [records[i]["image"] for i in range(2)] == [path.read_bytes() for path in originals]
  assert records[0]["image"].startswith(b"\xff\xd8")  # JPEG


def test_only_labels_that_are_trained_on_are_scaled(tmp_path):
  cityscapes(tmp_path / "raw")
  assert command("cityscapes", tmp_path, "--height", "2") == 0
  train, val, test = (
    open_source({"kind": "cityscapes", "dir": "out/cityscapes", "split": split, "height": 2}, tmp_path)[0]
    for split in ("train", "val", "test"))
  assert train["label"].shape == train["image"].shape[:2] == val["image"].shape[:2] == (2, 3)
  assert val["label"].shape == (3, 4) and "label" not in test


def test_optional_splits_are_left_out(tmp_path):
  for split in ("train", "val"):
    raw_trees.make_cityscapes(tmp_path / "raw", split)
  assert command("cityscapes", tmp_path) == 0
  assert summary("cityscapes", tmp_path).splitlines()[2].split() == ["train", "val"]
  with pytest.raises(UserError, match="no split 'test'"):
    open_source({"kind": "cityscapes", "dir": "out/cityscapes", "split": "test"}, tmp_path)


def test_records_in_several_files(tmp_path, monkeypatch):
  monkeypatch.setattr(core, "SHARD", 2)
  monkeypatch.setattr(core, "BATCH", 3)
  nthu(tmp_path / "raw")
  assert command("nthu", tmp_path) == 0
  assert len(list((tmp_path / "out/nthu/1.0.0").glob("nthu-Rome.array_record-*"))) == 6
  assert_prepared_equals_raw({"kind": "nthu", "domain": "Rome", "split": "all"}, tmp_path)


# Summary


def test_summary(tmp_path, capsys):
  expected = raw_trees.make_cityscapes(tmp_path / "raw", "train")
  raw_trees.make_cityscapes(tmp_path / "raw", "val")
  raw_trees.make_cityscapes(tmp_path / "raw", "test", labelled=False)
  assert command("cityscapes", tmp_path) == 0
  text = summary("cityscapes", tmp_path)
  rows = {" ".join(words): [train, val, test] for *words, train, val, test in map(str.split, text.splitlines()[2:])}
  assert rows["images"] == [str(len(expected))] * 3 and rows["skipped pairs"] == ["0", "0", "0"]
  counts = sum(np.bincount(label.ravel(), minlength=256) for *_, label in expected)
  for train_id, name in [*enumerate(CITYSCAPES19.classes), (255, "ignored")]:
    assert rows[name] == [f"{100 * counts[train_id] / counts.sum():.3f}"] * 2 + ["–"]
  out = capsys.readouterr().out
  assert text in out and out.endswith(f"ready: {tmp_path}/out/cityscapes/1.0.0\n")


# Pairs that cannot be used


def test_bad_pairs_are_skipped_and_named(tmp_path, capsys):
  root = tmp_path / "raw"
  raw_trees.make_camvid(root, "val")
  raw_trees.make_camvid(root, "test")
  image, label = np.zeros((40, 60, 3), np.uint8), np.zeros((40, 60), np.uint8)
  names = ("cut", "cut_label", "alone", "unlike", "unknown", "good")
  for name in names:
    raw_trees.save(root / f"train/{name}.png", image)
    raw_trees.save(root / f"trainannot/{name}.png", label)
  for path in (root / "train/cut.png", root / "trainannot/cut_label.png"):
    path.write_bytes(path.read_bytes()[:50])
  (root / "trainannot/alone.png").unlink()
  raw_trees.save(root / "trainannot/unlike.png", label[:30])
  raw_trees.save(root / "trainannot/unknown.png", label + 77)

  assert command("camvid", tmp_path) == 0
  source = open_source({"kind": "camvid", "dir": "out/camvid", "split": "train"}, tmp_path)
  assert [example["id"] for example in source] == ["good"]
  head, _, tail = summary("camvid", tmp_path).partition(core.SKIPPED)
  reasons = dict(line.split(": ", 1) for line in tail.strip().splitlines())
  assert reasons.keys() == {f"train {name}" for name in names[:-1]}
  assert "unreadable image" in reasons["train cut"] and "cut.png" in reasons["train cut"]
  assert "unreadable label" in reasons["train cut_label"]
  assert "no label for" in reasons["train alone"] and "train/alone.png" in reasons["train alone"]
  assert "label 60x30, image 60x40" in reasons["train unlike"]
  assert "holds 77" in reasons["train unknown"]
  assert f"skipped pairs{5:>11}{0:>11}{0:>11}\n" in head
  assert tail in capsys.readouterr().out


def test_a_city_has_to_be_whole(tmp_path, capsys):
  nthu(tmp_path / "raw")
  broken = next((tmp_path / "raw/Rio/Images/Test").iterdir())
  broken.write_bytes(broken.read_bytes()[:50])
  line = error_line("nthu", tmp_path, capsys)
  assert "Rio has to be whole" in line and broken.name in line
  assert not (tmp_path / "out/nthu/1.0.0").exists()


def test_what_has_no_counterpart_is_named(tmp_path):
  gta5(tmp_path / "raw")
  (tmp_path / "raw/images/00001.png").unlink()
  (tmp_path / "raw/labels/00003.png").unlink()
  assert command("gta5", tmp_path) == 0
  text = summary("gta5", tmp_path)
  assert "train 00001: no image for" in text and "train 00003: no label for" in text
  assert [one["id"] for one in open_source({"kind": "gta5", "dir": "out/gta5"}, tmp_path)] == ["00002"]


def test_the_terminal_shows_the_first_skipped_pairs(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(core, "SHOWN", 1)
  gta5(tmp_path / "raw")
  for name in ("00001", "00003"):
    (tmp_path / f"raw/labels/{name}.png").unlink()
  assert command("gta5", tmp_path) == 0
  out = capsys.readouterr().out
  assert "train 00001: " in out and "train 00003: " not in out and "… and 1 more, see " in out
  assert "train 00003: " in summary("gta5", tmp_path)


def test_a_split_with_no_usable_pair_is_an_error(tmp_path, capsys):
  cityscapes(tmp_path / "raw")
  labels = list((tmp_path / "raw/gtFine/val").rglob("*_labelIds.png"))
  for path in labels:
    path.write_bytes(b"")
  line = error_line("cityscapes", tmp_path, capsys)
  assert f"nothing usable in val: all {len(labels)} pairs" in line
  assert "bonn_000003_000019" in line and "unreadable label" in line
  assert not (tmp_path / "out/cityscapes/1.0.0").exists()


@pytest.mark.parametrize("kind", ["gta5", "synthia", "cityscapes", "bdd100k", "nthu", "ade20k", "camvid"])
def test_no_raw_data(kind, tmp_path, capsys):
  error_line(kind, tmp_path, capsys)
  (tmp_path / "raw").mkdir()
  error_line(kind, tmp_path, capsys)
  (tmp_path / "raw").rmdir()
  (tmp_path / "raw").write_text("a file")
  error_line(kind, tmp_path, capsys)
  assert not (tmp_path / "out").exists()


def test_prepared_data_are_no_raw_data(tmp_path, capsys):
  gta5(tmp_path / "raw")
  assert command("gta5", tmp_path) == 0
  (tmp_path / "raw").rename(tmp_path / "before")
  (tmp_path / "out/gta5").rename(tmp_path / "raw")
  assert "prepared already" in error_line("gta5", tmp_path, capsys)


# Stopping and going on


def interrupt(*_):
  raise KeyboardInterrupt


def stop_after(monkeypatch, count, error):
  """Lets `convert` raise once it was called `count` times."""
  calls, convert = [], core.convert

  def stopping(pair):
    calls.append(pair)
    if len(calls) > count:
      raise error
    return convert(pair)

  monkeypatch.setattr(core, "convert", stopping)


@pytest.mark.parametrize("height", ["0", "2"])
def test_goes_on_where_it_stopped(height, tmp_path, monkeypatch, capsys):
  gta5(tmp_path / "raw")
  unfinished = tmp_path / "out/gta5/incomplete"
  with monkeypatch.context() as patch:
    stop_after(patch, 2, KeyboardInterrupt())
    assert command("gta5", tmp_path, "--height", height) == 130
  assert "run the same command again" in capsys.readouterr().err
  begun = files(unfinished / "train")
  assert len(begun) == (4 if height == "2" else 2)  # with height the images too
  with monkeypatch.context() as patch:
    patch.setattr(core, "_pack", interrupt)
    assert command("gta5", tmp_path, "--height", height) == 130
  assert begun.items() < files(unfinished / "train").items()
  assert command("gta5", tmp_path, "--height", height) == 0
  assert not unfinished.exists()
  assert_prepared_equals_raw({"kind": "gta5", "height": int(height)}, tmp_path)


def test_packing_begins_anew_after_a_stop(tmp_path, monkeypatch):
  gta5(tmp_path / "raw")
  whole = tmp_path / "whole"
  core.prepare("gta5", tmp_path / "raw", whole, [core.Split("train", {})])
  with monkeypatch.context() as patch:
    patch.setattr(core, "_summary", interrupt)
    assert command("gta5", tmp_path) == 130
  assert (tmp_path / "out/gta5/incomplete/1.0.0/dataset_info.json").exists()
  assert command("gta5", tmp_path) == 0
  assert files(tmp_path / "out/gta5").keys() == files(whole / "gta5").keys()
  assert_prepared_equals_raw({"kind": "gta5"}, tmp_path)


def test_a_finished_data_set_is_left_alone(tmp_path, capsys):
  gta5(tmp_path / "raw")
  assert command("gta5", tmp_path, "--height", "2") == 0
  before, shown = files(tmp_path / "out"), capsys.readouterr().out
  (tmp_path / "raw").rename(tmp_path / "gone")
  assert command("gta5", tmp_path, "--height", "2") == 0
  assert files(tmp_path / "out") == before and capsys.readouterr().out == shown


def test_another_height_is_refused(tmp_path, monkeypatch, capsys):
  gta5(tmp_path / "raw")
  with monkeypatch.context() as patch:
    stop_after(patch, 1, KeyboardInterrupt())
    assert command("gta5", tmp_path, "--height", "2") == 130
  line = error_line("gta5", tmp_path, capsys)
  assert "2 pixels high, not as downloaded" in line and str(tmp_path / "out/gta5") in line
  assert command("gta5", tmp_path, "--height", "2") == 0
  assert "2 pixels high, not 3 pixels high" in error_line("gta5", tmp_path, capsys, "--height", "3")


# The disk


def test_full_disk_while_converting(tmp_path, monkeypatch, capsys):
  gta5(tmp_path / "raw")
  with monkeypatch.context() as patch:
    stop_after(patch, 1, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    line = error_line("gta5", tmp_path, capsys)
  assert "No space left on device" in line and str(tmp_path / "out") in line and "goes on from here" in line
  assert len(files(tmp_path / "out/gta5/incomplete/train")) == 1
  assert command("gta5", tmp_path) == 0


def test_full_disk_while_packing(tmp_path, monkeypatch, capsys):
  import tensorflow_datasets as tfds

  def fail(*_):
    raise RuntimeError("write() failed: No space left on device")

  gta5(tmp_path / "raw")
  with monkeypatch.context() as patch:
    patch.setattr(tfds.core.SequentialWriter, "close_splits", fail)
    line = error_line("gta5", tmp_path, capsys)
  assert "cannot write" in line and "No space left on device" in line
  assert len(files(tmp_path / "out/gta5/incomplete/train")) == 3
  assert command("gta5", tmp_path) == 0


def test_out_that_may_not_be_written(tmp_path, capsys):
  gta5(tmp_path / "raw")
  (tmp_path / "out").write_text("a file")
  assert "Not a directory" in error_line("gta5", tmp_path, capsys)


# Flags and processes


@pytest.mark.parametrize("flags", [["--raw", "x"], ["--raw", "x", "--out", "y", "--height", "-1"],
                                   ["--raw", "x", "--out", "y", "--workers", "0"], ["--raw", "x", "--out", "y", "z"]])
def test_wrong_flags(flags, capsys):
  with pytest.raises(SystemExit) as end:
    importlib.import_module("data_prep.gta5").main(flags)
  assert end.value.code == 2
  line, = capsys.readouterr().err.splitlines()
  assert line.startswith("error: ")


@pytest.mark.parametrize("kind", ["gta5", "synthia", "cityscapes", "bdd100k", "nthu", "ade20k", "camvid"])
def test_help_tells_the_layout(kind, capsys):
  with pytest.raises(SystemExit) as end:
    importlib.import_module(f"data_prep.{kind}").main(["--help"])
  assert end.value.code == 0
  text = capsys.readouterr().out
  assert f"python -m data_prep.{kind}" in text and "DIR/" in text and "https://" in text.replace("http://", "https://")


def run_in_processes(root, *flags):
  """Starts a preparation in two worker processes, where TensorFlow is installed but must not be imported."""
  (root / "fake/tensorflow").mkdir(parents=True, exist_ok=True)
  (root / "fake/tensorflow/__init__.py").write_text("raise SystemExit('TensorFlow was imported')")
  path = os.pathsep.join([str(root / "fake"), os.getcwd()])
  return subprocess.Popen(
    [sys.executable, "-m", "data_prep.gta5", "--raw", str(root / "raw"), "--out", str(root / "out"), "--workers", "2",
     *flags],
    env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
  )


def test_worker_processes_without_tensorflow(tmp_path):
  specs = make("gta5", tmp_path)
  (tmp_path / "raw/labels/00003.png").write_bytes(b"")
  with run_in_processes(tmp_path, "--height", "2") as process:
    text = process.communicate()[0]
  assert process.returncode == 0, text
  assert "TensorFlow" not in text and "train 00003: unreadable label" in text
  spec = {**specs[0], "height": 2}
  raw = open_source({**spec, "dir": "raw"}, tmp_path).select([0, 1])
  assert_equal_sources(raw, open_source({**spec, "dir": "out/gta5"}, tmp_path))


def test_killed_and_started_again(tmp_path, monkeypatch):
  noise = np.random.default_rng(0).integers(0, 256, (400, 600, 3), np.uint8)
  raw_trees.save(tmp_path / "raw/images/0.png", noise)
  raw_trees.save_palette(tmp_path / "raw/labels/0.png", noise[..., 0] % 34)
  for path in (tmp_path / "raw/images/0.png", tmp_path / "raw/labels/0.png"):
    for i in range(1, 200):
      path.with_name(f"{i}.png").hardlink_to(path)
  done = tmp_path / "out/gta5/incomplete/train"
  with run_in_processes(tmp_path) as process:
    while len(list(done.glob("*.label.png"))) < 3:
      assert process.poll() is None
      time.sleep(0.01)
    process.kill()
    process.communicate(timeout=60)  # until its workers have ended too
  begun = {name: time for name, time in files(done).items() if not name.startswith(".")}
  assert 3 <= len(begun) < 200
  with monkeypatch.context() as patch:
    patch.setattr(core, "_pack", interrupt)
    assert command("gta5", tmp_path) == 130
  assert begun.items() < files(done).items()
