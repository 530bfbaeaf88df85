"""Scores from one confusion matrix of whole numbers: rows = truth, columns = prediction.

IoU is PASCAL VOC's measure; it and its mean, which leaves absent classes out, are as Cityscapes' own evaluation has them.
Pixel accuracy is as Long et al. (2015) have it.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike


@partial(jax.jit, static_argnames="num_classes")
def confusion_matrix(labels: Array, predictions: Array, num_classes: int, ignore_label: int = 255) -> Array:
  """Pixels by (true class, predicted class): int32 [C, C] from two integer arrays of equal shape.

  Labels equal to `ignore_label` or outside 0..C-1 are left out. A prediction outside 0..C-1 has no column and is left
  out as well: where it must count as a miss (a network that knows more classes than are scored), map it to one class
  more, and score without that class: `mean_iou(..., classes=range(C))`. int32 holds a chunk; add chunks in int64 on
  the host.
  """
  labels, predictions = labels.astype(jnp.int32), predictions.astype(jnp.int32)
  counted = (labels >= 0) & (labels < num_classes) & (labels != ignore_label)
  counted &= (predictions >= 0) & (predictions < num_classes)
  index = jnp.where(counted, labels * num_classes + predictions, num_classes**2)
  counts = jnp.zeros(num_classes**2, jnp.int32).at[index.reshape(-1)].add(1, mode="drop")
  return counts.reshape(num_classes, num_classes)


def fold(confusion: ArrayLike, rows: ArrayLike, num: int) -> np.ndarray:
  """The confusion matrix of fewer classes, int64 [P + 1, P + 1], from one of C classes.

  Args:
    confusion: [C, C], rows are the truth.
    rows: [C], for each class the one that it counts as, or P for none of them, the extra row and column.
    num: P. Score with `iou(folded)[:num]`, `mean_iou(folded, range(num))`, `pixel_accuracy(folded[:num])`: pixels that are
      truly none of the classes count as false positives, and predictions of none of them as misses.
  """
  groups = np.eye(num + 1, dtype=np.int64)[np.asarray(rows)]
  return groups.T @ np.asarray(confusion, np.int64) @ groups


def iou(confusion: ArrayLike) -> np.ndarray:
  """TP / (TP + FP + FN) of each class, float64 [C] in 0..1; NaN where a class is in neither truth nor prediction."""
  confusion = np.asarray(confusion, np.float64)
  hits = np.diag(confusion)
  union = confusion.sum(0) + confusion.sum(1) - hits
  return np.divide(hits, union, out=np.full(hits.shape, np.nan), where=union > 0)


def mean_iou(confusion: ArrayLike, classes: Sequence[int] | None = None, absent_as_zero: bool = False) -> float:
  """Mean IoU in 0..1 of a matrix [C, C], over `classes` if given (the matrix stays whole: no new argmax), else over all.

  Absent classes are left out, or count as 0 if so asked; NaN if none remains.
  """
  scores = iou(confusion)
  scores = scores if classes is None else scores[list(classes)]
  scores = np.nan_to_num(scores) if absent_as_zero else scores[~np.isnan(scores)]
  return float(scores.mean()) if scores.size else float("nan")


def pixel_accuracy(confusion: ArrayLike) -> float:
  """Share of the counted pixels that are predicted right, in 0..1; NaN if there is none.

  Of a matrix [C, C]; rows may be fewer than columns: the pixels of the first classes alone.
  """
  confusion = np.asarray(confusion, np.float64)
  return float(np.trace(confusion) / confusion.sum()) if confusion.any() else float("nan")
