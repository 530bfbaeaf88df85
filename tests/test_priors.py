"""Class sizes, weak labels and spatial priors by hand, by loops, and together with the thresholds they feed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_uda import priors
from jax_uda import pseudo_labels as pl

CLASSES = 3
FIRST = np.array([[0, 0, 1], [0, 255, 255]], np.uint8)  # shares 3/6, 1/6, 0
SECOND = np.array([[0, 0, 0], [0, 0, 0]], np.uint8)  # shares 1, 0, 0


def sizes_of(labels, valid=None):
  return priors.update_class_sizes(priors.init_class_sizes(CLASSES), labels, valid)


def prior_of(labels, grid, size=None, num_classes=CLASSES):
  return priors.update_spatial_prior(priors.init_spatial_prior(grid, num_classes), labels, size)


# Class sizes and weak labels.


def test_class_sizes_are_means_over_the_images_with_the_class():
  sizes = priors.finish_class_sizes(sizes_of(np.stack([FIRST, SECOND])))
  assert sizes.dtype == np.float32
  np.testing.assert_allclose(sizes, [(3 / 6 + 1) / 2, 1 / 6, 0], rtol=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_class_sizes_equal_a_loop_over_equation_4(seed):
  rng = np.random.default_rng(seed)
  labels = rng.choice([0, 1, 2, 255], p=rng.dirichlet([0.4] * 4), size=(4, 3, 5)).astype(np.uint8)
  shares = [[(image == i).sum() / image.size for image in labels if (image == i).any()] for i in range(CLASSES)]
  whole = sizes_of(labels)
  np.testing.assert_allclose(priors.finish_class_sizes(whole), [np.mean(s or [0]) for s in shares], rtol=1e-6)
  merged = priors.merge(sizes_of(labels[:1]), sizes_of(labels[1:]))
  assert merged.shares.dtype == np.float64 and merged.images.dtype == np.int64
  np.testing.assert_array_equal(merged.images, whole.images)
  np.testing.assert_allclose(merged.shares, whole.shares, rtol=1e-6)


def test_padding_is_no_part_of_the_image_but_ignored_pixels_are():
  canvas = np.zeros((4, 5), np.uint8)
  canvas[:2, :3] = FIRST
  valid = np.zeros((4, 5), bool)
  valid[:2, :3] = True
  np.testing.assert_array_equal(sizes_of(canvas, valid).shares, sizes_of(FIRST).shares)
  np.testing.assert_array_equal(sizes_of(canvas, valid & False).images, 0)
  h_s = np.array([0.9, 0.5, 0])
  np.testing.assert_array_equal(priors.weak_labels(canvas, h_s, 0.5, valid=valid), [1, 0, 0])
  np.testing.assert_array_equal(priors.weak_labels(canvas, h_s, 0.5), [1, 0, 0])
  np.testing.assert_array_equal(priors.present(canvas, CLASSES, valid & (canvas > 0)), [0, 1, 0])


def test_weak_labels_follow_their_threshold():
  labels = np.full((8, 8), 255, np.uint8)
  labels[0, :4], labels[1, :1] = 0, 2  # shares 1/16, 0, 1/64
  h_s = np.float32([0.25, 0.25, 0])
  for eta, strict, expected in [
    (0.125, True, [1, 0, 1]),  # a class never seen in the source needs one pixel
    (0.25, True, [0, 0, 1]),  # 1/16 is not more than 1/16
    (0.25, False, [1, 0, 1]),
    (0.5, False, [0, 0, 1]),
    (0.0, True, [1, 0, 1]),
  ]:
    got = priors.weak_labels(labels, h_s, eta, strict)
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(got, expected)


def test_present_and_batches():
  labels = np.stack([FIRST, SECOND, np.full((2, 3), 255, np.uint8)])
  expected = [[1, 1, 0], [1, 0, 0], [0, 0, 0]]
  np.testing.assert_array_equal(priors.present(labels, CLASSES), expected)
  np.testing.assert_array_equal(priors.weak_labels(labels, np.zeros(CLASSES), 0.05), expected)


# Spatial prior.


def test_counts_by_position_by_hand():
  labels = np.array([[0, 0, 1, 255], [0, 1, 1, 7]], np.uint8)
  shares = prior_of(labels, (1, 2))
  np.testing.assert_allclose(shares, [[[3 / 4, 1 / 4, 0], [0, 2 / 4, 0]]])
  np.testing.assert_allclose(prior_of(np.stack([labels, labels]), (1, 2)), 2 * shares)
  np.testing.assert_allclose(priors.update_spatial_prior(shares, labels), 2 * shares)
  assert priors.merge(shares, shares).dtype == np.float64
  full = prior_of(labels, (2, 4))
  np.testing.assert_array_equal(full, labels[..., None] == np.arange(CLASSES))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(3, 7), st.integers(4, 9))
def test_counts_equal_a_loop_over_pixels_also_in_a_padded_canvas(seed, height, width):
  grid = (3, 4)
  canvas = np.random.default_rng(seed).choice([0, 1, 2, 255], size=(7, 9)).astype(np.uint8)
  pixels, area = np.zeros((*grid, CLASSES)), np.zeros(grid)
  for y, x in np.ndindex(height, width):
    cell = int((y + 0.5) * grid[0] / height), int((x + 0.5) * grid[1] / width)
    area[cell] += 1
    if canvas[y, x] != 255:
      pixels[(*cell, canvas[y, x])] += 1
  np.testing.assert_allclose(prior_of(canvas, grid, [height, width]), pixels / area[..., None], rtol=1e-6)


def test_a_grid_finer_than_the_labels_is_refused():
  with pytest.raises(ValueError, match="2x3"):
    prior_of(FIRST, (3, 3))


def test_prior_has_sum_one_by_class_and_is_a_gaussian_around_a_point():
  labels = np.full((81, 81), 255, np.uint8)
  labels[40, 40], labels[0, 0] = 0, 1
  prior = priors.finish_spatial_prior(prior_of(labels, (81, 81)), (81, 81), kernel=20, sigma=3)
  assert prior.dtype == np.float32
  np.testing.assert_allclose(prior.sum((0, 1)), [1, 1, 0], rtol=1e-5)  # class 2 occurs nowhere
  y, x = np.mgrid[-40:41, -40:41]
  gaussian = np.exp(-(y**2 + x**2) / (2 * 3**2)) * (np.abs(y) <= 10) * (np.abs(x) <= 10)
  np.testing.assert_allclose(prior[..., 0], gaussian / gaussian.sum(), rtol=1e-4)
  assert prior[..., 1].argmax() == 0


def test_a_coarse_grid_smooths_over_the_same_distance():
  rng = np.random.default_rng(0)
  labels = np.repeat(np.repeat(rng.integers(0, CLASSES, (20, 30)), 8, 0), 8, 1)
  fine, coarse = (priors.finish_spatial_prior(prior_of(labels, grid), (160, 240)) for grid in [(160, 240), (40, 60)])
  pooled = fine.reshape(40, 4, 60, 4, CLASSES).sum((1, 3))
  np.testing.assert_allclose(coarse, pooled, rtol=0.05)


def test_prior_times_probability():
  prior = np.float32([[[0.5, 0.1, 0], [0.5, 0.9, 0]]])
  p = np.float32(np.random.default_rng(0).dirichlet(np.ones(CLASSES), (2, 1, 2)))
  scores = priors.apply_prior(jnp.asarray(p), prior)
  assert scores.dtype == jnp.float32
  np.testing.assert_allclose(scores, 2 * prior * p, rtol=1e-6)
  half = jnp.asarray(p, jnp.bfloat16)
  assert priors.apply_prior(half, prior).dtype == jnp.float32


def test_prior_is_resized_with_half_pixel_centres_and_mean_one():
  prior = np.float32(np.random.default_rng(0).dirichlet(np.ones(12), CLASSES)).reshape(CLASSES, 3, 4).transpose(1, 2, 0)
  ones = jnp.ones((9, 16, CLASSES))
  resized = priors.apply_prior(ones, prior)
  np.testing.assert_allclose(resized, 12 * jax.image.resize(prior, ones.shape, "linear"), rtol=1e-5)
  np.testing.assert_allclose(priors.apply_prior(jnp.ones((3, 4, CLASSES)), prior).mean((0, 1)), 1, rtol=1e-5)


def test_prior_spans_the_image_and_not_its_padding():
  rng = np.random.default_rng(1)
  prior = rng.random((3, 4, CLASSES)).astype(np.float32)
  p = rng.dirichlet(np.ones(CLASSES), (2, 11, 20)).astype(np.float32)
  scores = np.asarray(jax.jit(priors.apply_prior)(p, prior, jnp.array([9, 16])))
  np.testing.assert_allclose(scores[:, :9, :16], priors.apply_prior(jnp.asarray(p[:, :9, :16]), prior), rtol=1e-5)
  assert np.all(scores[:, 9:] == 0) and np.all(scores[:, :, 16:] == 0)
  histogram = pl.update_histogram(pl.init_histogram(CLASSES), scores)
  assert histogram.counts.sum() == 2 * 9 * 16  # padding is in no pool


def test_weighted_scores_above_one_are_ranked_as_by_sorting():
  rng = np.random.default_rng(2)
  prior = rng.dirichlet(np.full(60, 0.1), CLASSES).reshape(CLASSES, 6, 10).transpose(1, 2, 0)
  scores = priors.apply_prior(jnp.asarray(rng.dirichlet(np.ones(CLASSES), (30, 50)), jnp.float32), prior)
  assert scores.max() > 2
  histogram = pl.update_histogram(pl.init_histogram(CLASSES), scores)
  for portion in (0.01, 0.2, 0.9):
    thresholds = np.asarray(pl.class_balanced_thresholds(histogram, portion))
    exact = pl.exact_class_balanced_thresholds(scores, portion)
    np.testing.assert_array_equal(pl.confidence_bins(thresholds), pl.confidence_bins(exact))
