"""Pictures of a few target images after every stage, from which the report is made."""

import cv2
import numpy as np
from etils import epath

from jax_uda import inference, parallel, report
from jax_uda.data import pipeline
from jax_uda.experiment import Experiment
from jax_uda.state import State


def draw(experiment: Experiment, workdir: epath.Path, stage: str, state: State) -> None:
  """Writes `config.pictures` images spread over the target, their truth where there is one, and their predictions.

  As `pictures/{image, truth, <stage>}/<image id>.png`, at the size that the canvas gave the image; truth and predictions
  hold train ids.
  """
  config, target = experiment.config, experiment.datasets["target_truth"]
  indices = np.unique(np.linspace(0, len(target) - 1, min(config.pictures, len(target))).astype(int))
  batches = pipeline.eval_batches(
    target, parallel.num_devices(), tuple(config.canvas), threads=config.threads, indices=indices
  )
  folder = workdir / "pictures"
  run = inference.predictor(experiment.predict)
  for batch in batches:
    low = run(state, batch)
    for i in np.flatnonzero(batch["valid"]):
      height, width = batch["size"][i]
      name = f"{batch['id'][i]}.png"
      write_png(folder / "image" / name, batch["image"][i, :height, :width, ::-1])
      if batch["full_label"][i] is not None:
        write_png(folder / "truth" / name, batch["label"][i, :height, :width])
      labels = inference.predicted_labels(low[i], batch["size"][i], (int(height), int(width)))
      write_png(folder / stage / name, np.asarray(labels))


def write_png(path: epath.Path, image: np.ndarray) -> None:
  """Writes uint8 [H, W] or, in OpenCV's channel order, [H, W, 3]; raises `UserError` where that cannot be."""
  report.write_atomically(path, cv2.imencode(".png", image)[1].tobytes())
