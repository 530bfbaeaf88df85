"""What sits on a latent map [B, h, w, F]: the segmentation head and the image-level classifier."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from jax_uda.errors import UserError
from jax_uda.models import layers

ACTIVATIONS = ("paper", "code")


class Head(nn.Module):
  """Segmentation head of "Wider or Deeper": two dilated 3×3 convolutions with bias, ReLU between, no BatchNorm.

  Attributes:
    num_classes: C.
    channels: of the hidden convolution.
    dilation: of both.
    dtype: the hidden convolution computes in; the last one is float32, as labels are ranked by what it returns.
  """

  num_classes: int
  channels: int = 512
  dilation: int = 12
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, latent: jax.Array) -> jax.Array:
    """Maps the latent map [B, h, w, F] to float32 logits [B, h, w, C]."""
    conv = partial(layers.conv, kernel=3, dilation=self.dilation, bias=True)
    x = nn.relu(conv(self.channels, dtype=self.dtype, name="conv")(latent))
    return conv(self.num_classes, kernel_init=layers.small_normal, name="logits")(x)


class ImageClassifier(nn.Module):
  """Which classes are in the image: the weak-label classifier of MLSL.

  1×1 convolution 2048, 3×3 convolution 2048, global average pool, fully connected 512, fully connected C.

  Attributes:
    num_classes: C.
    activation: `paper`: ReLU after all layers but the last; `code` (the authors'): after the 1×1 convolution only.
    width: multiplies the channels of the hidden layers.
    dtype: the hidden layers compute in; the last one is float32.
  """

  num_classes: int
  activation: str = "paper"
  width: float = 1.0
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, latent: jax.Array) -> jax.Array:
    """Maps the latent map [B, h, w, F] to float32 logits [B, C]; the sigmoid is in the loss.

    Raises:
      UserError: unknown activation.
    """
    if self.activation not in ACTIVATIONS:
      raise UserError(
        f"unknown activation {self.activation!r} of the image classifier; choose one of {', '.join(ACTIVATIONS)}"
      )
    paper_relu = nn.relu if self.activation == "paper" else lambda x: x
    channels = layers.scaled(2048, self.width)
    conv = partial(layers.conv, channels, bias=True, dtype=self.dtype)
    x = nn.relu(conv(1, name="conv1")(latent))
    x = paper_relu(conv(3, name="conv2")(x)).mean((1, 2))
    fc1 = nn.Dense(layers.scaled(512, self.width), dtype=self.dtype, kernel_init=layers.he_normal, name="fc1")
    return nn.Dense(self.num_classes, kernel_init=layers.small_normal, name="fc2")(paper_relu(fc1(x)))
