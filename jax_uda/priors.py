"""What source labels tell about the target: class sizes, weak labels, and where in the image a class occurs.

Axes: H, W = pixels, h, w = cells of a coarser grid, C = classes. Labels are integers; those outside 0..C-1, such as
255, are ignored. The statistics are pytrees of sums: add them over devices with `psum` and over chunks with `merge`.
"""

from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array
from jax.typing import ArrayLike
from scipy import ndimage

Statistic = TypeVar("Statistic")


def merge(a: Statistic, b: Statistic) -> Statistic:
  """The statistic of both sets of images, on the host in 64 bits."""
  wide = {"f": np.float64, "i": np.int64}
  return jax.tree.map(lambda x, y: np.add(x, y, dtype=wide[x.dtype.kind]), a, b)


def pixels_by_class(labels: ArrayLike, num_classes: int, valid: ArrayLike | None = None) -> tuple[Array, Array]:
  """Pixels of each class [..., C] and of the image [..., 1], int32; `valid` [..., H, W] tells image from padding."""
  labels = jnp.asarray(labels)
  valid = jnp.ones(labels.shape, bool) if valid is None else jnp.asarray(valid, bool)
  is_class = (labels[..., None] == jnp.arange(num_classes)) & valid[..., None]
  return is_class.sum((-3, -2)), valid.sum((-2, -1))[..., None]


# Class sizes and image-level weak labels.


@struct.dataclass
class ClassSizes:
  """Sums over images for eq. 4 of MLSL."""

  shares: Array  # [C] share of the image's pixels, summed
  images: Array  # [C] images that contain the class


def init_class_sizes(num_classes: int) -> ClassSizes:
  """Statistic of no images."""
  return ClassSizes(jnp.zeros(num_classes, jnp.float32), jnp.zeros(num_classes, jnp.int32))


@jax.jit
def update_class_sizes(stat: ClassSizes, labels: ArrayLike, valid: ArrayLike | None = None) -> ClassSizes:
  """Statistic with the label maps [..., H, W] added; `valid` [..., H, W] is false where a map is padding."""
  pixels, size = pixels_by_class(labels, stat.shares.shape[0], valid)
  images = tuple(range(pixels.ndim - 1))
  return ClassSizes(
    stat.shares + (pixels / jnp.maximum(size, 1)).sum(images), stat.images + (pixels > 0).sum(images, dtype=jnp.int32)
  )


def finish_class_sizes(stat: ClassSizes) -> np.ndarray:
  """h_s: mean over the images that contain a class of its share of all the image's pixels, float32 [C] in 0..1.

  A class that no image contains has size 0, so one pixel of it makes a weak label (none, with `strict=False`). Source:
  MLSL, eq. 4.
  """
  return (np.asarray(stat.shares) / np.maximum(stat.images, 1)).astype(np.float32)


def weak_labels(
  labels: ArrayLike, class_sizes: ArrayLike, eta: float, strict: bool = True, valid: ArrayLike | None = None
) -> Array:
  """Which classes a label map [..., H, W] shows in earnest, float32 0 or 1 [..., C]: share > eta·h_s.

  The share is of all the map's pixels, ignored ones among them, but not those where `valid` [..., H, W] is false. With
  eta = 0 every class with a pixel is present. `strict=False`, as in the released code, compares with >=: a class with a
  threshold of 0 is then present everywhere.
  Source: MLSL, section 3.3.1.
  """
  class_sizes = jnp.asarray(class_sizes, jnp.float32)
  pixels, size = pixels_by_class(labels, class_sizes.shape[0], valid)
  share, least = pixels / jnp.maximum(size, 1), eta * class_sizes
  return (share > least if strict else share >= least).astype(jnp.float32)


def present(labels: ArrayLike, num_classes: int, valid: ArrayLike | None = None) -> Array:
  """Which classes have any pixel in a label map [..., H, W], float32 0 or 1 [..., C]: weak labels of the source."""
  return (pixels_by_class(labels, num_classes, valid)[0] > 0).astype(jnp.float32)


# Spatial prior.


def init_spatial_prior(grid: tuple[int, int], num_classes: int) -> Array:
  """Statistic of no images: float32 [h, w, C], the share of each cell that a class fills, summed over images."""
  return jnp.zeros((*grid, num_classes), jnp.float32)


