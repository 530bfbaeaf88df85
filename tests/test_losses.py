"""Losses against NumPy in float64 and sums worked by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_uda.losses import binary_cross_entropy, cross_entropy, mean

SHAPE, CLASSES = (2, 3, 4), 5
jitted = jax.jit(cross_entropy)
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
