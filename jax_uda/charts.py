"""Charts of a run: drawings with the words that go with them, legible in greyscale."""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from typing import NamedTuple

import numpy as np
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from jax_uda.terminal import percent

# Okabe and Ito's colours, which most colour-blind people tell apart; line styles and lightness do so in greyscale.
BEFORE, AFTER = "#a9bccb", "#0b4f8a"
LINES = (("#0072b2", "-"), ("#d55e00", "--"), ("#009e73", "-."), ("#111111", ":"), ("#cc79a7", "-"), ("#e69f00", "--"))
STYLE = {
  "font.size": 11,
  "axes.spines.top": False,
  "axes.spines.right": False,
  "axes.edgecolor": "#777777",
  "axes.grid": True,
  "axes.axisbelow": True,
  "grid.color": "#e4e4e4",
  "legend.frameon": False,
  "figure.constrained_layout.use": True,
}
CHART_WIDTH = 6.2  # inches: narrow, so that its type stays readable when a phone shrinks it
# What is logged of every step and not drawn: its place, and how fast it was.
OF_ALL_STEPS = ("stage_index", "step", "epoch", "seconds", "images_per_second", "waiting_for_data", "gradient_norm")
CONFUSION_CLASSES = 24  # that fit
CURVE_POINTS = 300  # a loss is averaged down to this many over all stages


class Chart(NamedTuple):
  """A drawing with the words that go with it."""

  title: str
  alt: str
  figure: Figure


def _axes(height: float, width: float = CHART_WIDTH):
  figure = Figure(figsize=(width, height))
  return figure, figure.subplots()


def _arrow(before: float | None, after: float | None) -> str:
  return "–" if before is None and after is None else f"{percent(before)} → {percent(after)}"


def _draw_scores(stages: Sequence[dict]) -> Figure:
  """mIoU and pixel accuracy by stage."""
  figure, axes = _axes(3.6)
  names = [stage["name"] for stage in stages]
  for (color, line), marker, key, label in zip(
    LINES, "os", ("pixel_accuracy", "miou"), ("pixel accuracy", "mIoU"), strict=False
  ):
    values = [math.nan if stage[key] is None else 100 * stage[key] for stage in stages]
    axes.plot(names, values, color=color, linestyle=line, marker=marker, linewidth=2, label=label)
    for i, value in enumerate(values):
      if math.isfinite(value) and (len(names) <= 8 or i in (0, len(names) - 1)):
        axes.annotate(f"{value:.1f}", (i, value), (0, 7), textcoords="offset points", ha="center", fontsize=10)
  axes.margins(x=0.08, y=0.18)
  axes.set_ylabel("%")
  _slant(axes, names)
  figure.legend(loc="outside upper left", ncols=2)
  return figure


def _slant(axes, names: Sequence[str]) -> None:
  """Turns the names under the axis where they would run into each other."""
  if sum(map(len, names)) > 40:
    axes.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor")


def _draw_iou(before: dict, after: dict) -> Figure:
  """IoU by class as horizontal bars, the best class on top; one bar a class if both are the same stage."""
  values = after["iou"]
  names = sorted(values, key=lambda name: -1 if values[name] is None else values[name])
  figure, axes = _axes(1.1 + 0.36 * len(names))
  series = [(after, AFTER, -0.2), (before, BEFORE, 0.2)] if before is not after else [(after, AFTER, 0.0)]
  rows = np.arange(len(names))
  for stage, color, shift in reversed(series):
    widths = [100 * (stage["iou"].get(name) or 0) for name in names]
    axes.barh(rows + shift, widths, 0.8 / len(series), color=color, edgecolor=AFTER, linewidth=0.6, label=stage["name"])
  for row, name in enumerate(names):
    text = percent(values[name]) if before is after else _arrow(before["iou"].get(name), values[name])
    axes.text(1.0, row, text, transform=axes.get_yaxis_transform(), ha="right", va="center", fontsize=10)
  largest = max((value for stage in (before, after) for value in stage["iou"].values() if value is not None), default=1)
  axes.set_xlim(0, 100 * largest * (1.2 if before is after else 1.4))  # the numbers stand right of the bars
  axes.set_ylim(-0.6, len(names) - 0.4)
  axes.set_yticks(rows, names)
  axes.set_xticks([tick for tick in range(0, 101, 20) if tick <= 100 * largest + 5])
  axes.grid(axis="y", visible=False)
  axes.set_xlabel("IoU in %")
  figure.legend(loc="outside upper left", ncols=2)
  return figure


