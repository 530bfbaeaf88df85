"""Scores against loops and numbers worked by hand."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_uda.metrics import confusion_matrix, iou, mean_iou, pixel_accuracy

CLASSES = 4
values = st.sampled_from([0, 1, 2, 3, 4, 200, 255])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(values, values), min_size=24, max_size=24))
def test_confusion_matrix_equals_counting(pairs):
  labels, predictions = np.uint8(pairs).T.reshape(2, 2, 3, 4)
  expected = np.zeros((CLASSES, CLASSES), int)
  for truth, predicted in pairs:
    if truth < CLASSES and predicted < CLASSES:
      expected[truth, predicted] += 1
  confusion = confusion_matrix(labels, predictions, CLASSES)
  assert confusion.dtype == jnp.int32
  np.testing.assert_array_equal(confusion, expected)


def test_rows_are_truth_and_any_label_can_be_ignored():
  labels, predictions = jnp.array([[0, 0, 1, 2]]), jnp.array([[0, 1, 1, 0]])
  np.testing.assert_array_equal(confusion_matrix(labels, predictions, 3), [[1, 1, 0], [0, 1, 0], [1, 0, 0]])
  np.testing.assert_array_equal(confusion_matrix(labels, predictions, 3, ignore_label=0)[0], 0)
  assert confusion_matrix(jnp.full((2, 2), -1), jnp.zeros((2, 2), int), 3).sum() == 0


def test_scores_by_hand():
  confusion = np.array([[6, 2, 0, 0], [1, 3, 0, 0], [0, 0, 0, 0], [0, 2, 0, 0]])
  scores = iou(confusion)
  assert scores.dtype == np.float64
  np.testing.assert_allclose(scores, [6 / 9, 3 / 8, np.nan, 0])  # class 2 is nowhere, class 3 only missed
  assert mean_iou(confusion) == pytest.approx((6 / 9 + 3 / 8 + 0) / 3)
  assert mean_iou(confusion, absent_as_zero=True) == pytest.approx((6 / 9 + 3 / 8) / 4)
  assert mean_iou(confusion, classes=(0, 2, 3)) == pytest.approx((6 / 9 + 0) / 2)
  assert pixel_accuracy(confusion) == pytest.approx(9 / 14)
  np.testing.assert_array_equal(iou(jnp.asarray(confusion)), scores)


def test_a_class_beyond_the_scored_ones_makes_a_prediction_a_miss():
  """The cross-city rule: the network's train matches no class of the 13."""
  labels, predictions = jnp.array([0, 0, 0, 1]), jnp.array([0, 2, 2, 1])
  confusion = confusion_matrix(labels, predictions, 3)
  np.testing.assert_allclose(iou(confusion)[:2], [1 / 3, 1])
  assert mean_iou(confusion, classes=range(2)) == pytest.approx(2 / 3)
  assert pixel_accuracy(confusion) == pytest.approx(2 / 4)


def test_chunks_add_up_beyond_32_bits():
  labels, predictions = jnp.array([0, 0, 1]), jnp.array([0, 1, 1])
  total = np.asarray(confusion_matrix(labels, predictions, 2), np.int64) * 2**33
  np.testing.assert_allclose(iou(total), [1 / 2, 1 / 2])
  assert pixel_accuracy(total) == pytest.approx(2 / 3)


@pytest.mark.filterwarnings("error")
def test_nothing_scored_is_not_a_number():
  empty = np.zeros((2, 2), int)
  assert np.all(np.isnan(iou(empty)))
  assert np.isnan(mean_iou(empty)) and np.isnan(pixel_accuracy(empty))
  assert mean_iou(empty, absent_as_zero=True) == 0
