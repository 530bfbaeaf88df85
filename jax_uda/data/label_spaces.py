"""Which classes a label map can hold, how raw ids and colours become train ids, and what is scored of them.

A *raw id* is what a data set's files hold, a *train id* is the class's place in its `LabelSpace`; 255 is ignored. A
`Protocol` says which classes the confusion matrix of a label space is scored on.
"""

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from etils import epath

from jax_uda.errors import UserError

IGNORE = 255

Color = tuple[int, int, int]


@dataclass(frozen=True)
class LabelSpace:
  """The classes of a data set, in the order of their train ids, with the RGB colours that they are drawn in."""

  name: str
  classes: tuple[str, ...]
  colors: tuple[Color, ...]


def _label_space(name: str, colors: dict[str, Color]) -> LabelSpace:
  return LabelSpace(name, tuple(colors), tuple(colors.values()))


CITYSCAPES19 = _label_space("cityscapes19", {
  "road": (128, 64, 128),
  "sidewalk": (244, 35, 232),
  "building": (70, 70, 70),
  "wall": (102, 102, 156),
  "fence": (190, 153, 153),
  "pole": (153, 153, 153),
  "traffic light": (250, 170, 30),
  "traffic sign": (220, 220, 0),
  "vegetation": (107, 142, 35),
  "terrain": (152, 251, 152),
  "sky": (70, 130, 180),
  "person": (220, 20, 60),
  "rider": (255, 0, 0),
  "car": (0, 0, 142),
  "truck": (0, 0, 70),
  "bus": (0, 60, 100),
  "train": (0, 80, 100),
  "motorcycle": (0, 0, 230),
  "bicycle": (119, 11, 32),
})

SYNTHIA16 = _label_space("synthia16", {
  name: color
  for name, color in zip(CITYSCAPES19.classes, CITYSCAPES19.colors, strict=True)
  if name not in ("terrain", "truck", "train")
})

CAMVID11 = _label_space("camvid11", {
  "sky": (128, 128, 128),
  "building": (128, 0, 0),
  "pole": (192, 192, 128),
  "road": (128, 64, 128),
  "pavement": (60, 40, 222),
  "tree": (128, 128, 0),
  "sign": (192, 128, 128),
  "fence": (64, 64, 128),
  "car": (64, 0, 128),
  "pedestrian": (64, 64, 0),
  "bicyclist": (0, 128, 192),
})