def _draw_heat(stages: Sequence[dict], key: str, first_row: str, norm: Normalize) -> Figure:
  """One number of the pseudo-labels, by class (rows) and stage (columns), the one over all classes on top."""
  found = [stage["pseudo_labels"] for stage in stages]
  classes = list(dict.fromkeys(name for labels in found for name in labels.get("by_class", {})))
  table = [[labels[key] for labels in found]]
  table += [[labels.get("by_class", {}).get(name, {}).get(key) for labels in found] for name in classes]
  shares = np.array([[math.nan if value is None else value for value in row] for row in table])
  figure, axes = _axes(1.1 + 0.3 * len(table), max(CHART_WIDTH, 2.4 + 0.72 * len(stages)))
  axes.imshow(shares, cmap="Blues", norm=norm, aspect="auto")
  for (row, column), value in np.ndenumerate(shares):
    text = "–" if math.isnan(value) else f"{100 * value:.1f}"
    color = "white" if norm(value) > 0.6 else "#111111"
    axes.text(column, row, text, ha="center", va="center", color=color, fontsize=10)
  axes.axhline(0.5, color="#111111", linewidth=1)
  names = [stage["name"] for stage in stages]
  axes.set_xticks(range(len(names)), names)
  _slant(axes, names)
  axes.set_yticks(range(len(table)), [first_row, *classes])
  axes.tick_params(length=0)
  axes.grid(visible=False)
  axes.spines[:].set_visible(False)
  return figure


