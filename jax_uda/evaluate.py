"""Scoring: one confusion matrix of whole-number counts over a whole data set, at the labels' own resolution."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from jax_uda import inference, metrics, parallel, report
from jax_uda.data import pipeline
from jax_uda.experiment import Experiment
from jax_uda.state import State
from jax_uda.stopping import StopSignal


def predictions(predict: Callable, state: State, batches: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
  """Whole-image predictions, one by one.

  Args:
    predict: what a method's `predict(config)` gave; pass the same object every time, or it compiles again.
    batches: of `pipeline.eval_batches`.

  Yields:
    {"index", "low" float16 [h, w, C] log-probabilities, "size" [2], "truth" uint8 [H, W] or None}.
  """
  run = inference.predictor(predict)
  for batch in batches:
    low = run(state, batch)
    for i in np.flatnonzero(batch["valid"]):
      yield {"index": int(batch["index"][i]), "low": low[i], "size": batch["size"][i], "truth": batch["full_label"][i]}


def confusion(predicted: dict[str, Any], num_classes: int) -> np.ndarray:
  """One image's confusion matrix, int64 [C, C], rows are the truth, at the full resolution of its label."""
  truth = predicted["truth"]
  labels = inference.predicted_labels(predicted["low"], predicted["size"], truth.shape)
  return np.asarray(metrics.confusion_matrix(truth, labels, num_classes), np.int64)


def score(experiment: Experiment, state: State, dataset: Any, title: str, stop: StopSignal) -> np.ndarray | None:
  """The confusion matrix int64 [C, C] over a data set; None if it has no labels."""
  config = experiment.config
  batches = pipeline.eval_batches(
    dataset, config.eval_batch * parallel.num_devices(), tuple(config.canvas), threads=config.threads
  )
  total = None
  with report.Progress(title, len(dataset), "images") as bar:
    for predicted in predictions(experiment.predict, state, batches):
      if predicted["truth"] is not None:
        matrix = confusion(predicted, len(experiment.space.classes))
        total = matrix if total is None else total + matrix
      bar.update(1)
      stop.check()
  return total
