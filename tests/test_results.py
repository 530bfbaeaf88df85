"""What results.json says, against counts by hand."""

import json

import numpy as np
import pytest

from jax_uda.results import PseudoLabelCounts, stage_result

CLASSES = ("road", "sky & <air>", "car")
CONFUSION = np.array([[6, 2, 0], [0, 4, 0], [0, 0, 0]])  # no car, neither true nor predicted


def test_stage_result():
  result = stage_result("round_1", np.int64(50), 1.5, CONFUSION, CLASSES)
  assert json.loads(json.dumps(result, allow_nan=False)) == {
    "name": "round_1",
    "steps": 50,
    "seconds": 1.5,
    "miou": pytest.approx((6 / 8 + 4 / 6) / 2),
    "pixel_accuracy": pytest.approx(10 / 12),
    "iou": {"road": pytest.approx(6 / 8), "sky & <air>": pytest.approx(4 / 6), "car": None},
    "other_protocols": {},
    "pseudo_labels": None,
  }


def test_stage_result_of_pseudo_labels():
  # Ten of the selected pixels have a truth; of those labelled sky (column 1) 3 of 4 are right.
  truth = np.array([[6, 1, 0], [0, 3, 0], [0, 0, 0]])
  counts = PseudoLabelCounts(selected=np.array([8, 12, 0]), pixels=100, confusion=truth)
  found = {
    "selected": 0.2,
    "accuracy": 0.9,
    "by_class": {
      "road": {"selected": 0.4, "accuracy": 1.0},
      "sky & <air>": {"selected": 0.6, "accuracy": 0.75},
      "car": {"selected": 0.0, "accuracy": None},
    },
  }
  for others in ({}, {"labels by lot": counts}):
    result = stage_result("a", 1, 1.0, None, CLASSES, {"": counts, **others})
    assert result["pseudo_labels"] == {**found, "others": dict.fromkeys(others, found)}


def test_stage_result_without_any_labels():
  counts = PseudoLabelCounts(selected=np.zeros(3, np.int64), pixels=100)
  result = stage_result("a", 1, 1.0, None, CLASSES, {"": counts})
  assert result["miou"] is None and result["pixel_accuracy"] is None
  assert set(result["iou"]) == set(CLASSES) and set(result["iou"].values()) == {None}
  assert result["pseudo_labels"]["selected"] == 0 and result["pseudo_labels"]["accuracy"] is None
  assert result["pseudo_labels"]["by_class"]["road"] == {"selected": None, "accuracy": None}