def _thin(steps: np.ndarray, values: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
  """The curve as means over at most so many groups of neighbours."""
  starts = np.unique(np.linspace(0, len(steps), most, endpoint=False).astype(int))
  sizes = np.diff(np.append(starts, len(steps)))
  return np.add.reduceat(steps, starts) / sizes, np.add.reduceat(values, starts) / sizes


def _draw_curves(records: Sequence[dict], names: Sequence[str], label: str) -> Figure:
  """Recorded numbers over the run's steps, stage after stage."""
  figure, axes = _axes(3.8)
  drawn: dict[str, list[float]] = {}
  offset, spans = 0, []
  indices = sorted({record["stage_index"] for record in records})
  for index in indices:
    stage = [record for record in records if record["stage_index"] == index]
    for name, (color, line) in zip(names, cycle(LINES), strict=False):
      points = [(offset + record["step"], record[name]) for record in stage if record.get(name) is not None]
      if points:
        curve = _thin(*np.array(points, float).T, most=max(CURVE_POINTS // len(indices), 20))
        axes.plot(*curve, color=color, linestyle=line, linewidth=1.5, label="_" if name in drawn else name)
        drawn.setdefault(name, []).extend(curve[1])
    start, offset = offset, offset + max(record["step"] for record in stage)
    spans.append((start, offset, stage[0]["stage"]))
  crowded = any(len(name) * offset > 75 * (end - start) for start, end, name in spans)  # 75 letters fit side by side
  if crowded:
    figure.set_figheight(figure.get_figheight() + 0.09 * max(len(name) for *_, name in spans))
  for start, end, name in spans:
    axes.axvline(end, color="#999999", linewidth=0.8)
    axes.annotate(
      name, ((start + end) / 2, 1), (0, 4), xycoords=axes.get_xaxis_transform(), textcoords="offset points",
      ha="center", va="bottom", rotation=90 if crowded else 0, fontsize=10,
    )  # fmt: skip
  values = [value for curve in drawn.values() for value in curve]
  if min(values) > 0 and max(values) > 30 * min(values):
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
  axes.set_xlim(0, max(offset, 1))
  axes.set_xlabel("step")
  axes.set_ylabel(label)
  if len(names) > 1:
    widest = max(map(len, names)) + 10  # letters, with the line before them; 80 fit side by side
    figure.legend(loc="outside upper left", ncols=min(3, max(1, 80 // widest)))
  return figure


def of_run(stages: Sequence[dict], records: Sequence[dict]) -> Iterator[Chart]:
  """The charts for which there are numbers."""
  scored = [stage for stage in stages if stage["miou"] is not None]
  if len(scored) > 1:
    words = "; ".join(f"{stage['name']} {percent(stage['miou'])}" for stage in scored)
    yield Chart("Scores by stage", f"mIoU in % by stage: {words}", _draw_scores(stages))
  if scored:
    before, after = scored[0], scored[-1]
    words = "; ".join(f"{name} {percent(value)}" for name, value in after["iou"].items())
    yield Chart("IoU by class", f"IoU in % by class after {after['name']}: {words}", _draw_iou(before, after))
  labelled = [stage for stage in stages if stage["pseudo_labels"]]
  if labelled:
    found = [stage["pseudo_labels"] for stage in labelled]
    shares = [part["selected"] or 0 for labels in found for part in (labels, *labels.get("by_class", {}).values())]
    words = "; ".join(f"{stage['name']} {percent(stage['pseudo_labels']['selected'])}" for stage in labelled)
    yield Chart(
      "Pseudo-labels: share of each class among the selected pixels, in %",
      f"Share of all pixels that have a pseudo-label, in %: {words}",
      _draw_heat(labelled, "selected", "selected, of all", PowerNorm(0.4, 0, max([*shares, 1e-6]))),
    )
  checked = [stage for stage in labelled if stage["pseudo_labels"]["accuracy"] is not None]
  if checked:
    words = "; ".join(f"{stage['name']} {percent(stage['pseudo_labels']['accuracy'])}" for stage in checked)
    yield Chart(
      "Pseudo-labels: share that is right, in %",
      f"Share of the pseudo-labels that are right, in %: {words}",
      _draw_heat(checked, "accuracy", "all classes", Normalize(0, 1)),
    )
  kinds = {"loss": "Training loss", "_share": "Shares of pixels", "_accuracy": "Accuracies"}
  logged = dict.fromkeys(name for record in records for name, value in record.items() if isinstance(value, float | int))
  for word, title in kinds.items():
    if names := [name for name in logged if word in name]:
      figure = _draw_curves(records, names, word.removeprefix("_"))
      yield Chart(title, f"Curves over the training steps, stage by stage: {', '.join(names)}", figure)
  for name in logged:
    if name in OF_ALL_STEPS or any(word in name for word in kinds):
      continue
    words = name.replace("_", " ")
    figure = _draw_curves(records, [name], words)
    yield Chart(words.capitalize(), f"Curve over the training steps, stage by stage: {words}", figure)


def of_confusion(confusion: np.ndarray, classes: Sequence[str], stage: str) -> Chart | None:
  """Where the pixels of each true class went, in %; of at most `CONFUSION_CLASSES` classes, those with most pixels.

  Args:
    confusion: true labels (rows) against predictions (columns), whole numbers [C, C].
    classes: C names.
    stage: after which that is.

  Returns:
    None if nothing was scored.
  """
  pixels = confusion.sum(axis=1)
  shown = np.sort(np.argsort(-pixels, kind="stable")[:CONFUSION_CLASSES])
  shown = shown[pixels[shown] > 0]
  if not len(shown):
    return None
  shares = confusion[np.ix_(shown, shown)] / pixels[shown, None]
  names = [classes[i] for i in shown]
  figure, axes = _axes(1.6 + 0.3 * len(names), max(CHART_WIDTH, 2.0 + 0.36 * len(names)))
  axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1), aspect="auto")
  for (row, column), share in np.ndenumerate(shares):
    if share >= 0.005:
      color = "white" if share > 0.36 else "#111111"
      axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", color=color, fontsize=8)
  axes.set_xticks(range(len(names)), names, rotation=60, ha="right", rotation_mode="anchor")
  axes.set_yticks(range(len(names)), names)
  axes.set_xlabel("predicted")
  axes.set_ylabel("true")
  axes.tick_params(length=0)
  axes.grid(visible=False)
  axes.spines[:].set_visible(False)
  most = f", of the {len(names)} largest of {len(classes)} classes" if len(names) < np.count_nonzero(pixels) else ""
  words = "; ".join(f"{name} {percent(float(share))}" for name, share in zip(names, np.diagonal(shares), strict=True))
  return Chart(
    f"Confusion after {stage}: where the pixels of each class went, in %{most}",
    f"Share of each class's pixels that is predicted right, in %: {words}",
    figure,
  )


def of_runs(runs: Mapping[str, Sequence[dict]]) -> Iterator[Chart]:
  """Charts that compare runs: mIoU by stage, and IoU by class at the end; {name: stages of results.json}."""
  scored = {name: [stage for stage in stages if stage["miou"] is not None] for name, stages in runs.items()}
  scored = {name: stages for name, stages in scored.items() if stages}
  if not scored:
    return
  looks = dict(zip(scored, zip(cycle(LINES), cycle("osD^vPX*"), strict=False), strict=False))
  words = "; ".join(f"{name} {percent(stages[-1]['miou'])}" for name, stages in scored.items())
  if any(len(stages) > 1 for stages in scored.values()):
    yield Chart("mIoU by stage, in %", f"mIoU in % after the last stage: {words}", _draw_runs(scored, looks))
  title = "IoU by class after the last stage, in %"
  yield Chart(title, f"mIoU in % after the last stage: {words}", _draw_classes(scored, looks))


def _draw_runs(runs: Mapping[str, Sequence[dict]], looks: Mapping[str, tuple]) -> Figure:
  figure, axes = _axes(3.6 + 0.22 * len(runs))
  for name, stages in runs.items():
    ((color, line), marker) = looks[name]
    axes.plot([100 * stage["miou"] for stage in stages], color=color, linestyle=line, marker=marker, label=name)
  longest = max(runs.values(), key=len)
  names = [stage["name"] for stage in longest]
  same = all([stage["name"] for stage in stages] == names[: len(stages)] for stages in runs.values())
  names = names if same else [str(i + 1) for i in range(len(longest))]
  axes.set_xticks(range(len(names)), names)
  if same:
    _slant(axes, names)
  else:
    axes.set_xlabel("stage that was scored")
  axes.set_ylabel("mIoU in %")
  figure.legend(loc="outside upper left")
  return figure


def _draw_classes(runs: Mapping[str, Sequence[dict]], looks: Mapping[str, tuple]) -> Figure:
  """A row a class, sorted by the best IoU of it, with a mark a run."""
  finals = {name: stages[-1]["iou"] for name, stages in runs.items()}
  classes = list(dict.fromkeys(name for iou in finals.values() for name in iou))

  def best(name):
    return max((iou.get(name) if iou.get(name) is not None else -1 for iou in finals.values()), default=-1)

  classes.sort(key=best)
  figure, axes = _axes(1.2 + 0.3 * len(classes) + 0.22 * len(finals))
  for run, iou in finals.items():
    ((color, _), marker) = looks[run]
    places = [(100 * iou[name], row) for row, name in enumerate(classes) if iou.get(name) is not None]
    marks = dict(color=color, marker=marker, linestyle="", markersize=6, markeredgecolor="white", label=run)
    axes.plot(*zip(*places, strict=True), **marks)
  axes.set_yticks(range(len(classes)), classes)
  axes.set_ylim(-0.6, len(classes) - 0.4)
  axes.set_xlabel("IoU in %")
  figure.legend(loc="outside upper left")
  return figure
