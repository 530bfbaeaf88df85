"""Losses against NumPy in float64 and sums worked by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_uda.losses import binary_cross_entropy, cross_entropy, hard_pixels, labels_at_stride, mean

SHAPE, CLASSES = (2, 3, 4), 5
jitted = jax.jit(cross_entropy)
jitted_hard = jax.jit(hard_pixels, static_argnames=("least", "ignore_label"))
gradient = jax.jit(jax.grad(lambda logits, labels: cross_entropy(logits, labels)[0]))


def loop_cross_entropy(logits, labels):
  total, count = 0.0, 0
  for x, label in zip(np.float64(logits).reshape(-1, logits.shape[-1]), labels.reshape(-1), strict=True):
    if label != 255:
      total -= x[label] - x.max() - np.log(np.exp(x - x.max()).sum())
      count += 1
  return total, count


@st.composite
def batches(draw):
  rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
  logits = rng.normal(size=(*SHAPE, CLASSES)) * draw(st.sampled_from([0.1, 1, 20, 1000]))
  labels = rng.integers(0, CLASSES, SHAPE)
  labels[rng.random(SHAPE) < draw(st.sampled_from([0, 0.5, 1.1]))] = 255
  return logits.astype(np.float32), labels.astype(np.uint8)


@settings(max_examples=60, deadline=None)
@given(batches())
def test_cross_entropy_and_its_gradient(batch):
  logits, labels = batch
  total, count = jitted(logits, labels)
  expected, pixels = loop_cross_entropy(logits, labels)
  np.testing.assert_allclose(total, expected, rtol=1e-5, atol=1e-5)
  assert total.dtype == jnp.float32 and count.dtype == jnp.int32 and count == pixels
  got = np.asarray(gradient(logits, labels))
  assert np.all(got[labels == 255] == 0)
  kept = labels != 255
  softmax = np.exp(np.float64(logits) - logits.max(-1, keepdims=True))
  expected = softmax / softmax.sum(-1, keepdims=True) - np.eye(CLASSES)[np.minimum(labels, CLASSES - 1)]
  np.testing.assert_allclose(got[kept], expected[kept], atol=1e-5)


def test_cross_entropy_by_hand():
  logits = jnp.log(jnp.array([[[[1, 1, 2], [4, 3, 1]]]], jnp.float32))
  total, count = cross_entropy(logits, jnp.array([[[2, 1]]]))
  np.testing.assert_allclose(total, np.log(2) + np.log(8 / 3), rtol=1e-6)
  assert count == 2
  total, count = cross_entropy(logits, jnp.array([[[2, 1]]]), ignore_label=1)
  np.testing.assert_allclose(total, np.log(2), rtol=1e-6)
  assert count == 1


def test_labels_outside_the_classes_are_ignored():
  logits = jnp.ones((1, 1, 3, 2))
  total, count = cross_entropy(logits, jnp.array([[[2, -1, 0]]]))
  np.testing.assert_allclose(total, np.log(2), rtol=1e-6)
  assert count == 1


def test_class_weights_by_hand():
  logits = jnp.log(jnp.array([[[[1, 1, 2], [4, 3, 1], [1, 1, 1], [2, 1, 1], [1, 9, 9]]]], jnp.float32))
  labels, weights = jnp.array([[[2, 1, 0, 255, 7]]]), jnp.array([1.0, 2.0, 0.5])
  total, count = cross_entropy(logits, labels, weights=weights)
  np.testing.assert_allclose(total, 0.5 * np.log(2) + 2 * np.log(8 / 3) + np.log(3), rtol=1e-6)
  assert total.dtype == jnp.float32 and count.dtype == jnp.int32 and count == 3  # pixels, not their weights
  np.testing.assert_allclose(mean((total, count)), total / 3, rtol=1e-6)
  total, count = cross_entropy(logits, labels, ignore_label=1, weights=weights)
  np.testing.assert_allclose(total, 0.5 * np.log(2) + np.log(3), rtol=1e-6)
  assert count == 2


@settings(max_examples=30, deadline=None)
@given(batches())
def test_class_weights_scale_each_pixels_loss_and_gradient(batch):
  logits, labels = batch
  weights = np.array([1, 2, 0, 0.25, 3], np.float32)
  of_pixel = np.where(labels == 255, 0, weights[np.minimum(labels, CLASSES - 1)])
  total, count = jitted(logits, labels, weights=weights)
  np.testing.assert_allclose(total, np.nansum(of_pixel * cross_entropies(logits, labels)), rtol=1e-5, atol=1e-4)
  assert count == (labels != 255).sum()
  got = np.asarray(jax.grad(lambda x: jitted(x, labels, weights=weights)[0])(logits))
  np.testing.assert_allclose(got, of_pixel[..., None] * gradient(logits, labels), rtol=1e-5, atol=1e-6)
  assert np.all(got[of_pixel == 0] == 0)
  np.testing.assert_array_equal(jitted(logits, labels, weights=np.ones(CLASSES, np.float32)), jitted(logits, labels))


def test_class_weights_take_no_memory():
  logits, labels = jnp.zeros((1, 128, 128, 19)), jnp.zeros((1, 128, 128), jnp.uint8)

  def workspace(weights):
    program = jax.jit(jax.grad(lambda x: cross_entropy(x, labels, weights=weights)[0])).lower(logits).compile()
    return program.memory_analysis().temp_size_in_bytes

  assert workspace(jnp.ones(19)) <= workspace(None) + labels.size


def test_a_batch_without_labels_gives_zero_and_no_gradient():
  logits, labels = jnp.full((*SHAPE, CLASSES), 1e4), jnp.full(SHAPE, 255, jnp.uint8)
  value, grad = jax.value_and_grad(lambda x: mean(cross_entropy(x, labels)))(logits)
  assert value == 0 and np.all(np.asarray(grad) == 0)


def test_bfloat16_logits_are_summed_in_float32():
  rng = np.random.default_rng(0)
  logits = jnp.asarray(rng.normal(size=(*SHAPE, CLASSES)), jnp.bfloat16)
  labels = rng.integers(0, CLASSES, SHAPE)
  total, _ = jitted(logits, labels)
  assert total.dtype == jnp.float32
  np.testing.assert_allclose(total, loop_cross_entropy(np.asarray(logits, np.float64), labels)[0], rtol=1e-6)


# Hard pixels


def cross_entropies(logits, labels):
  """Of each pixel, in float64; NaN where it is ignored."""
  logits = np.float64(logits)
  own = np.take_along_axis(logits, np.minimum(labels, CLASSES - 1)[..., None].astype(int), -1)[..., 0]
  return np.where(labels == 255, np.nan, np.logaddexp.reduce(logits, axis=-1) - own)


@settings(max_examples=80, deadline=None)
@given(batches(), st.sampled_from([0.0, 0.2, 0.6, 0.99, 1.0]), st.sampled_from([0, 1, 4, 12, 99]))
def test_hard_pixels_equal_a_loop_over_examples(batch, below, least):
  logits, labels = batch
  got = jitted_hard(logits, labels, below=below, least=least)
  assert got.dtype == jnp.uint8 and got.shape == SHAPE
  for logits_of_one, before, after in zip(logits, labels, np.asarray(got), strict=True):
    losses = cross_entropies(logits_of_one, before)
    ranked = np.sort(losses[before != 255])[::-1]
    assert np.all((after == before) | (after == 255))
    assert (after != 255).sum() >= min(least, len(ranked))
    with np.errstate(divide="ignore"):
      limit = min([-np.log(below), *ranked[least - 1 : least]] if least else [-np.log(below)])
    limit = -np.inf if least > len(ranked) else limit
    near = 2e-6 * (1 + np.abs(logits_of_one).max())  # what rounding may decide
    assert np.all(after[losses > limit + near] != 255)
    assert np.all(after[losses < limit - near] == 255)


def test_hard_pixels_by_hand():
  logits = jnp.log(jnp.array([[[[1, 9], [2, 8], [6, 4], [7, 3]], [[9, 1], [1, 9], [8, 2], [5, 5]]]], jnp.float32))
  labels = jnp.array([[[0, 0, 0, 0], [0, 0, 255, 7]]], jnp.uint8)  # p = 0.1, 0.2, 0.6, 0.7; 0.9, 0.1
  for below, least, kept in [
    (0.65, 0, [[1, 1, 1, 0], [0, 1, 0, 0]]),
    (0.65, 4, [[1, 1, 1, 0], [0, 1, 0, 0]]),
    (0.15, 1, [[1, 0, 0, 0], [0, 1, 0, 0]]),  # two are equal
    (0.15, 3, [[1, 1, 0, 0], [0, 1, 0, 0]]),
    (0.0, 0, [[0, 0, 0, 0], [0, 0, 0, 0]]),
    (0.0, 5, [[1, 1, 1, 1], [0, 1, 0, 0]]),
    (0.15, 7, [[1, 1, 1, 1], [1, 1, 0, 0]]),  # there are only six
    (0.15, 10**6, [[1, 1, 1, 1], [1, 1, 0, 0]]),
    (1.0, 0, [[1, 1, 1, 1], [1, 1, 0, 0]]),
  ]:
    np.testing.assert_array_equal(hard_pixels(logits, labels, below, least)[0], np.where(kept, labels[0], 255))
  np.testing.assert_array_equal(hard_pixels(logits, labels, 0.15, 0, ignore_label=0), np.zeros((1, 2, 4)))
  assert hard_pixels(logits, labels.astype(jnp.int32), 0.15, 0).dtype == jnp.int32


def test_the_hardest_are_found_where_probabilities_and_losses_are_all_alike():
  margins = np.random.default_rng(0).permutation(np.linspace(20, 40, 50)).astype(np.float32).reshape(1, 5, 10)
  logits = jnp.stack([jnp.asarray(margins), jnp.zeros((1, 5, 10))], -1)
  labels = np.zeros((1, 5, 10), np.uint8)
  assert cross_entropy(logits, labels)[0] == 0 and np.all(np.asarray(jax.nn.softmax(logits))[..., 0] == 1)
  got = np.asarray(hard_pixels(logits, labels, 0.6, 8))
  np.testing.assert_array_equal(got == 0, margins <= np.sort(margins, axis=None)[7])


def test_equal_pixels_stay_together():
  logits, labels = jnp.zeros((2, 3, 4, CLASSES)), jnp.zeros((2, 3, 4), jnp.uint8).at[0, 0].set(255)
  np.testing.assert_array_equal(hard_pixels(logits, labels, 0.0, 2), labels)


def test_examples_are_mined_by_themselves():
  rng = np.random.default_rng(1)
  logits = (rng.normal(size=(4, *SHAPE[1:], CLASSES)) * np.array([1, 5, 9, 30])[:, None, None, None]).astype(np.float32)
  labels = rng.integers(0, CLASSES, logits.shape[:-1]).astype(np.uint8)
  whole = jitted_hard(logits, labels, below=0.01, least=3)
  parts = [jitted_hard(logits[i : i + 1], labels[i : i + 1], below=0.01, least=3) for i in range(4)]
  np.testing.assert_array_equal(whole, np.concatenate(parts))
  assert np.all((np.asarray(whole) != 255).sum((1, 2)) >= 3)


def test_no_gradient_flows_through_the_choice():
  rng = np.random.default_rng(2)
  logits = rng.normal(size=(*SHAPE, CLASSES)).astype(np.float32)
  labels = rng.integers(0, CLASSES, SHAPE).astype(np.uint8)
  chosen = np.asarray(hard_pixels(logits, labels, 0.1, 3))
  assert 0 < (chosen != 255).sum() < chosen.size
  through = jax.grad(lambda x: cross_entropy(x, hard_pixels(x, labels, 0.1, 3))[0])(logits)
  np.testing.assert_allclose(through, gradient(logits, chosen), rtol=1e-6)
  assert np.all(np.asarray(through)[chosen == 255] == 0)


@pytest.mark.parametrize("least", [0, 1, 5])
def test_a_broken_network_is_not_hidden(least):
  logits, labels = jnp.zeros((*SHAPE, CLASSES)).at[1, 0, 0, 2].set(jnp.nan), jnp.zeros(SHAPE, jnp.uint8)
  chosen = hard_pixels(logits, labels, 0.1, least)
  assert chosen[1, 0, 0] == 0 and np.isnan(mean(cross_entropy(logits, chosen)))
  assert np.all(np.asarray(hard_pixels(logits, labels.at[1, 0, 0].set(255), 0.1, 0)) == 255)


def test_hard_pixels_of_bfloat16_and_of_no_labels():
  logits = jnp.asarray(np.random.default_rng(3).normal(size=(*SHAPE, CLASSES)), jnp.bfloat16)
  labels = jnp.zeros(SHAPE, jnp.uint8)
  np.testing.assert_array_equal(
    hard_pixels(logits, labels, 0.2, 2), hard_pixels(logits.astype(jnp.float32), labels, 0.2, 2)
  )
  assert np.all(np.asarray(hard_pixels(logits, labels + 255, 0.2, 2)) == 255)


# Labels at the network's stride


def test_labels_in_the_middle_of_cells_by_hand():
  labels = jnp.arange(5 * 7, dtype=jnp.uint8).reshape(1, 5, 7)
  assert labels_at_stride(labels, 4).tolist() == [[[16, 20], [255, 255]]]  # rows 2, (6); columns 2, 6
  assert labels_at_stride(labels, 2).tolist() == [[[8, 10, 12, 255], [22, 24, 26, 255], [255] * 4]]
  assert labels_at_stride(labels, 3).tolist() == [[[8, 11, 255], [29, 32, 255]]]  # rows 1, 4; columns 1, 4, (7)
  assert labels_at_stride(labels[:, :3, :3], 8).tolist() == [[[255]]]
  assert labels_at_stride(labels[:, :3, :3], 8, ignore_label=9).tolist() == [[[9]]]
  np.testing.assert_array_equal(labels_at_stride(labels, 1), labels)


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 2, 3, 5, 8]))
def test_labels_at_stride_equal_a_loop_over_cells(height, width, stride):
  labels = np.random.default_rng(height * width).integers(0, CLASSES, (2, height, width)).astype(np.uint8)
  got = labels_at_stride(jnp.asarray(labels), stride)
  assert got.dtype == jnp.uint8 and got.shape == (2, -(-height // stride), -(-width // stride))
  for i, y, x in np.ndindex(got.shape):
    row, column = y * stride + stride // 2, x * stride + stride // 2
    assert got[i, y, x] == (labels[i, row, column] if row < height and column < width else 255)


# Image level and means


def test_binary_cross_entropy_is_equation_5():
  logits, targets = np.array([[2.0, -1.0, 0.5], [0.0, 3.0, -2.0]]), np.array([[1, 0, 1], [0, 0, 1]])
  p = 1 / (1 + np.exp(-logits))
  per_image = -(targets * np.log(p) + (1 - targets) * np.log(1 - p)).mean(1)
  pair = binary_cross_entropy(jnp.asarray(logits), jnp.asarray(targets))
  np.testing.assert_allclose(pair[0], per_image.sum(), rtol=1e-6)
  assert pair[1] == 2 and pair[1].dtype == jnp.int32
  np.testing.assert_allclose(mean(pair), per_image.mean(), rtol=1e-6)
  total, _ = binary_cross_entropy(jnp.zeros((1, 4)), jnp.array([[1, 0, 1, 0]]))
  np.testing.assert_allclose(total, np.log(2), rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_binary_cross_entropy_is_stable(dtype):
  logits, targets = jnp.array([[1e4, -1e4, 1e4, -1e4]], dtype), jnp.array([[1, 0, 0, 1]])
  value, grad = jax.value_and_grad(lambda x: binary_cross_entropy(x, targets)[0])(logits)
  np.testing.assert_allclose(value, logits.astype(jnp.float32)[0, 0] / 2, rtol=1e-6)
  np.testing.assert_allclose(grad.astype(jnp.float32), [[0, 0, 0.25, -0.25]])


def test_pairs_add_up_where_means_would_not():
  rng = np.random.default_rng(2)
  logits, labels = rng.normal(size=(*SHAPE, CLASSES)).astype(np.float32), rng.integers(0, CLASSES, SHAPE)
  labels[0].flat[:7] = 255
  parts = [jitted(logits[i : i + 1], labels[i : i + 1]) for i in range(2)]
  together = mean((parts[0][0] + parts[1][0], parts[0][1] + parts[1][1]))
  np.testing.assert_allclose(together, mean(jitted(logits, labels)), rtol=1e-6)
  assert abs(together - (mean(parts[0]) + mean(parts[1])) / 2) > 1e-3
