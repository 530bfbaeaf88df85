"""Labels for images of one's own, by the network of a run.

    python -m jax_uda.predict --workdir DIR --images PATH… --out DIR
"""

import dataclasses
import glob
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import jax
import numpy as np
from etils import epath

from jax_uda import commands, evaluate, finished, inference, report
from jax_uda.bad_images import BadImages, Tolerant
from jax_uda.data import transforms
from jax_uda.data.label_spaces import LabelSpace, colorize
from jax_uda.data.sources import decode_image
from jax_uda.errors import UserError
from jax_uda.evaluate import Manner, Prediction
from jax_uda.experiment import Experiment, reopen
from jax_uda.pictures import grey, write_png
from jax_uda.state import State
from jax_uda.stopping import StopSignal

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm")
SETTABLE = ("eval_batch", "threads")
KINDS = ("labels", "colors", "overlays")
OVERLAY = 0.5  # how much of it is colour
HELP = f"""\
Segments images by the network of a run: train ids, colours, and these over the image, each a PNG of the image's size.

  python -m jax_uda.predict --workdir runs/demo --images photos --out predictions
  python -m jax_uda.predict --workdir runs/mlsl_gta --images 'frames/*.jpg' night.png --out night --sliding 512x1024 --flip

Images are files ({', '.join(SUFFIXES)}), folders with all that lie below them, and patterns; they are turned as their EXIF
says. One that cannot be read is passed over, and named at the end. NAME becomes `DIR/{{labels,colors,overlays}}/NAME.png`;
below a folder that was named, it keeps its subfolders. `DIR/classes.json` has the classes in the order of ids.

Maps (--maps) are of the confidence, the highest mean softmax; and of where the decoders of the curriculum agree on the
whole image, whatever --scales, --flip and --sliding say.
"""


@dataclass(frozen=True)
class Files:
  """Images as a source without labels."""

  names: tuple[str, ...]
  paths: tuple[epath.Path, ...]
  label_space: None = None

  def __len__(self) -> int:
    return len(self.paths)

  def __getitem__(self, index: int) -> dict[str, Any]:
    """Raises UserError where the image cannot be read."""
    path = self.paths[index]
    try:
      content = path.read_bytes()
    except OSError as error:
      raise UserError(f"unreadable image: {path}: {error.strerror or error}; check the file") from error
    return {"id": self.names[index], "image": decode_image(content, path)}


def find_images(wanted: Iterable[str]) -> dict[str, epath.Path]:
  """Images by name: the path below the folder, or below a pattern's part before the first `*`, `?` or `[`.

  Names have no suffix unless it tells two images apart.

  Args:
    wanted: files, folders, patterns.

  Raises:
    UserError: one of these is not there, or has no image in it; or two images have one name.
  """
  found: dict[epath.Path, epath.Path] = {}  # path: its name, with the suffix
  for text in wanted:
    path = epath.Path(text)
    if path.is_dir():
      here = {one: one.relative_to(path) for one in _below(path)}
    elif path.exists():
      here = {path: epath.Path(path.name)}
    else:
      fixed = epath.Path(re.split(r"[*?\[]", text, maxsplit=1)[0] + "_").parent
      matches = map(epath.Path, sorted(glob.glob(text, recursive=True)))
      here = {one: one.relative_to(fixed) for one in matches if _is_image(one)}
    if not here:
      said = "no image" if path.is_dir() else "no such file or folder, and no image that the pattern fits"
      raise UserError(f"--images: {text}: {said} ({', '.join(SUFFIXES)}); name images, folders or patterns")
    found |= here
  stems = Counter(name.with_suffix("") for name in found.values())
  names: dict[str, epath.Path] = {}
  for path, name in found.items():
    unique = str(name.with_suffix("") if stems[name.with_suffix("")] == 1 else name)
    if unique in names:
      raise UserError(f"--images: {names[unique]} and {path} are both called {unique}; name a folder above both")
    names[unique] = path
  return names


def _is_image(path: epath.Path) -> bool:
  return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def _below(folder: epath.Path) -> Iterator[epath.Path]:
  for path in sorted(folder.iterdir()):
    if path.is_dir():
      yield from _below(path)
    elif _is_image(path):
      yield path


