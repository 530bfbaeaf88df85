"""report.html: what a run did, in one file that needs no network; and a page that compares several runs.

The report of a run reads, where they exist, these files of its work directory; `<id>` may hold one folder level:

    config.json  results.json  metrics.jsonl  classes.json
    scores/<stage>.json               confusion matrices
    pictures/image/<id>.png           RGB
    pictures/truth/<id>.png           train ids, as all labels here; 255 = ignore
    pictures/<stage>/<id>.png         the prediction after that stage
    pseudo_labels/<stage>/<id>.png
    pictures/maps/<name>/<stage>/<id>.png               what else a method has drawn after that stage, black to white
    pictures/labelling/<stage>/{labels,maps}/<what>/<id>.png     how that stage has chosen its labels
    pictures/extra/<title>.png        anything else worth seeing
"""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from etils import epath

from jax_uda import charts, commands, evaluate, metrics, page, runs
from jax_uda.config import changed_fields, default_fields
from jax_uda.data.label_spaces import LabelSpace
from jax_uda.data.sources import spread
from jax_uda.files import MetricsLog, plain, read_classes, read_json, read_results, write_atomically
from jax_uda.terminal import percent

MOST_MAPS = 5  # of one kind and image, side by side

HELP = """\
Makes report.html of a run again, from the files of its folder alone; or, of several runs, one page that compares them.

the three commonest commands:
  python -m jax_uda.report runs/demo
  python -m jax_uda.report runs/cbst runs/mlsl --out comparison.html
  python -m jax_uda.report runs/ladder/seed_0/*

A run that is still going on may be looked at, too.
"""


# The report of a run


def write_report(workdir: epath.PathLike) -> epath.Path:
  """Makes `report.html`, one file that needs no network, from the work directory's own files.

  Parts for which there are no files or numbers are left out; only `classes.json` has to be there.

  Args:
    workdir: as described at the top of this module.

  Returns:
    The path of the report.

  Raises:
    UserError: a file is broken, or there is no `classes.json`.
  """
  workdir = epath.Path(workdir)
  space = read_classes(workdir)
  results = read_results(workdir)
  config = read_json(workdir / "config.json") if (workdir / "config.json").exists() else None
  stages = results["stages"]
  names = [stage["name"] for stage in stages]
  records = MetricsLog(workdir / "metrics.jsonl").read()
  with matplotlib.rc_context(charts.STYLE):
    drawn = [*charts.of_run(stages, records), *_confusion(workdir, names, space.classes)]
    figures = [page.figure(chart.title, chart.alt, chart.figure) for chart in drawn]
  extra = workdir / "pictures" / "extra"
  drawings = [
    page.figure(title := name.replace("_", " "), title, (extra / f"{name}.png").read_bytes()) for name in page.names(extra)
  ]
  parts = [
    page.heading("Domain adaptation of semantic segmentation", 1),
    _summary(results, config, records),
    _warnings(records),
    page.charts("Charts", figures),
    _stage_table(stages, records),
    _epochs(records),
    _picture_rows(workdir, names, space),
    _labelling_rows(workdir, stages, space),
    _map_rows(workdir, names, space),
    page.charts("More drawings", drawings),
    _config(config),
  ]
  return write_atomically(workdir / "report.html", page.page(f"{results.get('method', 'run')}: report", parts))


def _summary(results: Mapping[str, Any], config: Mapping[str, Any] | None, records: Sequence[dict]) -> str:
  """What one wants to know first."""
  stages = [stage for stage in results["stages"] if stage["miou"] is not None]
  values: dict[str, str | None] = {}
  if stages:
    values[f"mIoU after {stages[-1]['name']}"] = percent(stages[-1]["miou"], " %")
  if len(stages) > 1:
    gain = 100 * (stages[-1]["miou"] - stages[0]["miou"])
    values[f"mIoU after {stages[0]['name']}"] = percent(stages[0]["miou"], " %")
    values[f"gain over {stages[0]['name']}"] = f"{gain:+.1f} points"
  values |= {"method": results.get("method"), "protocol": results.get("protocol")}
  if config and "source" in config:
    mode = config.get("mode", "adapt")
    values |= {"mode": mode if mode != "adapt" else None}
    values |= {role: runs.dataset_name(config[role]) for role in ("source", "target", "test")}
  if results.get("seconds") is not None:
    values["time"] = page.duration(results["seconds"])
  if results["stages"] and not stages:
    values["mIoU"] = "none: no labelled test images"
  values["training"] = _images_per_second(records)
  values["device"] = ", ".join(dict.fromkeys(stage["device"] for stage in results["stages"] if stage.get("device")))
  return page.facts(values)


def _images_per_second(records: Sequence[dict]) -> str | None:
  """Over all the time that log lines tell of; None if there are none."""
  lines = [line for line in records if line.get("seconds") and line.get("images_per_second") is not None]
  seconds = sum(line["seconds"] for line in lines)
  return f"{sum(line['seconds'] * line['images_per_second'] for line in lines) / seconds:.3g} images/s" if lines else None


