"""Data sets, decoded at random access.

A source is anything with `len`, `label_space` and `[i] -> {"image": uint8 [H, W, 3] RGB, "label": uint8 [h, w] train
ids (absent where the data have none), "id": str}`. A `spec` is a mapping that describes one, with the fields `kind`,
`dir`, `list`, `only`, `split`, `domain`, `num`, `height`, `width` and `unknown_colors`; those that a kind does not use are
empty. The files are read as published (`layouts.py`) or as `data_prep` wrote them (`prepared.py`), with equal results.

What is trained on and what is scored differ in one thing: where a `height` is set, images are scaled to it, and labels
with them only if they are not scored.
"""

import dataclasses
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from etils import epath

from jax_uda.data import prepared, street_world
from jax_uda.data.label_spaces import ADE150, CAMVID11, CITYSCAPES19, SYNTHIA16, LabelSpace
from jax_uda.data.layouts import LAYOUTS, Decoder, first_line, how_to_get, imdecode, nthu_city, nthu_fold
from jax_uda.data.transforms import resize_label
from jax_uda.errors import UserError

LISTS = "day_to_dusk"  # CamVid's folder of lists, which are prepared as splits

_PUBLISHED_SIZES = {
  ("gta5", ""): 24966,
  ("synthia", ""): 9400,
  ("cityscapes", "train"): 2975,
  ("cityscapes", "val"): 500,
  ("cityscapes", "test"): 1525,
  ("bdd100k", "train"): 7000,
  ("bdd100k", "val"): 1000,
  ("nthu", "all"): 100,
  **{("nthu", f"train{fold}"): 90 for fold in range(10)},
  **{("nthu", f"test{fold}"): 10 for fold in range(10)},
  ("ade20k", "training"): 20210,
  ("ade20k", "validation"): 2000,
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
  "synthia": SYNTHIA16,
  "cityscapes": CITYSCAPES19,
  "bdd100k": CITYSCAPES19,
  "nthu": CITYSCAPES19,
  "ade20k": ADE150,
  "camvid": CAMVID11,
}


def spread(num: int, most: int) -> list[int]:
  """Indices of at most so many images, spread over `num` of them."""
  return np.unique(np.linspace(0, num - 1, min(most, num)).astype(int)).tolist()


class StreetWorldSource(street_world.StreetWorld):
  """The built-in street world as a source."""

  label_space = CITYSCAPES19


@dataclass(frozen=True)
class FileSource:
  """Images and labels in files as published; reading is safe from several threads at once.

  Attributes:
    images, labels: None in place of one that is missing; no labels at all where the data have none.
    height: that images are scaled to; 0: as they are stored.
    scored: whether labels keep their size then.
  """

  kind: str
  label_space: LabelSpace | None
  ids: tuple[str, ...]
  images: tuple[epath.Path | None, ...]
  labels: tuple[epath.Path | None, ...]
  decode_label: Decoder
  height: int = 0
  scored: bool = False

  def __len__(self) -> int:
    return len(self.images)

  def __getitem__(self, index: int) -> dict[str, Any]:
    """Decodes one example; raises UserError where a file is missing, broken, or does not fit its pair."""
    image = decode_image(self.read_image_bytes(index), self.images[index])
    label = self.read_label(index, image.shape[:2]) if self.labels else None
    return _example(self.ids[index], *at_height(image, label, self.height, self.scored))

  def id(self, index: int) -> str:
    """The example's, without decoding it."""
    return self.ids[index]

  def read_image_bytes(self, index: int) -> bytes:
    """The image's file as it is stored; raises UserError where it cannot be read."""
    path = self.images[index]
    if path is None:
      raise UserError(f"no image for {self.labels[index]}; {how_to_get(self.kind)}")
    try:
      return path.read_bytes()
    except OSError as error:
      raise UserError(f"unreadable image: {path} ({first_line(error)}); fetch the file again") from error

  def read_label(self, index: int, size: tuple[int, int]) -> np.ndarray:
    """The label uint8 [h, w] of train ids as it is stored, for an image stored at `size` = (H, W).

    Raises:
      UserError: the file is missing or broken, holds what the data set does not have, or does not fit its image.
    """
    path = self.labels[index]
    if path is None:
      raise UserError(f"no label for {self.images[index]}; {how_to_get(self.kind)}")
    try:
      label = self.decode_label(path.read_bytes(), path)
    except OSError as error:
      raise UserError(f"unreadable label: {path} ({first_line(error)}); fetch the file again") from error
    if label.shape == size:
      return label
    sizes = f"label {label.shape[1]}x{label.shape[0]}, image {size[1]}x{size[0]}: {path}"
    if self.kind != "gta5":
      raise UserError(f"{sizes}; give both the same width and height")
    # Some labels of GTA5 are known to have another resolution than their images, but not another field of view.
    (label_height, label_width), (height, width) = label.shape, size
    if abs(label_width * height - width * label_height) > 0.02 * width * label_height:
      raise UserError(f"{sizes} do not show the same view; fetch both files again")
    return label

  def select(self, indices: Sequence[int]) -> "FileSource":
    """The source of these examples alone."""
    ids, images, labels = (
      tuple(files[index] for index in indices) if files else () for files in (self.ids, self.images, self.labels)
    )
    return dataclasses.replace(self, ids=ids, images=images, labels=labels)


