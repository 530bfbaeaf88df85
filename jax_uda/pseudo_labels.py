"""From scores to pseudo-labels: class-wise thresholds, selection, and the sum over patches.

Symbols: p = probability (or a score weighted by a spatial prior, which may exceed 1); conf = its maximum over the
classes; a class's *pool* = conf at the pixels predicted as that class; k = a rank counted from the largest, from 1.
Axes: H, W = pixels, C = classes, h, w = a patch's pixels. A pixel whose scores are all zero (no patch covers it) or NaN
is in no pool and is never selected.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array, lax
from jax.typing import ArrayLike

# Confidences are binned by their float32 bits, never by a logarithm, so every backend puts a value in the same bin. An
# octave has 1024 bins: octaves of p itself below 0.5 and above 1, of 1 - p in between, because softmax confidences pile
# up next to 1. There 1 - p is exact, a whole number ("gap") of steps of 2^-24; gaps below 1024 have a bin each, and so
# has p = 1, gap 0.
_SHIFT = 13  # drops all but ten of the mantissa's 23 bits
_SMALLEST, _LARGEST = 2.0**-24, 2.0**12  # what lies outside falls in the first and the last bin
_STEPS = 2.0**24

RANKS = ("paper", "code")  # 1-based, descending: round-half-up(portion·N), floor(portion·N)


def _prefix(value: float) -> int:
  return int(np.float32(value).view(np.int32)) >> _SHIFT


_HALF = 1 + _prefix(0.5) - _prefix(_SMALLEST)  # bin of p = 0.5
_ONE = _HALF + 1024 + _prefix(_STEPS / 2) - _prefix(1024)  # bin of p = 1
NUM_BINS = _ONE + 1 + _prefix(_LARGEST) - _prefix(1)


@jax.jit
def confidence_bins(confidences: ArrayLike) -> Array:
  """Bin of each confidence, int32 [...] in 0..NUM_BINS-1: monotone, exact, fine near 0 and near 1 (see above)."""

  def prefix(x):
    return lax.bitcast_convert_type(x, jnp.int32) >> _SHIFT

  p = jnp.asarray(confidences, jnp.float32)
  gap = (1 - jnp.clip(p, 0.5, 1)) * jnp.float32(_STEPS)
  below = prefix(jnp.clip(p, _SMALLEST / 2, 0.5)) - _prefix(_SMALLEST) + 1
  between = _ONE - jnp.where(gap < 1024, gap.astype(jnp.int32), prefix(gap) - _prefix(1024) + 1024)
  above = _ONE + 1 + prefix(jnp.clip(p, 1, _LARGEST)) - _prefix(1)
  return jnp.where(p < 0.5, jnp.maximum(below, 0), jnp.where(p <= 1, between, jnp.minimum(above, NUM_BINS - 1)))


def _edges() -> tuple[np.ndarray, np.ndarray]:
  def floats(start, stop):  # the first float of each prefix
    return (np.arange(_prefix(start), _prefix(stop), dtype=np.int32) << _SHIFT).view(np.float32)

  gaps = np.concatenate([np.arange(1024), floats(1024, _STEPS / 2), [_STEPS / 2]])  # the first gap of each bin
  widest = np.append(gaps[1:] - 1, _STEPS / 2)
  above = floats(1, _LARGEST)
  above[0] = np.nextafter(np.float32(1), np.float32(2))
  lower = np.concatenate([[0], floats(_SMALLEST, 0.5), 1 - widest[::-1] / _STEPS, above]).astype(np.float32)
  upper = np.append(np.nextafter(lower[1:], np.float32(-np.inf)), np.finfo(np.float32).max)
  return lower, upper


# The smallest and the largest float32 of each bin, [NUM_BINS].
BIN_LOWER, BIN_UPPER = _edges()


@struct.dataclass
class Histogram:
  """The pools of a set of images, in memory that does not grow with it; additive over images, devices and hosts."""

  counts: Array  # [C, NUM_BINS] pixels; int32 on the device, int64 once merged on the host
  maximum: Array  # [C] largest confidence of the pool, 0 where it is empty


def init_histogram(num_classes: int) -> Histogram:
  """Histogram of empty pools: int32 counts [C, NUM_BINS] and float32 maxima [C]."""
  return Histogram(jnp.zeros((num_classes, NUM_BINS), jnp.int32), jnp.zeros(num_classes, jnp.float32))


def _pool(probabilities: Array, mask: Array | None) -> tuple[Array, Array, Array]:
  """(predicted class, confidence, in a pool?), each [..., H, W]; argmax and maximum in float32."""
  p = probabilities.astype(jnp.float32)
  predicted, confidence = p.argmax(-1), p.max(-1)
  # The smallest normal number and not 0: some backends read smaller ones as 0.
  pooled = confidence >= jnp.finfo(jnp.float32).tiny
  return predicted, confidence, pooled if mask is None else pooled & mask


def _counted(counts: Array, pools: Array, values: Array, mask: Array) -> Array:
  """`counts` [P, NUM_BINS] with `values` [...] added to the bins of their `pools` [...] where `mask` [...] is true."""
  index = jnp.where(mask, pools * NUM_BINS + confidence_bins(values), counts.size)
  return counts.reshape(-1).at[index.reshape(-1)].add(1, mode="drop").reshape(counts.shape)


@jax.jit
def _update(histogram: Histogram, probabilities: Array, mask: Array | None) -> Histogram:
  num_classes = histogram.counts.shape[0]
  predicted, confidence, pooled = _pool(probabilities, mask)
  counts = _counted(histogram.counts, predicted, confidence, pooled)

  def class_by_class(pools, values):
    return jnp.where(pools[..., None] == jnp.arange(num_classes), values[..., None], 0).max(range(pools.ndim))

  def by_index(pools, values):  # a CPU would look at all pixels again for every class
    return jnp.zeros(num_classes).at[pools.reshape(-1)].max(values.reshape(-1), mode="drop")

  pools = jnp.where(pooled, predicted, num_classes)
  maximum = lax.platform_dependent(pools, confidence, cpu=by_index, default=class_by_class)
  return Histogram(counts, jnp.maximum(histogram.maximum, maximum))


def update_histogram(histogram: Histogram, probabilities: ArrayLike, mask: ArrayLike | None = None) -> Histogram:
  """Histogram with the pixels of `probabilities` [..., H, W, C] added; those where `mask` [..., H, W] is false are not.

  Runs inside jit as well. Device counts are int32: start anew and merge on the host before 2^31 pixels are in.
  Raises TypeError for a merged histogram, whose int64 counts the device would truncate.
  """
  if histogram.counts.dtype != np.int32:
    raise TypeError("update_histogram goes on from init_histogram; merge the result into the int64 counts instead")
  return _update(histogram, jnp.asarray(probabilities), None if mask is None else jnp.asarray(mask, bool))


def merge_histograms(a: Histogram, b: Histogram) -> Histogram:
  """The histogram of both sets of images, on the host: NumPy int64 counts (2975 images overflow int32), maxima."""
  return Histogram(np.add(a.counts, b.counts, dtype=np.int64), np.maximum(a.maximum, b.maximum))


def _ranks(sizes: np.ndarray, portion: float, rank: str) -> np.ndarray:
  """Rank of each pool's threshold, 0 = select nothing; float64 on the host, for accelerators only emulate it."""
  portion = float(portion)
  if not 0 <= portion <= 1:
    raise ValueError(f"portion is {portion}; it must lie in 0..1")
  if rank not in RANKS:
    raise ValueError(f"rank is {rank!r}; it must be 'paper' (rounds p·N) or 'code' (rounds it down)")
  return np.floor(portion * sizes.astype(np.float64) + (0.5 if rank == "paper" else 0)).astype(np.int64)


