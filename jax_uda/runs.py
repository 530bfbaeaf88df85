"""Lists the runs in a folder: method, data, how far they are, and their scores.

the three commonest commands:
  python -m jax_uda.runs runs
  python -m jax_uda.runs runs/ladder --sort miou
  python -m jax_uda.runs runs --json
"""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from etils import epath

from jax_uda import commands
from jax_uda.errors import UserError
from jax_uda.files import MetricsLog, plain, read_json, read_results
from jax_uda.terminal import columns, percent

DEEPEST = 4  # folders between the one that is named and a run's


@dataclass(frozen=True)
class Run:
  """What the files of a work directory say of its run.

  Attributes:
    data: source → target, as `dataset_name` calls them.
    mode: adapt, source_only or oracle; empty where the method has no such field.
    stage: the one that it is in, or the last one when it is over.
    step: done in that stage.
    done: whether it is over.
    miou, pixel_accuracy: after the last stage that was scored, fractions in 0..1; None if there is none.
    seconds: in finished stages.
    changed: when it last wrote down something, in seconds since 1970.
  """

  workdir: str
  method: str
  mode: str
  data: str
  seed: int
  stage: str
  step: int
  done: bool
  miou: float | None
  pixel_accuracy: float | None
  seconds: float
  changed: float

  @property
  def title(self) -> str:
    """Its method, and what it is in place of adapting where that is so."""
    return f"{self.method}, {self.mode}" if self.mode not in ("", "adapt") else self.method

  @property
  def state(self) -> str:
    """How far it is."""
    return "finished" if self.done else f"{self.stage}, step {self.step}" if self.stage else "not begun"


def dataset_name(spec: Mapping[str, Any]) -> str:
  """A data set of a config in few words: `street_world photo`, `folder renders`, `camvid day_to_dusk/source_day.txt`."""
  kind, folder, split = (spec.get(name, "") for name in ("kind", "dir", "split"))
  where = spec.get("list") or spec.get("domain") or (folder if folder != kind else "")
  return " ".join(filter(None, (kind, str(where), split if split != "train" else "")))


def read_run(workdir: epath.PathLike) -> Run:
  """Reads what there is of a run; raises `UserError` if there is none, or a file of it is broken."""
  workdir = epath.Path(workdir)
  path = workdir / "config.json"
  if not path.exists():
    raise UserError(f"{workdir} holds no run (config.json is missing); name a run's folder")
  results, log = workdir / "results.json", MetricsLog(workdir / "metrics.jsonl")
  config, found = read_json(path), read_results(workdir)
  last = log.read()[-1:]
  try:
    stages, done = found["stages"], bool(found["final"])
    scored = [stage for stage in stages if stage["miou"] is not None][-1:]
    at = (stages[-1]["name"], stages[-1]["steps"]) if done else (last[0]["stage"], last[0]["step"]) if last else ("", 0)
    return Run(
      str(workdir),
      config["method"],
      config.get("mode", ""),
      f"{dataset_name(config['source'])} → {dataset_name(config['target'])}",
      config["seed"],
      *at,
      done,
      *(scored[0][name] if scored else None for name in ("miou", "pixel_accuracy")),
      sum(stage["seconds"] for stage in stages),
      max(file.stat().mtime for file in (path, results, log.path) if file.exists()),
    )
  except (KeyError, TypeError, AttributeError) as error:
    raise UserError(f"{workdir} holds no run of this program: its files lack {error}; move them elsewhere") from None


def find_runs(folder: epath.PathLike) -> list[epath.Path]:
  """The work directories in a folder, itself or at most `DEEPEST` folders down.

  Raises:
    UserError: there is no such folder.
  """
  folder = epath.Path(folder)
  if not folder.is_dir():
    raise UserError(f"there is no folder {folder}; name the one that your runs are in")
  found, level = [], [folder]
  for _ in range(DEEPEST + 1):
    deeper = []
    for one in level:
      try:
        if (one / "config.json").exists():
          found.append(one)
        else:
          deeper += [inner for inner in one.iterdir() if inner.is_dir()]
      except PermissionError:
        continue  # somebody else's
    level = deeper
  return sorted(found)


def age(seconds: float) -> str:
  """Seconds in the largest unit that fits: `3 min`."""
  units = ((86400, "days"), (3600, "h"), (60, "min"), (1, "s"))
  size, unit = next(((size, unit) for size, unit in units if seconds >= size), units[-1])
  number = int(seconds // size)
  return f"{number} {'day' if unit == 'days' and number == 1 else unit}"


def listing(runs: Sequence[Run], folder: epath.PathLike, now: float) -> str:
  """The runs as a table for the terminal, a row each."""
  rows = []
  for run in runs:
    name = str(epath.Path(run.workdir).relative_to(folder))
    scores = percent(run.miou), percent(run.pixel_accuracy)
    rows.append([name, run.title, run.data, str(run.seed), run.state, *scores, age(now - run.changed)])
  return columns(["run", "method", "data", "seed", "state", "mIoU %", "accuracy %", "last written"], rows, left=3)


def main(argv: Sequence[str] | None = None) -> int:
  """Lists the runs and returns the exit status."""
  parser = commands.parser("runs", __doc__)
  parser.add_argument("folder", metavar="DIR", help="a folder with runs in it, or in folders in it")
  orders = {"name": lambda run: run.workdir, "miou": lambda run: -(run.miou or 0), "age": lambda run: -run.changed}
  parser.add_argument("--sort", choices=orders, default="name", help="best or latest first; by name if not given")
  parser.add_argument("--json", action="store_true", help="print JSON, with the fractions as they are")
  flags = parser.parse_args(argv)

  def action() -> None:
    commands.leave_devices()
    runs, broken = [], []
    for path in find_runs(flags.folder):
      try:
        runs.append(read_run(path))
      except UserError as error:
        broken.append(f"warning: passed over: {error}")
    if not runs:
      raise UserError(f"{flags.folder} holds no run; name the folder that your runs are in")
    runs.sort(key=orders[flags.sort])
    if flags.json:
      print(json.dumps(plain([asdict(run) for run in runs]), indent=2, ensure_ascii=False))
    else:
      print(listing(runs, flags.folder, time.time()))
    print("\n".join(broken), end="\n" if broken else "", file=sys.stderr)

  return commands.exit_status(action, flags, goes_on=False)


if __name__ == "__main__":
  sys.exit(main())
