"""Views → forward → assemble: one way to run a network over images, for labelling and for scoring.

A network's outputs are kept at its own stride as float16 log-probabilities (a sixty-fourth of the pixels, or a sixteenth;
logarithms, since softmax confidences pile up next to 1, where float16 has no room). Full resolution exists only on the
device, one image at a time, whenever something replays the kept outputs.

Sources: the mean over patches is MLSL's (section 3.2), that over an image and its mirror image CBST's released code's;
several scales are CBST's multi-scale testing. That windows overlap by half is our choice.
"""

import functools
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from jax_uda import parallel, pseudo_labels
from jax_uda.data.transforms import normalise, pad
from jax_uda.errors import UserError
from jax_uda.models.segmenter import STRIDE
from jax_uda.state import Labelling, State

Batch = dict[str, Any]

KERNELS = ("linear", "cubic")
BLOCK = 64  # pixels: full resolution is computed in multiples of it, so that images of many sizes share few compilations


def stride(pixels: Sequence[int], cells: Sequence[int]) -> int:
  """How many pixels there are to a cell: the power of two by which a network's map is smaller than what it has seen.

  Raises:
    ValueError: there is none.
  """
  for power in range(8):
    if all(-(-n // 2**power) == m for n, m in zip(pixels, cells, strict=True)):
      return 2**power
  raise ValueError(f"{tuple(cells)} cells are no map of {tuple(pixels)} pixels")


def upsample(
  maps: jax.Array, size: tuple[int, int], scale: tuple[Any, Any] | None = None, kernel: str = "linear"
) -> jax.Array:
  """Upsampling with half-pixel centres: cell i of the input covers pixels [scale·i, scale·(i + 1)).

  Args:
    maps: [h, w, C].
    size: (H, W) of the result; may be smaller than the input covers.
    scale: pixels of the result a cell, by axis; None: `stride`, `size` being all that the network has seen.
    kernel: one of `KERNELS`, bilinear or bicubic, which may overshoot.

  Returns:
    [H, W, C], float32.
  """
  shape = (*size, maps.shape[-1])
  scale = (stride(size, maps.shape[:2]),) * 2 if scale is None else scale
  factors = jnp.stack([jnp.asarray(s, jnp.float32) for s in scale])
  return jax.image.scale_and_translate(
    maps.astype(jnp.float32), shape, (0, 1), factors, jnp.zeros(2, jnp.float32), kernel, antialias=False
  )


def content_mask(size: jax.Array, canvas: tuple[int, int]) -> jax.Array:
  """Where a canvas [H, W] holds the image of that size [2] and not padding, bool."""
  return (jnp.arange(canvas[0])[:, None] < size[0]) & (jnp.arange(canvas[1])[None] < size[1])


def prepare(images: jax.Array, sizes: jax.Array) -> jax.Array:
  """Normalised float32 [B, H, W, 3] from uint8 canvases; padding becomes the mean colour, as in training."""
  mask = jax.vmap(content_mask, (0, None))(sizes, images.shape[1:3])
  return normalise(images) * mask[..., None]


def log_probabilities(logits: jax.Array) -> jax.Array:
  """float16 log-softmax [..., C] of logits [..., C], finite."""
  return jnp.maximum(jax.nn.log_softmax(logits), jnp.finfo(jnp.float16).min).astype(jnp.float16)


class KeptOutputs:
  """Low-resolution outputs of `num` images: in memory up to `keep_gib`, beyond it in files that `close` deletes.

  The files take at most `spill_gib`, and lie in the folder `spill`.
  """

  def __init__(self, num: int, keep_gib: float, spill: epath.PathLike, spill_gib: float = math.inf):
    self._num, self._keep_gib, self._spill_gib, self._spill = num, keep_gib, spill_gib, epath.Path(spill)
    self._arrays: Any = None
    self._filled = 0

  def append(self, outputs: Any) -> None:
    """Adds a batch, a pytree of [n, …]; raises `UserError` where there is no room for all of them."""
    if self._arrays is None:
      leaves, treedef = jax.tree.flatten(outputs)
      gib = sum(math.prod(x.shape[1:]) * x.dtype.itemsize for x in leaves) * self._num / 2**30
      if gib > self._keep_gib:
        self._make_room(gib)
      allocate = self._in_memory if gib <= self._keep_gib else self._on_disk
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

  def row(self, place: int) -> Any:
    """What was kept of one image, by its place in order."""
    return jax.tree.map(lambda x: x[place], self._arrays)

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

  def _make_room(self, gib: float) -> None:
    """An empty folder on a disk with room; a file that outgrew its disk later would kill the process, with no word."""
    needed = f"the network's outputs for {self._num} images take {gib:.2f} GiB"
    advice = "raise config.labels.keep_gib (memory), or turn down config.canvas or, in MLSL, config.sisc.patches"
    if gib > self._spill_gib:
      limits = f"config.labels.keep_gib={self._keep_gib:g} and config.labels.spill_gib={self._spill_gib:g}"
      raise UserError(f"{needed}, more than {limits} allow; raise the latter (disk), {advice}")
    if "://" in str(self._spill):
      raise UserError(f"{needed}, and {self._spill} is not on a local disk; {advice}, or name a local --workdir")
    self.close()  # of a process that was killed on the way
    self._spill.mkdir(parents=True)
    free = shutil.disk_usage(self._spill).free / 2**30
    if gib > free:
      raise UserError(f"{needed}, and {self._spill} has room for {free:.2f}; make room there, {advice}")

  def _on_disk(self, index: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    return np.memmap(self._spill / f"{index}.bin", dtype, "w+", shape=shape)


def segment(
  labelling: Labelling, state: State, key: jax.Array, batches: Iterable[Batch], kept: KeptOutputs
) -> Iterator[int]:
  """Runs the network once over every image and keeps what it gives; yields how many images each batch added."""
  forward = _forward(labelling.views, labelling.forward)
  for batch in batches:
    outputs, boxes = forward((state, key), {name: batch[name] for name in ("image", "size", "index")})
    rows = np.flatnonzero(batch["valid"])
    kept.append(jax.tree.map(lambda x, rows=rows: x[rows], {"outputs": outputs, "boxes": boxes, "size": batch["size"]}))
    yield len(rows)


def fold(
  labelling: Labelling,
  name: str,
  hyper: dict,
  found: dict,
  kept: KeptOutputs,
  canvas: tuple[int, int],
  watch: Callable[[int], None],
) -> Any:
  """The result of one fold over the scores that all processes kept; `watch` is told how many images each batch added."""
  this = labelling.folds[name]
  run = _fold(labelling.assemble, this.init, this.update, canvas)

  def parts():
    for batch in _batches(labelling, kept):
      yield from run((hyper, found), batch)
      watch(int(batch["exists"].sum()))

  # From a statistic of nothing: a process may have no image.
  here = functools.reduce(this.merge, parts(), jax.device_get(this.init()))
  return this.finish(functools.reduce(this.merge, parallel.gather(here)))


def select(
  labelling: Labelling, hyper: dict, found: dict, kept: KeptOutputs, canvas: tuple[int, int]
) -> Iterator[tuple[np.ndarray, np.ndarray, float, list[np.ndarray]]]:
  """What the labelling selects, image by image: labels uint8 [H, W]; bool [H, W], where it had scores; its ease; others."""
  run = _select(labelling.assemble, labelling.select, labelling.ease, tuple(labelling.others.values()), canvas)
  for batch in _batches(labelling, kept):
    *every, others = run((hyper, found), batch)
    for i in np.flatnonzero(batch["exists"]):
      inside = tuple(map(slice, batch["size"][i]))
      labels, valid, ease = (x[i] for x in every)
      yield labels[inside], valid[inside], float(ease), [x[i][inside] for x in others]


def drawn(
  labelling: Labelling, hyper: dict, found: dict, kept: KeptOutputs, canvas: tuple[int, int], rows: Iterable[int]
) -> list[dict[str, np.ndarray]]:
  """`labelling.maps`, float [H, W], and its `others`, uint8 [H, W], of some of the images kept, cut to their size.

  Returns:
    For each place of `rows` in `kept`, in order, these arrays by name.
  """
  run = _drawn(labelling.assemble, (*labelling.maps.items(), *labelling.others.items()), canvas)
  result = []
  for row in rows:
    one = kept.row(row)
    maps = run(hyper, found, one)
    result.append({name: np.asarray(x)[: one["size"][0], : one["size"][1]] for name, x in maps.items()})
  return result


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
def _select(
  assemble: Callable, select: Callable, ease: Callable | None, others: tuple[Callable, ...], canvas: tuple[int, int]
) -> Callable:
  def run(shared, batch):
    hyper, found = shared

    def one(example):
      seen = assemble(hyper, example["outputs"], example["boxes"], example["size"], canvas)
      how_easy = jnp.float32(0) if ease is None else ease(found, *seen)
      return select(found, *seen), seen[1], how_easy, [other(found, *seen) for other in others]

    return jax.lax.map(one, batch)

  return parallel.per_example(run)


@functools.cache
def _drawn(assemble: Callable, pictures: tuple[tuple[str, Callable], ...], canvas: tuple[int, int]) -> Callable:
  def run(hyper, found, one):
    seen = assemble(hyper, one["outputs"], one["boxes"], one["size"], canvas)
    return {what: picture(found, *seen) for what, picture in pictures}

  return jax.jit(run)


@functools.cache
def low_outputs(predict: Callable) -> Callable:
  """(state, images uint8 [B, H, W, 3], sizes int32 [B, 2]) -> float16 log-probabilities [B, h, w, C].

  Args:
    predict: a method's, (state, normalised images) -> logits; what is made of it is made once, so that it compiles once.
  """
  return lambda state, images, sizes: log_probabilities(predict(state, prepare(images, sizes)))


@functools.cache
def _looker(low: Callable, mirrored: bool) -> Callable:
  def run(state, batch):
    images, sizes = batch["image"], batch["size"]
    return low(state, jax.vmap(mirror)(images, sizes[:, 1]) if mirrored else images, sizes)

  mapped = parallel.per_example(run)
  return lambda state, batch: mapped(state, {name: batch[name] for name in ("image", "size")})


# Full resolution


def scaled_canvas(canvas: tuple[int, int], scale: float) -> tuple[int, int]:
  """The canvas at a scale, in multiples of a network's largest stride; at scale 1 as it is."""
  return canvas if scale == 1 else tuple(max(STRIDE, STRIDE * round(n * scale / STRIDE)) for n in canvas)


def scaled(images: jax.Array, scale: float) -> jax.Array:
  """Canvases [B, H, W, 3] resized to `scaled_canvas`."""
  shape = (len(images), *scaled_canvas(images.shape[1:3], scale), 3)
  return images if scale == 1 else jax.image.resize(images, shape, "linear")


def parse_scales(text: str, field: str) -> tuple[float, ...]:
  """Scales out of `0.5,0.75,1.0`; raises `UserError`, which names the field, for anything else."""
  try:
    scales = tuple(float(part) for part in text.split(","))
  except ValueError:
    scales = ()
  if not scales or not all(math.isfinite(scale) and scale > 0 for scale in scales):
    raise UserError(f"{field}: {text!r} will not do; write numbers above 0 with commas between, as 0.5,0.75,1.0")
  return scales


def rounded_up(size: tuple[int, int]) -> tuple[int, int]:
  """The shape in which an image of that size is computed: the next multiples of `BLOCK`."""
  return tuple(-(-int(n) // BLOCK) * BLOCK for n in size)


def mirror(canvas: jax.Array, width: jax.Array) -> jax.Array:
  """A canvas [H, W, …] with its content, the first `width` columns, mirrored left to right where it is."""
  return canvas[:, (width - 1 - jnp.arange(canvas.shape[1])) % canvas.shape[1]]


def make_views(low: Callable, state: Any, batch: Batch, flip: bool) -> Batch:
  """What the network says of a batch of canvases, by what `low_outputs` gives: pytree [B, …] of views.

  A view is {"low" float16 [h, w, C], "stride" [], "size" [2], the pixels of the canvas that are image}; with `flip` also
  "mirrored", what `low` is, of the mirror image.
  """
  seen = _looker(low, False)(state, batch)
  pixels = np.full(len(seen), stride(batch["image"].shape[1:3], seen.shape[1:3]), np.int32)
  found = {"low": seen, "stride": pixels, "size": batch["size"]}
  return {**found, "mirrored": _looker(low, True)(state, batch)} if flip else found


def look(
  predict: Callable, state: State, images: jax.Array, sizes: jax.Array, *, scales: tuple[float, ...], flip: bool
) -> list[Batch]:
  """What the network says of whole images at several scales: {"low"}, with `flip` also {"mirrored"}, [B, h, w, C] each.

  Args:
    images: float32 [B, H, W, 3], normalised canvases.
    sizes: [B, 2], the pixels of the canvas that are image.
    scales: of the canvas, which is resized on the device.
    flip: whether to look at the mirror images, too.
  """
  seen = {"low": images}
  if flip:
    seen["mirrored"] = jax.vmap(mirror)(images, sizes[:, 1])

  def low(looked_at, scale):
    return log_probabilities(predict(state, scaled(looked_at, scale)))

  return [{name: low(looked_at, scale) for name, looked_at in seen.items()} for scale in scales]


def mean_of_looks(
  looks: Sequence[Batch], size: jax.Array, canvas: tuple[int, int], scales: tuple[float, ...], kernel: str = "linear"
) -> jax.Array:
  """Softmax of one image [H, W, C] on its canvas, averaged over what `look` gives of it at the same scales."""

  def probabilities(one, scale):
    seen = scaled_canvas(canvas, scale)
    view = {**one, "stride": stride(seen, one["low"].shape[:2]), "size": size * np.divide(seen, canvas, dtype=np.float32)}
    return view_probabilities(view, size, canvas, kernel)

  return sum(probabilities(one, scale) for one, scale in zip(looks, scales, strict=True)) / len(looks)


def view_probabilities(view: Batch, size: jax.Array, shape: tuple[int, int], kernel: str = "linear") -> jax.Array:
  """Softmax of one view at any resolution, float32 [H, W, C]; averaged with its mirror image's where there is one.

  Args:
    size: [2] wanted, the same field of view; may be traced.
    shape: (H, W) of the result, no smaller; what lies beyond `size` means nothing.
    kernel: see `upsample`.
  """
  scale = tuple(view["stride"] * size[axis] / view["size"][axis] for axis in range(2))
  straight = upsample(jnp.exp(view["low"].astype(jnp.float32)), shape, scale, kernel)
  if "mirrored" not in view:
    return straight
  back = mirror(upsample(jnp.exp(view["mirrored"].astype(jnp.float32)), shape, scale, kernel), size[1])
  return (straight + back) / 2


def sum_of_views(views: Sequence[Batch], size: tuple[int, int]) -> jax.Array:
  """The softmax of several views of one image, added up at any `size` = (H, W): float32 [*rounded_up(size), C].

  View by view, so that memory does not grow with their number; an image and its mirror image first, so that the sum is
  exactly mirrored if the image is.
  """
  total = None
  for view in views:
    total = _add_view(total, view, np.int32(size), shape=rounded_up(size))
  return total


@functools.partial(jax.jit, static_argnames="shape", donate_argnums=0)
def _add_view(total, view, size, *, shape):
  probabilities = view_probabilities(view, size, shape)
  return probabilities if total is None else total + probabilities


def mean_of_patches(
  outputs: Any, boxes: jax.Array, canvas: tuple[int, int], probabilities: Callable, whole: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
  """The mean over the patches that see a pixel.

  Args:
    outputs: pytree of [K, …, C].
    boxes: [K, 2], where the patches begin.
    probabilities: one patch's outputs -> [h, w, C].
    whole: [H, W, C], counted like a patch that sees every pixel.

  Returns:
    Scores [H, W, C], 0 where no patch lies; where one does, bool [H, W].
  """

  def add(sums, one):
    output, box = one
    return pseudo_labels.add_patch(*sums, probabilities(output), box[0], box[1]), None

  num_classes = jax.eval_shape(probabilities, jax.tree.map(lambda x: x[0], outputs)).shape[-1]
  none = jnp.zeros((*canvas, num_classes)), jnp.zeros(canvas)
  sums, _ = jax.lax.scan(add, none if whole is None else (whole, jnp.ones(canvas)), (outputs, boxes))
  return pseudo_labels.normalise(*sums)


def predicted_labels(view: Batch, shape: tuple[int, int]) -> np.ndarray:
  """Train ids uint8 [H, W] at any resolution, from one image's view; `shape` = (H, W) has the same field of view."""
  return np.asarray(most_likely(sum_of_views([view], shape)))[: shape[0], : shape[1]]


@jax.jit
def probabilities(scores: jax.Array) -> jax.Array:
  """The mean softmax [..., C], from what is in proportion to it; 0 where that is 0."""
  return scores / jnp.maximum(scores.sum(-1, keepdims=True), jnp.finfo(jnp.float32).tiny)


@jax.jit
def most_likely(scores: jax.Array) -> jax.Array:
  """The class of the highest score, uint8: of [..., C] gives [...]."""
  return jnp.argmax(scores, axis=-1).astype(jnp.uint8)


def windows(image: np.ndarray, window: tuple[int, int]) -> tuple[Batch, np.ndarray]:
  """Cuts an image into windows that overlap by half, the last ones flush with its borders.

  Args:
    image: uint8 [H, W, 3].
    window: (h, w); what the image has no room for is clipped, or padded where it is smaller by less than `BLOCK`.

  Returns:
    {"image" uint8 [K, h, w, 3], "size" int32 [K, 2]}; where the windows begin, int32 [K, 2].
  """
  size = image.shape[:2]
  window = tuple(min(n, most) for n, most in zip(window, rounded_up(size), strict=True))
  tops, lefts = (
    [*range(0, max(n - extent, 0), max(extent // 2, 1)), max(n - extent, 0)]
    for n, extent in zip(size, window, strict=True)
  )
  boxes = np.array([(top, left) for top in tops for left in lefts], np.int32)
  cut = [pad(image[top : top + window[0], left : left + window[1]], None, window) for top, left in boxes]
  return {name: np.stack([one[name] for one in cut]) for name in ("image", "size")}, boxes


def window_views(low: Callable, state: Any, cut: Batch, batch: int, flip: bool) -> Batch:
  """`make_views` of all windows of an image, so many at a time."""
  num = len(cut["image"])
  rows = [np.minimum(np.arange(start, start + batch), num - 1) for start in range(0, num, batch)]
  parts = [make_views(low, state, jax.tree.map(lambda x, rows=some: x[rows], cut), flip) for some in rows]
  return jax.tree.map(lambda *x: np.concatenate(x)[:num], *parts)


def scores_from_windows(
  views: Batch, boxes: np.ndarray, window: tuple[int, int], image: tuple[int, int], size: tuple[int, int]
) -> jax.Array:
  """Mean softmax of one image's windows; otherwise as `sum_of_views`.

  Args:
    views: [K, …].
    boxes: [K, 2], where the windows begin.
    window: (h, w) of each.
    image: (H, W) of the image that they were cut from.
    size: (H, W) wanted, the same field of view.
  """
  zoom = None if image == size else np.float32(size) / np.float32(image)
  return _scores_from_windows(views, boxes, zoom, window=window, canvas=rounded_up(image), shape=rounded_up(size))


@functools.partial(jax.jit, static_argnames=("window", "canvas", "shape"))
def _scores_from_windows(views, boxes, zoom, *, window, canvas, shape):
  scores, _ = mean_of_patches(views, boxes, canvas, lambda view: view_probabilities(view, view["size"], window))
  return scores if zoom is None else upsample(scores, shape, zoom)
