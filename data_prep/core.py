"""From a raw download to TFDS ArrayRecord: all that the data sets share.

    <out>/<name>/1.0.0/                     finished: what `jax_uda/data/prepared.py` describes, and summary.txt
    <out>/<name>/incomplete/settings.json   under way: the height
    <out>/<name>/incomplete/<split>/        what was converted, pair by pair; a run that was stopped goes on from there
    <out>/<name>/incomplete/1.0.0/          being packed

Splits keep the names and the order of the raw data; those of NTHU are its cities (Rome, Rio, Tokyo, Taipei), each stored
once: which of its images make up a fold is decided when they are read, by index % 10.
"""

import contextlib
import io
import itertools
import json
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from etils import epath

from jax_uda import commands
from jax_uda.data import prepared, sources
from jax_uda.data.label_spaces import IGNORE, LabelSpace
from jax_uda.errors import UserError
from jax_uda.files import read_json
from jax_uda.terminal import Progress

VERSION = "1.0.0"
SHARD = 500  # images in a file of records
BATCH = 25  # images handed to TFDS at once; it writes its metadata anew after each batch
SHOWN = 20  # skipped pairs in the terminal; summary.txt has all
SKIPPED = "skipped, and why:"

EPILOG = """\
Every pair is decoded and checked; one that is missing, broken or does not fit is skipped, and named in summary.txt. (Damage
within a JPEG that leaves it decodable goes unnoticed.) Run again with the same flags, it goes on where it stopped; what is
finished is left alone. A config finds the result if `dir` names it.

exit status: 0 done, 2 something that you can mend (one line says what).
"""


@dataclass(frozen=True)
class Split:
  """A split of a data set.

  Attributes:
    name: in the prepared data.
    fields: what its spec has beside kind and height, see `sources.py`.
    needs: a path in the raw folder; where it does not exist, the split is left out. Empty: the split has to be there.
    whole: whether a pair that cannot be used is an error: elsewhere its place matters.
  """

  name: str
  fields: Mapping[str, str]
  needs: str = ""
  whole: bool = False


class Pair(NamedTuple):
  """An image and its label, to be converted in any process, and where to."""

  source: sources.FileSource  # of this pair alone
  folder: epath.Path


class Outcome(NamedTuple):
  """What became of a pair."""

  id: str
  pixels: np.ndarray  # int64 [256], how many there are of each train id
  problem: str = ""  # why it was skipped


def prepare(
  name: str, raw: epath.PathLike, out: epath.PathLike, splits: Sequence[Split], height: int = 0, workers: int = 1
) -> epath.Path:
  """Prepares a data set, or goes on where an earlier run stopped.

  Args:
    name: a kind of `sources.py`.
    raw: the folder with the download.
    out: where `<name>/1.0.0` goes.
    splits: what to prepare.
    height: in pixels, that images are scaled to (see `sources.at_height`); 0 keeps them.
    workers: number of processes; 1 does it all in this one.

  Returns:
    The folder of the finished data set.

  Raises:
    UserError: the raw data are missing, or a split has no usable pair; another height was begun there.
    OSError: the disk is full or may not be written.
  """
  raw, folder = epath.Path(raw).expanduser(), epath.Path(out).expanduser() / name
  finished, unfinished = folder / VERSION, folder / "incomplete"
  for kept in (finished / prepared.DESCRIPTION, unfinished / "settings.json"):
    if kept.exists() and (begun := read_json(kept)["height"]) != height:
      raise UserError(f"another height: {kept.parent} has images {_size(begun)}, not {_size(height)}; give the same "
                      f"--height, name another --out, or delete {folder}")
  if not finished.exists():
    if not raw.is_dir():
      state = "is a file" if raw.exists() else "does not exist"
      raise UserError(f"--raw: {raw} {state}; name the folder with the download")
    parts = {
      split.name: _open(name, raw, split, height) for split in splits if not split.needs or (raw / split.needs).exists()
    }
    _write(unfinished / "settings.json", json.dumps({"height": height}).encode())
    outcomes = _convert_all(name, parts, unfinished, workers)
    for split in splits:
      if split.whole and (bad := next((one for one in outcomes[split.name] if one.problem), None)):
        raise UserError(f"{split.name} has to be whole, for its folds: {bad.problem}; mend it and run again")
    packed = unfinished / VERSION
    _pack(name, parts, outcomes, packed)
    _write(packed / "summary.txt", _summary(name, parts, outcomes).encode())
    packed.rename(finished)
  if unfinished.exists():
    unfinished.rmtree()
  return finished


