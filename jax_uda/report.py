"""What a run tells people: metrics log, results, table and progress in the terminal, and report.html.

    python -m jax_uda.report DIR      makes the report of a work directory again, from its files alone

The report reads, where they exist, these files of the work directory; `<id>` may hold one folder level:

    config.json  results.json  metrics.jsonl  classes.json
    pictures/image/<id>.png           RGB
    pictures/truth/<id>.png           train ids, as all labels here; 255 = ignore
    pictures/<stage>/<id>.png         the prediction after that stage
    pseudo_labels/<stage>/<id>.png
    pictures/maps/<name>/<stage>/<id>.png     what else a method has drawn after that stage, black to white
    pictures/extra/<title>.png        anything else worth seeing
"""

import argparse
import base64
import html
import io
import json
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from etils import epath
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from PIL import Image
from tqdm import tqdm

from jax_uda import metrics, parallel
from jax_uda.data.label_spaces import IGNORE, LabelSpace, colorize
from jax_uda.errors import UserError

# --- files ----------------------------------------------------------------------------------------------------------


def plain(value: Any) -> Any:
  """The same in Python's own types, where what JSON cannot say (NaN, infinity) becomes None."""
  if isinstance(value, Mapping):
    return {str(key): plain(item) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return [plain(item) for item in value]
  if hasattr(value, "__array__"):  # NumPy's and JAX's arrays and scalars
    return plain(np.asarray(value).tolist())
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value


def _dumps(value: Any, indent: int | None = None) -> bytes:
  return (json.dumps(plain(value), indent=indent, ensure_ascii=False, allow_nan=False) + "\n").encode()


def write_atomically(path: epath.PathLike, data: bytes) -> epath.Path:
  """Writes through a neighbouring file, so that a reader, or a run killed meanwhile, sees all of it or nothing.

  Raises:
    UserError: the disk is full or may not be written.
  """
  path = epath.Path(path)
  temporary = path.parent / f".{path.name}.tmp"
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary.write_bytes(data)
    return temporary.replace(path)
  except OSError as error:
    raise _unwritable(path, error) from error


def _unwritable(path: epath.Path, error: OSError) -> UserError:
  return UserError(f"cannot write {path}: {error.strerror or error}; make room or name another place, and run again")


def write_json(path: epath.PathLike, value: Any, by_each: bool = False) -> None:
  """Writes JSON atomically; arrays and scalars of NumPy and JAX are fine, NaN and infinity become null.

  Of several processes the first one writes, for all have the same to say; unless files are `by_each`.
  """
  if by_each or parallel.is_first():
    write_atomically(path, _dumps(value, indent=2))


def read_json(path: epath.PathLike) -> Any:
  """Reads JSON; raises `UserError` with the file's name if it is missing or broken."""
  path = epath.Path(path)
  try:
    return json.loads(path.read_bytes())
  except FileNotFoundError:
    raise UserError(f"no such file, {path}, check the directory") from None
  except ValueError as error:
    raise UserError(f"broken JSON, {path}, mend or delete it ({error})") from None


def write_npz(path: epath.PathLike, arrays: Mapping[str, np.ndarray]) -> None:
  """Writes arrays by name, atomically; of several processes the first one does."""
  buffer = io.BytesIO()
  np.savez(buffer, **arrays)
  if parallel.is_first():
    write_atomically(path, buffer.getvalue())


def read_npz(path: epath.PathLike) -> dict[str, np.ndarray]:
  """Reads what `write_npz` wrote."""
  with np.load(io.BytesIO(epath.Path(path).read_bytes()), allow_pickle=False) as arrays:
    return dict(arrays)


def write_classes(workdir: epath.PathLike, space: LabelSpace) -> None:
  """Writes the label space to `classes.json`, which is what the report draws labels with."""
  write_json(epath.Path(workdir) / "classes.json", asdict(space))


def read_classes(workdir: epath.PathLike) -> LabelSpace:
  """Reads `classes.json`; raises `UserError` if it is missing, broken or lacks a field."""
  path = epath.Path(workdir) / "classes.json"
  content = read_json(path)
  try:
    return LabelSpace(content["name"], tuple(content["classes"]), tuple(tuple(color) for color in content["colors"]))
  except (KeyError, TypeError):
    raise UserError(f"not a label space, {path}, it needs name, classes and colors") from None


class MetricsLog:
  """The run's metrics, one JSON object a line, each at a position (stage_index, step).

  Call `truncate` once before the first `append` of a process: it makes the log agree with the checkpoint. Of several
  processes, which all call them, the first one writes.
  """

  def __init__(self, path: epath.PathLike):
    self.path = epath.Path(path)

  def append(self, record: Mapping[str, Any]) -> None:
    """Adds {"stage": name, "stage_index": int, "step": int, metric: float …}; it is in the file on return."""
    if not parallel.is_first():
      return
    try:
      self.path.parent.mkdir(parents=True, exist_ok=True)
      with self.path.open("ab") as file:
        file.write(_dumps(record))
    except OSError as error:
      raise _unwritable(self.path, error) from error

  def read(self) -> list[dict[str, Any]]:
    """All records but a torn last one; raises `UserError` for any other broken line."""
    lines = self.path.read_bytes().splitlines() if self.path.exists() else []
    records = []
    for number, line in enumerate(lines, 1):
      try:
        records.append(json.loads(line))
      except ValueError:
        if number < len(lines):
          raise UserError(f"broken JSON, {self.path} line {number}, delete that line") from None
    return records

  def truncate(self, stage_index: int, step: int) -> None:
    """Drops all after this position, a torn last line and repetitions; (0, -1) empties the log."""
    kept = {}
    for record in self.read():
      position = record["stage_index"], record["step"]
      if position <= (stage_index, step):
        kept[position, frozenset(record)] = record  # one record of each kind at a position: the latest
    if self.path.exists() and parallel.is_first():
      write_atomically(self.path, b"".join(_dumps(record) for record in kept.values()))


# --- results --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PseudoLabelCounts:
  """What one labelling of the target came to.

  Attributes:
    selected: pixels labelled as each class, whole numbers [C].
    pixels: pixels looked at, labelled or not.
    confusion: true labels (rows) against pseudo-labels (columns) where both exist [C, C]; None without truth.
  """

  selected: np.ndarray
  pixels: int
  confusion: np.ndarray | None = None


def _ratio(part: float, whole: float) -> float | None:
  return float(part / whole) if whole else None


def _pseudo_label_results(counts: Mapping[str, PseudoLabelCounts], classes: Sequence[str]) -> dict[str, Any]:
  found = {what: _pseudo_label_result(one, classes) for what, one in counts.items()}
  return {**found.pop(""), "others": found}


def _pseudo_label_result(counts: PseudoLabelCounts, classes: Sequence[str]) -> dict[str, Any]:
  selected = np.asarray(counts.selected)
  confusion = np.zeros((len(classes),) * 2) if counts.confusion is None else np.asarray(counts.confusion)
  right, labelled = np.diagonal(confusion), confusion.sum(axis=0)
  return {
    "selected": _ratio(selected.sum(), counts.pixels),
    "accuracy": _ratio(right.sum(), labelled.sum()),
    "by_class": {
      name: {"selected": _ratio(selected[i], selected.sum()), "accuracy": _ratio(right[i], labelled[i])}
      for i, name in enumerate(classes)
    },
  }


def scores(confusion: np.ndarray, classes: Sequence[str], absent_as_zero: bool = False) -> dict[str, Any]:
  """What results.json says of a confusion matrix: {"miou", "pixel_accuracy", "iou" by class}, fractions in 0..1.

  Args:
    confusion: true labels (rows) against predictions (columns), whole numbers.
    classes: the names of its first C classes. What it has beyond them is none of them, see `metrics.fold`.
    absent_as_zero: whether a class that is in neither truth nor prediction counts as 0 in the mean, or not at all; its
      own IoU is None either way.
  """
  num = len(classes)
  return plain({
    "miou": metrics.mean_iou(confusion, range(num), absent_as_zero and np.any(confusion)),
    "pixel_accuracy": metrics.pixel_accuracy(confusion[:num]),
    "iou": dict(zip(classes, metrics.iou(confusion)[:num], strict=True)),
  })


def stage_result(
  name: str,
  steps: int,
  seconds: float,
  confusion: np.ndarray | None,
  classes: Sequence[str],
  pseudo_labels: Mapping[str, PseudoLabelCounts] | None = None,
  protocols: Mapping[str, dict[str, Any]] | None = None,
) -> dict[str, Any]:
  """One entry of "stages" in results.json; all scores and shares are fractions in 0..1, None where undefined.

  Args:
    name, steps, seconds: of the stage.
    confusion: true labels (rows) against predictions (columns), whole numbers [C, C]; None if it was not scored.
    classes: the C class names.
    pseudo_labels: counts of the labels the stage trained on, under "", and of the others it compared; None if it made none.
    protocols: `scores` by protocol, first those that are the stage's; None: of the C classes.

  Returns:
    The entry. In "pseudo_labels", "selected" is the share of all pixels, and by class the share of the selected
    ones; "accuracy" is the share of the selected pixels whose label is true; "others" has the same of other labels.
  """
  if confusion is None:
    confusion = np.zeros((len(classes),) * 2, np.int64)
  (_, main), *others = (protocols or {"": scores(confusion, classes)}).items()
  return plain({
    "name": name,
    "steps": steps,
    "seconds": seconds,
    **main,
    "other_protocols": dict(others),
    "pseudo_labels": None if pseudo_labels is None else _pseudo_label_results(pseudo_labels, classes),
  })


# --- terminal -------------------------------------------------------------------------------------------------------

TABLE_WIDTH = 100  # characters


def _percent(fraction: float | None, unit: str = "") -> str:
  return "–" if fraction is None else f"{100 * fraction:.1f}{unit}"


def _clip(text: str, length: int) -> str:
  return text if len(text) <= length else text[: length - 1] + "…"


def iou_table(results_stages: Sequence[dict[str, Any]]) -> str:
  """Table of IoU in % for the terminal: a row for each class, a column for each stage, at most 100 wide.

  Where not all stages fit it shows the first, "…", and the last ones.
  """
  classes = list(dict.fromkeys(name for stage in results_stages for name in stage["iou"]))
  head = ["IoU in %", *(_clip(name, 30) for name in classes), "mIoU", "pixel accuracy"]
  shown = [
    [_clip(stage["name"], 16)]
    + [_percent(value) for value in (*map(stage["iou"].get, classes), stage["miou"], stage["pixel_accuracy"])]
    for stage in results_stages
  ]
  gap: list[list[str]] = []

  def width(column):
    return max(map(len, column)) + 2

  while len(shown) > 2 and sum(map(width, [head, *gap, *shown])) - 2 > TABLE_WIDTH:
    gap = [["…"] * len(head)]
    del shown[1]
  columns = [[cell.ljust(width(head) - 2) for cell in head]]
  columns += [[cell.rjust(width(column)) for cell in column] for column in shown[:1] + gap + shown[1:]]
  lines = ["".join(row).rstrip() for row in zip(*columns, strict=True)]
  rule = "─" * max(map(len, lines))
  return "\n".join([lines[0], rule, *lines[1:-2], rule, *lines[-2:]])


class Progress:
  """Shows how far a long stage is: a bar on a terminal, elsewhere a line now and then; both on stderr.

      with Progress("round_1 · training", total, unit="images") as bar:
        bar.update(8, loss=loss)

  Of several processes the first one shows how far it is with its share.

  Values are turned into numbers only when they are shown, so that a value still being computed on a device does
  not hold up the loop.

  Args:
    title: what is under way.
    total: units in all, those done earlier included.
    unit: plural noun.
    initial: units done earlier, by the run that this one resumes; they do not count for the rate.
    every: least seconds between two lines where there is no terminal.
  """

  def __init__(self, title: str, total: int, unit: str = "steps", initial: int = 0, every: float = 10.0):
    self._title, self._total, self._unit, self._initial = title, total, unit, initial
    self._done = initial
    self._values: dict[str, Any] = {}
    self._bar = None
    self._every = every

  def __enter__(self) -> "Progress":
    self._start = time.monotonic()
    self._shown = self._start, self._initial
    if sys.stderr.isatty() and parallel.is_first():
      self._every = 0.2
      self._bar = tqdm(
        desc=self._title, total=self._total, initial=self._initial, unit=f" {self._unit}", dynamic_ncols=True
      )
    return self

  def __exit__(self, *_) -> None:
    self._show(time.monotonic(), last=True)
    if self._bar is not None:
      self._bar.close()

  def update(self, n: int, **values: Any) -> None:
    """Adds `n` units; `values` (loss=…) are scalars, shown until others come."""
    self._done += n
    self._values.update(values)
    now = time.monotonic()
    if now - self._shown[0] >= self._every:
      self._show(now)
      self._shown = now, self._done
    if self._bar is not None:
      self._bar.update(n)

  def _show(self, now: float, last: bool = False) -> None:
    if not parallel.is_first():
      return
    values = [f"{name} {float(value):.4g}" for name, value in self._values.items()]
    if self._bar is not None:
      self._bar.set_postfix_str(", ".join(values), refresh=last)
      return
    then, done = (self._start, self._initial) if last else self._shown
    rate = (self._done - done) / max(now - then, 1e-9)
    if last:
      clock = f"took {tqdm.format_interval(now - self._start)}"
    else:
      clock = f"{tqdm.format_interval((self._total - self._done) / rate) if rate else '?'} left"
    share = self._done / self._total if self._total else 1.0
    parts = [f"{self._done}/{self._total} {self._unit} ({share:.0%})", f"{rate:.1f} {self._unit}/s", clock, *values]
    print(f"{self._title}: {' · '.join(parts)}", file=sys.stderr, flush=True)


# --- charts ---------------------------------------------------------------------------------------------------------

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
  return "–" if before is None and after is None else f"{_percent(before)} → {_percent(after)}"


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
    text = _percent(values[name]) if before is after else _arrow(before["iou"].get(name), values[name])
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


def _charts(stages: Sequence[dict], records: Sequence[dict]) -> Iterator[Chart]:
  """The charts for which there are numbers."""
  scored = [stage for stage in stages if stage["miou"] is not None]
  if len(scored) > 1:
    words = "; ".join(f"{stage['name']} {_percent(stage['miou'])}" for stage in scored)
    yield Chart("Scores by stage", f"mIoU in % by stage: {words}", _draw_scores(stages))
  if scored:
    before, after = scored[0], scored[-1]
    words = "; ".join(f"{name} {_percent(value)}" for name, value in after["iou"].items())
    yield Chart("IoU by class", f"IoU in % by class after {after['name']}: {words}", _draw_iou(before, after))
  labelled = [stage for stage in stages if stage["pseudo_labels"]]
  if labelled:
    found = [stage["pseudo_labels"] for stage in labelled]
    shares = [part["selected"] or 0 for labels in found for part in (labels, *labels.get("by_class", {}).values())]
    words = "; ".join(f"{stage['name']} {_percent(stage['pseudo_labels']['selected'])}" for stage in labelled)
    yield Chart(
      "Pseudo-labels: share of each class among the selected pixels, in %",
      f"Share of all pixels that have a pseudo-label, in %: {words}",
      _draw_heat(labelled, "selected", "selected, of all", PowerNorm(0.4, 0, max([*shares, 1e-6]))),
    )
  checked = [stage for stage in labelled if stage["pseudo_labels"]["accuracy"] is not None]
  if checked:
    words = "; ".join(f"{stage['name']} {_percent(stage['pseudo_labels']['accuracy'])}" for stage in checked)
    yield Chart(
      "Pseudo-labels: share that is right, in %",
      f"Share of the pseudo-labels that are right, in %: {words}",
      _draw_heat(checked, "accuracy", "all classes", Normalize(0, 1)),
    )
  kinds = {"loss": "Training loss", "_share": "Shares of pixels", "_accuracy": "Accuracies"}
  for word, title in kinds.items():
    numbers = (name for record in records for name, value in record.items() if isinstance(value, float | int))
    if names := list(dict.fromkeys(name for name in numbers if word in name)):
      figure = _draw_curves(records, names, word.removeprefix("_"))
      yield Chart(title, f"Curves over the training steps, stage by stage: {', '.join(names)}", figure)


# --- report.html ----------------------------------------------------------------------------------------------------

MOST_MAPS = 5  # of one kind and image, side by side
PICTURE_WIDTH = 640  # pixels at most, so that the one file stays of a size to send around

CSS = """
:root { color-scheme: light; }
body { margin: 0 auto; max-width: 76rem; padding: 1rem; background: #fbfbfa; color: #1b1b1b;
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: .5rem 0; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
figure { margin: 0; min-width: 0; }
figcaption { font-size: .85rem; color: #444; }
img { display: block; max-width: 100%; height: auto; }
.facts { display: flex; flex-wrap: wrap; gap: .3rem 2rem; margin: 0; }
.facts dt { font-size: .85rem; color: #444; }
.facts dd { margin: 0; font-size: 1.25rem; font-weight: 600; }
.charts { columns: 2 30rem; column-gap: 1.5rem; }
.charts figure { break-inside: avoid; background: #fff; border: 1px solid #e2e2e2; border-radius: 6px; padding: .8rem;
  margin-bottom: 1.5rem; }
.charts figcaption { font-size: 1rem; font-weight: 600; color: inherit; margin-bottom: .5rem; }
.charts img { margin: auto; }
.row { display: grid; gap: .5rem; grid-template-columns: repeat(auto-fit, minmax(min(45%, 13rem), 1fr));
  margin-bottom: 1.2rem; }
.row img { width: 100%; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1rem; list-style: none; padding: 0; font-size: .9rem; }
.legend span { display: inline-block; width: 1.1em; height: 1.1em; margin-right: .35em; border: 1px solid #555;
  vertical-align: -.2em; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .8rem .25rem 0; text-align: right; border-bottom: 1px solid #e2e2e2; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
pre { overflow-x: auto; font-size: .85rem; }
summary { cursor: pointer; }
"""


def _duration(seconds: float | None) -> str:
  if seconds is None:
    return "–"
  minutes, rest = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _png(picture: Figure | Image.Image) -> bytes:
  buffer = io.BytesIO()
  if isinstance(picture, Figure):
    picture.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
  else:
    picture.save(buffer, format="png", optimize=True)
  return buffer.getvalue()


def _figure(caption: str, alt: str, png: bytes) -> str:
  source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
  return (
    f'<figure><figcaption>{html.escape(caption)}</figcaption><img alt="{html.escape(alt)}" src="{source}"></figure>\n'
  )


def _open_picture(path: epath.Path) -> Image.Image:
  """A picture no wider than `PICTURE_WIDTH`, train ids as they are; raises `UserError` if it cannot be decoded."""
  try:
    picture = Image.open(io.BytesIO(path.read_bytes()))
    labels = picture.mode in ("L", "P")
    picture = picture if labels else picture.convert("RGB")
    height = round(picture.height * PICTURE_WIDTH / picture.width)
    resampling = Image.Resampling.NEAREST if labels else Image.Resampling.LANCZOS
    return picture.resize((PICTURE_WIDTH, height), resampling) if picture.width > PICTURE_WIDTH else picture
  except OSError:
    raise UserError(f"not a picture, {path}, delete it and make the report again") from None


def _picture(caption: str, path: epath.Path, space: LabelSpace | None = None) -> str:
  """The figure of an image, or of a label map in the colours of `space`."""
  picture = _open_picture(path)
  if space is not None:
    picture = Image.fromarray(colorize(np.asarray(picture), space))
  return _figure(caption, f"{caption}, {path.stem}", _png(picture))


def _names(folder: epath.Path) -> list[str]:
  """The ids of all PNGs in a folder and the folders in it."""
  paths = sorted([*folder.glob("*.png"), *folder.glob("*/*.png")])
  return [str(path.relative_to(folder).with_suffix("")) for path in paths]


def _picture_rows(workdir: epath.Path, stages: Sequence[str], space: LabelSpace) -> str:
  """For each image: itself, truth, prediction after the first stage, last pseudo-labels, final prediction."""
  pictures, labels = workdir / "pictures", workdir / "pseudo_labels"
  predicted = [name for name in stages if (pictures / name).exists()]
  labelled = [name for name in stages if (labels / name).exists()]
  columns = [("truth", pictures / "truth")]
  columns += [(f"prediction after {name}", pictures / name) for name in predicted[:1]]
  columns += [(f"pseudo-labels of {name}", labels / name) for name in labelled[-1:]]
  columns += [(f"prediction after {name}", pictures / name) for name in predicted[1:][-1:]]
  rows = []
  for name in _names(pictures / "image"):
    row = _picture("image", pictures / "image" / f"{name}.png")
    files = [(caption, folder / f"{name}.png") for caption, folder in columns]
    row += "".join(_picture(caption, path, space) for caption, path in files if path.exists())
    rows.append(f'<div class="row">\n{row}</div>\n')
  return f"<h2>Pictures</h2>\n{_legend(space)}{''.join(rows)}" if rows else ""


def _map_rows(workdir: epath.Path, stages: Sequence[str], space: LabelSpace) -> str:
  """For each kind of map and each image: prediction and map after some of the stages, the last one among them."""
  pictures, result = workdir / "pictures", ""
  for kind in _folders(pictures / "maps"):
    drawn = [name for name in stages if (kind / name).exists()]
    drawn = [drawn[i] for i in np.unique(np.linspace(0, len(drawn) - 1, min(len(drawn), MOST_MAPS)).astype(int))]
    result += f"<h2>{html.escape(kind.name)}, from none (black) to full (white)</h2>\n"
    for name in _names(pictures / "image"):
      predictions, maps = ([folder / stage / f"{name}.png" for stage in drawn] for folder in (pictures, kind))
      for what, paths, colors in (("prediction", predictions, space), (kind.name, maps, None)):
        files = [(f"{what} after {stage}", path) for stage, path in zip(drawn, paths, strict=True) if path.exists()]
        row = "".join(_picture(caption, path, colors) for caption, path in files)
        result += f'<div class="row">\n{row}</div>\n'
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
    result += f"<h2>How {html.escape(stage)} chose its labels; maps from none (black) to full (white)</h2>\n"
    result += _choices(entry["pseudo_labels"])
    for name in _names(pictures / "image"):
      files = [(path.name if path.name != stage else "labels", path / f"{name}.png", colors) for path, colors in columns]
      row = "".join(_picture(caption, path, colors) for caption, path, colors in files if path.exists())
      result += f'<div class="row">\n{row}</div>\n'
  return result


def _choices(labels: Mapping[str, Any]) -> str:
  """Table of a labelling's choice and of the others that it compared."""
  rows = {"labels": labels, **labels["others"]}
  cells = "".join(
    f"<tr><td>{html.escape(what)}</td><td>{_percent(one['selected'])}</td><td>{_percent(one['accuracy'])}</td></tr>\n"
    for what, one in rows.items()
  )
  head = "<tr><th></th><th>selected, in % of all pixels</th><th>right, in % of these</th></tr>"
  return f'<div class="scroll"><table>\n{head}\n{cells}</table></div>\n' if labels["others"] else ""


def _folders(folder: epath.Path) -> list[epath.Path]:
  return sorted(folder.iterdir()) if folder.exists() else []


def _epochs(records: Sequence[dict]) -> str:
  """The shares that a method has logged, by epoch, from 1 as stages are called: means over its log lines."""
  lines = [record for record in records if "epoch" in record]
  names = list(dict.fromkeys(name for line in lines for name in line if name.endswith("_share")))
  found: dict[tuple[str, int], list[dict]] = {}  # by stage, as some count their epochs anew
  for line in lines:
    found.setdefault((line["stage"], int(line["epoch"])), []).append(line)

  def mean(part, name):
    values = [line[name] for line in part if name in line]
    return _percent(sum(values) / len(values)) if values else "–"

  head = "".join(f"<th>{html.escape(name.replace('_', ' '))} in %</th>" for name in names)
  rows = ""
  for (stage, epoch), part in found.items():
    cells = "".join(f"<td>{mean(part, name)}</td>" for name in names)
    rows += f"<tr><td>{html.escape(stage)}, epoch {epoch + 1}</td>{cells}</tr>\n"
  table = f'<table>\n<tr><th>epoch</th>{head}</tr>\n{rows}</table>'
  title = "Pixels by epoch, of the crops trained on: means of log lines"
  return f'<h2>{title}</h2>\n<div class="scroll">{table}</div>\n' if found else ""


def _warnings(records: Sequence[dict]) -> str:
  """What the run warned of while it trained."""
  lines = [f"{record['stage']}, step {record['step']}: {line}" for record in records for line in record.get("warnings", ())]
  items = "".join(f"<li>{html.escape(line)}</li>\n" for line in lines)
  return f"<h2>Warnings</h2>\n<ul>\n{items}</ul>\n" if lines else ""


def _legend(space: LabelSpace) -> str:
  ids = np.array([[*range(len(space.classes)), IGNORE]], np.uint8)
  colors = ["#" + bytes(color.tolist()).hex() for color in colorize(ids, space)[0]]
  items = [
    f'<li><span style="background:{color}"></span>{html.escape(name)}</li>'
    for color, name in zip(colors, [*space.classes, "ignored or not selected"], strict=True)
  ]
  return f'<ul class="legend">{"".join(items)}</ul>\n'


def _stage_table(stages: Sequence[dict]) -> str:
  protocols = list(dict.fromkeys(name for stage in stages for name in stage["other_protocols"]))
  head = ["stage", "steps", "time", "mIoU in %", "pixel accuracy in %", *(f"mIoU in %, {name}" for name in protocols)]
  rows = [
    [
      stage["name"],
      str(stage["steps"]),
      _duration(stage["seconds"]),
      _percent(stage["miou"]),
      _percent(stage["pixel_accuracy"]),
      *(_percent(stage["other_protocols"].get(name, {}).get("miou")) for name in protocols),
    ]
    for stage in stages
  ]
  lines = ["".join(f"<th>{html.escape(cell)}</th>" for cell in head)]
  lines += ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows]
  table = "".join(f"<tr>{line}</tr>\n" for line in lines)
  return f'<h2>Stages</h2>\n<div class="scroll"><table>\n{table}</table></div>\n' if stages else ""


