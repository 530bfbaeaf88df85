"""Prepared data sets: TFDS ArrayRecord, at random access and without TensorFlow.

A prepared folder, `<name>/<version>/`, holds TFDS's own files and `jax_uda.json`, which is a `Description`. A record is
{"image": the file as it was stored, or a PNG if it was scaled; "label": a PNG of one channel of uint8 train ids, empty or
absent where the split has no labels; "id"}, in the order of the raw data. Splits are named as in the raw data, or after
the list's stem; a set of one part is `train`. `nthu` has one split a city, of all its images: its folds are chosen when
they are read.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from etils import epath

from jax_uda.data.label_spaces import LabelSpace
from jax_uda.data.layouts import first_line
from jax_uda.errors import UserError

DESCRIPTION = "jax_uda.json"

# What reading raises where TFDS's files are missing, cut short or overwritten.
_BROKEN = (OSError, RuntimeError, ValueError, KeyError)


@dataclass(frozen=True)
class Description:
  """What a prepared folder holds.

  Attributes:
    kind: of the raw data.
    space: of its train ids; None where the raw data have no classes.
    height: that images were scaled to; 0: as they were stored.
    scored: by split, whether labels kept their full size when images were scaled.
  """

  kind: str
  space: LabelSpace | None
  height: int
  scored: Mapping[str, bool]


def write_description(description: Description, folder: epath.PathLike) -> None:
  """Writes `jax_uda.json` into a prepared folder."""
  (epath.Path(folder) / DESCRIPTION).write_text(json.dumps(dataclasses.asdict(description), indent=2))


def read_description(folder: epath.PathLike) -> Description:
  """Reads `jax_uda.json` of a prepared folder.

  Raises:
    UserError: it is missing or broken.
  """
  path = epath.Path(folder) / DESCRIPTION
  try:
    fields = json.loads(path.read_text())
    if fields["space"] is not None:
      name, classes, colors = (fields["space"][field] for field in ("name", "classes", "colors"))
      fields["space"] = LabelSpace(name, tuple(classes), tuple(map(tuple, colors)))
    return Description(**fields)
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise UserError(f"bad prepared data: {path} is missing or broken ({first_line(error)}); "
                    "prepare the data again") from error


def find(root: epath.PathLike) -> epath.Path | None:
  """The prepared folder that `root` is, or its only version; None if it is neither, i.e. raw.

  Raises:
    UserError: there are several versions.
  """
  root = epath.Path(root)
  if (root / "dataset_info.json").exists():
    return root
  versions = sorted(path.parent for path in root.glob("*/dataset_info.json"))
  if len(versions) > 1:
    raise UserError(f"several prepared data sets in {root} ({', '.join(path.name for path in versions)}); "
                    "let `dir` name one of them")
  return versions[0] if versions else None


@dataclass(frozen=True)
class Records:
  """The records of one split, as bytes; reading is safe from several threads at once."""

  where: str
  data: Sequence[Mapping[str, bytes]]

  def __len__(self) -> int:
    return len(self.data)

  def __getitem__(self, index: int) -> Mapping[str, bytes]:
    """{"image", "label" (may be absent), "id"}, all bytes; raises UserError where the record cannot be read."""
    where = f"{self.where}, number {index}"
    try:
      record = self.data[index]
    except _BROKEN as error:
      raise UserError(f"unreadable record: {where} ({first_line(error)}); prepare the data again") from error
    if record["image"] is None:  # so TFDS reads an empty file
      raise UserError(f"unreadable record: {where} is empty; prepare the data again")
    return record


def open_records(folder: epath.Path, split: str) -> Records:
  """Opens one split of a prepared folder; decodes nothing.

  Raises:
    UserError: TFDS's files are broken, or there is no such split.
  """
  # Here, and not above: half a second that whoever reads raw data need not wait for.
  import tensorflow_datasets as tfds
  from google.protobuf.json_format import ParseError

  try:
    builder = tfds.builder_from_directory(folder)
    if split in builder.info.splits:
      skip = {name: tfds.decode.SkipDecoding() for name in ("image", "label") if name in builder.info.features}
      return Records(f"{folder}, {split}", builder.as_data_source(split, decoders=skip))
  except (*_BROKEN, ParseError) as error:
    raise UserError(f"bad prepared data: {folder} ({first_line(error)}); prepare the data again") from error
  raise UserError(f"no split {split!r} in {folder}, only {', '.join(builder.info.splits)}; prepare it, or choose another")
