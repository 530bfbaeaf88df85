"""Which classes a label map can hold, and how a data set's raw ids and colours become train ids.

A *raw id* is what a data set's files hold, a *train id* is the class's place in its `LabelSpace`; 255 is ignored.
"""

import csv
import io
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

# Cityscapes' published table; the place in the tuple is the train id.
_CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)

CITYSCAPES_TRAIN_IDS = np.full(256, IGNORE, np.uint8)
"""Cityscapes id -> train id; ids that are not scored -> 255."""
CITYSCAPES_TRAIN_IDS[list(_CITYSCAPES_IDS)] = np.arange(19)

CITYSCAPES_IDS = np.zeros(256, np.uint8)
"""Train id -> Cityscapes id; 255 and all else -> 0, "unlabeled"."""
CITYSCAPES_IDS[:19] = _CITYSCAPES_IDS

for _table in (CITYSCAPES_TRAIN_IDS, CITYSCAPES_IDS):
  _table.flags.writeable = False


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
