"""Pictures of a few target images after every stage, from which the report is made."""

from collections.abc import Mapping, Sequence

import cv2
import jax
import numpy as np
from etils import epath
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from jax_uda import charts, files, inference, parallel, trained
from jax_uda.data import pipeline, sources
from jax_uda.experiment import Experiment
from jax_uda.state import Stage, State

HEAT_COLUMNS = 4  # heat maps side by side
NAME_LENGTH = 18  # letters that fit over one of them


def draw(experiment: Experiment, workdir: epath.Path, stage: Stage, state: State) -> None:
  """Writes `config.pictures` images spread over the target, their truth where there is one, and their predictions.

  As `pictures/{image, truth, <stage>}/<image id>.png`, at the size that the canvas gave the image; truth and predictions
  hold train ids. The method's maps go to `pictures/maps/<name>/<stage>/<image id>.png`, from black, 0, to white, 1.
  Processes share the images.
  """
  config, target = experiment.config, experiment.datasets["target_truth"]
  indices = sources.spread(len(target), config.pictures)
  batches = pipeline.eval_batches(
    target,
    parallel.num_devices(),
    tuple(config.canvas),
    threads=config.threads,
    indices=indices,
    **parallel.process(),
  )
  folder, network = workdir / "pictures", trained.of(experiment, state)
  for batch in batches:
    views = inference.make_views(network.low, state, batch, flip=False)
    maps = trained.draw_maps(network, batch)
    for i in np.flatnonzero(batch["valid"]):
      height, width = batch["size"][i]
      name = f"{batch['id'][i]}.png"
      write_png(folder / "image" / name, batch["image"][i, :height, :width, ::-1])
      if batch["full_label"][i] is not None:
        write_png(folder / "truth" / name, batch["label"][i, :height, :width])
      view = jax.tree.map(lambda x, i=i: x[i], views)
      write_png(folder / stage.name / name, inference.predicted_labels(view, (int(height), int(width))))
      for what, values in maps.items():
        write_png(folder / "maps" / what / stage.name / name, grey(values[i, :height, :width]))


def write_maps(workdir: epath.Path, stage: str, found: Mapping[str, Mapping[str, np.ndarray]]) -> None:
  """What a stage's labelling has drawn, {image id: {what: labels, uint8 [H, W], or map, float [H, W] in 0..1}}.

  As `pictures/labelling/<stage>/{labels, maps}/<what>/<image id>.png`; maps go from black, 0, to white, 1.
  """
  for image_id, drawn in found.items():
    for what, values in drawn.items():
      kind, values = ("labels", values) if values.dtype == np.uint8 else ("maps", grey(values))
      write_png(workdir / "pictures" / "labelling" / stage / kind / what / f"{image_id}.png", values)


def grey(values: np.ndarray) -> np.ndarray:
  """A map [...] of 0..1 as uint8 [...], from black, 0, to white, 1."""
  return np.rint(255 * values).astype(np.uint8)


def heat_maps(values: np.ndarray, names: Sequence[str]) -> np.ndarray:
  """Draws a number by class and place, such as the spatial prior (CBST, figure 2), as a grid of heat maps.

  Args:
    values: float [h, w, C], not negative. Each class has its own scale, from 0, dark, to its maximum, bright.
    names: of the C classes.

  Returns:
    RGB uint8 [h', w', 3].
  """
  height, width, num_classes = values.shape
  columns = min(HEAT_COLUMNS, num_classes)
  rows = -(-num_classes // columns)
  cell = charts.CHART_WIDTH / columns
  figure = Figure((charts.CHART_WIDTH, rows * (cell * height / width + 0.25)), dpi=150, layout="constrained")
  grid = figure.subplots(rows, columns, squeeze=False).ravel()
  for axes in grid:
    axes.set_axis_off()
  for axes, name, one in zip(grid[:num_classes], names, np.moveaxis(values, -1, 0), strict=True):
    # Lightness rises along viridis, so it is legible in greyscale too.
    axes.imshow(one, cmap="viridis", vmin=0, vmax=one.max() or 1)
    axes.set_title(name if len(name) <= NAME_LENGTH else f"{name[: NAME_LENGTH - 1]}…", fontsize=9)
  canvas = FigureCanvasAgg(figure)
  canvas.draw()
  return np.array(canvas.buffer_rgba())[..., :3]


def write_png(path: epath.Path, image: np.ndarray) -> None:
  """Writes uint8 [H, W] or, in OpenCV's channel order, [H, W, 3]; raises `UserError` where that cannot be."""
  files.write_atomically(path, cv2.imencode(".png", image)[1].tobytes())