# Of every class the first of its published names; road and skyscraper share their published colour.
ADE150 = _label_space("ade150", {
  "wall": (120, 120, 120), "building": (180, 120, 120), "sky": (6, 230, 230), "floor": (80, 50, 50),
  "tree": (4, 200, 3), "ceiling": (120, 120, 80), "road": (140, 140, 140), "bed": (204, 5, 255),
  "windowpane": (230, 230, 230), "grass": (4, 250, 7), "cabinet": (224, 5, 255), "sidewalk": (235, 255, 7),
  "person": (150, 5, 61), "earth": (120, 120, 70), "door": (8, 255, 51), "table": (255, 6, 82),
  "mountain": (143, 255, 140), "plant": (204, 255, 4), "curtain": (255, 51, 7), "chair": (204, 70, 3),
  "car": (0, 102, 200), "water": (61, 230, 250), "painting": (255, 6, 51), "sofa": (11, 102, 255),
  "shelf": (255, 7, 71), "house": (255, 9, 224), "sea": (9, 7, 230), "mirror": (220, 220, 220), "rug": (255, 9, 92),
  "field": (112, 9, 255), "armchair": (8, 255, 214), "seat": (7, 255, 224), "fence": (255, 184, 6),
  "desk": (10, 255, 71), "rock": (255, 41, 10), "wardrobe": (7, 255, 255), "lamp": (224, 255, 8),
  "bathtub": (102, 8, 255), "railing": (255, 61, 6), "cushion": (255, 194, 7), "base": (255, 122, 8),
  "box": (0, 255, 20), "column": (255, 8, 41), "signboard": (255, 5, 153), "chest of drawers": (6, 51, 255),
  "counter": (235, 12, 255), "sand": (160, 150, 20), "sink": (0, 163, 255), "skyscraper": (140, 140, 140),
  "fireplace": (250, 10, 15), "refrigerator": (20, 255, 0), "grandstand": (31, 255, 0), "path": (255, 31, 0),
  "stairs": (255, 224, 0), "runway": (153, 255, 0), "case": (0, 0, 255), "pool table": (255, 71, 0),
  "pillow": (0, 235, 255), "screen door": (0, 173, 255), "stairway": (31, 0, 255), "river": (11, 200, 200),
  "bridge": (255, 82, 0), "bookcase": (0, 255, 245), "blind": (0, 61, 255), "coffee table": (0, 255, 112),
  "toilet": (0, 255, 133), "flower": (255, 0, 0), "book": (255, 163, 0), "hill": (255, 102, 0),
  "bench": (194, 255, 0), "countertop": (0, 143, 255), "stove": (51, 255, 0), "palm": (0, 82, 255),
  "kitchen island": (0, 255, 41), "computer": (0, 255, 173), "swivel chair": (10, 0, 255), "boat": (173, 255, 0),
  "bar": (0, 255, 153), "arcade machine": (255, 92, 0), "hovel": (255, 0, 255), "bus": (255, 0, 245),
  "towel": (255, 0, 102), "light": (255, 173, 0), "truck": (255, 0, 20), "tower": (255, 184, 184),
  "chandelier": (0, 31, 255), "awning": (0, 255, 61), "streetlight": (0, 71, 255), "booth": (255, 0, 204),
  "television": (0, 255, 194), "airplane": (0, 255, 82), "dirt track": (0, 10, 255), "apparel": (0, 112, 255),
  "pole": (51, 0, 255), "land": (0, 194, 255), "bannister": (0, 122, 255), "escalator": (0, 255, 163),
  "ottoman": (255, 153, 0), "bottle": (0, 255, 10), "buffet": (255, 112, 0), "poster": (143, 255, 0),
  "stage": (82, 0, 255), "van": (163, 255, 0), "ship": (255, 235, 0), "fountain": (8, 184, 170),
  "conveyer belt": (133, 0, 255), "canopy": (0, 255, 92), "washer": (184, 0, 255), "plaything": (255, 0, 31),
  "swimming pool": (0, 184, 255), "stool": (0, 214, 255), "barrel": (255, 0, 112), "basket": (92, 255, 0),
  "waterfall": (0, 224, 255), "tent": (112, 224, 255), "bag": (70, 184, 160), "minibike": (163, 0, 255),
  "cradle": (153, 0, 255), "oven": (71, 255, 0), "ball": (255, 0, 163), "food": (255, 204, 0), "step": (255, 0, 143),
  "tank": (0, 255, 235), "trade name": (133, 255, 0), "microwave": (255, 0, 235), "pot": (245, 0, 255),
  "animal": (255, 0, 122), "bicycle": (255, 245, 0), "lake": (10, 190, 212), "dishwasher": (214, 255, 0),
  "screen": (0, 204, 255), "blanket": (20, 0, 255), "sculpture": (255, 255, 0), "hood": (0, 153, 255),
  "sconce": (0, 41, 255), "vase": (0, 255, 204), "traffic light": (41, 0, 255), "tray": (41, 255, 0),
  "ashcan": (173, 0, 255), "fan": (0, 245, 255), "pier": (71, 0, 255), "crt screen": (122, 0, 255),
  "plate": (0, 255, 184), "monitor": (0, 92, 255), "bulletin board": (184, 255, 0), "shower": (0, 133, 255),
  "radiator": (255, 214, 0), "glass": (25, 194, 194), "clock": (102, 255, 0), "flag": (92, 0, 255),
})

SPACES = {space.name: space for space in (CITYSCAPES19, SYNTHIA16, CAMVID11, ADE150)}


def _lookup(space: LabelSpace, ids: dict[str, int]) -> np.ndarray:
  """Raw id -> train id uint8 [256], read-only; raw ids that are not among `ids` -> 255."""
  table = np.full(256, IGNORE, np.uint8)
  table[list(ids.values())] = [space.classes.index(name) for name in ids]
  table.flags.writeable = False
  return table


# Cityscapes' published table; the place in the tuple is the train id.
_CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)

