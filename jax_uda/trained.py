"""Trained networks, as scoring, pictures and predictions use them; of an experiment, a workdir, or an exported file."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from etils import epath
from jax import export as jax_export

from configs import default
from jax_uda import files, finished, inference, parallel
from jax_uda.config import set_fields
from jax_uda.data import pipeline
from jax_uda.data.label_spaces import LabelSpace
from jax_uda.errors import UserError
from jax_uda.experiment import Experiment, reopen
from jax_uda.state import State

SETTABLE = ("eval_batch", "threads")  # fields of a config that predicting needs and that change no prediction


@dataclass(frozen=True)
class Manner:
  """How images are shown to the network. Softmax is averaged at full resolution, image by image.

  Attributes:
    scales: of the canvas that the whole images are fitted to.
    flip: whether their mirror images are shown as well.
    window: (h, w) of windows over the images at their own resolution, in place of the whole images.

  Raises:
    UserError: something else than that, or scales beside a window.
  """

  scales: tuple[float, ...] = (1.0,)
  flip: bool = False
  window: tuple[int, int] | None = None

  def __post_init__(self):
    if not (isinstance(self.scales, tuple) and self.scales and all(0 < scale < math.inf for scale in self.scales)):
      raise UserError(f"scales: {self.scales!r} will not do; give a tuple of numbers above 0, such as (0.5, 1.0)")
    if self.window is not None and not (isinstance(self.window, tuple) and len(self.window) == 2 and min(self.window) > 0):
      raise UserError(f"window: {self.window!r} will not do; give its height and width, such as (512, 1024)")
    if self.window and self.scales != (1.0,):
      raise UserError("windows see images at their own resolution, so scales mean nothing there; leave out one of the two")


WHOLE_ONCE = Manner()


@dataclass(frozen=True)
class Prediction:
  """What is predicted of one image.

  Attributes:
    id: the image's.
    size: (H, W), the image's.
    image: uint8 [H, W, 3].
    truth: uint8 [h, w], of the same field of view; None if there is none.
    scores: (H, W) -> float32 [h, w, C] at that resolution, on the device, in proportion to the mean softmax; (h, w) is
      `inference.rounded_up`.
    labels: the same -> train ids uint8 [h, w].
  """

  id: str
  size: tuple[int, int]
  image: np.ndarray
  truth: np.ndarray | None
  scores: Callable[[tuple[int, int]], jax.Array]
  labels: Callable[[tuple[int, int]], jax.Array]


@dataclass(frozen=True)
class TrainedNetwork:
  """A network and what it takes to show it images.

  Attributes:
    space: what it predicts.
    stage: at whose end it is.
    canvas: (H, W) that whole images are fitted to.
    low: (state, images uint8 [B, H, W, 3], sizes int32 [B, 2]) -> float16 log-probabilities [B, h, w, C], as
      `inference.low_outputs` makes it.
    state: of its weights, on all devices.
    maps: see `Experiment.maps`.
    batch: canvases that a device looks at at once.
    threads: that read images.
  """

  space: LabelSpace
  stage: str
  canvas: tuple[int, int]
  low: Callable
  state: Any
  maps: Callable | None = None
  batch: int = 1
  threads: int = 2

  @property
  def classes(self) -> tuple[str, ...]:
    """Their names, in the order of ids."""
    return self.space.classes

  def predict(self, image: np.ndarray, manner: Manner = WHOLE_ONCE) -> np.ndarray:
    """Train ids uint8 [H, W] of an RGB image uint8 [H, W, 3] of any size; raises `UserError` for anything else."""
    return self._of(image, manner, lambda found: found.labels(found.size))

  def probabilities(self, image: np.ndarray, manner: Manner = WHOLE_ONCE) -> np.ndarray:
    """The mean softmax float32 [H, W, C]; otherwise as `predict`."""
    return self._of(image, manner, lambda found: inference.probabilities(found.scores(found.size)))

  def _of(self, image: np.ndarray, manner: Manner, what: Callable[[Prediction], jax.Array]) -> np.ndarray:
    known = isinstance(image, np.ndarray)
    if not (known and image.dtype == np.uint8 and image.shape[2:] == (3,) and image.size):
      said = f"{image.dtype} {list(image.shape)}" if known else type(image).__name__
      raise UserError(f"an image is {said}; give a NumPy array uint8 [H, W, 3], RGB")
    alone = dataclasses.replace(self, batch=1, threads=0)
    (found,) = predictions(alone, [{"id": "", "image": image}], manner)
    return np.array(what(found))[: image.shape[0], : image.shape[1]]  # a copy, which the caller may change


def of(experiment: Experiment, state: State, stage: str = "") -> TrainedNetwork:
  """The network of an experiment in some state."""
  config = experiment.config
  low = inference.low_outputs(experiment.predict)
  canvas = tuple(config.canvas)
  return TrainedNetwork(experiment.space, stage, canvas, low, state, experiment.maps, config.eval_batch, config.threads)


def load(path: epath.PathLike, stage: str = "", overrides: Sequence[str] = ()) -> TrainedNetwork:
  """A network that is ready to predict.

  Args:
    path: the workdir of a run that has finished a stage at least, or a file that `python -m jax_uda.export` wrote.
    stage: at whose end, of a run; empty: the last one finished.
    overrides: `field=value` of the config, each of `SETTABLE`.

  Raises:
    UserError: there is no such run, stage or file.
  """
  path = epath.Path(path)
  return _load_run(path, stage, overrides) if path.is_dir() else _load_file(path, stage, overrides)


def _load_run(workdir: epath.Path, stage: str, overrides: Sequence[str]) -> TrainedNetwork:
  experiment = reopen(*finished.read_config(workdir, overrides, SETTABLE), scored=False)
  name, place = finished.find_stage(workdir, stage)
  return of(experiment, finished.restore(workdir, experiment, place), name)


def _load_file(path: epath.Path, stage: str, overrides: Sequence[str]) -> TrainedNetwork:
  config = default.general()
  finished.check_settable(overrides, SETTABLE)
  set_fields(config, overrides)
  if path.suffix == ".safetensors":
    raise UserError(f"{path} holds weights alone; name a run's folder, or a .stablehlo file of jax_uda.export")
  if not path.exists():
    raise UserError(f"{path} is not there; name a run's folder, or a .stablehlo file of jax_uda.export")
  if stage:
    raise UserError(f"--stage: {path} holds one network; leave it out")
  try:
    function = jax_export.deserialize(bytearray(path.read_bytes()))
  except Exception as error:  # of many kinds, for files that are none
    raise UserError(f"{path} is damaged or no file of jax_uda.export ({type(error).__name__}); export it again") from error
  about = epath.Path(f"{path}.json")
  if not about.exists():
    raise UserError(f"{about} is not there, which says what the labels of {path} mean; export both again")
  meaning = files.read_json(about)
  try:
    space = LabelSpace(meaning["name"], tuple(meaning["classes"]), tuple(map(tuple, meaning["colors"])))
    size, canvas, name = meaning["size"] and tuple(meaning["size"]), tuple(meaning["canvas"]), meaning["stage"]
  except (KeyError, TypeError) as error:
    raise UserError(f"{about} is no description of a network ({error!r}); export it again") from error
  num_classes = function.out_avals[1].shape[-1]
  if num_classes != len(space.classes):
    raise UserError(f"{about} has {len(space.classes)} classes, the network in {path} {num_classes}; export it again")

  def low(_: Any, images: jax.Array, sizes: jax.Array) -> jax.Array:
    shape = images.shape[1:3]
    if size and shape != size:
      raise UserError(f"{path} sees {size[0]}x{size[1]} pixels, not {shape[0]}x{shape[1]}; export it without --size")
    return function.call(images, sizes)[1]

  nothing = parallel.replicate(np.float32(0))  # the file has the state; an empty one would put pmap's axes out of step
  return TrainedNetwork(space, name, size or canvas, low, nothing, None, config.eval_batch, config.threads)


def predictions(network: TrainedNetwork, dataset: Any, manner: Manner = WHOLE_ONCE) -> Iterator[Prediction]:
  """Predicts the images of a data set, in order."""
  return (_whole_images if manner.window is None else _windows)(network, dataset, manner)


def _whole_images(network: TrainedNetwork, dataset: Any, manner: Manner) -> Iterator[Prediction]:
  batch = network.batch * parallel.num_devices()
  passes = [
    pipeline.eval_batches(dataset, batch, shape, threads=network.threads, **parallel.process())
    for shape in (inference.scaled_canvas(network.canvas, scale) for scale in manner.scales)
  ]
  for batches in zip(*passes, strict=True):
    views = [inference.make_views(network.low, network.state, scaled, manner.flip) for scaled in batches]
    for i in np.flatnonzero(batches[0]["valid"]):
      mine = jax.tree.map(lambda x, i=i: x[i], views)
      yield _prediction(batches[0], i, functools.partial(inference.sum_of_views, mine))


def _windows(network: TrainedNetwork, dataset: Any, manner: Manner) -> Iterator[Prediction]:
  num = network.batch * parallel.num_devices()
  for batch in pipeline.eval_batches(dataset, 1, None, threads=network.threads, **parallel.process()):
    if not batch["valid"][0]:
      continue
    image = batch["image"][0]
    cut, boxes = inference.windows(image, manner.window)
    views = inference.window_views(network.low, network.state, cut, num, manner.flip)
    window = cut["image"].shape[1:3]
    scores = functools.partial(inference.scores_from_windows, views, boxes, window, image.shape[:2])
    yield _prediction(batch, 0, scores)


def _prediction(batch: dict[str, Any], i: int, scores: Callable) -> Prediction:
  size = tuple(map(int, batch["full_size"][i]))
  labels = functools.cache(lambda size: inference.most_likely(scores(size)))
  return Prediction(batch["id"][i], size, batch["full_image"][i], batch["full_label"][i], scores, labels)


def draw_maps(network: TrainedNetwork, batch: dict[str, Any]) -> dict[str, np.ndarray]:
  """What else the method draws of a batch of canvases, {what: float [B, H, W] in 0..1}; nothing for most."""
  if network.maps is None:
    return {}
  return _mapper(network.maps)(network.state, {name: batch[name] for name in ("image", "size")})


@functools.cache
def _mapper(maps: Callable) -> Callable:
  return parallel.per_example(lambda state, batch: maps(state, inference.prepare(batch["image"], batch["size"])))
