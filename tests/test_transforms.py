import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_uda.data.transforms import augment, augment_batch, fit, normalise, pad, resize_label

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (12, 20, 3), np.uint8)
LABEL = RNG.integers(0, 19, (12, 20), np.uint8)
NORMALISED = np.asarray(normalise(jnp.array(IMAGE)))


def keys(count, seed=0):
  return jax.random.split(jax.random.key(seed), count)


@functools.partial(jax.jit, static_argnames=("crop", "scale_range", "flip"))
def compiled(keys, image, label, size, crop, scale_range, flip):
  return jax.vmap(lambda key: augment(key, image, label, size, crop, scale_range, flip))(keys)


def augmented(keys, image, label, size=None, crop=None, scale_range=(1.0, 1.0), flip=False):
  """One (image, label, valid) for each key, all of the same example."""
  size = jnp.array(image.shape[:2] if size is None else size)
  results = compiled(keys, image, label, size, crop or image.shape[:2], scale_range, flip)
  return list(zip(*map(np.asarray, results), strict=True))


# Host


def test_fit_leaves_a_fitting_image_alone():
  fitted = fit(IMAGE, LABEL, (12, 20))
  np.testing.assert_array_equal(fitted["image"], IMAGE)
  np.testing.assert_array_equal(fitted["label"], LABEL)
  assert fitted["size"].tolist() == [12, 20] and fitted["size"].dtype == np.int32


