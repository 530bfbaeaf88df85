"""From a decoded image to a training crop.

The host only brings images to one canvas size (`fit`, `pad`: NumPy and OpenCV). Scale, crop, flip, blur, colours and
normalisation run on the device, one example at a time with a key of its own, so that they do not depend on the number of
devices.

Geometry, here and throughout: half-pixel centres, i.e. pixel k covers [k, k + 1) and is sampled at k + 0.5.
"""

from dataclasses import dataclass

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jax_uda.data.label_spaces import IGNORE

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_LUMA = (0.2989, 0.587, 0.114)  # how much red, green and blue make of grey (ITU-R BT.601)


@dataclass(frozen=True)
class Augmentation:
  """How training examples vary. All of it is static: what is off (0) is not even traced.

  Attributes:
    crop: (h, w).
    scale: (lowest, highest).
    flip: whether to mirror left and right with probability 1/2.
    brightness, contrast, saturation: half-ranges; a factor is uniform in [max(0, 1 - x), 1 + x], see `jitter`.
    hue: half-range, at most 0.5; a turn is uniform in [-hue, hue], in turns of the colour circle.
    blur: probability of a Gaussian blur.
    blur_sigma: (lowest, highest) of the Gaussian's standard deviation, in pixels of the crop.
  """

  crop: tuple[int, int]
  scale: tuple[float, float] = (1.0, 1.0)
  flip: bool = False
  brightness: float = 0.0
  contrast: float = 0.0
  saturation: float = 0.0
  hue: float = 0.0
  blur: float = 0.0
  blur_sigma: tuple[float, float] = (0.1, 2.0)