def _cell_shares(labels: Array, size: Array, grid: tuple[int, int], num_classes: int) -> Array:
  """Share of each cell's pixels that a class fills [h, w, C]; a pixel belongs to the cell that holds its centre."""

  def cells(length, content, number):
    pixel = jnp.arange(length)
    cell = jnp.where(pixel < content, (2 * pixel + 1) * number // (2 * content), number)
    return cell, jnp.zeros(number).at[cell].add(1, mode="drop")

  row, heights = cells(labels.shape[0], size[0], grid[0])
  column, widths = cells(labels.shape[1], size[1], grid[1])
  classes = jnp.where((labels >= 0) & (labels < num_classes), labels, num_classes)
  pixels = jnp.zeros((*grid, num_classes)).at[row[:, None], column[None], classes].add(1, mode="drop")
  return pixels / jnp.maximum(heights[:, None] * widths[None], 1)[..., None]


@jax.jit
def update_spatial_prior(stat: Array, labels: ArrayLike, size: ArrayLike | None = None) -> Array:
  """Statistic with the label maps [..., H, W] added, whatever their resolution: the grid spans the image.

  `size` [..., 2] is the part of each map, from its top left, that is image and not padding; all of it if not given.
  Raises ValueError if the maps have fewer pixels than the grid has cells along an axis.
  """
  (*batch, height, width), (*grid, num_classes) = jnp.shape(labels), stat.shape
  if height < grid[0] or width < grid[1]:
    raise ValueError(f"labels of {height}x{width} pixels cannot fill a grid of {grid[0]}x{grid[1]} cells")
  labels = jnp.asarray(labels, jnp.int32).reshape(-1, height, width)
  sizes = jnp.broadcast_to(jnp.asarray([height, width] if size is None else size), (*batch, 2)).reshape(-1, 2)
  shares = jax.vmap(partial(_cell_shares, grid=tuple(grid), num_classes=num_classes))(labels, sizes)
  return stat + shares.sum(0)


def finish_spatial_prior(
  stat: ArrayLike, label_size: tuple[int, int], kernel: float = 70, sigma: float = 70 / 6
) -> np.ndarray:
  """The spatial prior q, float32 [h, w, C]: class frequency by position, smoothed, then of sum 1 over the positions.

  `kernel` (full width, where the Gaussian is cut off) and `sigma` are in pixels of the labels, of which the grid spans
  `label_size` = (H, W). Frequencies are mirrored at the borders. A class that no label has is 0 everywhere: the prior
  then forbids it. Source: CBST, section 4.4; sigma and the mirroring are our choice.

  The sum of 1 gives rare classes as much mass as frequent ones: q·p favours them in the argmax, and so in what is
  "predicted as" a class, more than frequencies would. In p/t a factor of one class cancels only where the pools stay as
  they are, since t carries it too.
  """
  stat = np.asarray(stat, np.float64)
  scale = np.divide(stat.shape[:2], label_size)
  radius = [round(kernel / 2 * s) for s in scale]
  smooth = ndimage.gaussian_filter(stat, sigma * scale, mode="reflect", radius=radius, axes=(0, 1))
  mass = smooth.sum((0, 1))
  return (smooth / np.where(mass > 0, mass, 1)).astype(np.float32)


@jax.jit
def apply_prior(probabilities: Array, prior: ArrayLike, size: ArrayLike | None = None) -> Array:
  """Scores q·p [..., H, W, C], float32, of `probabilities` [..., H, W, C] with the prior [h, w, C] resized bilinearly.

  `size` [2], which may be traced, is the part of the canvas that is image; the prior spans it, and padding scores 0.
  All of the canvas if not given. q is multiplied by its number of positions, one constant for all classes and pixels,
  so that no argmax and no ratio p/t changes, while its mean is 1: scores stay near those of softmax, but may exceed 1.
  Source: CBST, eq. 9.
  """
  prior = jnp.asarray(prior, jnp.float32)
  height, width, num_classes = probabilities.shape[-3:]
  grid = jnp.asarray(prior.shape[:2], jnp.float32)
  scale = jnp.asarray((height, width) if size is None else size, jnp.float32) / grid
  q = jax.image.scale_and_translate(prior, (height, width, num_classes), (0, 1), scale, jnp.zeros(2), "linear")
  if size is not None:  # the last cell reaches half a cell into the padding
    q *= ((jnp.arange(height)[:, None] < size[0]) & (jnp.arange(width) < size[1]))[..., None]
  return q * grid.prod() * probabilities