def _size(height: int) -> str:
  return f"{height} pixels high" if height else "as downloaded"


def _open(name: str, raw: epath.Path, split: Split, height: int) -> sources.FileSource:
  source = sources.open_source({"kind": name, "dir": "", "height": height, **split.fields}, raw, strict=False)
  if not isinstance(source, sources.FileSource):
    raise UserError(f"prepared already: {raw}; let --raw name the folder with the download")
  return source


def _write(path: epath.Path, data: bytes) -> None:
  """Writes so that whoever finds the file finds all of it."""
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.parent / f".{path.name}.tmp"
  temporary.write_bytes(data)
  temporary.replace(path)


# --- pair by pair ---------------------------------------------------------------------------------------------------


def _image_file(folder: epath.Path, name: str) -> epath.Path:
  """Where a scaled image is kept."""
  return folder / f"{name}.image.png"


def _label_file(folder: epath.Path, name: str) -> epath.Path:
  """Where a label is kept, empty if there is none; a pair that has this file is done."""
  return folder / f"{name}.label.png"


def convert(pair: Pair) -> Outcome:
  """Checks a pair and writes its label, and its image if it is scaled; one done earlier is only counted.

  Raises:
    OSError: the disk is full or may not be written.
  """
  source, name = pair.source, pair.source.ids[0]
  done = _label_file(pair.folder, name)
  if done.exists():
    data = done.read_bytes()
    return Outcome(name, _count(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if data else None))
  try:
    stored = sources.decode_image(source.read_image_bytes(0), source.images[0])
    label = source.read_label(0, stored.shape[:2]) if source.labels else None
  except UserError as error:
    return Outcome(name, _count(None), str(error))
  image, label = sources.at_height(stored, label, source.height, source.scored or not source.height)
  if image is not stored:
    _write(_image_file(pair.folder, name), _png(cv2.cvtColor(image, cv2.COLOR_RGB2BGR)))
  _write(done, b"" if label is None else _png(label))
  return Outcome(name, _count(label))


def _png(array: np.ndarray) -> bytes:
  return cv2.imencode(".png", array)[1].tobytes()


def _count(label: np.ndarray | None) -> np.ndarray:
  return np.zeros(256, np.int64) if label is None else np.bincount(label.ravel(), minlength=256)


def _convert_all(
  name: str, parts: Mapping[str, sources.FileSource], folder: epath.Path, workers: int
) -> dict[str, list[Outcome]]:
  """Converts all pairs into `folder/<split>`; returns what became of them, by split and in order."""
  pairs = [Pair(source.select([i]), folder / split) for split, source in parts.items() for i in range(len(source))]
  outcomes = {}
  with (
    contextlib.closing(_in_processes(pairs, workers)) as stream,
    Progress(f"{name} · checking and converting", len(pairs), unit="images") as bar,
  ):
    for split, source in parts.items():
      outcomes[split] = found = []
      for outcome in itertools.islice(stream, len(source)):
        found.append(outcome)
        bar.update(1)
      if all(outcome.problem for outcome in found):
        raise UserError(f"nothing usable in {split}: all {len(found)} pairs are skipped, the first is "
                        f"{found[0].id} ({found[0].problem}); see --help for what --raw has to hold")
  return outcomes


