import numpy as np
import pytest

from jax_uda.data.label_spaces import (
  ADE150,
  ADE_TRAIN_IDS,
  BDD100K_TRAIN_IDS,
  CAMVID11,
  CAMVID_TRAIN_IDS,
  CITYSCAPES19,
  CITYSCAPES_IDS,
  CITYSCAPES_TRAIN_IDS,
  IGNORE,
  PROTOCOLS,
  SPACES,
  SYNTHIA16,
  SYNTHIA_TRAIN_IDS,
  LabelSpace,
  colorize,
  mapping,
  protocol,
  protocol_rows,
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


SYNTHIA_ID_TO_NAME = {
  1: "sky", 2: "building", 3: "road", 4: "sidewalk", 5: "fence", 6: "vegetation", 7: "pole", 8: "car", 9: "traffic sign",
  10: "person", 11: "bicycle", 12: "motorcycle", 15: "traffic light", 17: "rider", 19: "bus", 21: "wall",
}


@pytest.mark.parametrize("table, space, names", [
  (SYNTHIA_TRAIN_IDS, SYNTHIA16, SYNTHIA_ID_TO_NAME),
  (BDD100K_TRAIN_IDS, CITYSCAPES19, {0: "road", 8: "vegetation", 9: "terrain", 16: "train", 18: "bicycle"}),
  (CAMVID_TRAIN_IDS, CAMVID11, {0: "sky", 3: "road", 10: "bicyclist"}),
  (ADE_TRAIN_IDS, ADE150, {1: "wall", 3: "sky", 7: "road", 13: "person", 21: "car", 128: "bicycle", 150: "flag"}),
])
def test_ids_become_train_ids(table, space, names):
  assert table.shape == (256,) and table.dtype == np.uint8
  assert {raw: space.classes[table[raw]] for raw in names} == names
  used = np.flatnonzero(table != IGNORE)
  assert sorted(table[used]) == list(range(len(space.classes)))
  assert space is not SYNTHIA16 or used.tolist() == list(names)


@pytest.mark.parametrize("table", [CITYSCAPES_TRAIN_IDS, CITYSCAPES_IDS, SYNTHIA_TRAIN_IDS, ADE_TRAIN_IDS])
def test_tables_cannot_be_changed(table):
  with pytest.raises(ValueError):
    table[0] = 0


@pytest.mark.parametrize("space, count", [(CITYSCAPES19, 19), (SYNTHIA16, 16), (CAMVID11, 11), (ADE150, 150)])
def test_spaces_name_and_colour_each_class_once(space, count):
  assert SPACES[space.name] is space
  assert len(space.classes) == len(set(space.classes)) == len(space.colors) == count
  shared = {(140, 140, 140): ["road", "skyscraper"]} if space is ADE150 else {}
  assert len(set(space.colors)) == count - len(shared)
  for color, names in shared.items():
    assert [name for name, one in zip(space.classes, space.colors, strict=True) if one == color] == names


def test_synthia16_is_cityscapes_without_three():
  assert SYNTHIA16.classes == (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation", "sky", "person",
    "rider", "car", "bus", "motorcycle", "bicycle",
  )
  assert dict(zip(SYNTHIA16.classes, SYNTHIA16.colors, strict=True)).items() <= dict(
    zip(CITYSCAPES19.classes, CITYSCAPES19.colors, strict=True)).items()


def test_ade150_as_published():
  colors = dict(zip(ADE150.classes, ADE150.colors, strict=True))
  assert ADE150.classes[:4] == ("wall", "building", "sky", "floor") and ADE150.classes[-2:] == ("clock", "flag")
  assert ADE150.classes.index("river") == 60 and ADE150.classes.index("stage") == 101
  assert [colors[name] for name in ("wall", "grass", "bench", "ship", "flag")] == [
    (120, 120, 120), (4, 250, 7), (194, 255, 0), (255, 235, 0), (92, 0, 255)]


# Label spaces into each other


def test_mapping_goes_by_name():
  table = mapping(CITYSCAPES19, SYNTHIA16)
  assert table.shape == (256,) and table.dtype == np.uint8
  assert table[:19].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 255, 9, 10, 11, 12, 255, 13, 255, 14, 15]
  assert (table[19:] == IGNORE).all()
  back = mapping(SYNTHIA16, CITYSCAPES19)
  assert back[:17].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 15, 17, 18, 255]
  np.testing.assert_array_equal(table[back[:16]], np.arange(16))
  np.testing.assert_array_equal(mapping(ADE150, ADE150)[:150], np.arange(150))
  assert mapping(CAMVID11, CITYSCAPES19)[:11].tolist() == [10, 2, 5, 0, 255, 255, 255, 4, 13, 255, 255]