def resize_label(label: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """Resizes a label map uint8 [h, w] to `size` = (H, W) by nearest neighbour, with half-pixel centres."""
  # INTER_NEAREST samples at pixel corners and would shift the label against its image.
  return cv2.resize(label, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)


def pad(image: np.ndarray, label: np.ndarray | None, canvas: tuple[int, int]) -> dict[str, np.ndarray]:
  """Puts an image into the top left corner of a canvas, as it is.

  Args:
    image: uint8 [h, w, 3], not larger than the canvas.
    label: uint8, of the same view at any resolution; or None: every pixel ignored.
    canvas: (H, W).

  Returns:
    image uint8 [H, W, 3], 0 in the padding; label uint8 [H, W], 255 in the padding; size int32 [2] = (h, w).
  """
  height, width = image.shape[:2]
  padded_image = np.zeros((*canvas, 3), np.uint8)
  padded_image[:height, :width] = image
  padded_label = np.full(canvas, IGNORE, np.uint8)
  if label is not None:
    padded_label[:height, :width] = label if label.shape == (height, width) else resize_label(label, (height, width))
  return {"image": padded_image, "label": padded_label, "size": np.array([height, width], np.int32)}


def fit(image: np.ndarray, label: np.ndarray | None, canvas: tuple[int, int]) -> dict[str, np.ndarray]:
  """Scales an image up or down, its aspect kept, until it just fits a canvas, and pads the rest.

  Args:
    image: uint8 [h, w, 3].
    label: uint8, of the same view at any resolution; or None: every pixel ignored.
    canvas: (H, W).

  Returns:
    image uint8 [H, W, 3], 0 in the padding; label uint8 [H, W], 255 in the padding; size int32 [2], the height and
    width of the scaled image, which lies in the top left corner.
  """
  scale = min(canvas[0] / image.shape[0], canvas[1] / image.shape[1])
  height, width = (max(1, round(length * scale)) for length in image.shape[:2])
  if image.shape[:2] != (height, width):
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
  return pad(image, label, canvas)


def normalise(image: Array) -> Array:
  """Brings uint8 RGB [..., 3] to float32 with ImageNet's mean 0 and standard deviation 1."""
  mean, std = (255 * np.array(value, np.float32) for value in (IMAGENET_MEAN, IMAGENET_STD))
  # One difference, one product: the same bits compiled or not, which a division by a constant would not give.
  return (image.astype(jnp.float32) - mean) * (1 / std)


def turn_hue(rgb: Array, turn: Array | float) -> Array:
  """Turns the hue of RGB [..., 3] in [0, 1] by so many turns of the colour circle, keeping HSV's saturation and value."""
  red, green, blue = (rgb[..., channel] for channel in range(3))
  value = rgb.max(axis=-1)
  chroma = value - rgb.min(axis=-1)
  divisor = jnp.where(chroma > 0, chroma, 1)
  # Which one is greatest is asked of the channels alone: a compiler may compute them twice, and round them otherwise the
  # second time, so that none equals `value`; where two are nearly equal both formulas say nearly the same.
  sixths = jnp.where(green >= blue, 2 + (blue - red) / divisor, 4 + (red - green) / divisor)
  sixths = jnp.where((red >= green) & (red >= blue), (green - blue) / divisor, sixths)
  # A channel is at its least for two sixths of the circle, at its greatest for two, and linear in between.
  phase = (sixths[..., None] + 6 * turn + np.array([5, 3, 1], np.float32)) % 6
  return value[..., None] - chroma[..., None] * jnp.clip(jnp.minimum(phase, 4 - phase), 0, 1)


def jitter(key: Array, rgb: Array, valid: Array, settings: Augmentation) -> Array:
  """Varies the colours of one image: brightness, contrast, saturation and hue, in this order.

  As torchvision's ColorJitter does in an order of its own: the image is mixed with black, with its mean grey, and with
  its own grey image, by factors that may exceed 1, clipped to [0, 1] each time; then its hue is turned. What one of them
  draws does not depend on whether the others are on.

  Args:
    key: the example's random key.
    rgb: float32 [h, w, 3] in [0, 1], not normalised.
    valid: bool [h, w], the pixels that the mean grey is of.
    settings: static.

  Returns:
    float32 [h, w, 3] in [0, 1].
  """
  keys = jax.random.split(key, 4)

  def mix(rgb, other, key, half_range):
    factor = jax.random.uniform(key, minval=max(0.0, 1 - half_range), maxval=1 + half_range)
    return jnp.clip(other + factor * (rgb - other), 0, 1)

  def grey(rgb):
    return jnp.sum(rgb * np.array(_LUMA, np.float32), axis=-1, keepdims=True)

  if settings.brightness:
    rgb = mix(rgb, 0, keys[0], settings.brightness)
  if settings.contrast:
    rgb = mix(rgb, jnp.mean(grey(rgb), where=valid[..., None]), keys[1], settings.contrast)
  if settings.saturation:
    rgb = mix(rgb, grey(rgb), keys[2], settings.saturation)
  if settings.hue:
    rgb = turn_hue(rgb, jax.random.uniform(keys[3], minval=-settings.hue, maxval=settings.hue))
  return rgb


def _place(uniform: Array, content: Array, scaled: Array, crop: int, centre: Array | None) -> tuple[Array, Array]:
  """Places a crop along one axis: its pixels' centres, in half pixels of the scaled content, and which lie inside it.

  The content's offset in the crop is whole: content larger than the crop covers it, smaller content lies in it. It is drawn
  by a number in [0, 1); or else brings the pixel `centre` of the unscaled content, if not negative, nearest the middle.
  """
  slack = crop - scaled
  offset = jnp.sign(slack) * jnp.floor(uniform * (jnp.abs(slack) + 1)).astype(jnp.int32)
  if centre is not None:
    centred = crop // 2 - (2 * centre + 1) * scaled // (2 * content)
    centred = jnp.clip(centred, jnp.minimum(slack, 0), jnp.maximum(slack, 0))
    offset = jnp.where(centre < 0, offset, centred)
  pixel = jnp.arange(crop) - offset
  return 2 * pixel + 1, (pixel >= 0) & (pixel < scaled)


def _bilinear(half_pixels: Array, inside: Array, content: Array, scaled: Array, length: int) -> Array:
  """Weights [crop, length] of a linear resize along one axis, widened against aliasing where it shrinks.

  Only the content takes part, as if the canvas ended with it; rows outside it are 0.
  """
  ratio = content / scaled
  centre = half_pixels * ratio / 2
  distance = jnp.abs(jnp.arange(length) + 0.5 - centre[:, None]) / jnp.maximum(ratio, 1)
  weights = jnp.maximum(1 - distance, 0) * (jnp.arange(length) < content)
  total = weights.sum(axis=1, keepdims=True)
  return jnp.where(inside[:, None], weights / jnp.where(total > 0, total, 1), 0)


def _gaussian(sigma: Array, inside: Array) -> Array:
  """Weights [crop, crop] of a Gaussian blur along one axis; only the content takes part, rows outside it are 0."""
  position = jnp.arange(len(inside))
  weights = jnp.exp(-0.5 * ((position[:, None] - position) / sigma) ** 2) * inside
  # Inside, a pixel's own weight is 1 already.
  return jnp.where(inside[:, None], weights / jnp.maximum(weights.sum(axis=1, keepdims=True), 1), 0)


def augment(
  key: Array,
  image: Array,
  label: Array,
  size: Array,
  settings: Augmentation,
  centre: Array | None = None,
) -> tuple[Array, Array, Array]:
  """Scales, crops, flips, blurs and recolours one example at random, in this order.

  The scale is uniform in `settings.scale`. Where the scaled content is larger than the crop, the crop lies inside it at
  random; where it is smaller, it lies inside the crop at random; unless `centre` names a pixel that is to be as near to the
  crop's middle as that allows. Blur and colours touch the content only, and never the label; colours change as RGB in
  [0, 1], before normalisation, see `jitter`.

  Args:
    key: the example's random key.
    image: uint8 [H, W, 3], its content in the top left corner.
    label: uint8 [H, W].
    size: int32 [2], height and width of the content.
    settings: static.
    centre: int32 [2], row and column of a pixel of the content, or negative for none; None is none at all.

  Returns:
    image float32 [h, w, 3], normalised, bilinear, 0 (the mean colour) outside the content; label uint8 [h, w], nearest,
    255 outside; valid bool [h, w], false outside.
  """
  uniform = jax.random.uniform(key, (4,))
  scale = settings.scale[0] + uniform[0] * (settings.scale[1] - settings.scale[0])
  # Whole pixels, so that the content's edge is sharp and a scale of 1 copies pixels.
  scaled = jnp.maximum(jnp.round(size * scale).astype(jnp.int32), 1)

  row_centre, column_centre = (None, None) if centre is None else centre
  rows, rows_inside = _place(uniform[1], size[0], scaled[0], settings.crop[0], row_centre)
  columns, columns_inside = _place(uniform[2], size[1], scaled[1], settings.crop[1], column_centre)
  if settings.flip:
    mirrored = uniform[3] < 0.5
    columns = jnp.where(mirrored, columns[::-1], columns)
    columns_inside = jnp.where(mirrored, columns_inside[::-1], columns_inside)
  valid = rows_inside[:, None] & columns_inside

  row_weights = _bilinear(rows, rows_inside, size[0], scaled[0], image.shape[0])
  column_weights = _bilinear(columns, columns_inside, size[1], scaled[1], image.shape[1])
  if settings.blur:
    # Blurring is linear, and rows and columns are apart: it goes into the weights, and costs no pass over the pixels.
    chosen, between = jax.random.uniform(jax.random.fold_in(key, 1), (2,))
    sigma = settings.blur_sigma[0] + between * (settings.blur_sigma[1] - settings.blur_sigma[0])
    # The least is so narrow that a pixel takes from itself alone.
    sigma = jnp.where(chosen < settings.blur, jnp.maximum(sigma, 1e-3), 1e-3)
    row_weights, column_weights = (
      jnp.matmul(_gaussian(sigma, inside), weights, precision=jax.lax.Precision.HIGHEST)
      for inside, weights in ((rows_inside, row_weights), (columns_inside, column_weights))
    )
  pixels = jnp.einsum(
    "yh,hwc,xw->yxc", row_weights, normalise(image), column_weights, precision=jax.lax.Precision.HIGHEST
  )
  if settings.brightness or settings.contrast or settings.saturation or settings.hue:
    mean, std = (np.array(value, np.float32) for value in (IMAGENET_MEAN, IMAGENET_STD))
    rgb = jitter(jax.random.fold_in(key, 2), jnp.clip(pixels * std + mean, 0, 1), valid, settings)
    pixels = jnp.where(valid[..., None], (rgb - mean) / std, 0)
  # Whole-number arithmetic: floor(centre), exact where float32 would round across a pixel's edge.
  row = jnp.clip(rows * size[0] // (2 * scaled[0]), 0, size[0] - 1)
  column = jnp.clip(columns * size[1] // (2 * scaled[1]), 0, size[1] - 1)
  return pixels, jnp.where(valid, label[row[:, None], column], IGNORE), valid


def augment_batch(
  keys: Array,
  images: Array,
  labels: Array,
  sizes: Array,
  settings: Augmentation,
  centres: Array | None = None,
) -> tuple[Array, Array, Array]:
  """`augment` over a batch: keys [B], images [B, H, W, 3], labels [B, H, W], sizes [B, 2], centres [B, 2] or None.

  Returns:
    images float32 [B, h, w, 3], labels uint8 [B, h, w], valid bool [B, h, w].
  """

  def one(key, image, label, size, centre):
    return augment(key, image, label, size, settings, centre)

  return jax.vmap(one)(keys, images, labels, sizes, centres)