def _in_processes(pairs: Iterable[Pair], workers: int) -> Iterator[Outcome]:
  """`convert` over all pairs, in order."""
  if workers == 1:
    yield from map(convert, pairs)
    return
  # Spawned: a fork of a process that has threads, as JAX's and TFDS's imports may start, can hang.
  pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin_worker)
  try:
    yield from pool.map(convert, pairs)
  except BrokenProcessPool:
    raise UserError(f"a worker process was killed, memory may be short with {workers} of them; give a smaller --workers "
                    "and run again, it goes on from here") from None
  finally:
    pool.shutdown(cancel_futures=True)


def _begin_worker() -> None:
  """Leaves Ctrl-C to the parent, and ends with it even if that is killed."""
  def follow() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)

  signal.signal(signal.SIGINT, signal.SIG_IGN)
  threading.Thread(target=follow, daemon=True).start()
  cv2.setNumThreads(1)  # the processes share the cores already


# --- all of it ------------------------------------------------------------------------------------------------------


def _pack(
  name: str, parts: Mapping[str, sources.FileSource], outcomes: Mapping[str, Sequence[Outcome]], packed: epath.Path
) -> None:
  """Packs what was converted, anew if it was begun before."""
  import tensorflow_datasets as tfds  # slow, and needed only here

  if packed.exists():
    packed.rmtree()
  packed.mkdir()
  space, height = _common(parts)
  scored = {split: source.scored for split, source in parts.items()}
  prepared.write_description(prepared.Description(name, space, height, scored), packed)
  info = tfds.core.DatasetInfo(
    builder=tfds.core.dataset_info.DatasetIdentity(name, tfds.core.Version(VERSION), os.fspath(packed), __package__),
    description=f"{name}, images {_size(height)}, labels as train ids of {space.name}",
    features=tfds.features.FeaturesDict({
      "image": tfds.features.Image(shape=(None, None, 3)),
      "label": tfds.features.Image(shape=(None, None, 1), encoding_format="png"),
      "id": tfds.features.Text(),
    }),
    disable_shuffling=True,
  )
  # Not a builder's: beyond 1 GB that writer needs TensorFlow's files.
  writer = tfds.core.SequentialWriter(info, SHARD, file_format="array_record")
  kept = {split: [i for i, outcome in enumerate(found) if not outcome.problem] for split, found in outcomes.items()}
  try:
    writer.initialize_splits(list(kept))
    with Progress(f"{name} · packing", sum(map(len, kept.values())), unit="images") as bar:
      for split, indices in kept.items():
        for start in range(0, len(indices), BATCH):
          batch = [_record(parts[split], i, packed.parent / split) for i in indices[start : start + BATCH]]
          writer.add_examples({split: batch})
          bar.update(len(batch))
        writer.close_splits([split])
  except RuntimeError as error:  # what ArrayRecord raises on a full disk
    raise UserError(f"cannot write {packed} ({error}); make room and run again, it goes on from here") from error


def _common(parts: Mapping[str, sources.FileSource]) -> tuple[LabelSpace, int]:
  """The label space and the height of all splits."""
  source = next(iter(parts.values()))
  return source.label_space, source.height


def _record(source: sources.FileSource, index: int, folder: epath.Path) -> dict[str, io.BytesIO | str]:
  """An example as TFDS takes it without TensorFlow: encoded."""
  name = source.ids[index]
  scaled = _image_file(folder, name)
  image = scaled.read_bytes() if scaled.exists() else source.read_image_bytes(index)
  return {"image": io.BytesIO(image), "label": io.BytesIO(_label_file(folder, name).read_bytes()), "id": name}


