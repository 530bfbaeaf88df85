"""Files of a work directory: JSON, arrays and classes, each whole or not there at all, and the metrics log."""

import io
import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from etils import epath

from jax_uda import parallel
from jax_uda.data.label_spaces import LabelSpace
from jax_uda.errors import UserError


def plain(value: Any) -> Any:
  """The same in Python's own types, where what JSON cannot say (NaN, infinity) becomes None."""
  if isinstance(value, Mapping):
    return {str(key): plain(item) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return [plain(item) for item in value]
  if hasattr(value, "__array__"):  # NumPy's and JAX's arrays and scalars
    return plain(np.asarray(value).tolist())
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value


def _dumps(value: Any, indent: int | None = None) -> bytes:
  return (json.dumps(plain(value), indent=indent, ensure_ascii=False, allow_nan=False) + "\n").encode()


def write_atomically(path: epath.PathLike, data: bytes) -> epath.Path:
  """Writes through a neighbouring file, so that a reader, or a run killed meanwhile, sees all of it or nothing.

  Raises:
    UserError: the disk is full or may not be written.
  """
  path = epath.Path(path)
  temporary = path.parent / f".{path.name}.tmp"
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary.write_bytes(data)
    return temporary.replace(path)
  except OSError as error:
    raise _unwritable(path, error) from error


def _unwritable(path: epath.Path, error: OSError) -> UserError:
  return UserError(f"cannot write {path}: {error.strerror or error}; make room or name another place, and run again")


def write_json(path: epath.PathLike, value: Any, by_each: bool = False) -> None:
  """Writes JSON atomically; arrays and scalars of NumPy and JAX are fine, NaN and infinity become null.

  Of several processes the first one writes, for all have the same to say; unless files are `by_each`.
  """
  if by_each or parallel.is_first():
    write_atomically(path, _dumps(value, indent=2))


def read_json(path: epath.PathLike) -> Any:
  """Reads JSON; raises `UserError` with the file's name if it is missing or broken."""
  path = epath.Path(path)
  try:
    return json.loads(path.read_bytes())
  except FileNotFoundError:
    raise UserError(f"no such file, {path}, check the directory") from None
  except ValueError as error:
    raise UserError(f"broken JSON, {path}, mend or delete it ({error})") from None


def read_results(workdir: epath.PathLike) -> dict[str, Any]:
  """results.json of a run as far as it has got: {"stages": [], "final": None} where no stage is over yet."""
  path = epath.Path(workdir) / "results.json"
  return read_json(path) if path.exists() else {"stages": [], "final": None}


def write_npz(path: epath.PathLike, arrays: Mapping[str, np.ndarray]) -> None:
  """Writes arrays of any shape by name, atomically; of several processes the first one does."""
  buffer = io.BytesIO()
  np.savez(buffer, **arrays)
  if parallel.is_first():
    write_atomically(path, buffer.getvalue())


def read_npz(path: epath.PathLike) -> dict[str, np.ndarray]:
  """Reads what `write_npz` wrote, each array with its shape and type."""
  with np.load(io.BytesIO(epath.Path(path).read_bytes()), allow_pickle=False) as arrays:
    return dict(arrays)


def write_classes(workdir: epath.PathLike, space: LabelSpace) -> None:
  """Writes the label space to `classes.json`, which is what the report draws labels with."""
  write_json(epath.Path(workdir) / "classes.json", asdict(space))


def read_classes(workdir: epath.PathLike) -> LabelSpace:
  """Reads `classes.json`; raises `UserError` if it is missing, broken or lacks a field."""
  path = epath.Path(workdir) / "classes.json"
  content = read_json(path)
  try:
    return LabelSpace(content["name"], tuple(content["classes"]), tuple(tuple(color) for color in content["colors"]))
  except (KeyError, TypeError):
    raise UserError(f"not a label space, {path}, it needs name, classes and colors") from None


class MetricsLog:
  """The run's metrics, one JSON object a line, each at a position (stage_index, step).

  Call `truncate` once before the first `append` of a process: it makes the log agree with the checkpoint. Of several
  processes, which all call them, the first one writes.
  """

  def __init__(self, path: epath.PathLike):
    self.path = epath.Path(path)

  def append(self, record: Mapping[str, Any]) -> None:
    """Adds {"stage": name, "stage_index": int, "step": int, metric: float …}; it is in the file on return."""
    if not parallel.is_first():
      return
    try:
      self.path.parent.mkdir(parents=True, exist_ok=True)
      with self.path.open("ab") as file:
        file.write(_dumps(record))
    except OSError as error:
      raise _unwritable(self.path, error) from error

  def read(self) -> list[dict[str, Any]]:
    """All records but a torn last one; raises `UserError` for any other broken line."""
    lines = self.path.read_bytes().splitlines() if self.path.exists() else []
    records = []
    for number, line in enumerate(lines, 1):
      try:
        records.append(json.loads(line))
      except ValueError:
        if number < len(lines):
          raise UserError(f"broken JSON, {self.path} line {number}, delete that line") from None
    return records

  def truncate(self, stage_index: int, step: int) -> None:
    """Drops all after this position, a torn last line and repetitions; (0, -1) empties the log."""
    kept = {}
    for record in self.read():
      position = record["stage_index"], record["step"]
      if position <= (stage_index, step):
        kept[position, frozenset(record)] = record  # one record of each kind at a position: the latest
    if self.path.exists() and parallel.is_first():
      write_atomically(self.path, b"".join(_dumps(record) for record in kept.values()))