@dataclass(frozen=True)
class PreparedSource:
  """Images and labels in prepared records; reading is safe from several threads at once."""

  label_space: LabelSpace | None
  records: prepared.Records
  indices: Sequence[int]  # which of the records
  height: int
  scored: bool
  labelled: bool = True

  def __len__(self) -> int:
    return len(self.indices)

  def __getitem__(self, index: int) -> dict[str, Any]:
    """Decodes one example; raises UserError where the record is broken."""
    record, where = self.records[self.indices[index]], f"{self.records.where}, number {self.indices[index]}"
    image = decode_image(record["image"], where)
    label = _decode_ids(record["label"], where) if self.labelled and record.get("label") else None
    return _example(record["id"].decode(), *at_height(image, label, self.height, self.scored))

  def id(self, index: int) -> str:
    """The example's, without decoding it."""
    return self.records[self.indices[index]]["id"].decode()

  def select(self, indices: Sequence[int]) -> "PreparedSource":
    """The source of these examples alone."""
    return dataclasses.replace(self, indices=[self.indices[index] for index in indices])


def open_source(
  spec: Mapping[str, Any], data_dir: epath.PathLike, scored: bool | None = None, strict: bool = True
) -> Any:
  """Opens the data set that `spec` describes, raw or prepared: lists its files and reads no image yet.

  Args:
    spec: see the top of this file. Kinds: `street_world` (domain, split, num, height, width), `folder` (dir,
      unknown_colors = 'ignore' or 'error'), `camvid` (dir, and list or split), `gta5` (dir), `synthia` (dir),
      `cityscapes` (dir, split), `bdd100k` (dir, split), `nthu` (dir, domain = the city, split), `ade20k` (dir, split);
      all those in files may have a `height`.
    data_dir: where a relative `dir` lies.
    scored: whether labels keep their full size where images are scaled to `height`; None: see `is_scored`.
    strict: whether an image without label is an error here; else it is one when it is read, and so is a label without
      image, which is passed over otherwise.

  Returns:
    A source, see the top of this file.

  Raises:
    UserError: a file or folder is missing, empty or wrong, or there is no such kind, or the data were prepared otherwise.
  """
  kind = spec["kind"]
  if kind == "street_world":
    if spec.get("only"):
      raise UserError("only: the street world has no list of images; leave `only` empty, and set `num`")
    return StreetWorldSource(spec["domain"], spec["split"], spec["num"], (spec["height"], spec["width"]))
  if kind not in LAYOUTS:
    raise UserError(f"unknown kind of data set: {kind!r}; use one of street_world, {', '.join(LAYOUTS)}")
  folder = str(spec.get("dir", ""))
  # Joining keeps an absolute path as it is, but not one on a cloud store.
  root = epath.Path(folder) if "://" in folder else epath.Path(data_dir).expanduser() / folder
  if (found := prepared.find(root)) is not None:
    source = _open_prepared(spec, found, scored)
  else:
    source = _open_files(spec, root, is_scored(spec) if scored is None else scored, strict)
  if kind == "nthu":
    source = source.select(nthu_fold(spec["split"], len(source)))
  return source.select(_listed(source, spec["only"])) if spec.get("only") else source


def is_named(spec: Mapping[str, Any]) -> bool:
  """Whether a spec names a data set at all: it has a kind, and a folder of one's own a place."""
  return bool(spec["kind"]) and (spec["kind"] != "folder" or bool(spec["dir"]))


def is_scored(spec: Mapping[str, Any]) -> bool:
  """Whether this part of a data set is there to be scored: validation and test parts, and all of nthu."""
  return spec["kind"] == "nthu" or _part(spec).endswith(("val", "validation", "test"))