def test_mapping_of_nothing_in_common():
  with pytest.raises(UserError, match="village and cityscapes19 have no class in common"):
    mapping(LabelSpace("village", ("barn", "cow"), ((1, 2, 3), (4, 5, 6))), CITYSCAPES19)


# Protocols

THIRTEEN = ("road", "sidewalk", "building", "traffic light", "traffic sign", "vegetation", "sky", "person", "rider", "car",
            "bus", "motorcycle", "bicycle")


def test_there_are_six_protocols():
  sizes = {"cityscapes19": 19, "synthia16": 16, "synthia13": 13, "nthu13": 13, "camvid11": 11, "ade150": 150}
  assert {name: len(one.classes) for name, one in PROTOCOLS.items()} == sizes
  for name, one in PROTOCOLS.items():
    assert one.name == name and len(one.groups) == len(one.classes)
    assert all(scored in group for scored, group in zip(one.classes, one.groups, strict=True))
  assert PROTOCOLS["synthia13"].classes == PROTOCOLS["nthu13"].classes == THIRTEEN


@pytest.mark.parametrize("name, space, rows", [
  ("nthu13", CITYSCAPES19, [0, 1, 2, 2, 2, 2, 3, 4, 5, 5, 6, 7, 8, 9, 9, 10, 13, 11, 12]),
  ("nthu13", SYNTHIA16, [0, 1, 2, 2, 2, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]),
  ("synthia13", SYNTHIA16, [0, 1, 2, 13, 13, 13, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]),
  ("synthia16", CITYSCAPES19, [0, 1, 2, 3, 4, 5, 6, 7, 8, 16, 9, 10, 11, 12, 16, 13, 16, 14, 15]),
  ("synthia16", SYNTHIA16, list(range(16))),
  ("cityscapes19", CITYSCAPES19, list(range(19))),
  ("camvid11", CAMVID11, list(range(11))),
  ("ade150", ADE150, list(range(150))),
])
def test_protocol_rows(name, space, rows):
  found = protocol_rows(protocol(name, space), space)
  assert found.dtype == np.int64 and found.tolist() == rows


def test_protocol_of_a_space_of_ones_own():
  space = LabelSpace("village", ("barn", "cow"), ((1, 2, 3), (4, 5, 6)))
  for name in ("", "village"):
    own = protocol(name, space)
    assert own.name == "village" and own.classes == space.classes
    assert protocol_rows(own, space).tolist() == [0, 1]
  assert protocol("", CITYSCAPES19) == PROTOCOLS["cityscapes19"]


def test_protocol_errors():
  with pytest.raises(UserError, match=r"unknown protocol 'kitti'; use one of cityscapes19, synthia16, .* nthu13"):
    protocol("kitti", CITYSCAPES19)
  with pytest.raises(UserError, match="cityscapes19 scores terrain, truck, train, which synthia16 does not have"):
    protocol("cityscapes19", SYNTHIA16)
  with pytest.raises(UserError, match="scores sidewalk, traffic light, traffic sign …, which camvid11"):
    protocol("nthu13", CAMVID11)


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