def _header(results: dict) -> str:
  stages = [stage for stage in results.get("stages", []) if stage["miou"] is not None]
  facts = {"method": results.get("method"), "protocol": results.get("protocol")}
  if stages:
    facts[f"mIoU after {stages[-1]['name']}"] = _percent(stages[-1]["miou"], " %")
  if len(stages) > 1:
    gain = 100 * (stages[-1]["miou"] - stages[0]["miou"])
    facts[f"mIoU after {stages[0]['name']}"] = _percent(stages[0]["miou"], " %")
    facts["gain"] = f"{gain:+.1f} points"
  if results.get("seconds") is not None:
    facts["time"] = _duration(results["seconds"])
  items = "".join(
    f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(str(fact))}</dd></div>\n"
    for name, fact in facts.items()
    if fact
  )
  return f'<h1>Domain adaptation of semantic segmentation</h1>\n<dl class="facts">\n{items}</dl>\n'


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
  results = read_json(workdir / "results.json") if (workdir / "results.json").exists() else {}
  stages = results.get("stages", [])
  records = MetricsLog(workdir / "metrics.jsonl").read()
  with matplotlib.rc_context(STYLE):
    charts = _charts(stages, records)
    figures = "".join(_figure(chart.title, chart.alt, _png(chart.figure)) for chart in charts)
  extra = workdir / "pictures" / "extra"
  drawings = "".join(
    _figure(caption := name.replace("_", " "), caption, (extra / f"{name}.png").read_bytes()) for name in _names(extra)
  )
  parts = [
    _header(results),
    _warnings(records),
    f'<h2>Charts</h2>\n<div class="charts">\n{figures}</div>\n' if figures else "",
    _stage_table(stages),
    _epochs(records),
    _picture_rows(workdir, [stage["name"] for stage in stages], space),
    _labelling_rows(workdir, stages, space),
    _map_rows(workdir, [stage["name"] for stage in stages], space),
    f'<h2>More drawings</h2>\n<div class="charts">\n{drawings}</div>\n' if drawings else "",
  ]
  if (workdir / "config.json").exists():
    config = json.dumps(read_json(workdir / "config.json"), indent=2, ensure_ascii=False)
    parts.append(f"<h2>Config</h2>\n<details><summary>all fields</summary><pre>{html.escape(config)}</pre></details>\n")
  title = html.escape(f"{results.get('method', 'run')}: report")
  page = (
    '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    f"<title>{title}</title>\n<style>{CSS}</style>\n</head>\n<body>\n{''.join(parts)}</body>\n</html>\n"
  )
  return write_atomically(workdir / "report.html", page.encode())


def main(arguments: Sequence[str] | None = None) -> int:
  """Makes the report again; returns the exit status, 2 with a line on stderr if the user can mend what is wrong."""
  parser = argparse.ArgumentParser(prog="python -m jax_uda.report", description="Make report.html again.")
  parser.add_argument("workdir", help="directory of the run")
  try:
    print(write_report(parser.parse_args(arguments).workdir))
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  return 0


if __name__ == "__main__":
  sys.exit(main())
