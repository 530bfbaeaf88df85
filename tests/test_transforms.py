import colorsys
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_uda.data.transforms import (
  Augmentation,
  augment,
  augment_batch,
  fit,
  jitter,
  normalise,
  pad,
  resize_label,
  turn_hue,
)

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (12, 20, 3), np.uint8)
LABEL = RNG.integers(0, 19, (12, 20), np.uint8)
NORMALISED = np.asarray(normalise(jnp.array(IMAGE)))


def keys(count, seed=0):
  return jax.random.split(jax.random.key(seed), count)


@functools.partial(jax.jit, static_argnames="settings")
def compiled(keys, image, label, size, settings, centre):
  return jax.vmap(lambda key: augment(key, image, label, size, settings, centre))(keys)


def augmented(keys, image, label, size=None, crop=None, scale_range=(1.0, 1.0), flip=False, centre=None, **settings):
  """One (image, label, valid) for each key, all of the same example."""
  size = jnp.array(image.shape[:2] if size is None else size)
  settings = Augmentation(crop or image.shape[:2], scale_range, flip, **settings)
  results = compiled(keys, image, label, size, settings, None if centre is None else jnp.array(centre))
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
  everything = Augmentation((9, 11), (0.6, 1.4), True, 0.4, 0.4, 0.4, 0.1, 0.5, (0.5, 1.5))
  for settings, centres in ((Augmentation((9, 11), (0.6, 1.4), True), None),
                            (everything, np.array([[3, 4], [-1, -1], [0, 6], [4, 4]], np.int32))):
    batch = jax.jit(augment_batch, static_argnums=4)(keys(4), images, labels, sizes, settings, centres)
    assert [part.shape for part in batch] == [(4, 9, 11, 3), (4, 9, 11), (4, 9, 11)]
    single_augment = jax.jit(augment, static_argnums=4)
    for i, key in enumerate(keys(4)):
      single = single_augment(key, images[i], labels[i], sizes[i], settings, None if centres is None else centres[i])
      np.testing.assert_allclose(batch[0][i], single[0], atol=1e-5)
      np.testing.assert_array_equal(batch[1][i], single[1])
      np.testing.assert_array_equal(batch[2][i], single[2])


# Crops around a pixel


NUMBERED = np.arange(12 * 20, dtype=np.uint8).reshape(12, 20)


@pytest.mark.parametrize("centre, corner", [
  ((6, 9), (4, 6)),  # inside: in the middle
  ((0, 0), (0, 0)), ((11, 19), (7, 13)), ((0, 19), (0, 13)),  # corners
  ((6, 1), (4, 0)), ((1, 9), (0, 6)), ((10, 10), (7, 7)),  # borders
])
def test_crop_is_centred_as_far_as_the_content_goes(centre, corner):
  row, column = corner
  for image, label, valid in augmented(keys(3), IMAGE, NUMBERED, crop=(5, 7), centre=centre):
    np.testing.assert_array_equal(label, NUMBERED[row : row + 5, column : column + 7])
    np.testing.assert_array_equal(image, NORMALISED[row : row + 5, column : column + 7])
    assert valid.all()


def test_no_centre_is_a_negative_one():
  options = {"crop": (5, 7), "scale_range": (0.3, 1.5), "flip": True}
  for one, other in zip(augmented(keys(20), IMAGE, NUMBERED, **options),
                        augmented(keys(20), IMAGE, NUMBERED, **options, centre=(-1, -1)), strict=True):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_negative_centres_in_a_batch_are_none():
  options = Augmentation((5, 7), (0.5, 1.5), True)
  content = [np.broadcast_to(part, (4, *part.shape)) for part in (IMAGE, NUMBERED, np.int32([12, 20]))]
  batch = functools.partial(jax.jit(augment_batch, static_argnums=4), keys(4), *content, options)
  without, none = batch(None), batch(np.full((4, 2), -1, np.int32))
  jax.tree.map(np.testing.assert_array_equal, without, none)
  some = batch(np.int32([[-1, -1], [2, 3], [-1, -1], [9, 15]]))
  for i, same in enumerate([True, False, True, False]):
    assert np.array_equal(some[1][i], without[1][i]) == same


def test_centre_and_flip():
  corners = [label[:, ::-1] if label[0, 0] > label[0, 1] else label
             for _, label, _ in augmented(keys(20), IMAGE, NUMBERED, crop=(5, 7), centre=(6, 9), flip=True)]
  assert all((label == NUMBERED[4:9, 6:13]).all() for label in corners)
  mirrored = [label for _, label, _ in augmented(keys(20), IMAGE, NUMBERED, crop=(5, 7), centre=(6, 1), flip=True)
              if label[0, 0] > label[0, 1]]
  assert 3 < len(mirrored) < 17
  for label in mirrored:
    np.testing.assert_array_equal(label, NUMBERED[4:9, :7][:, ::-1])


