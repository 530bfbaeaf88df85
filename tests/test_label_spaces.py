import numpy as np
import pytest

from jax_uda.data.label_spaces import (
  CAMVID11,
  CITYSCAPES19,
  CITYSCAPES_IDS,
  CITYSCAPES_TRAIN_IDS,
  IGNORE,
  colorize,
  read_classes_csv,
)
from jax_uda.errors import UserError

HEADER = "name,id,red,green,blue\n"

# Written out by hand, so that a slip in the module's table cannot repeat itself here.
ID_TO_NAME = {
  7: "road", 8: "sidewalk", 11: "building", 12: "wall", 13: "fence", 17: "pole", 19: "traffic light",
  20: "traffic sign", 21: "vegetation", 22: "terrain", 23: "sky", 24: "person", 25: "rider", 26: "car", 27: "truck",
  28: "bus", 31: "train", 32: "motorcycle", 33: "bicycle",
}


def test_cityscapes_ids_become_train_ids():
  assert CITYSCAPES_TRAIN_IDS.shape == (256,) and CITYSCAPES_TRAIN_IDS.dtype == np.uint8
  for raw in range(256):
    train_id = CITYSCAPES_TRAIN_IDS[raw]
    assert (CITYSCAPES19.classes[train_id] == ID_TO_NAME[raw]) if raw in ID_TO_NAME else (train_id == IGNORE)
  assert [int(CITYSCAPES_TRAIN_IDS[raw]) for raw in (7, 33, 0, 34)] == [0, 18, 255, 255]


def test_train_ids_become_cityscapes_ids():
  assert CITYSCAPES_IDS.dtype == np.uint8
  assert {int(CITYSCAPES_IDS[t]): CITYSCAPES19.classes[t] for t in range(19)} == ID_TO_NAME
  assert (CITYSCAPES_IDS[19:] == 0).all()
  np.testing.assert_array_equal(CITYSCAPES_TRAIN_IDS[CITYSCAPES_IDS[:19]], np.arange(19))


def test_tables_cannot_be_changed():
  with pytest.raises(ValueError):
    CITYSCAPES_TRAIN_IDS[0] = 0


@pytest.mark.parametrize("space, count", [(CITYSCAPES19, 19), (CAMVID11, 11)])
def test_spaces_name_and_colour_each_class_once(space, count):
  assert len(space.classes) == len(set(space.classes)) == len(space.colors) == len(set(space.colors)) == count


def test_colorize():
  drawn = colorize(np.array([[0, 18], [11, 255], [19, 13]], np.uint8), CITYSCAPES19)
  assert drawn.dtype == np.uint8
  assert drawn.tolist() == [[[128, 64, 128], [119, 11, 32]], [[220, 20, 60], [0, 0, 0]], [[0, 0, 0], [0, 0, 142]]]
  assert colorize(np.array([[3]], np.uint8), CAMVID11).tolist() == [[[128, 64, 128]]]


def test_classes_csv_with_two_colours_for_one_id(tmp_path):
  path = tmp_path / "town" / "classes.csv"
  path.parent.mkdir()
  path.write_text("\ufeff" + HEADER + "tree,40,0,255,0\nroad, 7, 1,2,3\nbush,40,0,128,0\n\n\"car, parked\",0,9,9,9\n")
  space, lookup, colors = read_classes_csv(path)
  assert space.name == "town"
  assert space.classes == ("tree", "road", "car, parked")
  assert space.colors == ((0, 255, 0), (1, 2, 3), (9, 9, 9))
  assert colors == {(0, 255, 0): 0, (0, 128, 0): 0, (1, 2, 3): 1, (9, 9, 9): 2}
  assert lookup.dtype == np.uint8 and lookup.shape == (256,)
  assert {int(i): int(lookup[i]) for i in np.flatnonzero(lookup != IGNORE)} == {40: 0, 7: 1, 0: 2}


@pytest.mark.parametrize("text, said", [
  ("", "row 1"),
  ("name,id\nroad,1\n", "row 1 is 'name,id'"),
  (HEADER, "lists no class"),
  (HEADER + "road,0,1,2,3\ncar,one,1,2,4\n", "row 3 has a number missing or misspelt"),
  (HEADER + "road,0,1,2\n", "row 2 has a number missing or misspelt"),
  (HEADER + "road,0,1,2,3,4\n", "row 2 has no name or too many columns"),
  (HEADER + ",0,1,2,3\n", "row 2 has no name or too many columns"),
  (HEADER + "road,255,1,2,3\n", "row 2 is out of range"),
  (HEADER + "road,0,1,2,256\n", "row 2 is out of range"),
  (HEADER + "road,-1,1,2,3\n", "row 2 is out of range"),
  (HEADER + "road,0,1,2,3\ncar,1,1,2,3\n", "row 3 repeats the colour (1, 2, 3)"),
  (HEADER + "road,0,1,2,3\nroad,1,1,2,4\n", "row 3 gives the name 'road' a second id"),
])
def test_bad_classes_csv_names_file_and_row(tmp_path, text, said):
  path = tmp_path / "classes.csv"
  path.write_text(text)
  with pytest.raises(UserError) as error:
    read_classes_csv(path)
  assert said in str(error.value) and str(path) in str(error.value) and "\n" not in str(error.value)


def test_unreadable_classes_csv(tmp_path):
  path = tmp_path / "classes.csv"
  with pytest.raises(UserError, match="cannot be read"):
    read_classes_csv(path)
  path.write_bytes(b"\xff\xfe\xfa")
  with pytest.raises(UserError, match="cannot be read"):
    read_classes_csv(path)