@jax.jit
def _values_at_ranks(counts: Array, maximum: Array, ranks: Array) -> Array:
  """Threshold [C] at rank k of each pool; traced with 64-bit types on."""
  reached = jnp.cumsum(counts.astype(jnp.int64)[:, ::-1], axis=1)[:, ::-1]  # pixels in this bin and those above
  found = (reached >= ranks[:, None]).sum(1) - 1
  in_bin = jnp.take_along_axis(counts, found[:, None], 1)[:, 0]
  left = jnp.take_along_axis(reached, found[:, None], 1)[:, 0] - ranks  # pixels of the bin that rank below k
  lower, upper = jnp.asarray(BIN_LOWER)[found], jnp.minimum(jnp.asarray(BIN_UPPER)[found], maximum)
  span = upper.astype(jnp.float64) - lower.astype(jnp.float64)
  # Linear within the bin; the pool's largest value, rank 1, comes out exact.
  values = (lower + span * (left + 1) / jnp.maximum(in_bin, 1)).astype(jnp.float32)
  # A threshold equal to the pool's maximum would select nothing at all.
  values = jnp.minimum(values, jnp.nextafter(maximum, jnp.float32(-jnp.inf)))
  return jnp.where(ranks > 0, values, jnp.float32(jnp.inf))


