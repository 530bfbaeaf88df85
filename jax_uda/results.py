"""What results.json says: scores of stages, and what their pseudo-labels came to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jax_uda import metrics
from jax_uda.files import plain


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
