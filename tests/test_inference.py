"""Upsampling, kept outputs and full-resolution predictions."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_uda import inference
from jax_uda.errors import UserError


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


ONE = {"low": np.ones((1, 64, 128, 16), np.float16), "size": np.ones((1, 2), np.int32)}  # 256 KiB and 8 bytes


@pytest.mark.parametrize(
  ("keep_gib", "spill_gib", "where"), [(2, 0, "memory"), (1.1, 0, "memory"), (1, 1.1, "disk"), (0, 2, "disk"), (1, 1, "")]
)
def test_outputs_go_where_they_are_allowed(tmp_path, keep_gib, spill_gib, where):
  spill = tmp_path / "spill"
  with inference.KeptOutputs(4096, keep_gib, spill, spill_gib) as kept:  # 1 GiB and 32 KiB
    if where:
      kept.append(ONE)
      assert spill.exists() == (where == "disk")
    else:
      with pytest.raises(UserError) as error:
        kept.append(ONE)
      for words in ("1.00 GiB", "4096 images", "config.labels.keep_gib=1 ", "config.labels.spill_gib=1 ", "sisc.patches"):
        assert words in str(error.value)
      assert "\n" not in str(error.value) and not spill.exists()
  assert not spill.exists()


def test_a_disk_without_room_is_an_error_and_no_crash(tmp_path):
  spill = tmp_path / "run" / "spill"
  with inference.KeptOutputs(10**13, 1.0, spill) as kept, pytest.raises(UserError) as error:
    kept.append(ONE)
  for words in (f"{10**13 * (2**18 + 8) / 2**30:.2f} GiB", str(spill), "has room for", "labels.keep_gib", "sisc.patches"):
    assert words in str(error.value)
  assert "\n" not in str(error.value) and not spill.exists()


@pytest.mark.parametrize(("missing", "fits"), [(0, True), (1, False)])
def test_a_disk_may_be_filled_but_not_more(tmp_path, monkeypatch, missing, fits):
  free = 4096 * (2**18 + 8) - missing
  monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(free, 0, free))
  with inference.KeptOutputs(4096, 0.5, tmp_path / "spill") as kept:
    if fits:
      kept.append(ONE)
    else:
      with pytest.raises(UserError, match=r"has room for 1\.00; make room there"):
        kept.append(ONE)


def test_what_a_killed_process_left_makes_room_before_it_is_measured(tmp_path, monkeypatch):
  spill = tmp_path / "spill"
  spill.mkdir()
  (spill / "0.bin").write_bytes(b"old")

  def disk_usage(path):
    assert spill.exists() and not list(spill.iterdir())
    return shutil._ntuple_diskusage(2**40, 0, 2**40)

  monkeypatch.setattr(shutil, "disk_usage", disk_usage)
  with inference.KeptOutputs(2, 0.0, spill) as kept:
    kept.append(ONE)
    assert sorted(file.name for file in spill.iterdir()) == ["0.bin", "1.bin"]


def test_outputs_cannot_spill_to_a_bucket():
  kept = inference.KeptOutputs(2, 0.0, "gs://bucket/run/spill")
  with pytest.raises(UserError, match=r"gs://bucket/run/spill is not on a local disk; raise config\.labels\.keep_gib"):
    kept.append(ONE)


def test_the_stride_is_told_by_the_shapes():
  for stride in (4, 8, 32):
    for size in ((64, 96), (65, 97), (33, 257)):
      assert inference.stride(size, [-(-n // stride) for n in size]) == stride
  with pytest.raises(ValueError, match=r"\(5, 5\) cells are no map of \(64, 64\) pixels"):
    inference.stride((64, 64), (5, 5))


def test_a_map_at_stride_4_is_read_as_one():
  """The same scene at two strides gives the same labels, from whole images and from what labelling keeps."""
  labels = np.random.default_rng(0).integers(0, 3, (4, 6))
  low = np.log(np.eye(3)[labels] * 0.9 + 0.03).astype(np.float16)
  canvas, size = (32, 48), np.int32([32, 48])
  coarse = inference.mean_of_looks([{"low": low}], size, canvas, (1.0,))
  fine = inference.mean_of_looks([{"low": low.repeat(2, 0).repeat(2, 1)}], size, canvas, (1.0,))
  assert coarse.shape == fine.shape == (32, 48, 3)
  np.testing.assert_array_equal(fine.argmax(-1)[2::4, 2::4], labels.repeat(2, 0).repeat(2, 1))
  np.testing.assert_array_equal(coarse.argmax(-1)[4::8, 4::8], labels)


def test_predictions_follow_the_labels_resolution():
  """A canvas twice as small as the label, filled in part: each cell covers its share of the label."""
  labels = np.array([[0, 1, 2], [2, 0, 1]])
  low = np.log(np.eye(3)[labels] * 0.9 + 0.03).astype(np.float16)
  view = {"low": low, "stride": 8, "size": np.int32([16, 16])}  # the third column is padding
  got = inference.predicted_labels(view, (32, 32))
  assert got.shape == (32, 32) and got.dtype == np.uint8
  for row in range(2):
    for column in range(2):
      assert got[16 * row + 8, 16 * column + 7] == labels[row, column]


def test_padding_is_the_mean_colour():
  images = np.full((1, 4, 6, 3), 255, np.uint8)
  prepared = np.asarray(inference.prepare(images, np.int32([[2, 5]])))
  assert (prepared[0, :2, :5] > 1).all() and not prepared[0, 2:].any() and not prepared[0, :, 5:].any()