def _thresholds(counts: np.ndarray, maximum: np.ndarray, portion: float, rank: str) -> Array:
  ranks = _ranks(counts.sum(1, dtype=np.int64), portion, rank)
  with jax.enable_x64(True):
    return _values_at_ranks(counts, np.asarray(maximum, np.float32), ranks)


def class_balanced_thresholds(histogram: Histogram, portion: float, rank: str = "paper") -> Array:
  """Threshold exp(-k_c) of each class, float32 [C]: the confidence at rank round(portion·N_c) of its own pool.

  Lies in the same bin as `exact_class_balanced_thresholds`, always. Where that value is the pool's maximum it is the
  next smaller float, so that `select`'s strict comparison keeps the pixel; +inf where the rank is 0 or the pool empty.
  The ranks are found on the host, so this is no part of a larger jit; counts may be int64.
  Raises ValueError for a portion outside 0..1 or a rank other than 'paper' and 'code' (p·N rounded down).
  Source: CBST, Algorithm 2; its released code for 'code'.
  """
  return _thresholds(np.asarray(histogram.counts), np.asarray(histogram.maximum), portion, rank)


def global_threshold(histogram: Histogram, portion: float, rank: str = "paper") -> Array:
  """One threshold from the pool of all classes together, C times: float32 [C]; otherwise as class_balanced_thresholds.

  Source: CBST, Algorithm 1.
  """
  counts = np.asarray(histogram.counts).sum(0, dtype=np.int64, keepdims=True)
  threshold = _thresholds(counts, np.max(histogram.maximum, keepdims=True), portion, rank)
  return jnp.broadcast_to(threshold, histogram.maximum.shape)


def _exact_thresholds(pools: np.ndarray, confidences: np.ndarray, num_pools: int, portion: float, rank: str):
  order = np.lexsort((-confidences, pools))
  confidences = confidences[order]
  sizes = np.bincount(pools, minlength=num_pools)
  ranks = _ranks(sizes, portion, rank)
  thresholds = np.full(num_pools, np.inf, np.float32)
  some = ranks > 0
  first = (np.cumsum(sizes) - sizes)[some]
  values, maxima = confidences[first + ranks[some] - 1], confidences[first]
  thresholds[some] = np.where(values == maxima, np.nextafter(maxima, np.float32(-np.inf)), values)
  return thresholds


def _exact_pool(probabilities: ArrayLike, mask: ArrayLike | None) -> tuple[np.ndarray, np.ndarray]:
  mask = None if mask is None else jnp.asarray(mask, bool)
  predicted, confidence, pooled = map(np.asarray, _pool(jnp.asarray(probabilities), mask))
  return predicted[pooled], confidence[pooled]


def exact_class_balanced_thresholds(
  probabilities: ArrayLike, portion: float, rank: str = "paper", mask: ArrayLike | None = None
) -> np.ndarray:
  """What `class_balanced_thresholds` stands for, by sorting all confidences of `probabilities` [..., H, W, C]."""
  return _exact_thresholds(*_exact_pool(probabilities, mask), np.shape(probabilities)[-1], portion, rank)