def _summary(
  name: str, parts: Mapping[str, sources.FileSource], outcomes: Mapping[str, Sequence[Outcome]]
) -> str:
  """A table by split (images, skipped pairs, share of each class's pixels), then the skipped pairs, a line each."""
  space, height = _common(parts)
  pixels = np.array([sum(outcome.pixels for outcome in found) for found in outcomes.values()])
  shares = 100 * pixels / np.maximum(pixels.sum(axis=1, keepdims=True), 1)
  labelled = pixels.any(axis=1)
  skipped = [sum(bool(outcome.problem) for outcome in found) for found in outcomes.values()]
  used = [len(found) - count for found, count in zip(outcomes.values(), skipped, strict=True)]
  classes = [*enumerate(space.classes), (IGNORE, "ignored")]
  rows = [["", *outcomes], ["images", *map(str, used)], ["skipped pairs", *map(str, skipped)], ["pixels in %"]]
  for i, label in classes:
    rows.append([label, *np.where(labelled, [f"{share:.3f}" for share in shares[:, i]], "–")])
  first, rest = max(len(row[0]) for row in rows), max(9, *map(len, outcomes)) + 2
  lines = [f"{name}, images {_size(height)}", ""]
  lines += [(row[0].ljust(first) + "".join(cell.rjust(rest) for cell in row[1:])).rstrip() for row in rows]
  problems = [
    f"{split} {outcome.id}: {outcome.problem}" for split, found in outcomes.items() for outcome in found if outcome.problem
  ]
  return "\n".join([*lines, *(["", SKIPPED, *problems] if problems else []), ""])


# --- the command ----------------------------------------------------------------------------------------------------


def main(name: str, description: str, splits: Sequence[Split], argv: Sequence[str] | None = None) -> int:
  """Parses flags, prepares, prints the summary, and returns the exit status.

  Args:
    name: of the data set and of its module.
    description: what --help says of the layout of the download.
    splits: what to prepare.
    argv: flags; None takes the command line's.
  """
  command = f"  python -m data_prep.{name} --raw DIR --out DATA"
  examples = ["the three commonest commands:", command, f"{command} --height 360", f"{command} --workers 1"]
  parser = commands.parser(name, "\n".join([description, *examples]))
  parser.prog = f"python -m data_prep.{name}"
  parser.epilog = EPILOG
  parser.add_argument("--raw", required=True, metavar="DIR", help="the folder with the download")
  parser.add_argument("--out", required=True, metavar="DIR", help=f"where {name}/{VERSION} goes")
  parser.add_argument("--height", type=int, default=0, metavar="H", help="scale images to H pixels; with them the labels "
                      "that are trained on, not those that are scored (val, test)")
  parser.add_argument("--workers", type=int, default=os.cpu_count(), metavar="N", help="processes; default: one a core")
  flags = parser.parse_args(argv)
  if flags.height < 0 or flags.workers < 1:
    parser.error("--height is 0 or more, --workers 1 or more")
  try:
    folder = prepare(name, flags.raw, flags.out, splits, flags.height, flags.workers)
    table, _, problems = (folder / "summary.txt").read_bytes().decode().partition(SKIPPED)
  except (UserError, OSError) as error:
    if flags.debug:
      raise
    print(f"error: {_mendable(error, flags.out)}", file=sys.stderr)
    return commands.EXIT_MENDABLE
  except KeyboardInterrupt:
    print(f"interrupted; run the same command again to go on in {flags.out}", file=sys.stderr)
    return commands.EXIT_CTRL_C
  print(table.rstrip())
  lines = problems.strip().splitlines()
  if lines:
    print("", SKIPPED, *lines[:SHOWN], sep="\n")
  if len(lines) > SHOWN:
    print(f"… and {len(lines) - SHOWN} more, see {folder / 'summary.txt'}")
  if lines:
    print(f"To try them again once they are mended, delete {folder}.")
  print(f"\nready: {folder}")
  return 0


def _mendable(error: UserError | OSError, out: str) -> str:
  if isinstance(error, UserError):
    return str(error).replace("`dir`", "the folder that --raw names")
  return f"{error.strerror or error}: {error.filename or out}; make room or mend it and run again, it goes on from here"
