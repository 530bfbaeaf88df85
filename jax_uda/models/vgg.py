"""VGG16 (Simonyan and Zisserman 2015), bare or with its classifier turned into convolutions as FCN does (Long et al. 2015).

The 13 convolutions bear torchvision's names with `_` for `.`; `fc6` and `fc7` are its `classifier.0` and `classifier.3`.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from jax_uda.models import layers

STAGES = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))  # 3×3 convolutions, channels; a 2×2 max pool after each stage
DROPOUT = 0.5


class VGG16(nn.Module):
  """VGG16 trunk; its convolutions have a bias, and there is no BatchNorm.

  Pools round up where torchvision's round down: cell i of a map at stride s covers the pixels [s·i, s·(i + 1)) of an
  image of any size, and none is left over. On multiples of 32 the two are the same. For the same reason `fc6` is padded
  by 3, in place of FCN's 100 pixels around the image.

  Attributes:
    width: multiplies the channels of every layer.
    classifier: whether `fc6` and `fc7` sit on top of it.
    dropout: whether training drops half of the values after `fc6` and `fc7`.
    dtype: the layers compute in; parameters are float32.
  """

  width: float = 1.0
  classifier: bool = True
  dropout: bool = True
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(
    self, images: jax.Array, train: bool = False, keys: jax.Array | None = None
  ) -> tuple[jax.Array, ...]:
    """Computes the maps that FCN-8s scores; or, without the classifier, those of the last four pools.

    Args:
      images: [B, H, W, 3] normalised RGB.
      train: whether dropout is on.
      keys: [B] PRNG keys for dropout; needed only where it is on.

    Returns:
      pool3 [B, ceil(H / 8), ceil(W / 8), 256 · width], pool4 [B, ceil(H / 16), ceil(W / 16), 512 · width] and
      fc7 [B, ceil(H / 32), ceil(W / 32), 4096 · width], after its ReLU and dropout. Without the classifier pool2 to pool5
      [B, ceil(H / s), ceil(W / s), F] at the strides s = 4, 8, 16 and 32, F = 128, 256, 512 and 512 · width.

    Raises:
      ValueError: dropout is on and `keys` is None.
    """
    dropping = train and self.classifier and self.dropout
    if dropping and keys is None:
      raise ValueError("training VGG16 with dropout needs `keys`, one PRNG key per example")
    conv = partial(layers.conv, bias=True, dtype=self.dtype)
    x, place, pools = images, 0, []
    for convolutions, channels in STAGES:
      for _ in range(convolutions):
        x = nn.relu(conv(layers.scaled(channels, self.width), 3, name=f"features_{place}")(x))
        place += 2  # torchvision counts the ReLU, too
      pools.append(x := nn.max_pool(x, (2, 2), strides=(2, 2), padding="SAME"))
      place += 1
    if not self.classifier:
      return tuple(pools[1:])
    for layer, kernel in ((6, 7), (7, 1)):
      x = nn.relu(conv(layers.scaled(4096, self.width), kernel, name=f"fc{layer}")(x))
      if dropping:
        x = layers.dropout(x, DROPOUT, keys, layer)
    return pools[2], pools[3], x
