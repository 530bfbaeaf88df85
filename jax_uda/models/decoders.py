"""What sits on a backbone's maps [B, h, w, F]: the segmentation heads and the image-level classifier."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from jax_uda.errors import UserError
from jax_uda.models import layers

ACTIVATIONS = ("paper", "code")
FIRST_BRANCH = 16  # of the numbers of dropout layers; those below are the backbones'


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


class FCN8s(nn.Module):
  """Head of FCN-8s (Long et al. 2015, section 4.2): class scores at strides 32, 16 and 8, by 1×1 convolutions, added up.

  They train all at once and none is scaled. What doubles the coarser ones is bilinear and stays so: FCN's deconvolutions
  begin there.

  Attributes:
    num_classes: C.
  """

  num_classes: int

  @nn.compact
  def __call__(self, pool3: jax.Array, pool4: jax.Array, fc7: jax.Array) -> jax.Array:
    """Computes logits from three maps of one image, each rounded up to half the size of the one before.

    Args:
      pool3: [B, h, w, F3].
      pool4: [B, ceil(h / 2), ceil(w / 2), F4].
      fc7: [B, ceil(h / 4), ceil(w / 4), F7].

    Returns:
      [B, h, w, C], float32.
    """
    score = partial(layers.conv, self.num_classes, 1, bias=True, kernel_init=layers.small_normal)
    scores = score(name="score_fc7")(fc7)
    for name, skip in (("score_pool4", pool4), ("score_pool3", pool3)):
      scores = score(name=name)(skip) + doubled(scores, skip.shape[1:3])
    return scores


def doubled(maps: jax.Array, size: tuple[int, int]) -> jax.Array:
  """Bilinear upsampling by 2 with half-pixel centres: cell i covers pixels 2i and 2i + 1.

  Args:
    maps: [B, h, w, C].
    size: (H, W) of the result, at most (2h, 2w): what the last cells cover beyond it is cut off.

  Returns:
    [B, H, W, C].
  """
  batch, height, width, channels = maps.shape
  return jax.image.resize(maps, (batch, 2 * height, 2 * width, channels), "linear")[:, : size[0], : size[1]]


class PyramidPooling(nn.Module):
  """Pyramid pooling module: every position is classified beside what its surroundings hold, at several sizes of them.

  For each of `bins`: adaptive average pooling, 1×1 convolution to an even share of the latent channels, BatchNorm, ReLU,
  bilinear upsampling. Latent map and results side by side go through a 1×1 convolution. Source: the strategic curriculum,
  section 4.2, which names the convolutions only; BatchNorm and ReLU behind them are those of PSPNet (Zhao et al. 2017).

  Batch statistics of few cells are a poor guide: where a device has a single image, nothing is left of the 1×1 bin but
  BatchNorm's bias, and where all show much the same, as the frames of a film do, it blows up their small differences.

  Attributes:
    num_classes: C.
    bins: rows and columns that the map is pooled to.
    batch_norm: per_device, synced or frozen (see `layers.batch_norm`).
    norm: whether there is BatchNorm; without, the convolutions have biases.
    vote_dropout: with keys, the last convolution is also run without this share of its channels, and what it then returns
      goes to the collection `votes`, where that is mutable.
    dtype: of what is upsampled. The cells are so few that they are float32, and their statistics exact; so is the last
      convolution, as labels are ranked by what it returns.
  """

  num_classes: int
  bins: tuple[int, ...] = (6, 3, 2, 1)
  batch_norm: str = "per_device"
  norm: bool = True
  vote_dropout: float = 0.0
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(
    self, latent: jax.Array, train: bool = False, keys: jax.Array | None = None, branch: int = 0
  ) -> jax.Array:
    """Maps the latent map [B, h, w, F] to float32 logits [B, h, w, C].

    Args:
      latent: what the backbone gives.
      train: whether batch statistics are used and updated.
      keys: [B] PRNG keys for dropout, which all branches share.
      branch: tells them apart.

    Raises:
      UserError: no bins, bins below 1, or the same twice.
    """
    if not self.bins or min(self.bins) < 1 or len(set(self.bins)) < len(self.bins):
      raise UserError(f"bins of the pyramid pooling are {self.bins}; give whole numbers from 1, each once")
    channels = max(1, latent.shape[-1] // len(self.bins))
    maps = [latent]
    for bins in self.bins:
      x = layers.conv(channels, 1, bias=not self.norm, name=f"pool{bins}_conv")(adaptive_average_pool(latent, bins))
      if self.norm:
        x = layers.batch_norm(self.batch_norm, train=train, name=f"pool{bins}_bn")(x)
      x = nn.relu(x).astype(self.dtype)
      maps.append(jax.image.resize(x, (*latent.shape[:3], channels), "linear", antialias=False))
    logits = layers.conv(self.num_classes, 1, bias=True, kernel_init=layers.small_normal, name="logits")
    x = jnp.concatenate(maps, axis=-1)
    if self.vote_dropout and keys is not None:
      some = layers.dropout(x, self.vote_dropout, keys, FIRST_BRANCH + branch, channels=True)
      self.sow("votes", "cast", logits(some))
    return logits(x)


class FusionDecoder(nn.Module):
  """Light decoder of the multi-adversarial proxies (section 2.4, figure 4): coarse maps go up and meet finer ones.

  Every map is brought to the same number of channels; the coarse one passes a series of units, is upsampled, and the finer
  one is added. The units are residual: two dilated 3×3 convolutions, ReLU before each, no BatchNorm (RefineNet's, Lin et
  al. 2017; that, their number and the dilation are our choice). The second one starts at 0, so that units begin as
  identities and do not add up (our choice, too; it alone does not make a high rate safe, see `config.optimizer.clip`).

  Attributes:
    channels: of all that it computes.
    units: in each series.
    dilation: of the 3×3 convolutions.
    dtype: it computes in.
  """

  channels: int = 128
  units: int = 2
  dilation: int = 2
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, maps: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
    """Fuses maps [B, h, w, F] of one image, finest first, each rounded up to half the size of the one before.

    Returns:
      The fused maps [B, h, w, channels], finest first: of the sizes of all `maps` but the last.
    """
    *finer, coarsest = maps
    conv = partial(layers.conv, self.channels, bias=True, dtype=self.dtype)
    x, fused = conv(1, name="reduce")(coarsest), []
    for level, finer_map in reversed(list(enumerate(finer))):
      for unit in range(self.units):
        name = f"level{level}_unit{unit}"
        y = conv(3, dilation=self.dilation, name=f"{name}_conv1")(nn.relu(x))
        x += conv(3, dilation=self.dilation, kernel_init=nn.initializers.zeros, name=f"{name}_conv2")(nn.relu(y))
      x = doubled(x, finer_map.shape[1:3]) + conv(1, name=f"level{level}_reduce")(finer_map)
      fused.append(x)
    return tuple(reversed(fused))


class ASPP(nn.Module):
  """Atrous spatial pyramid pooling of DeepLab-v2 (Chen et al. 2018): 3×3 convolutions of several dilations, added up.

  Attributes:
    num_classes: C.
    rates: the dilations; those of the multi-adversarial proxies (section 2.4).
  """

  num_classes: int
  rates: tuple[int, ...] = (1, 2, 4, 8)

  @nn.compact
  def __call__(self, features: jax.Array) -> jax.Array:
    """Maps features [B, h, w, F] to float32 logits [B, h, w, C]."""
    conv = partial(layers.conv, self.num_classes, 3, bias=True, kernel_init=layers.small_normal)
    return sum(conv(dilation=rate, name=f"rate{rate}_logits")(features) for rate in self.rates)


def adaptive_average_pool(maps: jax.Array, bins: int) -> jax.Array:
  """Means over `bins` × `bins` cells that cover a map of any size, as PyTorch's AdaptiveAvgPool2d cuts them.

  Cell i of n positions spans floor(i · n / bins) up to ceil((i + 1) · n / bins), so cells overlap where `bins` does not
  divide n, and repeat where it exceeds n.

  Args:
    maps: [B, h, w, F] of any float type.
    bins: rows and columns of the result.

  Returns:
    [B, bins, bins, F], float32.
  """

  def averaging(length):
    cell, position = jnp.arange(bins)[:, None], jnp.arange(length)
    inside = (position >= cell * length // bins) & (position < -(-(cell + 1) * length // bins))
    return inside / inside.sum(1, keepdims=True)

  rows, columns = map(averaging, maps.shape[1:3])
  return jnp.einsum("ih,jw,bhwf->bijf", rows, columns, maps, precision=jax.lax.Precision.HIGHEST)


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