CITYSCAPES_TRAIN_IDS = _lookup(CITYSCAPES19, dict(zip(CITYSCAPES19.classes, _CITYSCAPES_IDS, strict=True)))
"""Cityscapes id -> train id; ids that are not scored -> 255."""

CITYSCAPES_IDS = np.zeros(256, np.uint8)
"""Train id -> Cityscapes id; 255 and all else -> 0, "unlabeled"."""
CITYSCAPES_IDS[:19] = _CITYSCAPES_IDS
CITYSCAPES_IDS.flags.writeable = False

SYNTHIA_TRAIN_IDS = _lookup(SYNTHIA16, {
  "sky": 1,
  "building": 2,
  "road": 3,
  "sidewalk": 4,
  "fence": 5,
  "vegetation": 6,
  "pole": 7,
  "car": 8,
  "traffic sign": 9,
  "person": 10,
  "bicycle": 11,
  "motorcycle": 12,
  "traffic light": 15,
  "rider": 17,
  "bus": 19,
  "wall": 21,
})
"""SYNTHIA id -> train id of SYNTHIA16; void, parking, road work, terrain, truck, train and lane marking -> 255."""

BDD100K_TRAIN_IDS = _lookup(CITYSCAPES19, {name: index for index, name in enumerate(CITYSCAPES19.classes)})
"""BDD100K's labels hold train ids already; all else -> 255."""

CAMVID_TRAIN_IDS = _lookup(CAMVID11, {name: index for index, name in enumerate(CAMVID11.classes)})
"""CamVid id -> train id; void, 11, -> 255."""

ADE_TRAIN_IDS = _lookup(ADE150, {name: index for index, name in enumerate(ADE150.classes, start=1)})
"""ADE20K id -> train id; other, 0, -> 255."""


def mapping(source: LabelSpace, target: LabelSpace) -> np.ndarray:
  """Train ids of one label space as those of another, by the classes' names.

  Returns:
    uint8 [256]: train id of `source` -> that of the class of the same name in `target`; 255 where there is none.

  Raises:
    UserError: the spaces have no class in common.
  """
  table = np.full(256, IGNORE, np.uint8)
  for train_id, name in enumerate(source.classes):
    if name in target.classes:
      table[train_id] = target.classes.index(name)
  if (table == IGNORE).all():
    raise UserError(f"{source.name} and {target.name} have no class in common ({', '.join(source.classes[:3])} … and "
                    f"{', '.join(target.classes[:3])} …); choose data sets with classes of the same names")
  return table


@dataclass(frozen=True)
class Protocol:
  """What is scored: names of classes and, for each, the names of the label space's classes that count as it.

  Classes of the label space in no group stay in the confusion matrix, as "none of them".
  """

  name: str
  classes: tuple[str, ...]
  groups: tuple[tuple[str, ...], ...]


def _protocol(name: str, classes: Iterable[str], merged: dict[str, tuple[str, ...]] | None = None) -> Protocol:
  """A protocol in which a class counts as itself and takes in what `merged` lists for it."""
  classes, merged = tuple(classes), merged or {}
  return Protocol(name, classes, tuple((one, *merged.get(one, ())) for one in classes))


# 002 and 004 score synthia13 as 13 rows of the 16-class matrix, and merge Cityscapes' classes for the NTHU cities.
_NTHU_MERGED = {"building": ("wall", "fence", "pole"), "vegetation": ("terrain",), "car": ("truck",)}
_THIRTEEN = [name for name in SYNTHIA16.classes if name not in ("wall", "fence", "pole")]

PROTOCOLS = {one.name: one for one in (
  *(_protocol(space.name, space.classes) for space in SPACES.values()),
  _protocol("synthia13", _THIRTEEN),
  _protocol("nthu13", _THIRTEEN, _NTHU_MERGED),
)}


