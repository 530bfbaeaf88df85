"""Thresholds, selection and patches against loops and sorting written straight from the papers."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_uda import pseudo_labels as pl

SIZE, CLASSES = (2, 5, 7), 4
few = settings(max_examples=60, deadline=None)
portions = st.sampled_from([0.0, 0.001, 0.2, 0.3, 0.5, 0.85, 1.0]) | st.floats(0, 1)
rank_rules = st.sampled_from(["paper", "code"])


def paper_rank(size, portion, rank):
  return int(np.floor(portion * size + (0.5 if rank == "paper" else 0)))


def loop_threshold(pool, portion, rank):
  """Algorithms 1 and 2: sort the pool, take the ranked value; the next smaller float where it is the maximum."""
  pool = sorted(map(float, pool), reverse=True)
  k = paper_rank(len(pool), portion, rank)
  if k == 0:
    return np.float32(np.inf)
  value = np.float32(pool[k - 1])
  return np.nextafter(value, np.float32(-np.inf)) if value == pool[0] else value


def loop_pools(probabilities, mask):
  pools = [[] for _ in range(probabilities.shape[-1])]
  for p, valid in zip(probabilities.reshape(-1, probabilities.shape[-1]), mask.reshape(-1), strict=True):
    if valid and p.max() > 0:
      pools[p.argmax()].append(p.max())
  return pools


def histogram_of(probabilities, mask=None):
  return pl.update_histogram(pl.init_histogram(np.shape(probabilities)[-1]), probabilities, mask)


@st.composite
def scores(draw, size=SIZE, num_classes=CLASSES):
  """Softmax of all sharpnesses, saturated ones too; few distinct values (ties); scores above 1; unused classes."""
  rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
  kind = draw(st.sampled_from(["softmax", "ties", "weighted", "saturated", "constant"]))
  logits = rng.normal(size=(*size, num_classes)) * draw(st.sampled_from([0.1, 3.0, 8.0, 30.0]))
  logits -= np.where(rng.random(num_classes) < 0.3, 100, 0)
  p = np.exp(logits - logits.max(-1, keepdims=True))
  p = p / p.sum(-1, keepdims=True)
  if kind == "ties":
    p = rng.choice([0.125, 0.25, 0.5, 0.75, 1.0, 0.0], p.shape)
  elif kind == "weighted":
    p = p * rng.gamma(0.3, 3, p.shape)
  elif kind == "saturated":
    p = p.round()
  elif kind == "constant":
    p = np.full(p.shape, draw(st.sampled_from([1.0, 0.5, 0.25, 2.0, 1 - 2**-24, 1 + 2**-23, 5000.0, 2**-26])))
  return p.astype(np.float32)


masks = st.none() | st.sampled_from([0.0, 0.02, 0.5, 1.0]).map(
  lambda share: np.random.default_rng(int(share * 100)).random(SIZE) < share
)


# Bins.


def test_bins_are_monotone_exact_and_agree_with_their_edges():
  lower, upper = pl.BIN_LOWER, pl.BIN_UPPER
  assert lower.dtype == upper.dtype == np.float32 and lower.shape == upper.shape == (pl.NUM_BINS,)
  assert lower[0] == 0 and np.all(np.diff(lower) > 0) and np.all(lower <= upper)
  np.testing.assert_array_equal(np.nextafter(upper[:-1], np.float32(np.inf)), lower[1:])  # no float between two bins
  bins = np.arange(pl.NUM_BINS)
  np.testing.assert_array_equal(pl.confidence_bins(lower), bins)
  np.testing.assert_array_equal(pl.confidence_bins(upper), bins)


def test_one_has_a_bin_of_its_own_and_so_have_its_neighbours_below():
  one = np.float32(1)
  near = [np.nextafter(one, np.float32(2)), one, *(1 - np.arange(1, 1000) * 2.0**-24)]
  bins = np.asarray(pl.confidence_bins(np.float32(near)))
  np.testing.assert_array_equal(np.diff(bins), -1)
  assert pl.BIN_LOWER[bins[1]] == pl.BIN_UPPER[bins[1]] == 1


@few
@given(st.lists(st.floats(0, 8192, width=32), min_size=64, max_size=64))
def test_bins_equal_a_search_among_the_edges(values):
  values = np.float32(values)
  values[::2] = 1 - values[::2] / 8192  # half of them up to 1
  values = np.where(values < np.finfo(np.float32).tiny, 0, values)
  expected = np.searchsorted(pl.BIN_LOWER, values, side="right") - 1
  np.testing.assert_array_equal(pl.confidence_bins(values), expected)


def test_an_octave_of_one_minus_p_has_1024_bins():
  for exponent in range(2, 13):
    ends = np.float32([1 - 2.0**-exponent, 1 - 2.0 ** -(exponent + 1)])
    assert np.diff(np.asarray(pl.confidence_bins(ends))) == 1024


# Histograms.


@few
@given(scores(), masks)
def test_histogram_holds_the_pools(probabilities, mask):
  histogram = histogram_of(probabilities, mask)
  pools = loop_pools(probabilities, np.ones(SIZE) if mask is None else mask)
  assert histogram.counts.dtype == jnp.int32 and histogram.counts.shape == (CLASSES, pl.NUM_BINS)
  for pool, counts, maximum in zip(pools, histogram.counts, histogram.maximum, strict=True):
    bins = np.searchsorted(pl.BIN_LOWER, np.float32(pool), side="right") - 1
    expected = np.bincount(bins, minlength=pl.NUM_BINS)
    np.testing.assert_array_equal(counts, expected)
    assert maximum == max(pool, default=0)


@few
@given(scores(), masks)
def test_a_batch_in_two_parts_gives_the_same_histogram(probabilities, mask):
  whole = histogram_of(probabilities, mask)
  parts = [histogram_of(probabilities[i], None if mask is None else mask[i]) for i in range(2)]
  merged = pl.merge_histograms(*parts)
  assert merged.counts.dtype == np.int64
  np.testing.assert_array_equal(merged.counts, whole.counts)
  np.testing.assert_array_equal(merged.maximum, whole.maximum)


def test_updating_goes_on_from_what_is_there_and_runs_inside_jit():
  rng = np.random.default_rng(0)
  a, b = rng.dirichlet(np.ones(CLASSES), (2, *SIZE)).astype(np.float32)
  chained = jax.jit(lambda h, x, y: pl.update_histogram(pl.update_histogram(h, x), y))(pl.init_histogram(CLASSES), a, b)
  merged = pl.merge_histograms(histogram_of(a), histogram_of(b))
  np.testing.assert_array_equal(chained.counts, merged.counts)
  np.testing.assert_array_equal(chained.maximum, merged.maximum)


def test_a_merged_histogram_is_not_updated():
  empty = pl.init_histogram(CLASSES)
  with pytest.raises(TypeError, match="merge"):
    pl.update_histogram(pl.merge_histograms(empty, empty), np.ones((*SIZE, CLASSES), np.float32))


@few
@given(scores())
def test_bfloat16_is_read_as_the_float32_it_stands_for(probabilities):
  half = jnp.asarray(probabilities, jnp.bfloat16)
  a, b = histogram_of(half), histogram_of(half.astype(jnp.float32))
  np.testing.assert_array_equal(a.counts, b.counts)
  thresholds = pl.class_balanced_thresholds(a, 0.5)
  assert thresholds.dtype == jnp.float32
  labels = pl.select(half, thresholds)
  np.testing.assert_array_equal(labels, pl.select(half.astype(jnp.float32), thresholds))


def test_uncovered_and_nan_pixels_are_in_no_pool_and_never_selected():
  probabilities = np.float32([[[0, 0], [np.nan, 0.5], [0.7, 0.3]]])
  histogram = histogram_of(probabilities)
  np.testing.assert_array_equal(histogram.counts.sum(1), [1, 0])
  thresholds = pl.class_balanced_thresholds(histogram, 1.0)
  np.testing.assert_array_equal(thresholds, pl.exact_class_balanced_thresholds(probabilities, 1.0))
  np.testing.assert_array_equal(pl.select(probabilities, thresholds), [[255, 255, 0]])


# Thresholds.


@few
@given(scores(), masks, portions, rank_rules)
def test_exact_thresholds_equal_the_loop(probabilities, mask, portion, rank):
  pools = loop_pools(probabilities, np.ones(SIZE) if mask is None else mask)
  by_class = [loop_threshold(pool, portion, rank) for pool in pools]
  np.testing.assert_array_equal(pl.exact_class_balanced_thresholds(probabilities, portion, rank, mask), by_class)
  single = loop_threshold(itertools.chain(*pools), portion, rank)
  np.testing.assert_array_equal(pl.exact_global_threshold(probabilities, portion, rank, mask), [single] * CLASSES)


def assert_same_bins(thresholds, exact):
  assert thresholds.dtype == jnp.float32 and thresholds.shape == exact.shape
  np.testing.assert_array_equal(np.isinf(thresholds), np.isinf(exact))
  finite = np.isfinite(exact)
  bins = [np.searchsorted(pl.BIN_LOWER, np.asarray(t)[finite], side="right") for t in (thresholds, exact)]
  np.testing.assert_array_equal(*bins)


@settings(max_examples=200, deadline=None)
@given(scores(), masks, portions, rank_rules)
def test_histogram_thresholds_lie_in_the_bin_of_the_exact_ones(probabilities, mask, portion, rank):
  histogram = histogram_of(probabilities, mask)
  exact = pl.exact_class_balanced_thresholds(probabilities, portion, rank, mask)
  assert_same_bins(pl.class_balanced_thresholds(histogram, portion, rank), exact)
  exact = pl.exact_global_threshold(probabilities, portion, rank, mask)
  assert_same_bins(pl.global_threshold(histogram, portion, rank), exact)


@pytest.mark.parametrize("portion", [0.0, 0.49, 0.5, 1.0])
@pytest.mark.parametrize("confidence", [0.3, 0.5, 1.0, 1.0 - 2**-24, 3.5, 1e6, 1e-9])
def test_one_pixel(confidence, portion):
  probabilities = np.float32([[[0, confidence, 0]]])
  thresholds = pl.class_balanced_thresholds(histogram_of(probabilities), portion)
  np.testing.assert_array_equal(thresholds, pl.exact_class_balanced_thresholds(probabilities, portion))
  assert pl.select(probabilities, thresholds) == (1 if portion >= 0.5 else 255)


def test_a_saturated_class_is_not_lost():
  probabilities = np.zeros((*SIZE, CLASSES), np.float32)
  probabilities[..., 1] = 1
  thresholds = pl.class_balanced_thresholds(histogram_of(probabilities), 0.2)
  assert thresholds[1] == np.nextafter(np.float32(1), np.float32(0)) and np.isposinf(thresholds[0])
  assert np.all(pl.select(probabilities, thresholds) == 1)


def test_the_whole_pool_but_its_minimum_is_kept_at_portion_one():
  p = np.float32([0.6, 0.7, 0.8, 0.6])
  probabilities = np.stack([p, 1 - p], -1)[None]
  np.testing.assert_array_equal(
    pl.select(probabilities, pl.exact_class_balanced_thresholds(probabilities, 1.0)), [[255, 0, 0, 255]]
  )


def test_nothing_is_selected_from_nothing():
  probabilities, mask = np.full((*SIZE, CLASSES), 0.25, np.float32), np.zeros(SIZE, bool)
  histogram = histogram_of(probabilities, mask)
  assert np.all(histogram.counts == 0) and np.all(histogram.maximum == 0)
  for found in (pl.class_balanced_thresholds(histogram, 1.0), pl.global_threshold(histogram, 1.0)):
    assert np.all(np.isposinf(found)) and np.all(pl.select(probabilities, found) == 255)
  histogram = histogram_of(probabilities)
  assert np.all(np.isposinf(pl.class_balanced_thresholds(histogram, 0.0)))


def test_ranks_by_hand():
  p = np.float32([0.95, 0.9, 0.85, 0.8, 0.75])
  probabilities = np.stack([p, 1 - p], -1)[None]
  for portion, paper, code in [(0.3, 0.9, None), (0.5, 0.85, 0.9), (0.1, None, np.inf), (0.09, np.inf, np.inf)]:
    exact = [pl.exact_class_balanced_thresholds(probabilities, portion, rank)[0] for rank in ("paper", "code")]
    top = np.nextafter(np.float32(0.95), np.float32(0))
    np.testing.assert_array_equal(exact, np.float32([top if paper is None else paper, top if code is None else code]))


@pytest.mark.parametrize("arguments", [(0.5, "papers"), (-0.1, "paper"), (1.1, "code"), (float("nan"), "paper")])
def test_bad_arguments_are_named(arguments):
  histogram, probabilities = pl.init_histogram(2), np.ones((1, 1, 2), np.float32)
  for find, given_to in [
    (pl.class_balanced_thresholds, histogram),
    (pl.global_threshold, histogram),
    (pl.exact_class_balanced_thresholds, probabilities),
    (pl.exact_global_threshold, probabilities),
  ]:
    with pytest.raises(ValueError, match=r"portion|rank"):
      find(given_to, *arguments)


def test_counts_beyond_32_bits():
  """3·2^30 pixels at 0.9, three times as many at 0.6: the value at a rank beyond 2^32 is 0.6's, before it 0.9's."""
  low, high = (int(pl.confidence_bins(p)) for p in (0.6, 0.9))
  counts = np.zeros((2, pl.NUM_BINS), np.int64)
  counts[0, [low, high]] = 3 * 2**30
  part = pl.Histogram(counts // 3, np.float32([0.9, 0]))
  histogram = pl.merge_histograms(pl.merge_histograms(part, part), part)
  histogram = histogram.replace(counts=histogram.counts + counts * (np.arange(pl.NUM_BINS) == low) * 2)
  assert histogram.counts.sum() == 12 * 2**30
  for find in (pl.class_balanced_thresholds, pl.global_threshold):
    for portion, expected in [(0.249999999, high), (0.25, high), (0.250000001, low), (0.9, low), (1.0, low)]:
      threshold = find(histogram, portion)[0]
      assert int(pl.confidence_bins(threshold)) == expected
      share_below = (threshold - pl.BIN_LOWER[expected]) / (pl.BIN_UPPER[expected] - pl.BIN_LOWER[expected])
      rank_share = (1 - portion) / 0.75 if expected == low else None  # linear within the bin
      assert rank_share is None or abs(share_below - rank_share) < 1e-3


def test_selected_share_is_that_of_sorting_on_spread_out_confidences():
  rng = np.random.default_rng(1)
  shape, num_classes = (5, 250, 200), 5
  gap = 2.0 ** -rng.uniform(1, 12, shape)
  others = rng.dirichlet(np.ones(num_classes - 1), shape) * gap[..., None]
  p = np.concatenate([1 - gap[..., None], others], -1)
  p = rng.permuted(p, axis=-1).astype(np.float32)
  histogram, predicted, confidence = histogram_of(p), p.argmax(-1), p.max(-1)
  sizes = np.bincount(predicted.ravel())
  assert sizes.min() >= 10_000 and np.all(np.asarray(histogram.counts).max(1) < 5e-4 * sizes)
  for portion in (0.05, 0.2, 0.5, 0.8):
    thresholds = np.asarray(pl.class_balanced_thresholds(histogram, portion))
    exact = pl.exact_class_balanced_thresholds(p, portion)
    labels = np.stack([pl.select(p, t) for t in (thresholds, exact)])
    for c in range(num_classes):
      assert abs(np.diff((labels == c).sum((1, 2, 3)))) < 1e-3 * sizes[c]
    for c in range(num_classes):
      assert abs((confidence[predicted == c] > thresholds[c]).mean() - portion) < 1e-3


# Selection.


@few
@given(scores(), portions, rank_rules, masks)
def test_selection_equals_a_loop_over_equation_8(probabilities, portion, rank, mask):
  thresholds = pl.exact_class_balanced_thresholds(probabilities, portion, rank)
  labels = pl.select(probabilities, thresholds, mask=mask)
  assert labels.dtype == jnp.uint8 and labels.shape == SIZE
  for index in np.ndindex(SIZE):
    pairs = zip(probabilities[index], thresholds, strict=True)
    ratios = [p / t if p > t else np.float32(0) for p, t in pairs]
    kept = max(ratios) > 0 and (mask is None or mask[index])
    assert labels[index] == (np.argmax(ratios) if kept else 255)


def test_selection_by_hand():
  thresholds = np.float32([0.9, 0.2, np.inf])
  probabilities = np.float32([[[0.95, 0.05, 0], [0.7, 0.3, 0], [0.8, 0.2, 0], [0.05, 0.05, 0.9], [0.9, 0.1, 0]]])
  np.testing.assert_array_equal(pl.select(probabilities, thresholds), [[0, 1, 255, 255, 255]])
  np.testing.assert_array_equal(pl.select(probabilities, thresholds, ignore_label=7), [[0, 1, 7, 7, 7]])
  just_above = np.nextafter(np.float32(0.9), np.float32(1))
  assert pl.select(np.float32([[[just_above, 0.1, 0]]]), thresholds) == 0
  assert pl.select(np.float32([[[1.0, 0.1, 3.0]]]), np.float32([0.0, 0.2, 4.0])) == 0  # p / 0


# Patches.


def test_patches_add_up_where_they_overlap_and_at_borders():
  total, count = np.zeros((4, 6, 2), np.float32), np.zeros((4, 6), np.int32)
  rng = np.random.default_rng(0)
  state, add = (jnp.asarray(total), jnp.asarray(count)), jax.jit(pl.add_patch)
  for top, left in [(0, 0), (1, 2), (2, 3), (2, 0), (0, 0)]:
    patch = rng.random((2, 3, 2)).astype(np.float32)
    total[top : top + 2, left : left + 3] += patch
    count[top : top + 2, left : left + 3] += 1
    state = add(*state, patch, top, left)
  np.testing.assert_array_equal(state[1], count)
  np.testing.assert_array_equal(count, [[2, 2, 2, 0, 0, 0], [2, 2, 3, 1, 1, 0], [1, 1, 2, 2, 2, 1], [1, 1, 1, 1, 1, 1]])
  np.testing.assert_allclose(state[0], total, rtol=1e-6)
  scores_, covered = pl.normalise(*state)
  np.testing.assert_array_equal(covered, count > 0)
  expected = np.divide(total, count[..., None], out=np.zeros_like(total), where=count[..., None] > 0)
  np.testing.assert_allclose(scores_, expected, rtol=1e-6)
  assert np.all(np.asarray(scores_)[~np.asarray(covered)] == 0)


def test_mean_of_softmax_patches_sums_to_one():
  rng = np.random.default_rng(1)
  state = jnp.zeros((6, 6, 3)), jnp.zeros((6, 6), jnp.int32)
  for top, left in rng.integers(0, 3, (5, 2)):
    state = pl.add_patch(*state, jnp.asarray(rng.dirichlet(np.ones(3), (4, 4)), jnp.bfloat16), top, left)
  scores_, covered = pl.normalise(*state)
  np.testing.assert_allclose(scores_.sum(-1), covered, atol=0.01)
  assert scores_.dtype == jnp.float32


def test_votes_give_the_relative_frequency():
  patches = np.float32([[[[0.9, 0.1]]], [[[0.4, 0.6]]], [[[0.45, 0.55]]]])
  state = jnp.zeros((1, 1, 2)), jnp.zeros((1, 1), jnp.int32)
  for patch in patches:
    state = pl.add_patch(*state, pl.votes(jnp.asarray(patch)), 0, 0)
  np.testing.assert_allclose(pl.normalise(*state)[0], [[[1 / 3, 2 / 3]]], rtol=1e-6)


def test_boxes_lie_inside_and_reach_every_start():
  draw = jax.jit(pl.random_boxes, static_argnums=(1, 2))
  boxes = np.asarray(draw(jax.random.key(0), 2000, (4, 5), jnp.array([7, 6])))
  assert boxes.dtype == np.int32 and boxes.shape == (2000, 2)
  counts = np.zeros((4, 2))
  np.add.at(counts, tuple(boxes.T), 1)  # fails outside 0..3 × 0..1
  assert boxes.min() == 0 and np.all(np.abs(counts - 250) < 5 * np.sqrt(250))
  small = np.asarray(draw(jax.random.key(0), 2000, (4, 5), jnp.array([3, 5])))
  assert np.all(small == 0)


def test_patches_leave_the_known_share_uncovered():
  """Uniform starts of 512×512 patches on 2048×1024 pixels, looked at on every 32nd pixel of both axes."""
  keys = jax.random.split(jax.random.key(0), 30)
  boxes = np.asarray(jax.vmap(lambda key: pl.random_boxes(key, 100, (512, 512), (1024, 2048)))(keys))
  starts, pixels = boxes[..., None], (np.arange(16, 1024, 32), np.arange(16, 2048, 32))
  rows, columns = ((starts[:, :, i] <= pixels[i]) & (pixels[i] < starts[:, :, i] + 512) for i in range(2))
  for num, expected in [(25, 0.216), (50, 0.129), (100, 0.074)]:
    covering = np.einsum("bnh,bnw->bhw", rows[:, :num], columns[:, :num], dtype=np.float32)
    assert abs((covering == 0).mean() - expected) < 0.02


def hard_cases(num_classes=5):
  """Scores [H, W, C] with ties, zeros, NaN, values at their thresholds; thresholds [C], one of them +inf, one 0."""
  rng = np.random.default_rng(0)
  thresholds = np.array([0.25, 0.5, np.inf, 0.0, 0.125], np.float32)[:num_classes]
  scores = rng.integers(0, 9, (40, 50, num_classes)).astype(np.float32) / 8
  scores[:5] = np.array([0.5, 1, 0, 0, 0.25])  # the same ratio to all that have one
  scores[5:8] = 0
  scores[8:10, :, 1] = np.nan
  scores[10] = np.nan
  return scores, thresholds


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("ignore_label", [255, 3])
def test_select_is_the_argmax_of_those_above_their_thresholds(masked, ignore_label):
  scores, thresholds = hard_cases()
  mask = np.random.default_rng(1).random(scores.shape[:2]) < 0.7 if masked else None
  over = scores > thresholds
  with np.errstate(divide="ignore", invalid="ignore"):
    ratios = np.where(over, scores / thresholds, 0)
  kept = over.any(-1) if mask is None else over.any(-1) & mask
  expected = np.where(kept, ratios.argmax(-1), ignore_label)
  found = np.asarray(pl.select(scores, thresholds, ignore_label, mask))
  np.testing.assert_array_equal(found, expected)
  assert found.dtype == np.uint8 and len(np.unique(found)) > 3


@pytest.mark.parametrize("masked", [False, True])
def test_the_maxima_of_pools(masked):
  scores, _ = hard_cases()
  scores[np.isnan(scores).any(-1)] = np.nan  # what is NaN in part may be in a pool or not
  mask = np.random.default_rng(1).random(scores.shape[:2]) < 0.7 if masked else np.ones(scores.shape[:2], bool)
  found = pl.update_histogram(pl.init_histogram(5), scores, mask if masked else None)
  predicted, confidence = np.asarray(jnp.argmax(scores, -1)), np.asarray(jnp.max(scores, -1))
  pooled = (confidence > 0) & ~np.isnan(scores[..., 0]) & mask
  expected = [confidence[pooled & (predicted == c)].max(initial=0) for c in range(5)]
  np.testing.assert_array_equal(found.maximum, expected)
  assert np.asarray(found.counts).sum() == pooled.sum()
