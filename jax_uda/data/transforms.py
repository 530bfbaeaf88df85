"""From a decoded image to a training crop.

The host only brings images to one canvas size (`fit`, `pad`: NumPy and OpenCV). Scale, crop, flip and normalisation
run on the device, one example at a time with a key of its own, so that they do not depend on the number of devices.

Geometry, here and throughout: half-pixel centres, i.e. pixel k covers [k, k + 1) and is sampled at k + 0.5.
"""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jax_uda.data.label_spaces import IGNORE

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def resize_label(label: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """Resizes a label map uint8 [h, w] to `size` = (H, W) by nearest neighbour, with half-pixel centres."""
  # INTER_NEAREST samples at pixel corners and would shift the label against its image.
  return cv2.resize(label, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)


def pad(image: np.ndarray, label: np.ndarray | None, canvas: tuple[int, int]) -> dict[str, np.ndarray]:
  """Puts an image into the top left corner of a canvas, as it is.

  Args:
    image: uint8 [h, w, 3], not larger than the canvas.
    label: uint8 [h, w], or None: every pixel ignored.
    canvas: (H, W).

  Returns:
    image uint8 [H, W, 3], 0 in the padding; label uint8 [H, W], 255 in the padding; size int32 [2] = (h, w).
  """
  height, width = image.shape[:2]
  padded_image = np.zeros((*canvas, 3), np.uint8)
  padded_image[:height, :width] = image
  padded_label = np.full(canvas, IGNORE, np.uint8)
  if label is not None:
    padded_label[:height, :width] = label
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
  if label is not None and label.shape != (height, width):
    label = resize_label(label, (height, width))
  return pad(image, label, canvas)


def normalise(image: Array) -> Array:
  """Brings uint8 RGB [..., 3] to float32 with ImageNet's mean 0 and standard deviation 1."""
  mean, std = (255 * np.array(value, np.float32) for value in (IMAGENET_MEAN, IMAGENET_STD))
  # One difference, one product: the same bits compiled or not, which a division by a constant would not give.
  return (image.astype(jnp.float32) - mean) * (1 / std)


def _place(uniform: Array, scaled: Array, crop: int) -> tuple[Array, Array]:
  """Places a crop along one axis: its pixels' centres, in half pixels of the scaled content, and which lie inside it.

  The offset, drawn by a number in [0, 1), is whole: content larger than the crop covers it, smaller content lies in it.
  """
  slack = crop - scaled
  offset = jnp.sign(slack) * jnp.floor(uniform * (jnp.abs(slack) + 1)).astype(jnp.int32)
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


def augment(
  key: Array,
  image: Array,
  label: Array,
  size: Array,
  crop: tuple[int, int],
  scale_range: tuple[float, float],
  flip: bool,
) -> tuple[Array, Array, Array]:
  """Scales, crops and flips one example at random.

  The scale is uniform in `scale_range`. Where the scaled content is larger than the crop, the crop lies inside it at
  random; where it is smaller, it lies inside the crop at random.

  Args:
    key: the example's random key.
    image: uint8 [H, W, 3], its content in the top left corner.
    label: uint8 [H, W].
    size: int32 [2], height and width of the content.
    crop: (h, w), static.
    scale_range: (lowest, highest), static.
    flip: whether to mirror left and right with probability 1/2; static.

  Returns:
    image float32 [h, w, 3], normalised, bilinear, 0 (the mean colour) outside the content; label uint8 [h, w], nearest,
    255 outside; valid bool [h, w], false outside.
  """
  uniform = jax.random.uniform(key, (4,))
  scale = scale_range[0] + uniform[0] * (scale_range[1] - scale_range[0])
  # Whole pixels, so that the content's edge is sharp and a scale of 1 copies pixels.
  scaled = jnp.maximum(jnp.round(size * scale).astype(jnp.int32), 1)

  rows, rows_inside = _place(uniform[1], scaled[0], crop[0])
  columns, columns_inside = _place(uniform[2], scaled[1], crop[1])
  if flip:
    mirrored = uniform[3] < 0.5
    columns = jnp.where(mirrored, columns[::-1], columns)
    columns_inside = jnp.where(mirrored, columns_inside[::-1], columns_inside)

  pixels = jnp.einsum(
    "yh,hwc,xw->yxc",
    _bilinear(rows, rows_inside, size[0], scaled[0], image.shape[0]),
    normalise(image),
    _bilinear(columns, columns_inside, size[1], scaled[1], image.shape[1]),
    precision=jax.lax.Precision.HIGHEST,
  )
  # Whole-number arithmetic: floor(centre), exact where float32 would round across a pixel's edge.
  row = jnp.clip(rows * size[0] // (2 * scaled[0]), 0, size[0] - 1)
  column = jnp.clip(columns * size[1] // (2 * scaled[1]), 0, size[1] - 1)
  valid = rows_inside[:, None] & columns_inside
  return pixels, jnp.where(valid, label[row[:, None], column], IGNORE), valid


def augment_batch(
  keys: Array,
  images: Array,
  labels: Array,
  sizes: Array,
  crop: tuple[int, int],
  scale_range: tuple[float, float],
  flip: bool,
) -> tuple[Array, Array, Array]:
  """`augment` over a batch: keys [B], images [B, H, W, 3], labels [B, H, W], sizes [B, 2]; the rest is static.

  Returns:
    images float32 [B, h, w, 3], labels uint8 [B, h, w], valid bool [B, h, w].
  """
  return jax.vmap(lambda *example: augment(*example, crop, scale_range, flip))(keys, images, labels, sizes)