def stored_split(spec: Mapping[str, Any]) -> str:
  """The split of a prepared folder that holds this part of a data set, see `prepared.py`.

  Raises:
    UserError: its `list` is none of those that are prepared, or its `domain` no city of nthu.
  """
  if spec.get("list") and epath.Path(spec["list"]).parent.name != LISTS:
    raise UserError(f"list {spec['list']} was not prepared, only those in {LISTS}/; let `dir` name the raw data")
  return nthu_city(spec) if spec["kind"] == "nthu" else _part(spec) or "train"


def published_size(spec: Mapping[str, Any]) -> int | None:
  """How many images the data set has, without reading it; None where that is not known beforehand."""
  if spec["kind"] == "street_world":
    return spec["num"]
  return len(read_ids(spec["only"])) if spec.get("only") else _PUBLISHED_SIZES.get((spec["kind"], _part(spec)))


def published_space(spec: Mapping[str, Any]) -> LabelSpace | None:
  """The data set's label space, without reading it; None where that is not known beforehand."""
  return _PUBLISHED_SPACES.get(spec["kind"])


def at_height(
  image: np.ndarray, label: np.ndarray | None, height: int, scored: bool
) -> tuple[np.ndarray, np.ndarray | None]:
  """Scales an image to a height, its aspect kept.

  Args:
    image: uint8 [h, w, 3].
    label: uint8, of the same view at any resolution; or None.
    height: of the result; 0 leaves the image as it is.
    scored: whether the label keeps its size; else it takes the image's.

  Returns:
    The image uint8 [height, W, 3], the same object if it has that height already; the label uint8, or None.
  """
  if height not in (0, image.shape[0]):
    scale = height / image.shape[0]
    size = (max(1, round(image.shape[1] * scale)), height)
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
  if label is not None and not scored and label.shape != image.shape[:2]:
    label = resize_label(label, image.shape[:2])
  return image, label


def decode_image(content: bytes, where: epath.PathLike) -> np.ndarray:
  """Decodes an image file to uint8 [H, W, 3] RGB, turned as its EXIF says.

  Raises:
    UserError: it is no image, or only the beginning of one; `where` is named as its place.
  """
  image = imdecode(content, cv2.IMREAD_COLOR)
  if image is None:
    raise UserError(f"unreadable image: {where} is cut short or no image; fetch the file again")
  return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def read_ids(path: epath.PathLike) -> list[str]:
  """Image ids of a text file, one a line, each once; raises UserError where it cannot be read or names none."""
  try:
    lines = [line.strip() for line in epath.Path(path).read_text().splitlines()]
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f"unreadable list: {path} ({first_line(error)}); let `only` name a text file of image ids") from error
  if not (names := [name for name in dict.fromkeys(lines) if name]):
    raise UserError(f"empty list: {path}; let `only` name a text file of image ids, one a line")
  return names


def _listed(source: Any, path: epath.PathLike) -> list[int]:
  """Where the images are that a file lists, in the order of the source."""
  names = set(read_ids(path))
  found = {source.id(index): index for index in range(len(source))}
  if lost := sorted(names - set(found)):
    raise UserError(f"{path} lists {len(lost)} ids that the data lack, the first is {lost[0]}; write ids like "
                    f"{next(iter(found))}")
  return [index for name, index in found.items() if name in names]


def _decode_ids(content: bytes, where: str) -> np.ndarray:
  """Decodes a PNG of train ids, uint8 [H, W]; raises UserError where it is none."""
  label = imdecode(content, cv2.IMREAD_UNCHANGED)
  if label is None or label.ndim != 2:
    raise UserError(f"unreadable label: {where} is cut short or no PNG of one channel; write it anew")
  return label


def _example(name: str, image: np.ndarray, label: np.ndarray | None) -> dict[str, Any]:
  return {"image": image, "id": name} | ({} if label is None else {"label": label})


