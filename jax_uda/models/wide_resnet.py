"""ResNet-38, model A1 of "Wider or Deeper" (Wu et al. 2016): a wide pre-activation residual network at stride 8.

Modules follow the names of the authors' weights: block `2a` is `block2a`, its `bn2a_branch2b1` is `bn_branch2b1`.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from jax_uda.models import layers

EPSILON = 1.001e-5


class Level(NamedTuple):
  """A run of blocks; `dilations` are those of its very first convolution and of all others in it."""

  number: int
  blocks: int
  channels: tuple[int, ...]
  kernels: tuple[int, ...]
  stride: int = 1
  dilations: tuple[int, int] = (1, 1)
  dropout: float = 0.0


LEVELS = (
  Level(2, 3, (128, 128), (3, 3), stride=2),
  Level(3, 3, (256, 256), (3, 3), stride=2),
  Level(4, 6, (512, 512), (3, 3), stride=2),
  Level(5, 3, (512, 1024), (3, 3), dilations=(1, 2)),
  Level(6, 1, (512, 1024, 2048), (1, 3, 1), dilations=(2, 4), dropout=0.3),
  Level(7, 1, (1024, 2048, 4096), (1, 3, 1), dilations=(4, 4), dropout=0.5),
)


class Block(nn.Module):
  """BatchNorm, ReLU, convolution, two or three times over, beside a shortcut.

  The first block of a level projects: its shortcut is a 1×1 convolution taken after the first BatchNorm and ReLU.
  """

  level: Level
  first: bool
  width: float
  dropout: bool
  batch_norm: str
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array, train: bool, keys: jax.Array | None) -> jax.Array:
    """Maps [B, H, W, C] to [B, ceil(H / stride), ceil(W / stride), channels[-1] · width]."""
    level, y = self.level, x
    stride = level.stride if self.first else 1
    widths = [layers.scaled(channels, self.width) for channels in level.channels]
    for i, (channels, kernel) in enumerate(zip(widths, level.kernels, strict=True)):
      branch = f"branch2b{i}" if i else "branch2a"
      norm = layers.batch_norm(self.batch_norm, train=train, epsilon=EPSILON, dtype=self.dtype, name=f"bn_{branch}")
      y = nn.relu(norm(y))
      if self.first and i == 0:
        x = layers.conv(widths[-1], 1, stride=stride, dtype=self.dtype, name="res_branch1")(y)
      if train and self.dropout and level.dropout and i == len(widths) - 1:
        if keys is None:
          raise ValueError("training ResNet-38 with dropout needs `keys`, one PRNG key per example")
        y = layers.dropout(y, level.dropout, keys, level.number)
      conv = partial(layers.conv, channels, kernel, dtype=self.dtype, name=f"res_{branch}")
      y = conv(stride=1 if i else stride, dilation=level.dilations[0 if self.first and i == 0 else 1])(y)
    return x + y


class ResNet38(nn.Module):
  """ResNet-38 trunk, without bias in its convolutions.

  Attributes:
    width: multiplies the channels of every layer.
    dropout: whether training drops 0.3 and 0.5 of the values before the last convolution of blocks 6a and 7a.
    batch_norm: per_device, synced or frozen (see `layers.batch_norm`).
    dtype: the layers compute in; parameters are float32.
  """

  width: float = 1.0
  dropout: bool = True
  batch_norm: str = "per_device"
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, images: jax.Array, train: bool = False, keys: jax.Array | None = None) -> jax.Array:
    """Computes the latent map.

    Args:
      images: [B, H, W, 3] normalised RGB.
      train: whether batch statistics are used and updated, and dropout is on.
      keys: [B] PRNG keys for dropout; needed only where it is on.

    Returns:
      [B, ceil(H / 8), ceil(W / 8), 4096 · width], after the last BatchNorm and ReLU.

    Raises:
      ValueError: dropout is on and `keys` is None.
    """
    x = layers.conv(layers.scaled(64, self.width), 3, dtype=self.dtype, name="conv1a")(images)
    for level in LEVELS:
      for i in range(level.blocks):
        name = f"block{level.number}b{i}" if i else f"block{level.number}a"
        block = Block(level, i == 0, self.width, self.dropout, self.batch_norm, self.dtype, name=name)
        x = block(x, train, keys)
    return nn.relu(layers.batch_norm(self.batch_norm, train=train, epsilon=EPSILON, dtype=self.dtype, name="bn7")(x))
