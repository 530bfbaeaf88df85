import io
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from jax_uda.data import prepared
from jax_uda.data.label_spaces import CITYSCAPES19
from jax_uda.data.sources import at_height, open_source, unlabelled
from jax_uda.errors import UserError

EMPTY = {"dir": "gta5", "list": "", "split": "", "domain": "", "num": 0, "height": 0, "width": 0, "unknown_colors": ""}
RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (12, 4, 6, 3), np.uint8)
LABELS = RANDOM.integers(0, 19, (12, 4, 6), np.uint8)
LABELS[:, 0, 0] = 255


def encoded(array, kind="PNG"):
  stored = io.BytesIO()
  Image.fromarray(array).save(stored, kind)
  return stored.getvalue()


def examples(count=12, labels=LABELS):
  return [{"image": encoded(IMAGES[i]), "label": b"" if labels is None else encoded(labels[i]), "id": f"frame_{i}"}
          for i in range(count)]


def write(folder, splits, kind="gta5", height=0, scored=(), shard=5):
  """A prepared folder with {split: examples}."""
  folder.mkdir(parents=True)
  info = tfds.core.DatasetInfo(
    builder=tfds.core.dataset_info.DatasetIdentity(kind, tfds.core.Version("1.0.0"), os.fspath(folder), __name__),
    features=tfds.features.FeaturesDict({
      "image": tfds.features.Image(),
      "label": tfds.features.Image(shape=(None, None, 1), encoding_format="png"),
      "id": tfds.features.Text(),
    }),
    disable_shuffling=True,
  )
  writer = tfds.core.SequentialWriter(info, shard, file_format="array_record")
  writer.initialize_splits(list(splits))
  for split, records in splits.items():
    records = [{**one, "image": io.BytesIO(one["image"]), "label": io.BytesIO(one["label"])} for one in records]
    writer.add_examples({split: records})
  writer.close_all()
  prepared.write_description(
    prepared.Description(kind, CITYSCAPES19, height, {split: split in scored for split in splits}), folder
  )


def opened(root, scored=None, **fields):
  return open_source({**EMPTY, "kind": "gta5", **fields}, root, scored=scored)


def error_line(root, index=None, scored=None, **fields):
  with pytest.raises(UserError) as error:
    source = opened(root, scored, **fields)
    source[index]
  line = str(error.value)
  assert "\n" not in line and ";" in line
  return line


def assert_example(example, index):
  assert example["id"] == f"frame_{index}"
  assert example["image"].dtype == example["label"].dtype == np.uint8
  np.testing.assert_array_equal(example["image"], IMAGES[index])
  np.testing.assert_array_equal(example["label"], LABELS[index])


@pytest.fixture
def gta5(tmp_path):
  write(tmp_path / "gta5/1.0.0", {"train": examples()})
  return tmp_path


@pytest.mark.parametrize("folder", ["gta5", "gta5/1.0.0"])
def test_records_are_read_in_order(gta5, folder):
  source = opened(gta5, dir=folder)
  assert len(source) == 12 and source.label_space == CITYSCAPES19
  for i, example in enumerate(source):
    assert_example(example, i)
  chosen = source.select([7, 2]).select([1])
  assert len(chosen) == 1
  assert_example(chosen[0], 2)
  assert "tensorflow" not in sys.modules


def test_reading_is_safe_from_several_threads(gta5):
  source = opened(gta5)
  with ThreadPoolExecutor(8) as threads:
    for i, example in enumerate(threads.map(lambda i: source[i % 12], range(240))):
      assert_example(example, i % 12)


def test_labels_are_left_out_where_there_are_none_or_none_are_wanted(tmp_path):
  write(tmp_path / "gta5/1.0.0", {"train": examples(2, labels=None)})
  assert set(opened(tmp_path)[1]) == {"image", "id"}
  write(tmp_path / "labelled/1.0.0", {"train": [{**one, "label": b"broken"} for one in examples(2)]})
  source = unlabelled(opened(tmp_path, dir="labelled"))
  assert set(source[1]) == {"image", "id"} and source.label_space == CITYSCAPES19


