"""Labels for images of one's own, by the network of a run or of an exported file.

    python -m jax_uda.predict --workdir DIR --images PATH… --out DIR
"""

import dataclasses
import glob
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import cv2
import jax
import numpy as np
from etils import epath

from jax_uda import commands, evaluate, files, inference, parallel, terminal, trained
from jax_uda.bad_images import BadImages, Tolerant
from jax_uda.config import differences
from jax_uda.data import transforms
from jax_uda.data.label_spaces import LabelSpace, colorize
from jax_uda.data.sources import FileSource
from jax_uda.errors import UserError
from jax_uda.pictures import grey, write_png
from jax_uda.stopping import StopSignal
from jax_uda.trained import WHOLE_ONCE, Manner, Prediction, TrainedNetwork

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm")
KINDS = ("labels", "colors", "overlays")
OVERLAY = 0.5  # how much of it is colour
HELP = f"""\
Segments images by the network of a run, or of a file that jax_uda.export wrote: train ids, colours, and these over the
image, each a PNG of the image's size.

the three commonest commands:
  python -m jax_uda.predict --workdir runs/demo --images photos --out predictions
  python -m jax_uda.predict --workdir runs/mlsl_gta --images 'frames/*.jpg' night.png --out night --sliding 512x1024 --flip
  python -m jax_uda.predict --model demo.stablehlo --images photos --out predictions

Images are files ({', '.join(SUFFIXES)}), folders with all that lie below them, and patterns; they are turned as their EXIF
says. One that cannot be read is passed over and told, and the exit status is 0 if there are others. NAME becomes
`DIR/{{labels,colors,overlays}}/NAME.png`; it keeps its subfolders below a folder that was named, or below a pattern's part
without `*`, and its suffix where that alone tells two images apart. `DIR/classes.json` has the classes in the order of ids.

Maps (--maps) are of the confidence, the highest mean softmax; and, of a run, of what else its method draws (where the
decoders of the curriculum agree) of the whole image, whatever --scales, --flip and --sliding say.
"""


def find_images(wanted: Iterable[str], out: epath.PathLike = "") -> dict[str, epath.Path]:
  """Images by name: the path below the folder, or below a pattern's part before the first `*`, `?` or `[`.

  Names have no suffix unless it tells two images apart.

  Args:
    wanted: files, folders, patterns.
    out: where earlier predictions may lie, which are no images.

  Raises:
    UserError: one of these is not there, or has no image in it; or two images have one name.
  """
  found: dict[epath.Path, epath.Path] = {}  # path: its name, with the suffix
  ours = {epath.Path(out).resolve() / kind for kind in (*KINDS, "maps")} if out else set()
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
    here = {one: name for one, name in here.items() if not ours or ours.isdisjoint(one.resolve().parents)}
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
  try:
    paths = sorted(folder.iterdir())
  except OSError as error:
    raise UserError(f"--images: {folder}: {error.strerror or error}; name a folder that can be read") from error
  for path in paths:
    if _is_image(path):
      yield path
    elif path.is_dir() and not path.name.startswith("."):
      yield from _below(path)


def open_images(wanted: Iterable[str], out: epath.PathLike = "") -> FileSource:
  """The images of `find_images` as a source without labels, its ids their names."""
  found = find_images(wanted, out)
  return FileSource("images", None, tuple(found), tuple(found.values()), (), None)


def predict(
  origin: epath.PathLike,
  images: Iterable[str],
  out: epath.PathLike,
  stage: str = "",
  manner: Manner = WHOLE_ONCE,
  maps: bool = False,
  overrides: Sequence[str] = (),
) -> list[str]:
  """Writes what a network says of images.

  Args:
    origin: the workdir of a run, or an exported file.
    images: see `find_images`.
    out: the folder for `{labels,colors,overlays}/<name>.png`.
    stage: at whose end, of a run; empty: the last one finished.
    manner: how the images are shown to the network.
    maps: also `maps/<what>/<name>.png`, from black, 0, to white, 1: the confidence (the highest softmax), and what else
      the method of a run draws, such as where decoders agree.
    overrides: `field=value` of the config, each of `trained.SETTABLE`.

  Returns:
    What there is to say of images that could not be read.

  Raises:
    UserError: there is no run, file, stage or image, or there is not enough memory.
  """
  out, source, network = epath.Path(out), open_images(images, out), None
  bad = BadImages(out / "unreadable.json", limit=None)
  try:
    network = trained.load(origin, stage, overrides)
    _claim(out, source, {"origin": str(origin), "stage": network.stage, **dataclasses.asdict(manner)})
    bad.path.unlink(missing_ok=True)
    files.write_classes(out, network.space)
    with StopSignal() as stop, terminal.Progress(f"{network.stage} · predicting", len(source), "images") as bar:
      for predicted in trained.predictions(network, Tolerant(source, bad), manner):
        write(out, predicted, network.space)
        for what, values in (_maps(network, predicted).items() if maps else ()):
          write_png(out / "maps" / what / f"{predicted.id}.png", grey(values))
        bar.update(1)
        stop.check()
      bar.update(len(bad.known()))
  except (jax.errors.JaxRuntimeError, MemoryError) as error:
    if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
      raise
    fewer = f"--config.eval_batch={network.batch}, " if network and network.batch > 1 else ""
    raise UserError(
      f"out of memory; turn down {fewer}{'--sliding' if manner.window else '--scales'}, or give smaller images, as scores "
      "are computed at an image's own size"
    ) from error
  return bad.known()


