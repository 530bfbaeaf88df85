"""ResNet-18 (He et al. 2016) in torchvision's v1 layout; module names are torchvision's with `_` for `.`."""

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


class ResNet18(nn.Module):
  """ResNet-18 trunk.

  With output stride 8, stride turns into dilation in the last two stages, as torchvision's
  `replace_stride_with_dilation` does it: the convolution that lost its stride (the first of a stage's first block)
  keeps the dilation of the stage before, all that follow get twice that.

  | dilation of | layer1, layer2 | layer3 | layer4 |
  | --- | --- | --- | --- |
  | first convolution of the first block | 1 | 1 | 2 |
  | the other three convolutions | 1 | 2 | 4 |

  So the map at stride 8, taken at every fourth position, is the map at stride 32.

  Attributes:
    num_stages: 4, or 3 to leave out layer4.
    output_stride: 32 or 8, of all four stages; three stages at 32 end at stride 16.
    width: multiplies the channels of every layer.
    num_classes: None for the features, else the ImageNet classifier (average pool and `fc`) sits on top of them.
    batch_norm: per_device, synced or frozen (see `layers.batch_norm`).
    dtype: the layers compute in; parameters are float32.
  """

  num_stages: int = 4
  output_stride: int = 32
  width: float = 1.0
  num_classes: int | None = None
  batch_norm: str = "per_device"
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
    """Computes features, or logits where `num_classes` is set.

    Args:
      images: [B, H, W, 3] normalised RGB.
      train: whether batch statistics are used and updated.

    Returns:
      [B, ceil(H / stride), ceil(W / stride), 512 · width] (256 · width with three stages), or [B, num_classes].

    Raises:
      UserError: a number of stages or an output stride that the network does not have.
    """
    if self.num_stages not in (3, 4):
      raise UserError(f"num_stages of ResNet-18 is {self.num_stages}; choose 3 or 4")
    if self.output_stride not in (8, 32):
      raise UserError(f"output_stride of ResNet-18 is {self.output_stride}; choose 8 or 32")
    stem = layers.conv(layers.scaled(64, self.width), 7, stride=2, dtype=self.dtype, name="conv1")
    x = nn.relu(layers.batch_norm(self.batch_norm, train=train, dtype=self.dtype, name="bn1")(stem(images)))
    x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=[(1, 1)] * 2)
    dilation = 1
    for stage, channels in enumerate(STAGE_CHANNELS[: self.num_stages], start=1):
      stride, first_dilation = (1 if stage == 1 else 2), dilation
      if self.output_stride == 8 and stage > 2:
        stride, dilation = 1, 2 * dilation
      block = partial(BasicBlock, layers.scaled(channels, self.width), batch_norm=self.batch_norm, dtype=self.dtype)
      x = block(stride, (first_dilation, dilation), project=stage > 1, name=f"layer{stage}_0")(x, train)
      x = block(1, (dilation, dilation), project=False, name=f"layer{stage}_1")(x, train)
    if self.num_classes is None:
      return x
    return nn.Dense(self.num_classes, name="fc")(x.mean((1, 2), dtype=jnp.float32))
