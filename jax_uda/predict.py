"""Labels for images of one's own, by the network of a run.

    python -m jax_uda.predict --workdir DIR --images PATH… --out DIR
"""

import glob
import sys
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
from jax_uda.pictures import write_png
from jax_uda.state import State
from jax_uda.stopping import StopSignal

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm")
SETTABLE = ("eval_batch", "threads")
OVERLAY = 0.5  # how much of it is colour
HELP = f"""\
Segments images by the network of a run: train ids, colours, and these over the image, each a PNG of the image's size.

  python -m jax_uda.predict --workdir runs/demo --images photos --out predictions
  python -m jax_uda.predict --workdir runs/mlsl_gta --images 'frames/*.jpg' night.png --out night --sliding 512x1024 --flip

Images are files ({', '.join(SUFFIXES)}), folders with all that lie below them, and patterns; they are turned as their EXIF
says. One that cannot be read is passed over, and named at the end. `DIR/{{labels,colors,overlays}}/NAME.png` is what comes
of NAME; below a folder that was named, it keeps its subfolders. `DIR/classes.json` has the classes, in the order of ids.
"""


@dataclass(frozen=True)
class Files:
  """Images as a source without labels: their paths by id."""

  paths: dict[str, epath.Path]
  label_space: None = None

  def __len__(self) -> int:
    return len(self.paths)

  def __getitem__(self, index: int) -> dict[str, Any]:
    name = list(self.paths)[index]
    return {"id": name, "image": self.read(name)}

  def read(self, name: str) -> np.ndarray:
    """RGB uint8 [H, W, 3]; raises UserError where the image cannot be read."""
    path = self.paths[name]
    try:
      content = path.read_bytes()
    except OSError as error:
      raise UserError(f"unreadable image: {path}: {error.strerror or error}; check the file") from error
    return decode_image(content, path)


def find_images(wanted: Iterable[str]) -> dict[str, epath.Path]:
  """Images by name, without their suffix unless there are several of that name.

  Args:
    wanted: files, folders, patterns.

  Raises:
    UserError: one of these is not there, or has no image in it.
  """
  found: dict[epath.Path, epath.Path] = {}  # path: its name, with the suffix
  for text in wanted:
    path = epath.Path(text)
    if path.is_dir():
      here = {one: one.relative_to(path) for one in _below(path)}
    elif path.exists():
      here = {path: epath.Path(path.name)}
    else:
      here = {epath.Path(one): epath.Path(epath.Path(one).name) for one in sorted(glob.glob(text, recursive=True))}
    if not here:
      said = f"it has no image ({', '.join(SUFFIXES)})" if path.is_dir() else "there is no such file, folder or pattern"
      raise UserError(f"--images: {text}: {said}; name images, folders or patterns")
    found |= here
  names: dict[str, epath.Path] = {}
  stems = [str(name.with_suffix("")) for name in found.values()]
  for (path, name), stem in zip(found.items(), stems, strict=True):
    unique = stem if stems.count(stem) == 1 else str(name)
    if unique in names:
      raise UserError(f"--images: {names[unique]} and {path} are both called {unique}; name their folder, or one at a time")
    names[unique] = path
  return names


def _below(folder: epath.Path) -> Iterator[epath.Path]:
  for path in sorted(folder.iterdir()):
    if path.is_dir():
      yield from _below(path)
    elif path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
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
  files = Files(find_images(images))
  bad = BadImages(out / "unreadable.json", len(files))
  bad.path.unlink(missing_ok=True)
  report.write_classes(out, experiment.space)
  state = finished.restore(workdir, experiment, place)
  draw = _drawer(experiment, state) if maps else None
  dataset = Tolerant(files, bad)
  try:
    with StopSignal() as stop, report.Progress(f"{name} · predicting", len(files), "images") as bar:
      for predicted in evaluate.predictions(experiment, state, dataset, manner):
        image = files.read(predicted.id)
        write(out, predicted, image, experiment.space)
        for what, values in (draw(predicted, image).items() if draw else ()):
          write_png(out / "maps" / what / f"{predicted.id}.png", np.rint(255 * values).astype(np.uint8))
        bar.update(1)
        stop.check()
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    raise UserError(
      f"out of memory with {experiment.config.eval_batch} images a device at once; turn down --config.eval_batch, "
      "--sliding or --scales"
    ) from error
  return report.read_json(bad.path) if bad.path.exists() else []


def write(out: epath.Path, predicted: Prediction, image: np.ndarray, space: LabelSpace) -> None:
  """Writes the train ids of one image [H, W, 3], their colours, and these over the image."""
  height, width = predicted.size
  labels = np.asarray(predicted.labels(predicted.size))[:height, :width]
  colors = colorize(labels, space)
  overlay = cv2.addWeighted(colors, OVERLAY, image, 1 - OVERLAY, 0)
  for what, picture in (("labels", labels), ("colors", colors[..., ::-1]), ("overlays", overlay[..., ::-1])):
    write_png(out / what / f"{predicted.id}.png", picture)


def _drawer(experiment: Experiment, state: State) -> Callable[[Prediction, np.ndarray], dict[str, np.ndarray]]:
  """(prediction, its image) -> {what: float [H, W] in 0..1}: the confidence, and the maps of the method, if it has some."""
  canvas = tuple(experiment.config.canvas)
  others = getattr(experiment.method, "maps", lambda config: None)(experiment.config)
  run = jax.jit(lambda image, size: others(state, inference.prepare(image, size))) if others else lambda *_: {}

  def draw(predicted: Prediction, image: np.ndarray) -> dict[str, np.ndarray]:
    height, width = predicted.size
    maps = {"confidence": np.asarray(predicted.scores(predicted.size).max(-1))[:height, :width]}
    seen = transforms.fit(image, None, canvas)
    rows, columns = seen["size"]
    for what, values in run(seen["image"][None], seen["size"][None]).items():
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
  parser.add_argument("--maps", action="store_true", help="also maps of the confidence, and of where decoders agree")
  flags, overrides = commands.parse(parser, argv)

  def action() -> None:
    manner = evaluate.manner_of(flags)
    unread = predict(flags.workdir, flags.images, flags.out, flags.stage, manner, flags.maps, overrides)
    print(f"predictions are in {flags.out}")
    if unread:
      print(f"{len(unread)} passed over, see {flags.out}/unreadable.json: {'; '.join(unread)}")

  return commands.exit_status(action, flags)


if __name__ == "__main__":
  sys.exit(main())