@pytest.mark.parametrize("flip", [False, True])
def test_centre_and_scale(flip):
  label = np.zeros((60, 90), np.uint8)
  label[30:33, 50:53] = 1
  image = np.zeros((60, 90, 3), np.uint8)
  results = augmented(keys(30), image, label, crop=(21, 31), scale_range=(0.7, 2.0), flip=flip, centre=(31, 51))
  for _, crop, valid in results:
    rows, columns = np.nonzero(crop == 1)
    assert abs(rows.mean() - 10) <= 1.5 and abs(columns.mean() - 15) <= 1.5
    assert valid.all()


def test_content_smaller_than_the_crop_stays_whole_around_a_centre():
  content = pad(IMAGE[:4, :6], NUMBERED[:4, :6], (12, 20))
  for centre, corner in (((2, 3), (1, 1)), ((0, 0), (2, 2)), ((3, 5), (0, 0))):
    ((_, label, valid),) = augmented(keys(1), **content, crop=(6, 8), centre=centre)
    np.testing.assert_array_equal(label[corner[0] : corner[0] + 4, corner[1] : corner[1] + 6], NUMBERED[:4, :6])
    assert valid.sum() == 24


# Colours and blur


RGB = IMAGE / 255
GREY = np.array([0.2989, 0.587, 0.114])
SMALLER = pad(IMAGE[:7, :11], LABEL[:7, :11], (12, 20))


def colours(count=40, content=None, seed=0, **settings):
  """Images back in [0, 1]."""
  content = content or {"image": IMAGE, "label": LABEL}
  return [image * STD + MEAN for image, _, _ in augmented(keys(count, seed), **content, **settings)]


def mixed(rgb, other, factor):
  return np.clip(other + factor * (rgb - other), 0, 1)


def factor_of(image, rgb, other):
  """The factor with which `rgb` was mixed with `other`, from where nothing was clipped and the two differ."""
  free = (image > 1e-3) & (image < 1 - 1e-3) & (np.abs(rgb - other) > 0.1)
  return np.median(((image - other) / np.where(free, rgb - other, 1))[free])


def assert_spread(factors, low, high):
  assert low <= min(factors) + 1e-3 and max(factors) <= high + 1e-3
  assert min(factors) < low + 0.2 * (high - low) and max(factors) > high - 0.2 * (high - low)
  assert abs(np.mean(factors) - (low + high) / 2) < 0.2 * (high - low)


# What each of them mixes an image with.
OTHERS = {
  "brightness": np.zeros_like,
  "contrast": lambda rgb: np.full_like(rgb, (rgb @ GREY).mean()),
  "saturation": lambda rgb: np.repeat((rgb @ GREY)[..., None], 3, axis=-1),
}


@pytest.mark.parametrize("name, half_range, low", [
  ("brightness", 0.4, 0.6), ("contrast", 0.4, 0.6), ("saturation", 0.4, 0.6), ("saturation", 1.5, 0.0)])
def test_mixing_by_hand(name, half_range, low):
  factors = []
  for image in colours(**{name: half_range}):
    factors.append(factor_of(image, RGB, OTHERS[name](RGB)))
    np.testing.assert_allclose(image, mixed(RGB, OTHERS[name](RGB), factors[-1]), atol=2e-3)
  assert_spread(factors, low, 1 + half_range)


def by_colorsys(rgb, turn):
  def one(pixel):
    hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
    return colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value)

  return np.apply_along_axis(one, -1, rgb)


