"""Scores against loops, numbers worked by hand, scikit-learn and Cityscapes' own evaluation."""

from itertools import product

import cv2
import jax.numpy as jnp
import numpy as np
import pytest
from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as official
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, jaccard_score

from jax_uda.data.label_spaces import CITYSCAPES19, CITYSCAPES_IDS, PROTOCOLS, SPACES, SYNTHIA16, protocol, protocol_rows
from jax_uda.metrics import confusion_matrix, fold, iou, mean_iou, pixel_accuracy

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


# --- other people's code ---


def maps(case: str) -> tuple[np.ndarray, np.ndarray]:
  """Labels and predictions of a few images, in train ids of Cityscapes."""
  rng = np.random.default_rng(len(case))
  labels, predictions = rng.integers(0, 19, (2, 3, 24, 40), dtype=np.uint8)
  match case:
    case "part is right":
      predictions = np.where(rng.random(labels.shape) < 0.7, labels, predictions)
    case "absent classes":  # 3 is nowhere, 4 only predicted, 5 only true
      labels[np.isin(labels, (3, 4))], predictions[np.isin(predictions, (3, 5))] = 0, 1
    case "some ignored":
      labels[rng.random(labels.shape) < 0.4] = 255
    case "all ignored":
      labels[:] = 255
    case "one class":
      labels[:] = predictions[:] = 7
    case "one class, never found":
      labels[:], predictions[:] = 7, 8
  return labels, predictions


CASES = (
  "at random", "part is right", "absent classes", "some ignored", "all ignored", "one class", "one class, never found"
)  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_scores_equal_scikit_learns(case):
  labels, predictions = maps(case)
  confusion = confusion_matrix(labels, predictions, 19)
  truth, predicted = labels[labels != 255], predictions[labels != 255]
  if not truth.size:  # which scikit-learn refuses
    assert np.isnan(iou(confusion)).all() and np.isnan(mean_iou(confusion)) and np.isnan(pixel_accuracy(confusion))
    return
  present = np.union1d(truth, predicted)
  theirs = np.full(19, np.nan)
  theirs[present] = jaccard_score(truth, predicted, labels=present, average=None, zero_division=0)
  np.testing.assert_allclose(iou(confusion), theirs, rtol=1e-12)
  assert mean_iou(confusion) == pytest.approx(
    jaccard_score(truth, predicted, labels=present, average="macro", zero_division=0), rel=1e-12
  )
  assert mean_iou(confusion, absent_as_zero=True) == pytest.approx(
    jaccard_score(truth, predicted, labels=range(19), average="macro", zero_division=0), rel=1e-12
  )
  assert pixel_accuracy(confusion) == pytest.approx(accuracy_score(truth, predicted), rel=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_scores_equal_the_official_evaluation_of_cityscapes(case, tmp_path, monkeypatch):
  labels, predictions = maps(case)
  files = {"truth": [], "prediction": []}
  for i, pair in enumerate(zip(labels, predictions, strict=True)):
    for name, image in zip(files, pair, strict=True):
      files[name].append(str(tmp_path / f"{i}_{name}.png"))
      cv2.imwrite(files[name][-1], CITYSCAPES_IDS[image])
  for name, value in (("evalInstLevelScore", False), ("JSONOutput", False), ("quiet", True), ("evalLabels", [])):
    monkeypatch.setattr(official.args, name, value)
  theirs = official.evaluateImgLists(files["prediction"], files["truth"], official.args)
  confusion = sum(np.asarray(confusion_matrix(*pair, 19), np.int64) for pair in zip(labels, predictions, strict=True))
  np.testing.assert_allclose(iou(confusion), [theirs["classScores"][name] for name in CITYSCAPES19.classes], rtol=1e-12)
  np.testing.assert_allclose(mean_iou(confusion), theirs["averageScoreClasses"], rtol=1e-12)


# --- protocols ---

TRAINED_ON = [(name, space) for name, space in product(PROTOCOLS, SPACES.values()) if name == space.name] + [
  ("synthia16", CITYSCAPES19), ("synthia13", CITYSCAPES19), ("synthia13", SYNTHIA16), ("nthu13", CITYSCAPES19)
]  # fmt: skip


@pytest.mark.parametrize(("name", "space"), TRAINED_ON, ids=lambda value: value if isinstance(value, str) else value.name)
def test_folding_counts_each_pixel_as_its_scored_classes(name, space):
  scored = protocol(name, space)
  num, size = len(scored.classes), len(space.classes)
  confusion = np.random.default_rng(0).integers(0, 2**40, (size, size))
  place = {training: i for i, group in enumerate(scored.groups) for training in group}
  expected = np.zeros((num + 1, num + 1), np.int64)
  for (i, truth), (j, predicted) in product(enumerate(space.classes), repeat=2):
    expected[place.get(truth, num), place.get(predicted, num)] += confusion[i, j]
  folded = fold(confusion, protocol_rows(scored, space), num)
  assert folded.dtype == np.int64
  np.testing.assert_array_equal(folded, expected)


def test_synthia13_is_13_rows_of_the_16_class_matrix():
  confusion = np.random.default_rng(0).integers(0, 1000, (16, 16))
  rows = [i for i, name in enumerate(SYNTHIA16.classes) if name not in ("wall", "fence", "pole")]
  scored = protocol("synthia13", SYNTHIA16)
  folded = fold(confusion, protocol_rows(scored, SYNTHIA16), 13)
  np.testing.assert_array_equal(iou(folded)[:13], iou(confusion)[rows])
  assert mean_iou(folded, range(13)) == mean_iou(confusion, rows)
  # Pixels of the 13 classes; what is predicted as wall, fence or pole among them is wrong.
  assert pixel_accuracy(folded[:13]) == pytest.approx(np.diag(confusion)[rows].sum() / confusion[rows].sum())


def test_cross_city_by_hand():
  """Fence, truck and terrain count as building, car and vegetation; a train is always a miss."""
  at = CITYSCAPES19.classes.index
  confusion = np.zeros((19, 19), np.int64)
  for truth, predicted, count in (
    ("building", "fence", 4), ("building", "pole", 2), ("building", "sky", 1), ("car", "truck", 3), ("car", "train", 5),
    ("bus", "train", 2), ("vegetation", "terrain", 6), ("sky", "sky", 9),
  ):  # fmt: skip
    confusion[at(truth), at(predicted)] = count
  scored = protocol("nthu13", CITYSCAPES19)
  folded = fold(confusion, protocol_rows(scored, CITYSCAPES19), 13)
  found = dict(zip(scored.classes, iou(folded)[:13], strict=True))
  wanted = {"building": 6 / 7, "car": 3 / 8, "bus": 0, "vegetation": 1, "sky": 9 / 10}
  for name in scored.classes:
    np.testing.assert_allclose(found[name], wanted.get(name, np.nan))
  assert mean_iou(folded, range(13)) == pytest.approx(sum(wanted.values()) / 5)
  assert pixel_accuracy(folded[:13]) == pytest.approx((6 + 3 + 6 + 9) / 32)
