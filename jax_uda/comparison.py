"""A page that compares several runs: scores, classes, configs and pictures, side by side in one file."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from etils import epath

from jax_uda import charts, page, runs
from jax_uda.config import changed_fields
from jax_uda.files import read_classes, read_json, read_results, write_atomically
from jax_uda.terminal import percent

MOST_PICTURES = 4  # images, side by side with what each run says of them


def write(workdirs: Sequence[epath.PathLike], out: epath.PathLike | None = None) -> epath.Path:
  """Makes the page from the files of the runs alone.

  Args:
    workdirs: two or more; runs that are still going on are compared as far as they are.
    out: where it goes; None: `comparison.html` in the deepest folder that all runs lie in.

  Returns:
    Its path.

  Raises:
    UserError: one of them holds no run, or a file of it is broken.
  """
  folders = {name: epath.Path(workdir) for name, workdir in zip(short_names(workdirs), workdirs, strict=True)}
  known = {name: runs.read_run(folder) for name, folder in folders.items()}
  stages = {name: read_results(folder)["stages"] for name, folder in folders.items()}
  configs = {name: read_json(folder / "config.json") for name, folder in folders.items()}
  with matplotlib.rc_context(charts.STYLE):
    figures = [page.figure(chart.title, chart.alt, chart.figure) for chart in charts.of_runs(stages)]
  parts = [
    page.heading(f"{len(known)} runs of domain adaptation side by side", 1),
    _runs_table(known, stages, configs),
    page.charts("Charts", figures),
    _differences(configs),
    _pictures(folders, stages, configs),
  ]
  if out is None:
    parents = [str(epath.Path(workdir).resolve().parent) for workdir in workdirs]
    out = epath.Path(os.path.commonpath(parents)) / "comparison.html"
  return write_atomically(out, page.page("comparison of runs", parts))


def short_names(paths: Sequence[epath.PathLike]) -> list[str]:
  """What tells the paths apart: their last folders, as few as are needed, and a number where a path comes twice."""
  parts = [epath.Path(path).resolve().parts for path in paths]
  for length in range(1, max(map(len, parts)) + 1):
    names = ["/".join(part[-length:]) for part in parts]
    if len(set(names)) == len(names):
      return names
  return [f"{name} ({place})" for place, name in enumerate(names, 1)]


def _scored_on(config: Mapping[str, Any]) -> list[Any]:
  """What has to be equal where scores are compared."""
  fields = ("source", "target", "test", "protocols", "absent_as_zero", "eval_scales", "eval_flip")
  return [config.get(name) for name in fields]


def _runs_table(
  known: Mapping[str, runs.Run], stages: Mapping[str, Sequence[dict]], configs: Mapping[str, Mapping[str, Any]]
) -> str:
  """A row a run, the best mIoU first."""
  head = ["run", "method", "data", "seed", "state", "mIoU in %", "gain", "accuracy in %", "time"]
  rows = []
  for name, run in sorted(known.items(), key=lambda item: -(item[1].miou or 0)):
    scores = [stage["miou"] for stage in stages[name] if stage["miou"] is not None]
    gain = f"{100 * (scores[-1] - scores[0]):+.1f}" if len(scores) > 1 else "–"
    rows.append([
      name, run.title, run.data, str(run.seed), run.state, percent(run.miou), gain, percent(run.pixel_accuracy),
      page.duration(run.seconds),
    ])  # fmt: skip
  note = "The gain is over the first stage of the run that was scored, in points of mIoU."
  if any(_scored_on(config) != _scored_on(next(iter(configs.values()))) for config in configs.values()):
    note += " These runs have different data, or are scored otherwise: their scores are not of the same thing."
  return page.table(head, rows) + page.paragraph(note)


def _differences(configs: Mapping[str, Mapping[str, Any]]) -> str:
  """The fields that are not the same in all runs."""
  first, *others = configs.values()
  fields = sorted({name for other in others for name in changed_fields(first, other)})
  rows = [[name, *(page.said(_field(config, name)) for config in configs.values())] for name in fields]
  table = page.table(["field", *configs], rows, words=True) if rows else page.paragraph("The configs are the same.")
  return page.heading("Where the configs differ") + table


def _field(config: Mapping[str, Any], name: str) -> Any:
  for part in name.split("."):
    if not isinstance(config, Mapping) or part not in config:
      return "absent"
    config = config[part]
  return config


def _pictures(
  folders: Mapping[str, epath.Path], stages: Mapping[str, Sequence[dict]], configs: Mapping[str, Mapping[str, Any]]
) -> str:
  """Images that several runs of one target have drawn, with what each run says of them at its end."""
  with_stages = [name for name in folders if stages[name]]
  same = [name for name in with_stages if configs[name]["target"] == configs[with_stages[0]]["target"]]
  spaces = {name: read_classes(folders[name]) for name in same}
  last = {name: folders[name] / "pictures" / stages[name][-1]["name"] for name in spaces}
  drawn = {name: page.names(folder) for name, folder in last.items()}
  counts = Counter(image for images in drawn.values() for image in images)
  shared = sorted(image for image, count in counts.items() if count > 1)[:MOST_PICTURES]
  result = ""
  for image in shared:
    having = [name for name in last if image in drawn[name]]
    source = folders[having[0]] / "pictures"
    shown = [("image", source / f"image/{image}.png", None), ("truth", source / f"truth/{image}.png", spaces[having[0]])]
    shown += [(name, last[name] / f"{image}.png", spaces[name]) for name in having]
    result += page.heading(image, 3) + page.row(page.picture(*one) for one in shown if one[1].exists())
  title = page.heading("What each says of the same images after its last stage")
  return title + page.legend(next(iter(spaces.values()))) + result if result else ""
