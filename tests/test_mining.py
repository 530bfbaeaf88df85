"""Tiers by hand, mined pixels against loops and by their frequencies, and the crops around them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_uda import mining
from jax_uda.data.transforms import Augmentation, augment

CLASSES = 5
TIERS = np.array([0, 1, 2, 2, 0], np.int32)
CROPS = Augmentation((5, 7), flip=True)


def keys(count, seed=0):
  return jax.random.split(jax.random.key(seed), count)


@jax.jit
def centres(keys, label, size, tiers, probability):
  return jax.vmap(lambda key: mining.centre(key, label, size, tiers, probability))(keys)


def mined(label, tiers=TIERS, probability=1.0, size=None, count=1, seed=0):
  """(row, column) for each of so many keys, NumPy int32 [count, 2]."""
  size = np.int32(label.shape if size is None else size)
  found = np.asarray(centres(keys(count, seed), label, size, tiers, probability))
  assert found.dtype == np.int32 and found.shape == (count, 2)
  return found


def assert_alike(counts, draws):
  """Each of these counts is within five standard deviations of what drawing alike gives."""
  expected = draws / len(counts)
  np.testing.assert_allclose(counts, expected, atol=5 * np.sqrt(expected))
  assert sum(counts) == draws


# Tiers


def test_tiers_by_hand():
  shares = [0.5, 0.0005, 0.02, 0.0, 0.3]
  for num, rare, expected in [
    (3, 0.001, [0, 2, 1, 2, 0]),
    (1, 0.001, [0, 2, 0, 2, 0]),  # rare is enough
    (3, 0.0, [0, 1, 1, 1, 0]),
    (3, 0.0005, [0, 1, 1, 2, 0]),  # below, not at
    (0, 0.0, [0] * 5),
    (9, 1.0, [2] * 5),
  ]:
    got = mining.tiers(shares, num, rare)
    assert got.dtype == np.int32
    np.testing.assert_array_equal(got, expected)
  np.testing.assert_array_equal(mining.tiers(np.float32([0.7, 0.3]), 2, 0.7), [1, 2])
  np.testing.assert_array_equal(mining.tiers(jnp.array([0.2, 0.1, 0.1, 0.1]), 2, 0.0), [0, 1, 1, 0])  # ties


@given(st.lists(st.sampled_from([0.0, 0.0005, 0.001, 0.01, 0.1]), min_size=1, max_size=9), st.integers(0, 10))
def test_tiers_equal_a_loop(shares, num):
  order = sorted(range(len(shares)), key=lambda c: (shares[c], c))
  expected = [2 if shares[c] < 0.001 else int(c in order[:num]) for c in range(len(shares))]
  np.testing.assert_array_equal(mining.tiers(shares, num, 0.001), expected)


# Centres


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 9))
def test_a_mined_pixel_is_of_the_highest_tier_there_is(seed, height, width):
  rng = np.random.default_rng(seed)
  label = rng.choice([*range(CLASSES), 200, 255], p=rng.dirichlet(np.full(CLASSES + 2, 0.3)), size=(6, 9)).astype(np.uint8)
  tiers = rng.integers(0, 3, CLASSES).astype(np.int32)
  present = [c for c in np.unique(label[:height, :width]) if c < CLASSES and tiers[c] > 0]
  highest = max((tiers[c] for c in present), default=0)
  for row, column in mined(label, tiers, size=(height, width), count=8, seed=seed):
    if present:
      assert 0 <= row < height and 0 <= column < width
      assert tiers[label[row, column]] == highest and label[row, column] in present
    else:
      assert (row, column) == (-1, -1)


def test_classes_are_drawn_alike_and_so_are_their_pixels():
  label = np.zeros((6, 9), np.uint8)
  label[0, 0] = 2  # one pixel of a class, eight of another
  label[1:3, 5:8] = label[5, 8] = label[5, 0] = 3
  label[3] = 1  # of a lower tier
  found = mined(label, count=4000)
  chosen = label[found[:, 0], found[:, 1]]
  assert set(chosen) == {2, 3}
  assert_alike(np.bincount(chosen)[2:], 4000)
  pixels, counts = np.unique(found[chosen == 3], axis=0, return_counts=True)
  np.testing.assert_array_equal(pixels, np.argwhere(label == 3))
  assert_alike(counts, (chosen == 3).sum())


def test_a_lower_tier_has_its_turn_where_the_image_has_no_higher():
  label = np.full((4, 5), 4, np.uint8)
  label[1, 2] = label[3, 4] = 1
  label[0, 0] = label[0, 1] = 255
  assert {tuple(pixel) for pixel in mined(label, count=40)} == {(1, 2), (3, 4)}
  assert (mined(label, size=(3, 5), count=40) == (1, 2)).all()
  for nobody in ({"tiers": 0 * TIERS}, {"size": (1, 5)}, {"probability": 0.0}):
    assert (mined(label, **nobody, count=40) == -1).all()
  assert (mined(np.full((4, 5), 255, np.uint8), TIERS + 1, count=40) == -1).all()
  assert (mined(np.full((4, 5), CLASSES, np.uint8), TIERS + 1, count=40) == -1).all()


def test_the_coin_has_its_probability_and_takes_no_part_in_the_draw():
  label = np.random.default_rng(0).integers(0, CLASSES, (12, 20)).astype(np.uint8)
  always, often = (mined(label, probability=p, count=2000) for p in (1.0, 0.8))
  some = often[:, 0] >= 0
  assert (always >= 0).all() and abs(some.mean() - 0.8) < 0.05
  np.testing.assert_array_equal(often[some], always[some])
  assert (often[~some] == -1).all()


def test_each_key_has_its_pixel_alone_or_in_a_batch():
  rng = np.random.default_rng(1)
  labels = rng.integers(0, CLASSES, (6, 12, 20)).astype(np.uint8)
  sizes = np.int32([[12, 20], [3, 4], [12, 1], [1, 20], [7, 7], [2, 2]])
  batched = jax.jit(jax.vmap(functools.partial(mining.centre, tiers=TIERS, probability=0.9)))
  found = batched(keys(6), labels, sizes)
  np.testing.assert_array_equal(found, batched(keys(6), labels, sizes))
  single = [mining.centre(*one, TIERS, jnp.float32(0.9)) for one in zip(keys(6), labels, sizes, strict=True)]
  np.testing.assert_array_equal(found, single)
  assert (np.asarray(batched(keys(6, 1), labels, sizes)) != found).any()


def test_memory_is_that_of_the_label():
  label, tiers = jnp.zeros((256, 512), jnp.uint8), jnp.ones(150, jnp.int32)
  lowered = jax.jit(mining.centre).lower(jax.random.key(0), label, jnp.array([256, 512]), tiers, 1.0)
  assert lowered.compile().memory_analysis().temp_size_in_bytes < 20 * label.size


def test_numbers_of_pixels_that_floats_cannot_count():
  label = np.ones((4100, 4100), np.uint8)  # 2^24 + 32784
  label[-1, -1] = 2
  tiers = np.array([0, 1, 2], np.int32)
  assert mined(label, tiers).tolist() == [[4099, 4099]]
  (last,) = mined(label, np.array([0, 1, 0], np.int32), seed=3)
  assert label[tuple(last)] == 1


@given(st.lists(st.integers(0, 4), min_size=1, max_size=8))
@settings(max_examples=30, deadline=None)
def test_ranks_lead_to_boxes(counts):
  boxes = [(box, rank) for box, count in enumerate(counts) for rank in range(count)]
  for rank, expected in enumerate(boxes):
    assert tuple(int(x) for x in mining._locate(jnp.array(counts), rank)) == expected


# Crops around them


@functools.partial(jax.jit, static_argnums=4)
def crops(keys, image, label, size, settings):
  def one(key):
    mine, vary = jax.random.split(key)
    centre = mining.centre(mine, label, size, TIERS, 1.0)
    return centre, *augment(vary, image, label, size, settings, centre)

  return jax.vmap(one)(keys)


@pytest.mark.parametrize("scale", [(1.0, 1.0), (1.0, 2.0)])
def test_the_mined_pixel_lies_in_the_crop_and_in_its_middle_where_it_fits(scale):
  label = np.zeros((16, 24), np.uint8)
  pixels = [(8, 11), (0, 23), (5, 1), (11, 3), (15, 0)]
  middle = 0
  for pixel in pixels:
    label[pixel] = 2
    settings = Augmentation((5, 7), scale, flip=True)
    results = crops(keys(20), np.zeros((16, 24, 3), np.uint8), label, np.int32([14, 24]), settings)
    for centre, _, crop, valid in zip(*map(np.asarray, results), strict=True):
      if pixel[0] >= 14:  # padding
        assert (centre == -1).all()
        continue
      assert tuple(centre) == pixel and valid.all() and (crop == 2).any()
      fits = 2 <= pixel[0] < 14 - 2 and 3 <= pixel[1] < 24 - 3
      middle += fits
      assert crop[2, 3] == 2 or not fits
    label[pixel] = 0
  assert middle == 40


def test_crops_of_many_rare_pixels_all_show_one_mirrored_or_not():
  rng = np.random.default_rng(2)
  label = np.where(rng.random((30, 40)) < 0.01, 3, rng.integers(0, 2, (30, 40)) * 4).astype(np.uint8)
  label[:, 20:] += np.uint8(100)  # tells left from right, and hides the classes there
  image = np.zeros((30, 40, 3), np.uint8)
  found, _, seen, _ = map(np.asarray, crops(keys(200), image, label, np.int32([30, 40]), CROPS))
  assert (label[found[:, 0], found[:, 1]] == 3).all() and (seen == 3).any((1, 2)).all()
  inside = (found >= [2, 3]).all(1) & (found < [28, 37]).all(1)
  assert inside.sum() > 50 and (seen[inside][:, 2, 3] == 3).all()
  at_the_seam = found[:, 1] >= 17
  mirrored = [crop[0, 0] >= 100 for crop in seen[at_the_seam]]
  assert any(mirrored) and not all(mirrored)
