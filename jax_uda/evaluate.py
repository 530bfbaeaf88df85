"""Scoring: one confusion matrix of whole-number counts over a whole data set, at the labels' own resolution.

    python -m jax_uda.evaluate --workdir DIR      scores the test set of a run that is there
"""

import argparse
import csv
import functools
import io
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from etils import epath

from jax_uda import commands, files, finished, inference, metrics, parallel, terminal, trained
from jax_uda.data import label_spaces
from jax_uda.data.label_spaces import IGNORE, LabelSpace, Protocol
from jax_uda.errors import UserError
from jax_uda.experiment import reopen
from jax_uda.pictures import write_png
from jax_uda.results import scores
from jax_uda.stopping import StopSignal
from jax_uda.trained import WHOLE_ONCE, Manner, Prediction, TrainedNetwork, predictions


def confusion(predicted: Prediction, num_classes: int) -> np.ndarray:
  """One image's confusion matrix, int64 [C, C], rows are the truth, at the full resolution of its label."""
  height, width = size = predicted.truth.shape
  truth = np.full(inference.rounded_up(size), IGNORE, np.uint8)
  truth[:height, :width] = predicted.truth
  return np.asarray(metrics.confusion_matrix(truth, predicted.labels(size), num_classes), np.int64)


def score(
  network: TrainedNetwork,
  dataset: Any,
  title: str,
  stop: StopSignal,
  manner: Manner = WHOLE_ONCE,
  keep: Callable[[Prediction], None] | None = None,
) -> np.ndarray | None:
  """The confusion matrix int64 [C, C] over a data set; None if it has no labels. `keep` is given every prediction.

  Processes share the images and all get the sum.
  """
  num_classes, labelled = len(network.classes), 0
  total = np.zeros((num_classes, num_classes), np.int64)
  with terminal.Progress(title, parallel.share(len(dataset)), "images") as bar:
    for predicted in predictions(network, dataset, manner):
      if predicted.truth is not None:
        total, labelled = total + confusion(predicted, num_classes), labelled + 1
      if keep is not None:
        keep(predicted)
      bar.update(1)
      stop.check()
  stop.check(agree=True)
  total, labelled = parallel.sum_over_processes(total), parallel.sum_over_processes(np.int64(labelled))
  return total if labelled else None


def by_protocol(
  confusion: np.ndarray | None, space: LabelSpace, protocols: Sequence[Protocol], absent_as_zero: bool = False
) -> dict[str, dict[str, Any]]:
  """`scores` by protocol, from one confusion matrix [C, C] of a label space; None if nothing was scored."""
  if confusion is None:
    confusion = np.zeros((len(space.classes),) * 2, np.int64)
  found = {}
  for protocol in protocols:
    folded = metrics.fold(confusion, label_spaces.protocol_rows(protocol, space), len(protocol.classes))
    found[protocol.name] = scores(folded, protocol.classes, absent_as_zero)
  return found


def write_confusion(workdir: epath.Path, stage: str, confusion: np.ndarray, space: LabelSpace) -> None:
  """Writes a stage's confusion matrix, int64 [C, C], to `scores/<stage>.json`."""
  files.write_json(workdir / "scores" / f"{stage}.json", {"classes": space.classes, "confusion": confusion})


def read_confusion(workdir: epath.Path, stage: str) -> np.ndarray:
  """What `write_confusion` wrote, int64 [C, C]."""
  return np.array(files.read_json(workdir / "scores" / f"{stage}.json")["confusion"], np.int64)


def write_table(path: epath.Path, columns: dict[str, dict[str, float | None]]) -> None:
  """Writes {column: {class: IoU}} as CSV, a row a class; the IoU of an absent class is left empty."""
  text = io.StringIO()
  table = csv.writer(text, lineterminator="\n")
  table.writerow(["class", *columns])
  table.writerows([name, *(values[name] for values in columns.values())] for name in next(iter(columns.values())))
  files.write_atomically(path, text.getvalue().encode())


# The command

HELP = """\
Scores the test set of a run: a table, an entry under "evaluations" in results.json, and a CSV file of the IoU by class.

the three commonest commands:
  python -m jax_uda.evaluate --workdir runs/camvid --scales 0.5,0.75,1.0 --flip
  python -m jax_uda.evaluate --workdir runs/synthia --protocol synthia13
  python -m jax_uda.evaluate --workdir runs/mlsl_gta --stage source --predictions submission --ids cityscapes \\
    --config.test.split=test

Of the config, what only scoring needs can be set by --config.FIELD=VALUE: the test set's fields (test.FIELD), and
{fields}.
"""

STAGE_HELP = "at whose end: source or the last one finished, as only their checkpoints are kept; without it the last one"
SETTABLE = ("test.", "data_dir", "absent_as_zero", *trained.SETTABLE)  # of the config


