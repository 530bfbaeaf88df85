"""What a run says in the terminal: how far it is, and a table of scores."""

import os
import sys
import time
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from jax_uda import parallel

TABLE_WIDTH = 100  # characters


def percent(fraction: float | None, unit: str = "") -> str:
  """A fraction of 1 as text, "–" where there is none."""
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
    + [percent(value) for value in (*map(stage["iou"].get, classes), stage["miou"], stage["pixel_accuracy"])]
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


def columns(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
  """A table for the terminal, as wide as it has to be; the first `left` columns are flush left, the others right."""
  widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
  align = [str.ljust if place < left else str.rjust for place in range(len(widths))]
  fitted = [[fit(cell, width) for fit, cell, width in zip(align, row, widths, strict=True)] for row in (head, *rows)]
  lines = ["  ".join(row) for row in fitted]
  lines.insert(1, "─" * len(lines[0]))
  return "\n".join(line.rstrip() for line in lines)


class Progress:
  """Shows how far a long stage is: a bar on a terminal, elsewhere a line now and then; both on stderr.

      with Progress("round_1 · training", total, unit="images") as bar:
        bar.update(8, loss=loss)

  Of several processes the first one shows how far it is with its share.

  The time left is told from the second update on: the first one compiles.

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
    if _has_room() and parallel.is_first():
      self._every = 0.2
      how = {"unit": f" {self._unit}", "dynamic_ncols": True, "smoothing": 0}
      self._bar = tqdm(desc=self._title, total=self._total, initial=self._initial, **how)
    return self

  def __exit__(self, *_) -> None:
    self._show(time.monotonic(), last=True)
    if self._bar is not None:
      self._bar.close()

  def update(self, n: int, **values: Any) -> None:
    """Adds `n` units; `values` (loss=…) are scalars, shown until others come."""
    first = self._done == self._initial
    self._done += n
    self._values.update(values)
    now = time.monotonic()
    if now - self._shown[0] >= self._every:
      self._show(now, first)
      self._shown = now, self._done
    if self._bar is not None:
      self._bar.update(n)
      if first:  # compilation is in it, which says nothing of the time left
        self._bar.start_t, self._bar.initial = time.time(), self._bar.n

  def _show(self, now: float, first: bool = False, last: bool = False) -> None:
    if not parallel.is_first():
      return
    values = [f"{name} {float(value):.4g}" for name, value in self._values.items()]
    if self._bar is not None:
      self._bar.set_postfix_str(", ".join(values), refresh=last)
      return
    then, done = (self._start, self._initial) if last else self._shown
    rate = (self._done - done) / max(now - then, 1e-9)
    speed = f"{rate:.1f} {self._unit}/s"
    if last:
      clock = [speed, f"took {tqdm.format_interval(now - self._start)}"]
    elif first:
      clock = [f"the first took {tqdm.format_interval(now - then)}, compilation included"]
    else:
      clock = [speed, f"{tqdm.format_interval((self._total - self._done) / rate) if rate else '?'} left"]
    share = self._done / self._total if self._total else 1.0
    parts = [f"{self._done}/{self._total} {self._unit} ({share:.0%})", *clock, *values]
    print(f"{self._title}: {' · '.join(parts)}", file=sys.stderr, flush=True)


def _has_room() -> bool:
  """Whether stderr is a terminal that says how large it is; one of no rows would show no bar."""
  if not sys.stderr.isatty():
    return False
  try:
    return all(os.get_terminal_size(sys.stderr.fileno()))
  except (OSError, ValueError):  # no real file
    return True
