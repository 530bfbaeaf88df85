"""Mining of rare classes: training crops around pixels of the classes that the target is seldom predicted as.

Symbols: share = a class's part of the target's pixels, by prediction; tier = how much a class is sought: 2 rare, 1 among
the least predicted, 0 not at all. Axes: H, W = pixels, C = classes. Source: CBST and its released code ("hard samples").
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

RARE, LEAST = 2, 1  # tiers; 0 is none


def tiers(shares: ArrayLike, num: int, rare: float) -> np.ndarray:
  """The tier of each class, int32 [C], from their `shares` [C] of the pixels that the target is predicted as.

  Classes of a share below `rare` are in tier 2, the others among the `num` of the smallest shares (of equal ones those of
  lower id) in tier 1, all others in tier 0. A class that is never predicted counts as any other: source images may have it.
  """
  shares = np.asarray(shares)
  result = np.zeros(len(shares), np.int32)
  result[np.argsort(shares, kind="stable")[:num]] = LEAST
  result[shares < rare] = RARE
  return result


def centre(key: Array, label: Array, size: ArrayLike, tiers: ArrayLike, probability: ArrayLike) -> Array:
  """A pixel to put a crop around: (row, column), int32 [2], or (-1, -1) for none; what `transforms.augment` takes.

  With `probability`, one of the image's classes of the highest tier that occurs in it is drawn, each alike, then one of
  that class's pixels, each alike, to within n parts in 2^32 where it has n. None otherwise, or where no class of a tier
  above 0 occurs. For one example; all but the shapes may be traced.

  Args:
    key: the example's random key.
    label: uint8 [H, W]; labels outside 0..C-1, such as 255, are nobody's.
    size: int32 [2], height and width of the content, which lies in the top left corner.
    tiers: int32 [C], see `tiers`.
    probability: in 0..1.
  """
  (height, width), tiers = label.shape, jnp.asarray(tiers)
  bits = jax.random.bits(key, (2 + len(tiers),))  # at once: each random function takes its time to compile
  of_pixel, coin, of_class = bits[0], bits[1], bits[2:]
  inside = (jnp.arange(height)[:, None] < size[0]) & (jnp.arange(width) < size[1])
  # By tier and then by chance, and the greatest that occurs is drawn: there is no need to know first which ones do.
  order = jnp.where(tiers > 0, tiers.astype(jnp.uint32) << 30 | of_class >> 2, 0)
  of_label = jnp.where(inside, order.at[label].get(mode="fill", fill_value=0), 0)
  greatest = of_label.max()
  chosen = of_label == greatest

  by_row = chosen.sum(1)
  row, left = _locate(by_row, (of_pixel % by_row.sum().astype(jnp.uint32)).astype(jnp.int32))
  column, _ = _locate(chosen[row], left)
  mined = (greatest > 0) & ((coin >> 8) * 2.0**-24 < probability)
  return jnp.where(mined, jnp.stack([row, column]), -1)


def _locate(counts: Array, rank: Array) -> tuple[Array, Array]:
  """Which of a row of boxes, with so many things in each, holds the thing of a rank (from 0), and its rank in there."""
  counts = counts.astype(jnp.int32)
  reached = jnp.cumsum(counts)
  box = (reached <= rank).sum()
  return box, rank - (reached[box] - counts[box])