def _open_files(spec: Mapping[str, Any], root: epath.Path, scored: bool, strict: bool) -> FileSource:
  kind = spec["kind"]
  layout = LAYOUTS[kind](spec, root)
  images, labels = layout.images, layout.labels
  if strict and layout.missing:
    raise UserError(f"missing file: {layout.missing[0]}; {how_to_get(kind)}")
  unpaired = [] if labels is None else [path for name, path in images.items() if name not in labels]
  if strict and unpaired:
    raise UserError(f"no label for {len(unpaired)} of {len(images)} images, the first is {unpaired[0]}; "
                    f"{how_to_get(kind)}")
  names = list(images)
  if not strict and labels is not None:
    names += [name for name in labels if name not in images]
  ids = [name.rpartition("/")[2] for name in names]
  if len(set(ids)) < len(ids):
    ids = [name.replace("/", "--") for name in names]
  return FileSource(kind, layout.space, tuple(ids), tuple(map(images.get, names)),
                    () if labels is None else tuple(map(labels.get, names)), layout.decode_label,
                    spec.get("height", 0), scored)


def _open_prepared(spec: Mapping[str, Any], folder: epath.Path, scored: bool | None) -> PreparedSource:
  found, split, height = prepared.read_description(folder), stored_split(spec), spec.get("height", 0)
  if found.kind != spec["kind"]:
    raise UserError(f"prepared data of another kind: {folder} holds {found.kind}, not {spec['kind']}; "
                    "set `kind` or `dir` accordingly")
  if found.height != height:
    raise UserError(f"prepared at another height: {folder} holds height {found.height}, not {height} (0 is as stored); "
                    "set `height` accordingly, or prepare the data again")
  records = prepared.open_records(folder, split)
  kept = found.scored.get(split, False)
  if scored and height and not kept:
    raise UserError(f"prepared for training: the labels of {split} in {folder} were scaled to height {height}; "
                    "score another split, or the raw data")
  return PreparedSource(found.space, records, range(len(records)), height, kept if scored is None else scored)


def _part(spec: Mapping[str, Any]) -> str:
  return epath.Path(spec["list"]).stem if spec.get("list") else spec.get("split", "")


def unlabelled(source: Any) -> Any:
  """A source without its labels; those in files and records are not even decoded."""
  match source:
    case FileSource():
      return dataclasses.replace(source, labels=())
    case PreparedSource():
      return dataclasses.replace(source, labelled=False)
    case _:
      return Unlabelled(source)


@dataclass(frozen=True)
class View:
  """Another source, with examples that differ; safe from several threads at once."""

  source: Any

  @property
  def label_space(self) -> LabelSpace | None:
    """That of the labels."""
    return self.source.label_space

  def __len__(self) -> int:
    return len(self.source)


@dataclass(frozen=True)
class Unlabelled(View):
  """A source without its labels."""

  def __getitem__(self, index: int) -> dict[str, Any]:
    return {name: value for name, value in self.source[index].items() if name != "label"}


@dataclass(frozen=True)
class Mapped(View):
  """A source with its labels in another label space, by a table of train ids uint8 [256]."""

  space: LabelSpace
  table: np.ndarray

  @property
  def label_space(self) -> LabelSpace:
    """That of the labels."""
    return self.space

  def __getitem__(self, index: int) -> dict[str, Any]:
    example = self.source[index]
    return {**example, "label": self.table[example["label"]]} if "label" in example else example


@dataclass(frozen=True)
class Chosen(View):
  """Some examples of a source, by their indices."""

  indices: Sequence[int]

  def __len__(self) -> int:
    return len(self.indices)

  def __getitem__(self, index: int) -> dict[str, Any]:
    return self.source[self.indices[index]]


class Remembered(View):
  """A source that keeps what it has decoded, as far as `limit` bytes go."""

  def __init__(self, source: Any, limit: float):
    super().__init__(source)
    self._room = limit
    self._kept: dict[int, dict[str, Any]] = {}
    self._lock = threading.Lock()

  def __getitem__(self, index: int) -> dict[str, Any]:
    if (found := self._kept.get(index)) is None:
      found = self.source[index]
      size = sum(value.nbytes for value in found.values() if isinstance(value, np.ndarray))
      with self._lock:
        if index not in self._kept and size <= self._room:
          self._kept[index], self._room = found, self._room - size
    return found


@dataclass(frozen=True)
class Relabelled(View):
  """A source with labels from `<folder>/<id>.png`, train ids, of any size."""

  folder: epath.Path

  def __getitem__(self, index: int) -> dict[str, Any]:
    example = self.source[index]
    path = self.folder / f"{example['id']}.png"
    try:
      label = imdecode(path.read_bytes(), cv2.IMREAD_UNCHANGED)
    except OSError as error:
      raise UserError(f"missing pseudo-label: {path}; start anew in another --workdir") from error
    if label is None:
      raise UserError(f"empty or broken pseudo-label: {path}; start anew in another --workdir")
    return {**example, "label": label}