def exact_global_threshold(
  probabilities: ArrayLike, portion: float, rank: str = "paper", mask: ArrayLike | None = None
) -> np.ndarray:
  """What `global_threshold` stands for, by sorting all confidences of `probabilities` [..., H, W, C]."""
  predicted, confidences = _exact_pool(probabilities, mask)
  threshold = _exact_thresholds(np.zeros_like(predicted), confidences, 1, portion, rank)
  return np.repeat(threshold, np.shape(probabilities)[-1])


@jax.jit
def select(probabilities: Array, thresholds: Array, ignore_label: int = 255, mask: Array | None = None) -> Array:
  """Pseudo-labels uint8 [..., H, W]: c* = argmax p/t of `probabilities` [..., H, W, C], kept where p(c*) > t(c*).

  `thresholds` is [C]; +inf selects nothing of that class. All other pixels, and those where `mask` [..., H, W] is
  false, get `ignore_label`. Source: CBST, eqs. 5 and 8.
  """
  p = probabilities.astype(jnp.float32)
  # If any class exceeds its threshold, so does the argmax of p/t. Comparing p with t spares the ratio's rounding.
  over = p > thresholds
  ratios = jnp.where(over, p / thresholds, 0)
  labels = jnp.where(over, jnp.arange(p.shape[-1], dtype=jnp.int32), ignore_label)

  def larger(a, b):  # of (ratio, label); the first of equals
    take = (a[0] > b[0]) | ((a[0] == b[0]) & (a[1] < b[1]))
    return tuple(jnp.where(take, x, y) for x, y in zip(a, b, strict=True))

  # One pass over the classes, where any() and argmax() would be several.
  nothing = jnp.float32(0), jnp.asarray(ignore_label, jnp.int32)
  _, labels = lax.reduce((ratios, labels), nothing, larger, (p.ndim - 1,))
  return jnp.where(True if mask is None else mask, labels, ignore_label).astype(jnp.uint8)


# What discriminators say of a target set: outputs in 0..1 [..., D], of D of them, that differ in scale.

SCALES = ("min_max", "rank")


@struct.dataclass
class Verdicts:
  """How each discriminator's outputs are spread; additive over images, devices and hosts."""

  counts: Array  # [D, NUM_BINS] pixels; int32 on the device, int64 once merged on the host
  smallest: Array  # [D], inf where there is none
  largest: Array  # [D]


def init_verdicts(num: int) -> Verdicts:
  """Of `num` discriminators, and no pixel."""
  return Verdicts(jnp.zeros((num, NUM_BINS), jnp.int32), jnp.full(num, jnp.inf), jnp.full(num, -jnp.inf))


@jax.jit
def update_verdicts(verdicts: Verdicts, outputs: ArrayLike, mask: ArrayLike) -> Verdicts:
  """With the pixels of `outputs` [..., D] added, where `mask` [...] is true."""
  num = verdicts.smallest.shape[0]
  outputs, mask = jnp.asarray(outputs, jnp.float32).reshape(-1, num), jnp.asarray(mask, bool).reshape(-1, 1)
  counts = _counted(verdicts.counts, jnp.arange(num), outputs, mask)
  smallest = jnp.where(mask, outputs, jnp.inf).min(0, initial=jnp.inf)
  largest = jnp.where(mask, outputs, -jnp.inf).max(0, initial=-jnp.inf)
  return Verdicts(counts, jnp.minimum(verdicts.smallest, smallest), jnp.maximum(verdicts.largest, largest))


def merge_verdicts(a: Verdicts, b: Verdicts) -> Verdicts:
  """Of both sets of images, on the host."""
  counts = np.add(a.counts, b.counts, dtype=np.int64)
  return Verdicts(counts, np.minimum(a.smallest, b.smallest), np.maximum(a.largest, b.largest))


