"""Upsampling, kept outputs and full-resolution predictions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_uda import inference


def test_upsampling_has_half_pixel_centres():
  ramp = jnp.arange(4.0)[None, :, None] * jnp.ones((3, 1, 1))
  up = np.asarray(inference.upsample(ramp, (24, 32)))[..., 0]
  # The centre of cell i lies between pixels 8i + 3 and 8i + 4; beyond the outermost centres the value stays.
  wanted = np.clip((np.arange(32) + 0.5) / 8 - 0.5, 0, 3)
  np.testing.assert_allclose(up, np.tile(wanted, (24, 1)), atol=1e-6)


def test_upsampling_equals_resize_and_crops():
  maps = jax.random.uniform(jax.random.key(0), (3, 5, 2))
  resized = jax.image.resize(maps, (24, 40, 2), "linear")
  np.testing.assert_allclose(inference.upsample(maps, (24, 40)), resized, atol=1e-6)
  np.testing.assert_allclose(inference.upsample(maps, (20, 33)), resized[:20, :33], atol=1e-6)


def test_log_probabilities_rank_what_softmax_cannot():
  logits = jnp.stack([jnp.array([20.0, 0.0]), jnp.array([24.0, 0.0])])
  assert len(np.unique(jax.nn.softmax(logits)[:, 0].astype(jnp.float16))) == 1
  assert len(np.unique(inference.log_probabilities(logits)[:, 1])) == 2
  assert np.isfinite(inference.log_probabilities(jnp.array([0.0, -1e9]))).all()


def test_nothing_of_a_batch_may_be_kept(tmp_path):
  with inference.KeptOutputs(3, 1.0, tmp_path / "spill") as kept:
    for n in (0, 2, 0):
      kept.append({"a": np.full((n, 2), n, np.float16)})
    ((batch, exists),) = kept.batches(3)
  assert batch["a"].shape == (3, 2) and (batch["a"] == 2).all() and exists.tolist() == [True, True, False]


@pytest.mark.parametrize("keep_gib", [1.0, 0.0])
def test_kept_outputs_come_back_in_full_batches_from_memory_and_disk(tmp_path, keep_gib):
  rng = np.random.default_rng(0)
  parts = [{"a": rng.normal(size=(n, 2, 3)).astype(np.float16), "b": np.arange(n)} for n in (2, 2, 1)]
  spill = tmp_path / "spill"
  with inference.KeptOutputs(5, keep_gib, spill) as kept:
    for part in parts:
      kept.append(part)
    assert spill.exists() == (keep_gib == 0)
    for _ in range(2):  # may be replayed
      batches = list(kept.batches(3))
      assert [exists.tolist() for _, exists in batches] == [[True] * 3, [True, True, False]]
      found = np.concatenate([batch["a"] for batch, _ in batches])[:5]
      np.testing.assert_array_equal(found, np.concatenate([part["a"] for part in parts]))
  assert not spill.exists()


def test_predictions_follow_the_labels_resolution():
  """A canvas twice as small as the label, filled in part: each cell covers its share of the label."""
  labels = np.array([[0, 1, 2], [2, 0, 1]])
  low = np.log(np.eye(3)[labels] * 0.9 + 0.03).astype(np.float16)
  got = np.asarray(inference.predicted_labels(low, np.int32([16, 16]), (32, 32)))  # the third column is padding
  assert got.shape == (32, 32) and got.dtype == np.uint8
  for row in range(2):
    for column in range(2):
      assert got[16 * row + 8, 16 * column + 7] == labels[row, column]


def test_padding_is_the_mean_colour():
  images = np.full((1, 4, 6, 3), 255, np.uint8)
  prepared = np.asarray(inference.prepare(images, np.int32([[2, 5]])))
  assert (prepared[0, :2, :5] > 1).all() and not prepared[0, 2:].any() and not prepared[0, :, 5:].any()
