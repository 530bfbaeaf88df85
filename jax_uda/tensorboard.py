"""Shows runs in TensorBoard: writes its event files from a run's own, once or as they grow.

metrics.jsonl, results.json and the pictures stay the record; what this writes can be deleted and made again.
"""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from jax_uda import commands, page
from jax_uda.data.label_spaces import colorize
from jax_uda.errors import UserError
from jax_uda.files import MetricsLog, read_classes, read_results
from jax_uda.stopping import Interrupted, StopSignal

HELP = """\
Writes TensorBoard's event files of runs into a folder `tensorboard` of each: curves, scores by stage, and pictures.

the three commonest commands:
  python -m jax_uda.tensorboard runs/demo
  python -m jax_uda.tensorboard runs/cbst runs/mlsl --follow 30       as they train; Ctrl-C ends it
  tensorboard --logdir runs                                           the viewer, a package of its own

Needs `pip install -e '.[tensorboard]'`; TensorFlow is not needed.
"""


class Mirror:
  """The event files of one run, brought up to date again and again; what is new is in the file within some seconds.

  Steps are counted from the start of the run, over all its stages. Where the run has gone back to a checkpoint, and its log
  holds fewer lines than before, everything is written anew.
  """

  def __init__(self, workdir: epath.PathLike):
    self._workdir = epath.Path(workdir)
    if not (self._workdir / "config.json").exists():
      raise UserError(f"{self._workdir} holds no run (config.json is missing); name a run's folder")
    self.folder = self._workdir / "tensorboard"
    self._begin()

  def _begin(self) -> None:
    from tensorboardX import SummaryWriter

    for file in self.folder.glob("events.out.tfevents.*"):
      file.unlink()
    self._writer = SummaryWriter(str(self.folder), flush_secs=1)
    self._written: list[tuple] = []  # positions in the log
    self._stages = 0

  def update(self) -> tuple[int, int]:
    """Writes what is new; returns how many log lines and finished stages are written in all."""
    records = MetricsLog(self._workdir / "metrics.jsonl").read()
    positions = [(record["stage_index"], record["step"]) for record in records]
    if positions[: len(self._written)] != self._written:
      self._writer.close()
      self._begin()
    stages = read_results(self._workdir)["stages"]
    starts = _starts(records, stages)
    for record in records[len(self._written) :]:
      for tag, value in curves(record):
        self._writer.add_scalar(tag, value, starts[record["stage_index"]] + record["step"])
    for index in range(self._stages, len(stages)):
      step = starts[index] + stages[index]["steps"]
      for tag, value in scores(stages[index]):
        self._writer.add_scalar(tag, value, step)
      for tag, picture in pictures(self._workdir, stages[index]["name"], first=index == 0):
        self._writer.add_image(tag, picture, step, dataformats="HWC")
    self._written, self._stages = positions, len(stages)
    return len(records), len(stages)

  def close(self) -> None:
    """Ends the event file."""
    self._writer.close()


def _starts(records: Sequence[Mapping[str, Any]], stages: Sequence[Mapping[str, Any]]) -> list[int]:
  """The step of the whole run at which each stage begins; stages that are over are as long as results.json says."""
  lengths = [stage["steps"] for stage in stages]
  for record in records:
    lengths += [0] * (record["stage_index"] + 1 - len(lengths))
    if record["stage_index"] >= len(stages):
      lengths[record["stage_index"]] = max(lengths[record["stage_index"]], record["step"])
  return [sum(lengths[:index]) for index in range(len(lengths))]


def curves(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
  """The numbers of a log line, (tag, value); lists by class and what only places the line are left out."""
  for name, value in record.items():
    if name not in ("stage_index", "step") and isinstance(value, int | float):
      yield f"train/{name}", value


def scores(stage: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
  """The numbers of a stage of results.json, (tag, value): fractions in 0..1, without those that are null."""
  labels = stage["pseudo_labels"] or {}
  found = {"scores/miou": stage["miou"], "scores/pixel_accuracy": stage["pixel_accuracy"]}
  found |= {f"iou/{name}": value for name, value in stage["iou"].items()}
  found |= {f"pseudo_labels/{name}": labels.get(name) for name in ("selected", "accuracy")}
  return ((tag, value) for tag, value in found.items() if value is not None)


def pictures(workdir: epath.Path, stage: str, first: bool) -> Iterator[tuple[str, np.ndarray]]:
  """What a stage has drawn, (tag, RGB uint8 [H, W, 3]); with the first one go the images and their true labels."""
  space = read_classes(workdir)
  folders = {"prediction": workdir / "pictures" / stage, "pseudo_labels": workdir / "pseudo_labels" / stage}
  if first:
    folders |= {name: workdir / "pictures" / name for name in ("image", "truth")}
  for image in page.names(workdir / "pictures" / "image"):
    for what, folder in folders.items():
      if (path := folder / f"{image}.png").exists():
        drawn = np.asarray(page.open_picture(path))
        yield f"{image}/{what}", drawn if what == "image" else colorize(drawn, space)


def main(argv: Sequence[str] | None = None) -> int:
  """Writes the event files and returns the exit status."""
  parser = commands.parser("tensorboard", HELP)
  parser.add_argument("workdirs", metavar="RUN", nargs="+", help="folder of a run")
  parser.add_argument("--follow", metavar="SECONDS", type=float, help="go on, looking for what is new this often")
  flags = parser.parse_args(argv)
  if flags.follow is not None and not flags.follow > 0:
    parser.error(f"--follow: {flags.follow} will not do; give seconds, above 0")

  def action() -> None:
    commands.leave_devices()
    try:
      import tensorboardX  # noqa: F401
    except ImportError:
      raise UserError("tensorboardX is not installed; pip install -e '.[tensorboard]'") from None
    with StopSignal() as stop:
      mirrors = [Mirror(workdir) for workdir in flags.workdirs]
      try:
        while True:
          for mirror in mirrors:
            lines, stages = mirror.update()
            if flags.follow is None:
              print(f"{mirror.folder}: {lines} log lines, {stages} stages")
          if flags.follow is None:
            return
          _wait(flags.follow, stop)
      finally:
        for mirror in mirrors:
          mirror.close()

  return commands.exit_status(action, flags, goes_on=False)


def _wait(seconds: float, stop: StopSignal) -> None:
  end = time.monotonic() + seconds
  while (left := end - time.monotonic()) > 0:
    if stop.requested():
      raise Interrupted
    time.sleep(min(left, 0.2))


if __name__ == "__main__":
  sys.exit(main())
