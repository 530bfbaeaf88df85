"""The discriminators of the multi-adversarial proxies: which domain are these features of?"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from jax_uda.models import layers

SLOPE = 0.2  # of the leaky ReLU below 0


class PatchDiscriminator(nn.Module):
  """A small fully convolutional network that judges patches (section 2.4): 1 is the source, 0 the target.

  3×3 convolutions with leaky ReLU, 2×2 average pooling between them, and a 1×1 convolution that gives the verdict. How many
  of them and their channels is our choice.

  Attributes:
    poolings: each halves the map, and doubles the channels up to eightfold.
    channels: of the first convolution.
    dtype: the layers compute in; the verdict is float32.
  """

  poolings: int
  channels: int = 64
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, features: jax.Array) -> jax.Array:
    """Maps features [B, h, w, F] to float32 logits of the source [B, ceil(h / 2^poolings), ceil(w / 2^poolings)]."""
    conv = partial(layers.conv, kernel=3, bias=True, dtype=self.dtype)
    pool = partial(nn.avg_pool, window_shape=(2, 2), strides=(2, 2), padding="SAME", count_include_pad=False)
    x = features
    for i in range(self.poolings + 1):
      x = nn.leaky_relu(conv(self.channels * 2 ** min(i, 3), name=f"conv{i + 1}")(x), SLOPE)
      if i < self.poolings:
        x = pool(x)
    return layers.conv(1, 1, bias=True, kernel_init=layers.small_normal, name="verdict")(x)[..., 0]