def test_fit_halves_and_pads():
  blocks = np.array([[10, 20], [30, 40]], np.uint8)
  image = blocks.repeat(2, 0).repeat(2, 1)[..., None].repeat(3, 2)
  label = (blocks // 10).repeat(2, 0).repeat(2, 1)
  fitted = fit(image, label, (2, 5))
  assert fitted["image"][..., 0].tolist() == [[10, 20, 0, 0, 0], [30, 40, 0, 0, 0]]
  assert fitted["label"].tolist() == [[1, 2, 255, 255, 255], [3, 4, 255, 255, 255]]
  assert fitted["size"].tolist() == [2, 2]
  assert fitted["image"].dtype == fitted["label"].dtype == np.uint8


def test_fit_enlarges_and_pads():
  fitted = fit(np.full((2, 3, 3), 9, np.uint8), np.array([[1, 2, 3], [4, 5, 6]], np.uint8), (5, 6))
  assert fitted["size"].tolist() == [4, 6]
  assert (fitted["image"][:4] == 9).all() and (fitted["image"][4] == 0).all()
  assert fitted["label"].tolist() == [[1, 1, 2, 2, 3, 3]] * 2 + [[4, 4, 5, 5, 6, 6]] * 2 + [[255] * 6]


def test_fit_keeps_the_aspect():
  for height, width in ((1052, 1914), (360, 480), (3, 500), (700, 2)):
    fitted = fit(np.zeros((height, width, 3), np.uint8), None, (96, 128))
    scale = min(96 / height, 128 / width)
    assert fitted["size"].tolist() == [max(1, round(height * scale)), max(1, round(width * scale))]
    assert fitted["image"].shape == (96, 128, 3) and (fitted["label"] == 255).all()


def test_fit_takes_labels_of_a_lower_resolution():
  fitted = fit(IMAGE, LABEL[:6, :10], (12, 20))
  np.testing.assert_array_equal(fitted["image"], IMAGE)
  np.testing.assert_array_equal(fitted["label"], LABEL[:6, :10].repeat(2, 0).repeat(2, 1))


def test_pad_keeps_pixels():
  padded = pad(IMAGE, LABEL, (15, 21))
  np.testing.assert_array_equal(padded["image"][:12, :20], IMAGE)
  np.testing.assert_array_equal(padded["label"][:12, :20], LABEL)
  assert padded["image"].sum() == IMAGE.sum() and (padded["label"] == 255).sum() == 15 * 21 - 12 * 20
  assert padded["size"].tolist() == [12, 20]


@pytest.mark.parametrize("size", [(24, 40), (7, 9), (6, 10), (13, 33), (3, 2)])
def test_resize_label_samples_pixel_centres(size):
  rows, columns = ((np.arange(new) + 0.5) * old / new for new, old in zip(size, LABEL.shape, strict=True))
  np.testing.assert_array_equal(resize_label(LABEL, size), LABEL[rows.astype(int)[:, None], columns.astype(int)])


# Device


def test_normalise():
  assert NORMALISED.dtype == np.float32
  np.testing.assert_allclose(NORMALISED, (IMAGE / 255 - MEAN) / STD, atol=1e-5)
  np.testing.assert_array_equal(NORMALISED, jax.jit(normalise)(IMAGE))


def test_identity_is_exact():
  ((image, label, valid),) = augmented(keys(1), IMAGE, LABEL)
  assert image.dtype == np.float32 and label.dtype == np.uint8 and valid.dtype == bool
  np.testing.assert_array_equal(image, NORMALISED)
  np.testing.assert_array_equal(label, LABEL)
  assert valid.all()


def test_flip_mirrors_all_three_about_half_the_time():
  mirrored = []
  content = pad(IMAGE[:, :15], LABEL[:, :15], (12, 20))
  for image, label, valid in augmented(keys(40), **content, flip=True, crop=(12, 15)):
    mirrored.append(not np.array_equal(label, LABEL[:, :15]))
    step = -1 if mirrored[-1] else 1
    np.testing.assert_array_equal(label, LABEL[:, :15][:, ::step])
    np.testing.assert_array_equal(image, NORMALISED[:, :15][:, ::step])
    assert valid.all()
  assert 8 < sum(mirrored) < 32


def test_crop_lies_anywhere_inside_larger_content():
  label = np.arange(12 * 20, dtype=np.uint8).reshape(12, 20)
  corners = set()
  for image, crop, valid in augmented(keys(150), IMAGE, label, crop=(10, 17)):
    row, column = divmod(int(crop[0, 0]), 20)
    np.testing.assert_array_equal(crop, label[row : row + 10, column : column + 17])
    np.testing.assert_array_equal(image, NORMALISED[row : row + 10, column : column + 17])
    assert valid.all()
    corners.add((row, column))
  assert corners == {(row, column) for row in range(3) for column in range(4)}


def test_smaller_content_lies_anywhere_inside_the_crop():
  content = pad(IMAGE[:4, :6], LABEL[:4, :6], (12, 20))
  corners = set()
  for image, label, valid in augmented(keys(120), **content, crop=(6, 8)):
    row, column = (int(np.flatnonzero(valid.any(axis))[0]) for axis in (1, 0))
    inside = (slice(row, row + 4), slice(column, column + 6))
    np.testing.assert_array_equal(label[inside], LABEL[:4, :6])
    np.testing.assert_array_equal(image[inside], NORMALISED[:4, :6])
    assert valid[inside].all() and valid.sum() == 24
    assert (label[~valid] == 255).all() and (image[~valid] == 0).all()
    corners.add((row, column))
  assert corners == {(row, column) for row in range(3) for column in range(3)}


@pytest.mark.parametrize("scale", [0.4, 0.7, 1.3, 2.5])
def test_scaling_matches_jax_resize_of_the_content_alone(scale):
  content = pad(IMAGE[:10, :15], LABEL[:10, :15], (12, 20))
  content["image"][10:] = content["image"][:, 15:] = 255  # whatever the padding holds must not bleed in
  height, width = round(10 * scale), round(15 * scale)
  ((image, label, valid),) = augmented(keys(1), **content, crop=(height, width), scale_range=(scale, scale))
  expected = jax.image.resize(normalise(IMAGE[:10, :15]), (height, width, 3), "linear", antialias=True)
  np.testing.assert_allclose(image, expected, atol=2e-5)
  rows, columns = ((2 * np.arange(new) + 1) * old // (2 * new) for new, old in ((height, 10), (width, 15)))
  np.testing.assert_array_equal(label, LABEL[rows[:, None], columns])
  assert valid.all()


def test_scale_stays_in_its_range_and_reaches_both_ends():
  content = pad(IMAGE[:10, :10], LABEL[:10, :10], (12, 20))
  results = augmented(keys(100), **content, crop=(16, 16), scale_range=(0.5, 1.5))
  heights = {int(valid.any(1).sum()) for _, _, valid in results}
  assert min(heights) <= 6 and max(heights) >= 14 and heights <= set(range(5, 16))


def test_image_and_label_share_their_geometry():
  # Flat regions whose colour encodes their label: away from the regions' borders both must tell the same class.
  label = np.kron(RNG.integers(0, 3, (4, 5)), np.ones((16, 16))).astype(np.uint8)
  image = (np.eye(3)[label] * 255).astype(np.uint8)
  content = pad(image, label, (70, 90))
  for out, out_label, valid in augmented(keys(20), **content, crop=(60, 60), scale_range=(0.5, 2.0), flip=True):
    colour = out * STD + MEAN
    pure = valid & (colour.max(-1) > 0.75)
    assert pure.sum() > 0.6 * valid.sum()
    np.testing.assert_array_equal(colour.argmax(-1)[pure], out_label[pure])


def test_batch_equals_singles():
  images = RNG.integers(0, 256, (4, 12, 20, 3), np.uint8)
  labels = RNG.integers(0, 19, (4, 12, 20), np.uint8)
  sizes = np.array([[12, 20], [10, 20], [12, 7], [5, 5]], np.int32)
  arguments = ((9, 11), (0.6, 1.4), True)
  batch = jax.jit(augment_batch, static_argnums=(4, 5, 6))(keys(4), images, labels, sizes, *arguments)
  assert [part.shape for part in batch] == [(4, 9, 11, 3), (4, 9, 11), (4, 9, 11)]
  single_augment = jax.jit(augment, static_argnums=(4, 5, 6))
  for i, key in enumerate(keys(4)):
    single = single_augment(key, images[i], labels[i], sizes[i], *arguments)
    np.testing.assert_allclose(batch[0][i], single[0], atol=1e-5)
    np.testing.assert_array_equal(batch[1][i], single[1])
    np.testing.assert_array_equal(batch[2][i], single[2])