def test_nthu_folds_are_chosen_at_reading(tmp_path):
  write(tmp_path / "gta5/1.0.0", {"Rio": examples(), "Rome": examples(3)}, kind="nthu", scored=("Rio", "Rome"))
  for split, indices in (("all", range(12)), ("test1", [1, 11]), ("train0", [1, 2, 3, 4, 5, 6, 7, 8, 9, 11])):
    source = opened(tmp_path, kind="nthu", domain="Rio", split=split)
    assert [example["id"] for example in source] == [f"frame_{i}" for i in indices]
  assert len(opened(tmp_path, kind="nthu", domain="Rome", split="all")) == 3
  assert "'test5' of nthu is empty" in error_line(tmp_path, kind="nthu", domain="Rome", split="test5")


def test_label_of_a_scored_split_keeps_its_size(tmp_path):
  scaled = [at_height(image, None, 2, scored=True)[0] for image in IMAGES[:2]]
  records = [{**one, "image": encoded(image)} for one, image in zip(examples(2), scaled, strict=True)]
  write(tmp_path / "gta5/1.0.0", {"val": records}, kind="cityscapes", height=2, scored=("val",))
  for scored in (None, True):
    example = opened(tmp_path, scored, kind="cityscapes", split="val", height=2)[1]
    np.testing.assert_array_equal(example["image"], scaled[1])
    np.testing.assert_array_equal(example["label"], LABELS[1])
  example = opened(tmp_path, False, kind="cityscapes", split="val", height=2)[1]
  np.testing.assert_array_equal(example["label"], at_height(IMAGES[1], LABELS[1], 2, scored=False)[1])


def test_description_comes_back(tmp_path):
  description = prepared.Description("cityscapes", CITYSCAPES19, 720, {"train": False, "val": True})
  prepared.write_description(description, tmp_path)
  assert prepared.read_description(tmp_path) == description
  fields = json.loads((tmp_path / "jax_uda.json").read_text())
  assert fields["space"]["classes"][:2] == ["road", "sidewalk"] and fields["scored"] == {"train": False, "val": True}
  bare = prepared.Description("folder", None, 0, {})
  prepared.write_description(bare, tmp_path)
  assert prepared.read_description(tmp_path) == bare


def test_data_prepared_otherwise(gta5):
  assert "holds gta5, not synthia" in error_line(gta5, kind="synthia")
  assert "holds height 0, not 720" in error_line(gta5, height=720)
  line = error_line(gta5, split="val")
  assert "no split 'val'" in line and "only train" in line
  write(gta5 / "scaled/1.0.0", {"train": examples(1)}, height=4)
  assert "prepared for training" in error_line(gta5, scored=True, dir="scaled", height=4)
  write(gta5 / "gta5/1.1.0", {"train": examples(1)})
  assert "1.0.0, 1.1.0" in error_line(gta5)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"kind": "gta5"}', None])
def test_broken_description(gta5, text):
  path = gta5 / "gta5/1.0.0/jax_uda.json"
  path.unlink() if text is None else path.write_text(text)
  assert str(path) in error_line(gta5)


def test_broken_tfds_files(gta5):
  for name in ("features.json", "dataset_info.json"):
    path = gta5 / "gta5/1.0.0" / name
    whole = path.read_text()
    path.write_text(whole[: len(whole) // 2])
    assert "bad prepared data" in error_line(gta5) and str(path.parent) in error_line(gta5)
    path.write_text(whole)


def test_broken_records(gta5):
  for i, path in enumerate(sorted((gta5 / "gta5/1.0.0").glob("*array_record*"))):
    whole = path.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], None):
      path.unlink() if damaged is None else path.write_bytes(damaged)
      line = error_line(gta5, 5 * i)
      assert "unreadable record" in line and f"train, number {5 * i}" in line
      path.write_bytes(whole)


def test_broken_images_in_records(tmp_path):
  for name, record in (("image", {"image": encoded(IMAGES[0])[:60]}), ("label", {"label": encoded(LABELS[0])[:60]}),
                       ("label", {"label": encoded(IMAGES[0])}), ("label", {"label": b"text"})):
    folder = tmp_path / f"{len(list(tmp_path.iterdir()))}/1.0.0"
    write(folder, {"train": [{**examples(1)[0], **record}]})
    line = error_line(tmp_path, 0, dir=str(folder))
    assert f"unreadable {name}" in line and f"{folder}, train, number 0" in line