def scale_of(verdicts: Verdicts, kind: str) -> dict[str, np.ndarray]:
  """What brings each discriminator's outputs to one scale, 0..1, over the target set: `adversarial_confidence` wants it.

  Args:
    kind: min_max, smallest to 0 and largest to 1; rank, the share of the outputs that are smaller.

  Returns:
    float32: min_max, `smallest` [D] and `largest` [D]; rank, `ranks` [D, NUM_BINS].

  Raises:
    ValueError: another kind.
  """
  if kind not in SCALES:
    raise ValueError(f"kind is {kind!r}; it must be one of {', '.join(SCALES)}")
  if kind == "min_max":
    return {"smallest": np.asarray(verdicts.smallest, np.float32), "largest": np.asarray(verdicts.largest, np.float32)}
  counts = np.asarray(verdicts.counts, np.float64)
  below = np.cumsum(counts, axis=1) - counts / 2  # and half of those in the bin
  return {"ranks": (below / np.maximum(counts.sum(1, keepdims=True), 1)).astype(np.float32)}


@jax.jit
def adversarial_confidence(outputs: ArrayLike, scale: dict[str, Array]) -> Array:
  """A [...] above 0, up to 1: the mean over discriminators of their outputs [..., D], brought to one scale by `scale_of`.

  Source: multi-adversarial proxies, section 2.3; which scale is our choice.
  """
  outputs = jnp.asarray(outputs, jnp.float32)
  if "ranks" in scale:
    unit = scale["ranks"][jnp.arange(outputs.shape[-1]), confidence_bins(outputs)]
  else:
    spread = scale["largest"] - scale["smallest"]
    # Where all are equal, none is the more confident; what was not seen before may lie outside.
    unit = jnp.clip((outputs - scale["smallest"]) / jnp.where(spread > 0, spread, 1), 0, 1)
  # The least confident, too, are to be in the pool that t1 is found from.
  return jnp.maximum(unit.mean(-1), jnp.finfo(jnp.float32).tiny)


@jax.jit
def update_focus(histogram: Histogram, confidence: ArrayLike, mask: ArrayLike) -> Histogram:
  """Histogram of one pool with the pixels of `confidence` [...], above 0, added where `mask` [...] is true."""
  return _update(histogram, jnp.asarray(confidence)[..., None], mask)


def focus_threshold(histogram: Histogram, portion: float, rank: str = "paper") -> Array:
  """t1, float32 []: pixels with a confidence above it are the `portion` p1 of the greatest; at 1, -inf: all.

  Source: multi-adversarial proxies, section 2.3.
  """
  return jnp.float32(-jnp.inf) if portion >= 1 else global_threshold(histogram, portion, rank)[0]


def random_boxes(key: Array, num: int, patch: tuple[int, int], size: ArrayLike) -> Array:
  """Uniform (top, left) of `num` patches (h, w) inside an image of `size` (H, W), which may be traced: int32 [num, 2].

  An image smaller than the patch gives 0. Source: MLSL, section 3.2 (SISC).
  """
  last = jnp.maximum(jnp.asarray(size, jnp.int32) - jnp.asarray(patch, jnp.int32), 0)
  return jax.random.randint(key, (num, 2), 0, last + 1)


@jax.jit
def add_patch(total: Array, count: Array, patch: Array, top: ArrayLike, left: ArrayLike) -> tuple[Array, Array]:
  """`total` [H, W, C] and `count` [H, W] with one patch [h, w, C] added at (top, left), which may be traced.

  A patch that would stick out is moved inside. Source: MLSL, section 3.2.
  """
  height, width, _ = patch.shape
  before = lax.dynamic_slice(total, (top, left, 0), patch.shape)
  seen = lax.dynamic_slice(count, (top, left), (height, width))
  total = lax.dynamic_update_slice(total, before + patch.astype(total.dtype), (top, left, 0))
  return total, lax.dynamic_update_slice(count, seen + 1, (top, left))


@jax.jit
def normalise(total: Array, count: Array) -> tuple[Array, Array]:
  """(mean scores [H, W, C], covered [H, W]) of the patches added to `total`; scores are 0 where no patch lies."""
  return total / jnp.maximum(count, 1)[..., None], count > 0


@jax.jit
def votes(patch: Array) -> Array:
  """One vote per pixel for the argmax of `patch` [..., C], to add in place of the softmax: the relative frequency.

  Source: MLSL, ablation on relative-frequency pseudo-labels.
  """
  return jax.nn.one_hot(patch.argmax(-1), patch.shape[-1], dtype=patch.dtype)