def evaluate(
  workdir: epath.PathLike,
  stage: str = "",
  protocol: str | None = None,
  manner: Manner = WHOLE_ONCE,
  folder: epath.PathLike | None = None,
  ids: str = "train",
  overrides: Sequence[str] = (),
) -> dict[str, Any] | None:
  """Scores the test set of a run, and writes down what that came to.

  Args:
    workdir: the run's.
    stage: at whose end; empty: the last one finished.
    protocol: a name of `label_spaces.protocol`; None: the first one of the config.
    manner: how the images are shown to the network.
    folder: where predictions go, as `<image id>.png` at the label's resolution, or the image's where it has no label; None
      writes none.
    ids: what these hold: `train` ids, or `cityscapes` ids.
    overrides: `field=value` of the config, each.

  Returns:
    The entry in "evaluations" of results.json; None where the test set has no labels.

  Raises:
    UserError: there is no run, no such stage, protocol or test set, or nothing to be done.
  """
  workdir = epath.Path(workdir)
  experiment = reopen(*finished.read_config(workdir, overrides, SETTABLE))
  name, place = finished.find_stage(workdir, stage)
  chosen = experiment.protocols[0] if protocol is None else label_spaces.protocol(protocol, experiment.space)
  keep = None if folder is None else functools.partial(_write, epath.Path(folder), _table(ids, experiment.space))
  dataset = experiment.datasets["test"]
  if keep is None and "label" not in dataset[0]:
    raise UserError("config.test: it has no labels, so there is nothing to score; name a folder by --predictions")
  network = trained.of(experiment, finished.restore(workdir, experiment, place))
  with StopSignal() as stop:
    found = score(network, dataset, f"{name} · scoring", stop, manner, keep)
  if found is None:
    return None
  entry = {"stage": name, "protocol": chosen.name, "scales": manner.scales, "flip": manner.flip, "sliding": manner.window}
  entry |= {"overrides": overrides} if overrides else {}
  entry |= by_protocol(found, experiment.space, [chosen], experiment.config.absent_as_zero)[chosen.name]
  results = files.read_json(workdir / "results.json")
  results.setdefault("evaluations", []).append(entry)
  files.write_json(workdir / "results.json", results)
  write_table(workdir / f"evaluation_{_slug(entry)}.csv", {"IoU": entry["iou"]})
  return entry


def _table(ids: str, space: LabelSpace) -> np.ndarray:
  """Train id of the label space -> what a prediction's file holds, uint8 [256]."""
  if ids == "train":
    return np.arange(256, dtype=np.uint8)
  return label_spaces.CITYSCAPES_IDS[label_spaces.mapping(space, label_spaces.CITYSCAPES19)]


def _write(folder: epath.Path, table: np.ndarray, predicted: Prediction) -> None:
  height, width = size = predicted.size if predicted.truth is None else predicted.truth.shape
  labels = np.asarray(predicted.labels(size))[:height, :width]
  write_png(folder / f"{predicted.id}.png", table[labels])


def _slug(entry: dict[str, Any]) -> str:
  """What tells an evaluation from the others, as part of a file's name."""
  parts = [entry["stage"], entry["protocol"]]
  if entry["sliding"]:
    parts.append("x".join(map(str, entry["sliding"])))
  elif entry["scales"] != (1.0,):
    parts.append("-".join(f"{scale:g}" for scale in entry["scales"]))
  parts += ["flip"] * entry["flip"] + list(entry.get("overrides", ()))
  return re.sub(r"[^\w.-]+", "-", "_".join(parts))[:200]


def parse_size(text: str, flag: str) -> tuple[int, int]:
  """(H, W) out of `512x1024`; raises `UserError`, which names the flag, for anything else."""
  found = re.fullmatch(r"(\d{2,6})x(\d{2,6})", text)
  if not found:
    raise UserError(f"{flag}: {text!r} will not do; write HEIGHTxWIDTH in pixels, at least 10 each, as 512x1024")
  return int(found[1]), int(found[2])


WINDOWS_HELP = "in place of whole images, windows at their own resolution, which should be training's; without --scales"


def add_manner(parser: argparse.ArgumentParser) -> None:
  """The flags of which `manner_of` makes a `Manner`."""
  parser.add_argument("--scales", default="1", metavar="0.5,0.75,1.0", help="of the canvas that images are fitted to")
  parser.add_argument("--flip", action="store_true", help="average with the mirror image")
  parser.add_argument("--sliding", metavar="HEIGHTxWIDTH", help=WINDOWS_HELP)


def manner_of(flags: argparse.Namespace) -> Manner:
  """How images are to be shown; raises `UserError` where that will not do."""
  window = parse_size(flags.sliding, "--sliding") if flags.sliding else None
  scales = inference.parse_scales(flags.scales, "--scales")
  if window and scales != (1.0,):
    raise UserError("--sliding: windows see the images at their own resolution; leave out --scales, or --sliding")
  return Manner(scales, flags.flip, window)


def main(argv: Sequence[str] | None = None) -> int:
  """Scores a run, prints the table, and returns the exit status."""
  parser = commands.parser("evaluate", HELP.format(fields=", ".join(SETTABLE[1:])))
  parser.add_argument("--workdir", required=True, metavar="DIR", help="of the run")
  parser.add_argument("--stage", default="", metavar="NAME", help=STAGE_HELP)
  parser.add_argument("--protocol", metavar="NAME", help="what is scored; without it the run's own protocol")
  add_manner(parser)
  parser.add_argument("--predictions", metavar="DIR", help="write the predictions here, as <image id>.png")
  parser.add_argument("--ids", default="train", choices=("train", "cityscapes"), help="what these hold")
  flags, overrides = commands.parse(parser, argv)

  def action() -> None:
    manner = manner_of(flags)
    entry = evaluate(flags.workdir, flags.stage, flags.protocol, manner, flags.predictions, flags.ids, overrides)
    if entry is not None:
      print(f"{entry['protocol']}, {flags.workdir}\n\n{terminal.iou_table([{**entry, 'name': entry['stage']}])}")

  return commands.exit_status(action, flags, goes_on=False)


if __name__ == "__main__":
  sys.exit(main())
