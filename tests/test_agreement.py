"""Variation ratios, masks and similarities worked by hand; mining by its frequencies, its keys and its gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_uda.agreement import (
  agreement,
  keep_easy,
  last_layer_similarity,
  proxy_labels,
  similarity,
  stands_for,
  thin_easy,
  variation_ratio,
)
from jax_uda.losses import cross_entropy, mean

CLASSES = 4
thinned = jax.jit(thin_easy)


def keys(count, seed=0):
  return jax.random.split(jax.random.key(seed), count)


def voting(*predictions):
  """Logits [E, ..., C] of branches that predict so."""
  return 3 * jax.nn.one_hot(jnp.array(predictions), CLASSES) - 1


# The ensemble


def test_variation_ratios_of_two_branches_by_hand():
  ratios = variation_ratio(jnp.array([[0, 1, 2, 3], [0, 2, 2, 0]]))
  assert ratios.dtype == jnp.float32
  np.testing.assert_array_equal(ratios, [0, 0.5, 0, 0.5])


def test_variation_ratios_of_three_branches_by_hand():
  predictions = jnp.array([[[0, 1], [2, 3]], [[0, 1], [1, 3]], [[0, 2], [0, 1]]])
  np.testing.assert_allclose(variation_ratio(predictions), [[0, 1 / 3], [2 / 3, 1 / 3]], rtol=1e-6)
  np.testing.assert_array_equal(variation_ratio(jnp.array([[5, 7]])), [0, 0])  # one branch has nobody to differ from


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
def test_variation_ratios_equal_a_loop_over_classes(seed, branches):
  predictions = np.random.default_rng(seed).integers(0, 3, (branches, 2, 5)).astype(np.uint8)
  frequency = np.max([(predictions == c).sum(0) for c in range(3)], 0)
  np.testing.assert_allclose(variation_ratio(jnp.asarray(predictions)), 1 - frequency / branches, rtol=1e-6, atol=1e-7)


def test_agreement_by_hand():
  for logits, expected in [
    (voting([0, 1, 2, 3], [0, 2, 2, 0]), [True, False, True, False]),
    (voting([0, 1, 2, 3], [0, 1, 2, 0], [0, 2, 2, 0]), [True, False, True, False]),
    (voting([0, 1, 2, 3]), [True] * 4),
  ]:
    assert agreement(logits, proxy_labels(logits)).tolist() == expected
    np.testing.assert_array_equal(variation_ratio(logits.argmax(-1)) == 0, expected)
  ensemble = jnp.array([0, 1, 3, 3])  # which says the same as both, as one, as neither though they agree, as one
  assert agreement(voting([0, 1, 2, 3], [0, 2, 2, 0]), ensemble).tolist() == [True, False, False, False]


def test_what_kept_pixels_stand_for():
  np.testing.assert_allclose(stands_for(jnp.array([8, 6, 5, 50, 0]), jnp.array([8, 4, 0, 1, 0])), [1, 1.5, 5, 10, 0])


def test_proxy_labels_are_of_mean_logits_not_of_mean_probabilities_or_votes():
  logits = jnp.array([[[0, 1, 0], [9, 0, 0]], [[0, 1, 0], [0, 4, 0]], [[3, 0, 0], [0, 4, 0]]], jnp.float32)
  labels = proxy_labels(logits)
  assert labels.dtype == jnp.int32
  assert labels.tolist() == [0, 0]  # outvoted in both pixels
  assert jax.nn.softmax(logits).mean(0).argmax(-1).tolist() != [0, 0]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4))
def test_where_branches_agree_the_proxy_label_is_what_they_agree_on(seed, branches):
  logits = np.random.default_rng(seed).normal(size=(branches, 2, 3, 5, CLASSES)).astype(np.float32)
  labels = proxy_labels(jnp.asarray(logits))
  easy = variation_ratio(jnp.asarray(logits).argmax(-1)) == 0
  assert easy.shape == (2, 3, 5)
  np.testing.assert_array_equal(labels[easy], logits[0].argmax(-1)[easy])
  np.testing.assert_array_equal(agreement(jnp.asarray(logits), labels), easy)


def test_proxy_labels_carry_no_gradient():
  """Whole numbers carry none anyway: this is for whoever would make them soft."""
  logits = jnp.asarray(np.random.default_rng(0).normal(size=(2, 2, 3, 4, CLASSES)), jnp.float32)
  assert not np.any(jax.grad(lambda x: proxy_labels(x).astype(jnp.float32).sum())(logits))

  def loss(x, labels_of):
    labels = proxy_labels(labels_of)
    return mean(cross_entropy(x[0], keep_easy(labels, agreement(labels_of, labels))))

  through = jax.grad(lambda x: loss(x, x))(logits)
  np.testing.assert_array_equal(through, jax.grad(lambda x: loss(x, logits))(logits))
  assert np.any(through)


def test_bfloat16_logits_are_averaged_in_float32():
  logits = jnp.array([[[256, 256]], [[0, 1]], [[0, 0]]], jnp.bfloat16)  # in bfloat16 256 + 1 is 256
  assert proxy_labels(logits).tolist() == [1]


# Mining


LABELS = jnp.array([[[0, 1, 255], [3, 3, 2]], [[255, 0, 0], [1, 2, 3]]], jnp.uint8)
AGREE = jnp.array([[[1, 0, 1], [0, 1, 1]], [[0, 1, 0], [1, 0, 0]]], bool)


def test_easy_target_pixels_keep_their_labels():
  kept = keep_easy(LABELS, AGREE)
  assert kept.dtype == jnp.uint8
  assert kept.tolist() == [[[0, 255, 255], [255, 3, 2]], [[255, 0, 255], [1, 255, 255]]]
  kept = keep_easy(LABELS.astype(jnp.int32), AGREE, ignore_label=-1)
  assert kept.dtype == jnp.int32
  assert kept.tolist() == [[[0, -1, 255], [-1, 3, 2]], [[-1, 0, -1], [1, -1, -1]]]


def test_hard_source_pixels_stay_at_any_ratio():
  assert thinned(LABELS, AGREE, 0.0, keys(2)).tolist() == LABELS.tolist()
  dropped = thinned(LABELS, AGREE, 1.0, keys(2))
  assert dropped.dtype == jnp.uint8
  assert dropped.tolist() == [[[255, 1, 255], [3, 255, 255]], [[255, 255, 0], [255, 2, 3]]]
  assert thin_easy(LABELS, AGREE, 1, keys(2), ignore_label=9).tolist()[0] == [[9, 1, 9], [3, 9, 9]]
  for seed in range(20):
    some = thinned(LABELS, AGREE, 0.5, keys(2, seed))
    np.testing.assert_array_equal(some[~AGREE], LABELS[~AGREE])


def test_a_ratio_of_0_keeps_all_and_of_1_drops_all_of_very_many():
  labels, easy = jnp.zeros((1, 2048, 4096), jnp.uint8), jnp.ones((1, 2048, 4096), bool)  # 2^23, as many as uniform's values
  assert not np.any(thinned(labels, easy, 0.0, keys(1)))
  assert np.all(np.asarray(thinned(labels, easy, 1.0, keys(1))) == 255)


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.85])
def test_the_dropped_share_of_easy_pixels_is_the_ratio(ratio):
  rng = np.random.default_rng(0)
  labels, easy = rng.integers(0, CLASSES, (4, 80, 100)).astype(np.uint8), rng.random((4, 80, 100)) < 0.7
  dropped = np.asarray(thinned(labels, easy, jnp.float32(ratio), keys(4))) == 255
  for of_one, easy_of_one in zip(dropped, easy, strict=True):
    num = easy_of_one.sum()
    assert abs(of_one[easy_of_one].mean() - ratio) < 3 * np.sqrt(ratio * (1 - ratio) / num)
  assert not np.any(dropped & ~easy)


def test_ratios_are_traced_and_a_pixel_once_dropped_stays_dropped_at_greater_ones():
  labels, easy = jnp.zeros((2, 30, 40), jnp.uint8), jnp.ones((2, 30, 40), bool)
  few, many = (np.asarray(thinned(labels, easy, jnp.float32(ratio), keys(2))) == 255 for ratio in (0.3, 0.6))
  assert 0 < few.sum() < many.sum() and np.all(many[few])


def test_what_is_dropped_depends_on_the_examples_own_key():
  labels, easy = jnp.zeros((4, 30, 40), jnp.uint8), jnp.ones((4, 30, 40), bool)
  whole = thinned(labels, easy, 0.5, keys(4))
  halves = [thinned(labels[part], easy[part], 0.5, keys(4)[part]) for part in (slice(0, 2), slice(2, 4))]
  np.testing.assert_array_equal(whole, np.concatenate(halves))
  np.testing.assert_array_equal(whole[::-1], thinned(labels, easy, 0.5, keys(4)[::-1]))
  assert len({np.asarray(one).tobytes() for one in whole}) == 4


@pytest.mark.parametrize("mine", [keep_easy, lambda labels, easy: thin_easy(labels, easy, 0.5, keys(2))])
def test_dropped_pixels_change_neither_loss_nor_gradient(mine):
  rng = np.random.default_rng(1)
  logits = rng.normal(size=(2, 6, 7, CLASSES)).astype(np.float32)
  labels = jnp.asarray(rng.integers(0, CLASSES, (2, 6, 7)), jnp.uint8)
  kept = np.asarray(mine(labels, jnp.asarray(rng.random((2, 6, 7)) < 0.5)))
  dropped = kept == 255
  assert 0 < dropped.sum() < dropped.size
  other = logits + 100 * dropped[..., None] * rng.normal(size=logits.shape).astype(np.float32)
  step = jax.jit(jax.value_and_grad(lambda x: mean(cross_entropy(x, kept))))
  (loss, gradient), (same_loss, same_gradient) = step(logits), step(other)
  assert loss == same_loss
  np.testing.assert_array_equal(gradient, same_gradient)
  assert np.all(np.asarray(gradient)[dropped] == 0) and np.all(np.any(gradient, -1) == ~dropped)


# Similarity


def decoder(conv, logits, bias=0.0):
  """Parameters with two convolutions, 1×1, of weights [F, C]."""
  conv, logits = (jnp.array(weights, jnp.float32)[None, None] for weights in (conv, logits))
  return {
    "pool_conv": {"kernel": conv},
    "pool_bn": {"scale": jnp.full(2, bias), "bias": jnp.full(2, bias)},
    "logits": {"kernel": logits, "bias": jnp.full(logits.shape[-1], bias)},
  }


ONE = decoder([[1, 2], [0, -1]], [[3, 0, 1], [-2, 1, 0]])
NEGATIVE = decoder([[-2, -4], [0, 2]], [[-6, 0, -2], [4, -2, 0]], bias=5.0)  # twice as long
ACROSS = decoder([[2, -1], [7, 0]], [[0, 4, 0], [0, 0, 9]], bias=1.0)


def test_similarity_by_hand():
  for decoders, expected in [
    ([ONE, ONE], 1),
    ([ONE, NEGATIVE], -1),
    ([ONE, ACROSS], 0),
    ([ONE], 0),
    ([ONE, ONE, NEGATIVE], -1 / 3),
    ([ONE, ONE, ACROSS], 1 / 3),
    ([ONE, decoder([[1, 0], [0, 0]], [[0, 0, 0], [0, 0, 0]], bias=3.0)], 1 / np.sqrt(21)),
  ]:
    got = similarity(decoders)
    assert got.shape == () and got.dtype == jnp.float32
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-7)


def test_last_layer_similarity_by_hand():
  # W1' W2 of ONE with ACROSS: rows (3 -2), (0 1), (1 0) times (0 4 0), (0 0 9).
  across = np.abs([[0, 12, -18], [0, 0, 9], [0, 4, 0]]).sum()
  itself = np.abs([[13, -2, 3], [-2, 1, 0], [3, 0, 1]]).sum()
  for decoders, expected in [
    ([ONE, ACROSS], across),
    ([ONE, ONE], itself),
    ([ONE, NEGATIVE], 2 * itself),
    ([ONE], 0),
    ([ONE, ONE, ACROSS], (itself + 2 * across) / 3),
  ]:
    got = last_layer_similarity(decoders)
    assert got.shape == () and got.dtype == jnp.float32
    np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.parametrize("alike", [similarity, last_layer_similarity])
def test_descending_the_similarity_parts_the_branches_by_their_kernels_alone(alike):
  rng = np.random.default_rng(0)
  both = [decoder(rng.normal(size=(2, 2)), rng.normal(size=(2, 3)), bias=1.0) for _ in range(2)]
  gradients = jax.grad(alike)(both)
  for leaf in ("scale", "bias"):
    assert not any(np.any(gradient["pool_bn"][leaf]) for gradient in gradients)
  assert all(np.all(gradient["logits"]["kernel"] != 0) for gradient in gradients)
  assert all(np.any(gradient["pool_conv"]["kernel"]) == (alike is similarity) for gradient in gradients)
  apart = jax.tree.map(lambda leaf, gradient: leaf - 1e-2 * gradient, both, gradients)
  assert alike(apart) < alike(both)
