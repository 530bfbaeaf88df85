"""ResNet-18, -50 and -101 (He et al. 2016) in torchvision's layout; module names are torchvision's with `_` for `.`.

ResNet-10 has one block where ResNet-18 has two: for tests and trials, as nobody publishes its weights.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from jax_uda.errors import UserError
from jax_uda.models import layers

STAGE_CHANNELS = (64, 128, 256, 512)


class BasicBlock(nn.Module):
  """Two 3×3 convolutions beside an identity, or beside a 1×1 convolution where `project` is set."""

  channels: int
  stride: int
  dilations: tuple[int, int]
  project: bool
  batch_norm: str
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Maps [B, H, W, C] to [B, ceil(H / stride), ceil(W / stride), channels]."""
    norm = partial(layers.batch_norm, self.batch_norm, train=train, dtype=self.dtype)
    conv = partial(layers.conv, self.channels, dtype=self.dtype)
    y = conv(3, stride=self.stride, dilation=self.dilations[0], name="conv1")(x)
    y = nn.relu(norm(name="bn1")(y))
    y = norm(name="bn2")(conv(3, dilation=self.dilations[1], name="conv2")(y))
    if self.project:
      x = norm(name="downsample_1")(conv(1, stride=self.stride, name="downsample_0")(x))
    return nn.relu(x + y)


class Bottleneck(nn.Module):
  """1×1, 3×3 and 1×1 convolutions beside an identity, or beside a 1×1 convolution where `project` is set.

  The middle one has the stride (torchvision's "v1.5") and the first of the dilations: there is no other for the second.
  """

  channels: int
  stride: int
  dilations: tuple[int, int]
  project: bool
  batch_norm: str
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Maps [B, H, W, C] to [B, ceil(H / stride), ceil(W / stride), 4 · channels]."""
    norm = partial(layers.batch_norm, self.batch_norm, train=train, dtype=self.dtype)
    conv = partial(layers.conv, dtype=self.dtype)
    y = nn.relu(norm(name="bn1")(conv(self.channels, 1, name="conv1")(x)))
    y = conv(self.channels, 3, stride=self.stride, dilation=self.dilations[0], name="conv2")(y)
    y = norm(name="bn3")(conv(4 * self.channels, 1, name="conv3")(nn.relu(norm(name="bn2")(y))))
    if self.project:
      x = norm(name="downsample_1")(conv(4 * self.channels, 1, stride=self.stride, name="downsample_0")(x))
    return nn.relu(x + y)


# depth: kind, and how many in each stage
BLOCKS = {
  10: (BasicBlock, (1, 1, 1, 1)),
  18: (BasicBlock, (2, 2, 2, 2)),
  50: (Bottleneck, (3, 4, 6, 3)),
  101: (Bottleneck, (3, 4, 23, 3)),
}


class ResNet(nn.Module):
  """ResNet trunk.

  With output stride 8, stride turns into dilation in the last two stages, as torchvision's
  `replace_stride_with_dilation` does it: the convolution that lost its stride (the first of a stage's first block)
  keeps the dilation of the stage before, all that follow get twice that.

  | dilation of | layer1, layer2 | layer3 | layer4 |
  | --- | --- | --- | --- |
  | first 3×3 convolution of the first block | 1 | 1 | 2 |
  | all others | 1 | 2 | 4 |

  So the map at stride 8, taken at every fourth position, is the map at stride 32.

  Attributes:
    depth: 10, 18, 50 or 101.
    num_stages: 4, or 3 to leave out layer4.
    output_stride: 32 or 8, of all four stages; three stages at 32 end at stride 16.
    width: multiplies the channels of every layer.
    num_classes: None for the features, else the ImageNet classifier (average pool and `fc`) sits on top of them.
    batch_norm: per_device, synced or frozen (see `layers.batch_norm`).
    dtype: the layers compute in; parameters are float32.
  """

  depth: int = 18
  num_stages: int = 4
  output_stride: int = 32
  width: float = 1.0
  num_classes: int | None = None
  batch_norm: str = "per_device"
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, images: jax.Array, train: bool = False) -> tuple[jax.Array, ...] | jax.Array:
    """Computes features, or logits where `num_classes` is set.

    Args:
      images: [B, H, W, 3] normalised RGB.
      train: whether batch statistics are used and updated.

    Returns:
      What each stage gives, from layer1 at stride 4 on, [B, ceil(H / stride), ceil(W / stride), F] with F = 64, 128, 256
      and 512 · width, from depth 50 on four times that; or logits [B, num_classes].

    Raises:
      UserError: a depth, a number of stages or an output stride that there is not.
    """
    if self.depth not in BLOCKS:
      raise UserError(f"depth of ResNet is {self.depth}; choose one of {', '.join(map(str, BLOCKS))}")
    if self.num_stages not in (3, 4):
      raise UserError(f"num_stages of ResNet-{self.depth} is {self.num_stages}; choose 3 or 4")
    if self.output_stride not in (8, 32):
      raise UserError(f"output_stride of ResNet-{self.depth} is {self.output_stride}; choose 8 or 32")
    kind, numbers = BLOCKS[self.depth]
    stem = layers.conv(layers.scaled(64, self.width), 7, stride=2, dtype=self.dtype, name="conv1")
    x = nn.relu(layers.batch_norm(self.batch_norm, train=train, dtype=self.dtype, name="bn1")(stem(images)))
    x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=[(1, 1)] * 2)
    dilation, maps = 1, []
    for stage, channels in enumerate(STAGE_CHANNELS[: self.num_stages], start=1):
      stride, first_dilation = (1 if stage == 1 else 2), dilation
      if self.output_stride == 8 and stage > 2:
        stride, dilation = 1, 2 * dilation
      block = partial(kind, layers.scaled(channels, self.width), batch_norm=self.batch_norm, dtype=self.dtype)
      project = stage > 1 or kind is Bottleneck
      x = block(stride, (first_dilation, dilation), project=project, name=f"layer{stage}_0")(x, train)
      for i in range(1, numbers[stage - 1]):
        x = block(1, (dilation, dilation), project=False, name=f"layer{stage}_{i}")(x, train)
      maps.append(x)
    if self.num_classes is None:
      return tuple(maps)
    return nn.Dense(self.num_classes, name="fc")(x.mean((1, 2), dtype=jnp.float32))
