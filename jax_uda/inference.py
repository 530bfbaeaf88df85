"""Views → forward → assemble: one way to run a network over images, for labelling and for scoring.

A network's outputs are kept at its own stride as float16 log-probabilities (a sixty-fourth of the pixels; logarithms, since
softmax confidences pile up next to 1, where float16 has no room). Full resolution exists only on the device, one image at
a time, whenever something replays the kept outputs.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from jax_uda import parallel
from jax_uda.data.transforms import normalise
from jax_uda.models.segmenter import STRIDE
from jax_uda.state import Labelling, State

Batch = dict[str, Any]


def upsample(maps: jax.Array, size: tuple[int, int], scale: tuple[Any, Any] = (STRIDE, STRIDE)) -> jax.Array:
  """Bilinear upsampling with half-pixel centres: cell i of the input covers pixels [scale·i, scale·(i + 1)).

  Args:
    maps: [h, w, C] at the network's stride.
    size: (H, W) of the result; may be smaller than the input covers.
    scale: pixels of the result a cell, by axis.

  Returns:
    [H, W, C], float32.
  """
  shape = (*size, maps.shape[-1])
  factors = jnp.stack([jnp.asarray(s, jnp.float32) for s in scale])
  return jax.image.scale_and_translate(
    maps.astype(jnp.float32), shape, (0, 1), factors, jnp.zeros(2, jnp.float32), "linear", antialias=False
  )


def content_mask(size: jax.Array, canvas: tuple[int, int]) -> jax.Array:
  """Where a canvas [H, W] holds the image of that size [2] and not padding, bool."""
  return (jnp.arange(canvas[0])[:, None] < size[0]) & (jnp.arange(canvas[1])[None] < size[1])


def prepare(images: jax.Array, sizes: jax.Array) -> jax.Array:
  """Normalised float32 [B, H, W, 3] from uint8 canvases; padding becomes the mean colour, as in training."""
  mask = jax.vmap(content_mask, (0, None))(sizes, images.shape[1:3])
  return normalise(images) * mask[..., None]


def log_probabilities(logits: jax.Array) -> jax.Array:
  """float16 log-softmax over the last axis, finite."""
  return jnp.maximum(jax.nn.log_softmax(logits), jnp.finfo(jnp.float16).min).astype(jnp.float16)


class KeptOutputs:
  """Low-resolution outputs of `num` images: in memory up to `keep_gib`, beyond it in files that `close` deletes."""

  def __init__(self, num: int, keep_gib: float, spill: epath.PathLike):
    self._num, self._keep, self._spill = num, keep_gib * 2**30, epath.Path(spill)
    self._arrays: Any = None
    self._filled = 0

  def append(self, outputs: Any) -> None:
    """Adds a batch, a pytree of [n, …]."""
    if self._arrays is None:
      total = sum(x[0].nbytes for x in jax.tree.leaves(outputs)) * self._num
      allocate = self._in_memory if total <= self._keep else self._on_disk
      leaves, treedef = jax.tree.flatten(outputs)
      self._arrays = treedef.unflatten([allocate(i, (self._num, *x.shape[1:]), x.dtype) for i, x in enumerate(leaves)])
    for kept, new in zip(jax.tree.leaves(self._arrays), jax.tree.leaves(outputs), strict=True):
      kept[self._filled : self._filled + len(new)] = new
    self._filled += len(jax.tree.leaves(outputs)[0])

  def batches(self, batch: int) -> Iterator[tuple[Any, np.ndarray]]:
    """What was kept, in order, in full batches: (pytree of [batch, …], bool [batch]: False where an image is repeated)."""
    for start in range(0, self._filled, batch):
      rows = np.arange(start, start + batch)
      existing = np.minimum(rows, self._filled - 1)
      yield jax.tree.map(lambda x, rows=existing: x[rows], self._arrays), rows < self._filled

  def close(self) -> None:
    """Frees the memory and deletes the files."""
    self._arrays = None
    if self._spill.exists():
      self._spill.rmtree()

  def __enter__(self) -> "KeptOutputs":
    return self

  def __exit__(self, *_) -> None:
    self.close()

  def _in_memory(self, index: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    del index
    return np.empty(shape, dtype)

  def _on_disk(self, index: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    self._spill.mkdir(parents=True, exist_ok=True)
    return np.memmap(self._spill / f"{index}.bin", dtype, "w+", shape=shape)


def segment(
  labelling: Labelling, state: State, key: jax.Array, batches: Iterable[Batch], kept: KeptOutputs
) -> Iterator[int]:
  """Runs the network once over every image and keeps what it gives; yields how many images each batch added."""
  forward = _forward(labelling.views, labelling.forward)
  for batch in batches:
    outputs, boxes = forward((state, key), {name: batch[name] for name in ("image", "size", "index")})
    num = int(batch["valid"].sum())
    kept.append(jax.tree.map(lambda x, n=num: x[:n], {"outputs": outputs, "boxes": boxes, "size": batch["size"]}))
    yield num


def fold(
  labelling: Labelling,
  name: str,
  hyper: dict,
  found: dict,
  kept: KeptOutputs,
  canvas: tuple[int, int],
  watch: Callable[[int], None],
) -> Any:
  """The result of one fold over the scores of all kept outputs; `watch` is told how many images each batch added."""
  this = labelling.folds[name]
  run = _fold(labelling.assemble, this.init, this.update, canvas)

  def parts():
    for batch in _batches(labelling, kept):
      yield from run((hyper, found), batch)
      watch(int(batch["exists"].sum()))

  return this.finish(functools.reduce(this.merge, parts()))


def select(
  labelling: Labelling, hyper: dict, found: dict, kept: KeptOutputs, canvas: tuple[int, int]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """The labels that the labelling selects, image by image: uint8 [H, W] and bool [H, W], where scores existed."""
  run = _select(labelling.assemble, labelling.select, canvas)
  for batch in _batches(labelling, kept):
    every = zip(*run((hyper, found), batch), batch["size"], batch["exists"], strict=True)
    for labels, valid, (height, width), exists in every:
      if exists:
        yield labels[:height, :width], valid[:height, :width]


def _batches(labelling: Labelling, kept: KeptOutputs) -> Iterator[Batch]:
  for batch, exists in kept.batches(labelling.batch * parallel.num_devices()):
    yield {**batch, "exists": exists}


@functools.cache
def _forward(views: Callable, forward: Callable) -> Callable:
  def run(shared, batch):
    state, key = shared
    boxes = jax.vmap(views)(jax.vmap(jax.random.fold_in, (None, 0))(key, batch["index"]), batch["size"])
    return forward(state, prepare(batch["image"], batch["size"]), boxes), boxes

  return parallel.per_example(run)


@functools.cache
def _fold(assemble: Callable, init: Callable, update: Callable, canvas: tuple[int, int]) -> Callable:
  def run(shared, batch):
    hyper, found = shared

    def add(stat, one):
      scores, valid, extras = assemble(hyper, one["outputs"], one["boxes"], one["size"], canvas)
      return update(stat, found, scores, valid & one["exists"], extras), None

    return jax.lax.scan(add, init(), batch)[0]

  return parallel.per_device(run)


@functools.cache
def _select(assemble: Callable, select: Callable, canvas: tuple[int, int]) -> Callable:
  def run(shared, batch):
    hyper, found = shared

    def one(example):
      scores, valid, extras = assemble(hyper, example["outputs"], example["boxes"], example["size"], canvas)
      return select(found, scores, valid, extras), valid

    return jax.lax.map(one, batch)

  return parallel.per_example(run)


@functools.cache
def predictor(predict: Callable) -> Callable:
  """`(state, batch) -> float16 log-probabilities [B, h, w, C]` of the whole images of a batch of the pipeline."""

  def run(state, batch):
    return log_probabilities(predict(state, prepare(batch["image"], batch["size"])))

  mapped = parallel.per_example(run)
  return lambda state, batch: mapped(state, {name: batch[name] for name in ("image", "size")})


@functools.partial(jax.jit, static_argnames="shape")
def predicted_labels(low: jax.Array, size: jax.Array, shape: tuple[int, int]) -> jax.Array:
  """Train ids uint8 [H, W] at any resolution, from one image's low-resolution log-probabilities.

  Args:
    low: [h, w, C].
    size: [2], the pixels of the canvas that the image fills.
    shape: (H, W) wanted, the same field of view.
  """
  scale = tuple(STRIDE * n / size[axis] for axis, n in enumerate(shape))
  return jnp.argmax(upsample(jnp.exp(low.astype(jnp.float32)), shape, scale), axis=-1).astype(jnp.uint8)