def predict(
  workdir: epath.PathLike,
  images: Iterable[str],
  out: epath.PathLike,
  stage: str = "",
  manner: Manner = evaluate.WHOLE_ONCE,
  maps: bool = False,
  overrides: Sequence[str] = (),
) -> list[str]:
  """Writes what a run's network says of images.

  Args:
    workdir: the run's.
    images: see `find_images`.
    out: the folder for `{labels,colors,overlays}/<name>.png`.
    stage: at whose end; empty: the last one finished.
    manner: how the images are shown to the network.
    maps: also `maps/<what>/<name>.png`, from black, 0, to white, 1: the confidence (the highest softmax), and what else
      the method draws, such as where decoders agree.
    overrides: `field=value` of the config, each of `SETTABLE`.

  Returns:
    What there is to say of images that could not be read.

  Raises:
    UserError: there is no run, stage or image, or there is not enough memory.
  """
  workdir, out = epath.Path(workdir), epath.Path(out)
  for field in (override.partition("=")[0] for override in overrides):
    if field not in SETTABLE:
      raise UserError(f"--config.{field}: the run is over; set {' or '.join(SETTABLE)}")
  experiment = reopen(*finished.read_config(workdir, overrides), scored=False)
  name, place = finished.find_stage(workdir, stage)
  found = find_images(images)
  files = Files(tuple(found), tuple(found.values()))
  _claim(out, {"workdir": str(workdir), "stage": name, **dataclasses.asdict(manner)})
  bad = BadImages(out / "unreadable.json", len(files))
  bad.path.unlink(missing_ok=True)
  report.write_classes(out, experiment.space)
  draw = _drawer(experiment) if maps else None
  try:
    state = finished.restore(workdir, experiment, place)
    with StopSignal() as stop, report.Progress(f"{name} · predicting", len(files), "images") as bar:
      for predicted in evaluate.predictions(experiment, state, Tolerant(files, bad), manner):
        image = decode_image(found[predicted.id].read_bytes(), found[predicted.id])
        write(out, predicted, image, experiment.space)
        for what, values in (draw(state, predicted, image).items() if draw else ()):
          write_png(out / "maps" / what / f"{predicted.id}.png", grey(values))
        bar.update(1)
        stop.check()
  except (jax.errors.JaxRuntimeError, MemoryError) as error:
    if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
      raise
    fewer = f"--config.eval_batch={experiment.config.eval_batch}, " if experiment.config.eval_batch > 1 else ""
    raise UserError(
      f"out of memory; turn down {fewer}{'--sliding' if manner.window else '--scales'}, or give smaller images, as scores "
      "are computed at an image's own size"
    ) from error
  return report.read_json(bad.path) if bad.path.exists() else []


def _claim(out: epath.Path, made_by: dict[str, Any]) -> None:
  """Sees to it that nothing but earlier predictions is written over."""
  mine = out / "predictions.json"
  if not mine.exists() and (taken := [name for name in (*KINDS, "config.json", "classes.json") if (out / name).exists()]):
    raise UserError(f"--out: {out} has {', '.join(taken)} of another origin; name a new folder")
  report.write_json(mine, made_by)


def write(out: epath.Path, predicted: Prediction, image: np.ndarray, space: LabelSpace) -> None:
  """Writes the train ids of one image [H, W, 3], their colours, and these over the image."""
  height, width = predicted.size
  labels = np.asarray(predicted.labels(predicted.size))[:height, :width]
  colors = colorize(labels, space)
  overlay = cv2.addWeighted(colors, OVERLAY, image, 1 - OVERLAY, 0)
  for what, picture in zip(KINDS, (labels, colors[..., ::-1], overlay[..., ::-1]), strict=True):
    write_png(out / what / f"{predicted.id}.png", picture)


def _drawer(experiment: Experiment) -> Callable[[State, Prediction, np.ndarray], dict[str, np.ndarray]]:
  """(state, prediction, its image) -> {what: float [H, W] in 0..1}: the confidence, and the method's maps, if any."""
  canvas = tuple(experiment.config.canvas)
  others = getattr(experiment.method, "maps", lambda config: None)(experiment.config)
  run = jax.jit(lambda state, image, size: others(state, inference.prepare(image, size))) if others else lambda *_: {}

  def draw(state: State, predicted: Prediction, image: np.ndarray) -> dict[str, np.ndarray]:
    height, width = predicted.size
    maps = {"confidence": np.asarray(predicted.scores(predicted.size).max(-1))[:height, :width]}
    seen = transforms.fit(image, None, canvas)
    rows, columns = seen["size"]
    for what, values in run(state, seen["image"][None], seen["size"][None]).items():
      maps[what] = cv2.resize(np.asarray(values[0])[:rows, :columns], (width, height), interpolation=cv2.INTER_LINEAR)
    return maps

  return draw


def main(argv: Sequence[str] | None = None) -> int:
  """Predicts, says what could not be read, and returns the exit status."""
  parser = commands.parser("predict", HELP)
  parser.add_argument("--workdir", required=True, metavar="DIR", help="of the run")
  parser.add_argument("--images", required=True, nargs="+", metavar="PATH", help="files, folders, or patterns in quotes")
  parser.add_argument("--out", required=True, metavar="DIR", help="where predictions go")
  parser.add_argument("--stage", default="", metavar="NAME", help="at whose end; without it the last one")
  evaluate.add_manner(parser)
  parser.add_argument("--maps", action="store_true", help="also maps, black for 0 and white for 1")
  flags, overrides = commands.parse(parser, argv)

  def action() -> None:
    manner = evaluate.manner_of(flags)
    unread = predict(flags.workdir, flags.images, flags.out, flags.stage, manner, flags.maps, overrides)
    print(f"predictions are in {flags.out}")
    if unread:
      print(f"{len(unread)} passed over, see {flags.out}/unreadable.json: {'; '.join(unread)}")

  return commands.exit_status(action, flags, goes_on=False)


if __name__ == "__main__":
  sys.exit(main())