def _warnings(records: Sequence[dict]) -> str:
  """What the run warned of while it trained."""
  lines = [f"{record['stage']}, step {record['step']}: {line}" for record in records for line in record.get("warnings", ())]
  return page.heading("Warnings") + page.items(lines) if lines else ""


def _confusion(workdir: epath.Path, stages: Sequence[str], classes: Sequence[str]) -> list[charts.Chart]:
  """The confusion matrix of the last stage that has one."""
  known = [name for name in stages if (workdir / "scores" / f"{name}.json").exists()]
  if not known:
    return []
  chart = charts.of_confusion(evaluate.read_confusion(workdir, known[-1]), classes, known[-1])
  return [chart] if chart else []


def _stage_table(stages: Sequence[dict], records: Sequence[dict]) -> str:
  if not stages:
    return ""
  protocols = list(dict.fromkeys(name for stage in stages for name in stage["other_protocols"]))
  others = [f"mIoU in %, {name}" for name in protocols]
  head = ["stage", "steps", "time", "training", "mIoU in %", "pixel accuracy in %", *others]
  rows = [
    [
      stage["name"],
      str(stage["steps"]),
      page.duration(stage["seconds"]),
      _images_per_second([line for line in records if line["stage"] == stage["name"]]) or "–",
      percent(stage["miou"]),
      percent(stage["pixel_accuracy"]),
      *(percent(stage["other_protocols"].get(name, {}).get("miou")) for name in protocols),
    ]
    for stage in stages
  ]
  return page.heading("Stages") + page.table(head, rows)


def _epochs(records: Sequence[dict]) -> str:
  """The shares that a method has logged, by epoch, from 1 as stages are called: means over its log lines."""
  lines = [record for record in records if "epoch" in record]
  names = list(dict.fromkeys(name for line in lines for name in line if name.endswith("_share")))
  found: dict[tuple[str, int], list[dict]] = {}  # by stage, as some count their epochs anew
  for line in lines:
    found.setdefault((line["stage"], int(line["epoch"])), []).append(line)

  def mean(part, name):
    values = [line[name] for line in part if name in line]
    return percent(sum(values) / len(values)) if values else "–"

  head = ["epoch", *(f"{name.replace('_', ' ')} in %" for name in names)]
  rows = [
    [f"{stage}, epoch {epoch + 1}", *(mean(part, name) for name in names)] for (stage, epoch), part in found.items()
  ]
  title = "Pixels by epoch, of the crops trained on: means of log lines"
  return page.heading(title) + page.table(head, rows) if found else ""


def _config(config: Mapping[str, Any] | None) -> str:
  """What was set otherwise than by default, and all fields."""
  if config is None:
    return ""
  result = page.heading("Config")
  if "method" in config:
    changed = changed_fields(plain(default_fields(config["method"])), config)
    rows = [[name, *map(page.said, values)] for name, values in changed.items()]
    result += page.table(["set otherwise than by default", "default", "here"], rows, words=True) if rows else ""
  everything = json.dumps(config, indent=2, ensure_ascii=False)
  return result + page.folded("all fields", page.verbatim(everything))


# Pictures


def _folders(folder: epath.Path) -> list[epath.Path]:
  return sorted(folder.iterdir()) if folder.exists() else []


def image_miou(workdir: epath.Path, stage: str, name: str, num_classes: int) -> float | None:
  """mIoU of a drawn prediction against its truth, of the classes that are in either; None where one of them is missing.

  As the report shows them: of pictures wider than `page.PICTURE_WIDTH`, what is left of them then.
  """
  paths = [workdir / "pictures" / folder / f"{name}.png" for folder in ("truth", stage)]
  if not all(path.exists() for path in paths):
    return None
  truth, prediction = (np.asarray(page.open_picture(path)) for path in paths)
  if truth.shape != prediction.shape:
    return None
  score = float(metrics.mean_iou(np.asarray(metrics.confusion_matrix(truth, prediction, num_classes))))
  return score if np.isfinite(score) else None