def protocol(name: str, space: LabelSpace) -> Protocol:
  """The protocol that a label space is scored under.

  Args:
    name: of one of `PROTOCOLS`; empty, or the space's own name: every class of the space by itself.
    space: the label space that the network was trained on.

  Raises:
    UserError: there is none of that name, or the space lacks a class that it scores.
  """
  if name in ("", space.name):
    return _protocol(space.name, space.classes)
  if name not in PROTOCOLS:
    raise UserError(f"unknown protocol {name!r}; use one of {', '.join(PROTOCOLS)}, or leave it empty for {space.name}")
  found = PROTOCOLS[name]
  if missing := [one for one in found.classes if one not in space.classes]:
    raise UserError(f"protocol {name} scores {', '.join(missing[:3])}{' …' if missing[3:] else ''}, which {space.name} "
                    "does not have; choose another, or leave it empty")
  return found


def protocol_rows(protocol: Protocol, space: LabelSpace) -> np.ndarray:
  """For each class of a label space the scored class that it counts as.

  Returns:
    int64 [C]: the place in `protocol.classes`, or P = len(protocol.classes) for none of them.
  """
  row = {name: index for index, group in enumerate(protocol.groups) for name in group}
  return np.array([row.get(name, len(protocol.classes)) for name in space.classes], np.int64)


def colorize(label: np.ndarray, space: LabelSpace) -> np.ndarray:
  """Draws a label map in its space's colours.

  Args:
    label: uint8 [H, W], train ids; 255 and every other value outside the space become black.
    space: the label space.

  Returns:
    uint8 [H, W, 3], RGB.
  """
  palette = np.zeros((256, 3), np.uint8)
  palette[: len(space.colors)] = space.colors
  return palette[label]


def read_classes_csv(path: epath.PathLike) -> tuple[LabelSpace, np.ndarray, dict[Color, int]]:
  """Reads a folder data set's `classes.csv`, with the columns name, id, red, green, blue.

  Several rows may share an id: the first gives the class's name and the colour it is drawn in, the others are further
  colours that mean the same class. Train ids follow the order in which the ids appear.

  Args:
    path: the file; its folder's name becomes the label space's name.

  Returns:
    The label space, the lookup id -> train id as uint8 [256] (ids not listed -> 255), and {RGB colour: train id}.

  Raises:
    UserError: the file cannot be read, or a row is wrong.
  """
  path = epath.Path(path)
  try:
    text = path.read_bytes().decode("utf-8-sig")
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f"classes.csv cannot be read: {path} ({error}); write it as text, a row "
                    "name,id,red,green,blue for each class") from error
  reader = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True)
  columns = ("name", "id", "red", "green", "blue")
  if tuple(reader.fieldnames or ()) != columns:
    raise UserError(f"bad classes.csv: {path}, row 1 is {','.join(reader.fieldnames or ())!r}; "
                    f"let it read {','.join(columns)}")

  names: dict[int, str] = {}  # by id, in order of appearance
  drawn: dict[int, Color] = {}
  ids: dict[Color, int] = {}
  for row in reader:
    name, *numbers = (row[column] for column in columns)
    where = f"{path}, row {reader.line_num}"
    try:
      class_id, *color = (int(number) for number in numbers)
    except (TypeError, ValueError):
      raise UserError(f"bad classes.csv: {where} has a number missing or misspelt; "
                      "write name,id,red,green,blue with whole numbers") from None
    color = tuple(color)
    if None in row or not name:
      raise UserError(f"bad classes.csv: {where} has no name or too many columns; write name,id,red,green,blue")
    if not 0 <= class_id < IGNORE or not all(0 <= value <= 255 for value in color):
      raise UserError(f"bad classes.csv: {where} is out of range; "
                      "an id is 0 to 254 (255 is the ignore label), a colour 0 to 255")
    if color in ids:
      raise UserError(f"bad classes.csv: {where} repeats the colour {color}; give each colour once")
    if class_id not in names and name in names.values():
      raise UserError(f"bad classes.csv: {where} gives the name {name!r} a second id; give each class one id")
    names.setdefault(class_id, name)
    drawn.setdefault(class_id, color)
    ids[color] = class_id
  if not names:
    raise UserError(f"bad classes.csv: {path} lists no class; write a row name,id,red,green,blue for each")

  lookup = np.full(256, IGNORE, np.uint8)
  lookup[list(names)] = np.arange(len(names))
  space = LabelSpace(path.parent.name, tuple(names.values()), tuple(drawn.values()))
  return space, lookup, {color: int(lookup[class_id]) for color, class_id in ids.items()}