@pytest.mark.parametrize("turn", [-0.5, -0.2, 0.0, 0.1, 1 / 3, 0.5])
def test_hue_turns_as_in_hsv(turn):
  edges = np.array([[0, 0, 0], [1, 1, 1], [0.5] * 3, [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [0, 1, 1], [1, 0, 1]])
  for rgb in (RGB, edges):
    np.testing.assert_allclose(turn_hue(jnp.array(rgb, jnp.float32), turn), by_colorsys(rgb, turn), atol=1e-5)


def test_half_a_turn_twice_is_none():
  rgb = jnp.array(RGB, jnp.float32)
  np.testing.assert_allclose(turn_hue(turn_hue(rgb, 0.5), 0.5), RGB, atol=1e-5)


def test_hue_is_drawn_from_both_sides():
  red = {"image": np.full((2, 2, 3), (200, 40, 40), np.uint8), "label": LABEL[:2, :2]}
  turns = [(colorsys.rgb_to_hsv(*image[0, 0])[0] + 0.5) % 1 - 0.5 for image in colours(content=red, hue=0.3)]
  assert_spread(turns, -0.3, 0.3)


def test_together_they_go_in_order_with_the_factors_they_have_alone():
  settings = {"brightness": 0.4, "contrast": 0.5, "saturation": 0.6, "hue": 0.2}
  pixel = np.unravel_index(np.argmax(np.ptp(RGB, axis=-1)), RGB.shape[:2])
  for key in keys(3):

    def jittered(key=key, **settings):
      return np.asarray(jitter(key, jnp.array(RGB, jnp.float32), LABEL < 255, Augmentation((12, 20), **settings)))

    expected = RGB
    for name, other in OTHERS.items():
      factor = factor_of(jittered(**{name: settings[name]}), RGB, other(RGB))
      expected = mixed(expected, other(expected), factor)
    turn = colorsys.rgb_to_hsv(*jittered(hue=0.2)[pixel])[0] - colorsys.rgb_to_hsv(*RGB[pixel])[0]
    np.testing.assert_allclose(jittered(**settings), by_colorsys(expected, turn), atol=1e-3)


def test_the_mean_grey_is_the_contents():
  for image in colours(10, SMALLER, contrast=0.5, crop=(12, 20)):
    inside = np.abs(image - MEAN).max(-1) > 1e-5
    assert inside.sum() == 77
    content, rgb = image[inside].reshape(7, 11, 3), RGB[:7, :11]
    other = np.full_like(rgb, (rgb @ GREY).mean())
    np.testing.assert_allclose(content, mixed(rgb, other, factor_of(content, rgb, other)), atol=2e-3)


EVERYTHING = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1, "blur": 1.0, "blur_sigma": (1.0, 2.0)}


@pytest.mark.parametrize("settings", [{"contrast": 0.4}, {"hue": 0.1}, {"blur": 0.5}, EVERYTHING])
def test_colours_and_blur_leave_labels_and_padding_alone(settings):
  options = {"crop": (14, 16), "scale_range": (0.5, 1.5), "flip": True}
  plain, changed = (augmented(keys(10), **SMALLER, **options, **extra) for extra in ({}, settings))
  changes = []
  for (image, label, valid), (other_image, other_label, other_valid) in zip(plain, changed, strict=True):
    np.testing.assert_array_equal(label, other_label)
    np.testing.assert_array_equal(valid, other_valid)
    assert np.isfinite(other_image).all() and (other_image[~valid] == 0).all()
    changes.append(np.abs(image - other_image)[valid].max())
  assert max(changes) > 0.1


def test_blur_by_hand():
  ((image, _, _),) = augmented(keys(1), IMAGE, LABEL, blur=1.0, blur_sigma=(0.8, 0.8))
  rows, columns = (np.exp(-0.5 * (np.subtract.outer(np.arange(n), np.arange(n)) / 0.8) ** 2) for n in (12, 20))
  rows, columns = rows / rows.sum(1, keepdims=True), columns / columns.sum(1, keepdims=True)
  np.testing.assert_allclose(image, np.einsum("yh,hwc,xw->yxc", rows, NORMALISED, columns), atol=1e-5)


def test_blur_takes_nothing_from_the_padding():
  flat = pad(np.full((7, 11, 3), (250, 10, 90), np.uint8), LABEL[:7, :11], (12, 20))
  flat["image"][7:] = flat["image"][:, 11:] = 255
  for image, _, valid in augmented(keys(5), **flat, crop=(14, 16), scale_range=(0.7, 1.3), blur=1.0, blur_sigma=(2.0, 3.0)):
    np.testing.assert_allclose(image[valid], np.tile(normalise(jnp.array([250, 10, 90])), (valid.sum(), 1)), atol=1e-5)


def test_blur_has_its_probability_and_is_none_otherwise():
  results = augmented(keys(100), IMAGE, LABEL, blur=0.3, blur_sigma=(0.5, 2.0))
  same = [np.array_equal(image, NORMALISED) for image, _, _ in results]
  assert 55 < sum(same) < 85
  roughness = [np.abs(np.diff(image, axis=1)).mean() for image, _, _ in results]
  blurred = [value for value, one in zip(roughness, same, strict=True) if not one]
  assert max(blurred) < 0.95 * max(roughness) and min(blurred) < 0.5 * max(blurred)


def test_what_is_off_is_not_computed():
  example = jnp.array(IMAGE), jnp.array(LABEL), jnp.array([12, 20])

  def operations(**settings):
    traced = jax.make_jaxpr(lambda key: augment(key, *example, Augmentation((5, 7), **settings)))
    return len(traced(jax.random.key(0)).eqns)

  plain = operations()
  assert operations(blur_sigma=(1.0, 3.0)) == plain
  assert all(operations(**{name: 0.1}) > plain for name in ("brightness", "contrast", "saturation", "hue", "blur"))