def _claim(out: epath.Path, source: FileSource, made_by: dict[str, Any]) -> None:
  """Sees to it that nothing but predictions made alike is written over, and that they do not lie among the images."""
  mine = out / "predictions.json"
  if any(path.parent.resolve() == out.resolve() for path in source.images):
    raise UserError(f"--out: {out} has the images in it, which predictions would mix with; name a new folder")
  if mine.exists() and (changes := differences(files.read_json(mine), files.plain(made_by))):
    raise UserError(f"--out: {out} has predictions made otherwise ({'; '.join(changes)}); name a new folder")
  if not mine.exists() and (taken := [name for name in (*KINDS, "config.json", "classes.json") if (out / name).exists()]):
    raise UserError(f"--out: {out} has {', '.join(taken)} of another origin; name a new folder")
  files.write_json(mine, made_by)


def write(out: epath.Path, predicted: Prediction, space: LabelSpace) -> None:
  """Writes the train ids of one image, their colours, and these over the image."""
  height, width = predicted.size
  labels = np.asarray(predicted.labels(predicted.size))[:height, :width]
  colors = colorize(labels, space)
  overlay = cv2.addWeighted(colors, OVERLAY, predicted.image, 1 - OVERLAY, 0)
  for what, picture in zip(KINDS, (labels, colors[..., ::-1], overlay[..., ::-1]), strict=True):
    write_png(out / what / f"{predicted.id}.png", picture)


def _maps(network: TrainedNetwork, predicted: Prediction) -> dict[str, np.ndarray]:
  """{what: float [H, W] in 0..1} of an image: the confidence, and the method's maps, if any."""
  height, width = predicted.size
  found = {"confidence": np.asarray(inference.probabilities(predicted.scores(predicted.size)).max(-1))[:height, :width]}
  seen = transforms.fit(predicted.image, None, network.canvas)
  rows, columns = seen["size"]
  batch = {name: np.repeat(seen[name][None], parallel.num_devices(), axis=0) for name in ("image", "size")}
  for what, values in trained.draw_maps(network, batch).items():
    found[what] = cv2.resize(values[0, :rows, :columns], (width, height), interpolation=cv2.INTER_LINEAR)
  return found


def main(argv: Sequence[str] | None = None) -> int:
  """Predicts, says what could not be read, and returns the exit status."""
  parser = commands.parser("predict", HELP)
  origin = parser.add_mutually_exclusive_group(required=True)
  origin.add_argument("--workdir", metavar="DIR", help="of the run")
  origin.add_argument("--model", metavar="FILE", help="of jax_uda.export, in place of a run")
  parser.add_argument("--images", required=True, nargs="+", metavar="PATH", help="files, folders, or patterns in quotes")
  parser.add_argument("--out", required=True, metavar="DIR", help="where predictions go")
  parser.add_argument("--stage", default="", metavar="NAME", help=evaluate.STAGE_HELP)
  evaluate.add_manner(parser)
  parser.add_argument("--maps", action="store_true", help="also maps, black for 0 and white for 1")
  flags, overrides = commands.parse(parser, argv)

  def action() -> None:
    manner = evaluate.manner_of(flags)
    origin = flags.workdir or flags.model
    if not epath.Path(origin).exists():
      raise UserError(f"{'--workdir' if flags.workdir else '--model'}: {origin} is not there; check the path")
    if epath.Path(origin).is_dir() != bool(flags.workdir):
      raise UserError(f"{origin} will not do; name a run's folder by --workdir, or a file of jax_uda.export by --model")
    unread = predict(origin, flags.images, flags.out, flags.stage, manner, flags.maps, overrides)
    print(f"predictions are in {flags.out}")
    if unread:
      print(f"{len(unread)} could not be read, see {flags.out}/unreadable.json")

  return commands.exit_status(action, flags, goes_on=False)


if __name__ == "__main__":
  sys.exit(main())
