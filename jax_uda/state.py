"""The contract between a method and the run: what a method hands over, as plain data.

A method is a module in `jax_uda/methods` with

    label_statistics(config) -> {name: Fold}     passes over the source labels (or none); results land in `State.hyper`
    init(config, key) -> State
    predict(config) -> (state, images float32 [B, H, W, 3]) -> logits float32 [B, h, w, C], each a cell of s × s
                                                 pixels, s a power of two
    stages(config, sizes) -> Sequence[Stage]     sizes: number of images by data set
    maps(config) -> (state, normalised images float32 [B, H, W, 3]) -> {what: float [B, H, W] in 0..1}
                                                 what else to draw of images; a method may leave it out

and the run walks its stages: label the target if the stage says so, `begin`, train, score. Data sets are called
`source`, `target` (carrying the current pseudo-labels, where the stage makes some: of the images that it trains on),
`target_images` (all of them, without labels), `target_truth` (carrying the true ones) and `test`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flax import struct
from jax import Array

# Train steps run under this mapped axis: what is summed over examples has to be summed over it too.
DEVICE_AXIS = "devices"


@struct.dataclass
class Network:
  """One player (segmenter, classifier, discriminator …): its variables and its optimizer's state."""

  params: Any
  batch_stats: Any
  opt_state: Any

  @property
  def variables(self) -> dict[str, Any]:
    """What a Flax module is applied with."""
    return {"params": self.params, "batch_stats": self.batch_stats}


@struct.dataclass
class State:
  """All that a checkpoint holds.

  Attributes:
    step: steps done in this stage, int32 [].
    networks: the players by name.
    hyper: numbers that a stage sets and its steps read (learning rate, class sizes …). They are traced, so that
      another round does not compile again.
  """

  step: Array
  networks: dict[str, Network]
  hyper: dict[str, Array]


@dataclass(frozen=True)
class Stream:
  """Data sets concatenated and shuffled endlessly; `subset` holds indices into the concatenation, None all of it."""

  datasets: tuple[str, ...]
  batch: int
  subset: tuple[int, ...] | None = None


@dataclass(frozen=True)
class TrainStep:
  """One kind of step.

  `apply(state, {stream: batch}, key) -> (state, {name: (sum, count)})` is pure and runs under `DEVICE_AXIS`. `key` is the
  same at every step of a stage: examples are told apart by their draw number. Sums may be numbers or, with as many counts,
  one by class.
  """

  streams: tuple[str, ...]
  apply: Callable


@dataclass(frozen=True)
class Fold:
  """A statistic that adds up over images, chunks, devices and processes.

  Over label maps: `update(stat, label [H, W], size [2])`, a canvas and the part of it that is image. Over a labelling's
  scores: `update(stat, found, scores [H, W, C], valid [H, W], extras)`; `found` holds the results of the folds before.
  """

  init: Callable  # () -> stat
  update: Callable
  merge: Callable  # (stat, stat) -> stat, on the host
  finish: Callable  # stat -> result


@dataclass(frozen=True)
class Labelling:
  """How a stage labels the target: the network runs once per image, everything after that replays its kept outputs.

  Attributes:
    views: (key, size [2]) -> boxes: where the network looks; any pytree of arrays.
    forward: (state, normalised images float32 [B, H, W, 3], boxes) -> low-resolution outputs, a pytree of [B, …].
    assemble: (hyper, outputs, boxes, size, (H, W)) of one image -> scores [H, W, C], valid [H, W], extras.
    folds: by name, in order.
    select: (found, scores, valid, extras) -> labels uint8 [H, W].
    numbers: found -> {name: values by class}, what a person may want to read (thresholds); kept beside the labels.
    batch: images a device takes at once.
    lines: (found, class names) -> what to print of it.
    hyper: found -> {name: array}, put in `State.hyper` before the stage begins; names that are there from the start.
    num: target images that the stage trains on, those of the greatest ease; repeated where fewer could be read.
    ease: (found, scores, valid, extras) -> float []; None where it trains on all.
    others: what -> as `select`, for comparison: labels that nothing trains on, counted, scored and drawn beside these.
    maps: what -> (found, scores, valid, extras) -> float [H, W] in 0..1, drawn of a few images beside their labels.
  """

  views: Callable
  forward: Callable
  assemble: Callable
  folds: dict[str, Fold]
  select: Callable
  numbers: Callable
  batch: int
  num: int
  lines: Callable = lambda found, classes: ()
  hyper: Callable = lambda found: {}
  ease: Callable | None = None
  others: Mapping[str, Callable] = field(default_factory=dict)
  maps: Mapping[str, Callable] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
  """One stage of a method.

  Attributes:
    begin: (state, key) -> state: new optimizer, hyper, or a fresh start.
    pick: step number -> name in `steps`; pure, so that resuming needs no memory.
    labelling: run before `begin`, on the state that the stage before left.
    warnings: (the lines of metrics.jsonl so far) -> what to tell the user; each line is printed once.
  """

  name: str
  num_steps: int
  streams: dict[str, Stream]
  steps: dict[str, TrainStep]
  begin: Callable
  pick: Callable[[int], str]
  labelling: Labelling | None = None
  warnings: Callable = lambda records: ()
