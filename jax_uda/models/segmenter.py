"""The segmentation networks: a backbone, and a head or several decoders that give logits at stride 8 or 4."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jax_uda.errors import UserError
from jax_uda.models import layers
from jax_uda.models.decoders import ASPP, FCN8s, FusionDecoder, Head, PyramidPooling
from jax_uda.models.resnet import ResNet
from jax_uda.models.vgg import VGG16
from jax_uda.models.wide_resnet import ResNet38

STRIDE = 8  # pixels per position of the logits; `FusionSegmenter` has 4
TORCHVISIONS = ("resnet10", "resnet18", "resnet50", "resnet101")
RESNETS = (*TORCHVISIONS, "resnet38")
BACKBONES = (*RESNETS, "fcn8s_vgg16")
FUSED_BACKBONES = (*TORCHVISIONS, "vgg16")
WITHOUT_BATCH_NORM = ("fcn8s_vgg16", "vgg16")


class Segmenter(nn.Module):
  """The network of self-training and MLSL: a backbone and a head, found under these two names in the parameters.

  Attributes:
    num_classes: C.
    backbone: resnet10, resnet18, resnet50, resnet101 or resnet38, whose latent map goes through `Head`; or fcn8s_vgg16,
      VGG16 under FCN-8s.
    width: multiplies the backbone's channels.
    num_stages: of all ResNets but resnet38: 4, or 3 to leave out layer4.
    head_channels: of the hidden convolution of `Head`.
    head_dilation: of the convolutions of `Head`.
    batch_norm: per_device, synced or frozen (see `layers.batch_norm`); fcn8s_vgg16 has none, so no `batch_stats` either.
    dtype: float32 or bfloat16, what the layers compute in; parameters and logits are float32.
    dropout: whether training uses the dropout that resnet38 and fcn8s_vgg16 have.
  """

  num_classes: int
  backbone: str
  width: float = 1.0
  num_stages: int = 4
  head_channels: int = 512
  head_dilation: int = 12
  batch_norm: str = "per_device"
  dtype: str = "float32"
  dropout: bool = True

  @nn.compact
  def __call__(
    self, images: jax.Array, train: bool = False, keys: jax.Array | None = None
  ) -> tuple[jax.Array, jax.Array]:
    """Segments images.

    Args:
      images: [B, H, W, 3] float, normalised RGB.
      train: whether batch statistics are used and updated (`batch_stats` must then be mutable unless frozen), and
        dropout is on.
      keys: [B] PRNG keys for dropout; needed only where the backbone has it and it is on.

    Returns:
      Logits [B, ceil(H / 8), ceil(W / 8), C] in float32, and the latent map [B, ceil(H / s), ceil(W / s), F] at
      stride s = 8; that of fcn8s_vgg16 is its fc7, at s = 32.

    Raises:
      UserError: a field has a value that is not offered.
    """
    maps = _maps(self, BACKBONES, images, train, keys)
    if self.backbone == "fcn8s_vgg16":
      head = FCN8s(self.num_classes, name="head")
    else:
      head = Head(self.num_classes, self.head_channels, self.head_dilation, layers.compute_dtype(self.dtype), name="head")
    return head(*maps), maps[-1]


class BranchedSegmenter(nn.Module):
  """The network of the strategic curriculum (section 3.2): one backbone under several decoders, an ensemble.

  The parameters have `backbone`, and `decoder_0`, `decoder_1` …, each of which starts from a draw of its own.

  Attributes:
    num_classes: C.
    backbone: resnet10, resnet18, resnet50, resnet101 or resnet38.
    width: multiplies the backbone's channels, and with them the decoders'.
    num_stages: of all ResNets but resnet38: 4, or 3 to leave out layer4.
    branches: E, the number of decoders.
    bins: of each decoder's `PyramidPooling`.
    batch_norm: per_device, synced or frozen (see `layers.batch_norm`).
    dtype: float32 or bfloat16, what the layers compute in; parameters and logits are float32.
    dropout: whether training uses the dropout that resnet38 has.
    decoder_norm: whether there is BatchNorm in the decoders.
    vote_dropout: share of the channels that a decoder misses in its vote, each decoder others; see `votes`.
  """

  num_classes: int
  backbone: str = "resnet18"
  width: float = 1.0
  num_stages: int = 4
  branches: int = 2
  bins: tuple[int, ...] = (6, 3, 2, 1)
  batch_norm: str = "per_device"
  dtype: str = "float32"
  dropout: bool = True
  decoder_norm: bool = True
  vote_dropout: float = 0.0

  @nn.compact
  def __call__(
    self, images: jax.Array, train: bool = False, keys: jax.Array | None = None
  ) -> tuple[jax.Array, jax.Array]:
    """Segments images by every branch, with one forward of the backbone.

    Args:
      images: [B, H, W, 3] float, normalised RGB.
      train: whether batch statistics are used and updated (`batch_stats` must then be mutable unless frozen), and
        dropout is on.
      keys: [B] PRNG keys for dropout; needed only where the backbone has it and it is on, and for `votes`.

    Returns:
      Logits [E, B, ceil(H / 8), ceil(W / 8), C] in float32, and the latent map [B, ceil(H / 8), ceil(W / 8), F].

    Raises:
      UserError: a field has a value that is not offered.
    """
    if self.branches < 1:
      raise UserError(f"config.network.branches is {self.branches}; give the number of decoders, 1 or more")
    (latent,) = _maps(self, RESNETS, images, train, keys)
    dtype = layers.compute_dtype(self.dtype)
    pooling = (self.num_classes, self.bins, self.batch_norm, self.decoder_norm, self.vote_dropout, dtype)
    decoders = [PyramidPooling(*pooling, name=f"decoder_{branch}") for branch in range(self.branches)]
    return jnp.stack([decoder(latent, train, keys, branch) for branch, decoder in enumerate(decoders)]), latent


class FusionSegmenter(nn.Module):
  """The network of the multi-adversarial proxies (section 2.4): features F, found under `backbone` and `decoder` in the
  parameters, and the classifier C, under `head`.

  Attributes:
    num_classes: C.
    backbone: resnet10, resnet18, resnet50, resnet101 or vgg16, none of them dilated.
    width: multiplies the backbone's channels.
    num_stages: of a ResNet: 4, or 3 to leave out layer4.
    channels: of the fused maps.
    units, dilation: of the decoder, see `FusionDecoder`.
    batch_norm: per_device, synced or frozen (see `layers.batch_norm`); vgg16 has none, so no `batch_stats` either.
    dtype: float32 or bfloat16, what the layers compute in; parameters and logits are float32.
    dropout: there is none, here for other networks' sake.
  """

  num_classes: int
  backbone: str = "resnet101"
  width: float = 1.0
  num_stages: int = 4
  channels: int = 128
  units: int = 2
  dilation: int = 2
  batch_norm: str = "per_device"
  dtype: str = "float32"
  dropout: bool = False

  @nn.compact
  def __call__(
    self, images: jax.Array, train: bool = False, keys: jax.Array | None = None, classify: bool = True
  ) -> tuple[jax.Array | None, tuple[jax.Array, jax.Array]]:
    """Segments images.

    Args:
      images: [B, H, W, 3] float, normalised RGB.
      train: whether batch statistics are used and updated (`batch_stats` must then be mutable unless frozen).
      keys: not needed.
      classify: whether logits are wanted; None otherwise.

    Returns:
      Logits [B, ceil(H / 4), ceil(W / 4), C] in float32; F's map [B, ceil(H / 4), ceil(W / 4), channels], and that of its
      part F_l, [B, ceil(H / 8), ceil(W / 8), channels].

    Raises:
      UserError: a field has a value that is not offered.
    """
    maps = _maps(self, FUSED_BACKBONES, images, train, keys)
    dtype = layers.compute_dtype(self.dtype)
    high, mid, *_ = FusionDecoder(self.channels, self.units, self.dilation, dtype, name="decoder")(maps)
    return ASPP(self.num_classes, name="head")(high) if classify else None, (high, mid)


def votes(logits: jax.Array, changed: Mapping[str, Any]) -> jax.Array:
  """The logits [E, B, h, w, C] by which the branches of a `BranchedSegmenter` vote: with `vote_dropout`.

  Args:
    logits: what it returned, which are without; they are the votes where there is no `vote_dropout`.
    changed: the collections that its `apply`, given keys, returned beside, `votes` among the mutable ones.
  """
  cast = changed.get("votes")
  return jnp.stack([cast[f"decoder_{e}"]["cast"][0] for e in range(len(logits))]) if cast else logits


def _maps(
  model: Segmenter | BranchedSegmenter | FusionSegmenter,
  offered: tuple[str, ...],
  images: jax.Array,
  train: bool,
  keys: jax.Array | None,
) -> tuple[jax.Array, ...]:
  """What the backbone of a segmenter, one of those `offered`, hands to its head; the last is the latent map."""
  if model.backbone not in offered:
    raise UserError(f"unknown backbone {model.backbone!r} of the segmenter; choose one of {', '.join(offered)}")
  if model.backbone not in TORCHVISIONS and model.num_stages != 4:
    raise UserError(f"num_stages is {model.num_stages}, but {model.backbone} is always whole; leave it at 4")
  fused = offered == FUSED_BACKBONES
  trunk = {"width": model.width, "dtype": layers.compute_dtype(model.dtype), "name": "backbone"}
  if model.backbone in TORCHVISIONS:
    depth, stride = int(model.backbone.removeprefix("resnet")), 32 if fused else STRIDE
    maps = ResNet(depth, model.num_stages, stride, batch_norm=model.batch_norm, **trunk)(images, train)
    return maps if fused else maps[-1:]
  if model.backbone == "resnet38":
    return (ResNet38(dropout=model.dropout, batch_norm=model.batch_norm, **trunk)(images, train, keys),)
  return VGG16(classifier=not fused, dropout=model.dropout, **trunk)(images, train, keys)