def chosen_rows(names: Sequence[str], changes: Sequence[float | None]) -> list[tuple[str, str]]:
  """Which images to show first: those of the best, the median and the worst change; the first three if none is known.

  Returns:
    (image, what it was chosen for), in that order; no image twice.
  """
  known = sorted(((change, name) for name, change in zip(names, changes, strict=True) if change is not None), reverse=True)
  if not known:
    return [(name, name) for name in names[:3]]
  found: dict[str, str] = {}
  for which, place in (("best", 0), ("worst", -1), ("median", len(known) // 2)):
    change, name = known[place]
    found.setdefault(name, f"{which} change of {len(known)}, {100 * change:+.1f} points of mIoU: {name}")
  order = [name for _, name in known]
  return sorted(found.items(), key=lambda item: order.index(item[0]))


def _picture_rows(workdir: epath.Path, stages: Sequence[str], space: LabelSpace) -> str:
  """For each image: itself, truth, prediction after the first stage, last pseudo-labels, final prediction."""
  pictures, labels = workdir / "pictures", workdir / "pseudo_labels"
  predicted = [name for name in stages if (pictures / name).exists()]
  labelled = [name for name in stages if (labels / name).exists()]
  columns = [("truth", pictures / "truth")]
  columns += [(f"prediction after {name}", pictures / name) for name in predicted[:1]]
  columns += [(f"pseudo-labels of {name}", labels / name) for name in labelled[-1:]]
  columns += [(f"prediction after {name}", pictures / name) for name in predicted[1:][-1:]]

  def row(name):
    shown = [("image", pictures / "image" / f"{name}.png", None)]
    shown += [(caption, folder / f"{name}.png", space) for caption, folder in columns]
    return page.row(page.picture(*one) for one in shown if one[1].exists())

  def change(name):
    scores = [image_miou(workdir, stage, name, len(space.classes)) for stage in (predicted[0], predicted[-1])]
    return None if None in scores else scores[1] - scores[0]

  names = page.names(pictures / "image")
  if not names:
    return ""
  chosen = dict(chosen_rows(names, [change(name) if len(predicted) > 1 else None for name in names]))
  result = page.heading("Pictures of target images") + page.legend(space)
  result += "".join(page.heading(title, 3) + row(name) for name, title in chosen.items())
  others = "".join(page.heading(name, 3) + row(name) for name in names if name not in chosen)
  return result + (page.folded(f"the other {len(names) - len(chosen)} images", others) if others else "")


def _map_rows(workdir: epath.Path, stages: Sequence[str], space: LabelSpace) -> str:
  """For each kind of map and each image: prediction and map after some of the stages, the last one among them."""
  pictures, result = workdir / "pictures", ""
  for kind in _folders(pictures / "maps"):
    drawn = [name for name in stages if (kind / name).exists()]
    drawn = [drawn[i] for i in spread(len(drawn), MOST_MAPS)]
    result += page.heading(f"{kind.name}, from none (black) to full (white)")
    for name in page.names(pictures / "image"):
      predictions, maps = ([folder / stage / f"{name}.png" for stage in drawn] for folder in (pictures, kind))
      for what, paths, colors in (("prediction", predictions, space), (kind.name, maps, None)):
        shown = [(f"{what} after {stage}", path) for stage, path in zip(drawn, paths, strict=True) if path.exists()]
        result += page.row(page.picture(caption, path, colors) for caption, path in shown)
  return result


def _labelling_rows(workdir: epath.Path, stages: Sequence[dict], space: LabelSpace) -> str:
  """For each stage whose labelling has drawn something, and each image: truth, what was drawn, and the labels."""
  pictures, result = workdir / "pictures", ""
  for entry in stages:
    stage = entry["name"]
    folder = pictures / "labelling" / stage
    kinds = {"maps": None, "labels": space}
    drawn = [(path, colors) for kind, colors in kinds.items() for path in _folders(folder / kind)]
    if not drawn:
      continue
    columns = [(pictures / "image", None), (pictures / "truth", space), *drawn]
    columns.append((workdir / "pseudo_labels" / stage, space))
    result += page.heading(f"How {stage} chose its labels; maps from none (black) to full (white)")
    result += _choices(entry["pseudo_labels"])
    for name in page.names(pictures / "image"):
      shown = [(path.name if path.name != stage else "labels", path / f"{name}.png", colors) for path, colors in columns]
      result += page.row(page.picture(caption, path, colors) for caption, path, colors in shown if path.exists())
  return result


def _choices(labels: Mapping[str, Any]) -> str:
  """Table of a labelling's choice and of the others that it compared."""
  choices = {"labels": labels, **labels["others"]}
  rows = [[what, percent(one["selected"]), percent(one["accuracy"])] for what, one in choices.items()]
  head = ["", "selected, in % of all pixels", "right, in % of these"]
  return page.table(head, rows) if labels["others"] else ""


# The command


def main(argv: Sequence[str] | None = None) -> int:
  """Makes the report of a run again, or compares several; returns the exit status."""
  parser = commands.parser("report", HELP)
  parser.add_argument("workdirs", metavar="RUN", nargs="+", help="folder of a run; several are compared")
  parser.add_argument("--out", metavar="FILE", help="of a comparison; by default comparison.html in the folder of all")
  flags = parser.parse_args(argv)
  if len(flags.workdirs) > 1:  # a pattern such as runs/* also finds an earlier comparison
    flags.workdirs = [one for one in flags.workdirs if not one.endswith(".html")]
  if flags.out and len(flags.workdirs) == 1:
    parser.error("--out: a single run's report is report.html in its folder; leave it out, or name other runs, too")

  def action() -> None:
    commands.leave_devices()
    if len(flags.workdirs) == 1:
      print(write_report(flags.workdirs[0]))
    else:
      from jax_uda import comparison

      print(comparison.write(flags.workdirs, flags.out))

  return commands.exit_status(action, flags, goes_on=False)


if __name__ == "__main__":
  sys.exit(main())
