"""The segmentation network of self-training and MLSL: a backbone at stride 8 and a head."""

import jax
from flax import linen as nn

from jax_uda.errors import UserError
from jax_uda.models import layers
from jax_uda.models.decoders import Head
from jax_uda.models.resnet import ResNet18
from jax_uda.models.wide_resnet import ResNet38

STRIDE = 8  # pixels per position of the latent map and the logits
BACKBONES = ("resnet18", "resnet38")


class Segmenter(nn.Module):
  """A backbone and a head, found under these two names in the parameters.

  Attributes:
    num_classes: C.
    backbone: resnet18 or resnet38.
    width: multiplies the backbone's channels.
    num_stages: of resnet18: 4, or 3 to leave out layer4.
    head_channels: of the head's hidden convolution.
    head_dilation: of the head's convolutions.
    batch_norm: per_device, synced or frozen (see `layers.batch_norm`).
    dtype: float32 or bfloat16, what the layers compute in; parameters and logits are float32.
    dropout: whether training uses the dropout that resnet38 has.
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
      Logits [B, ceil(H / 8), ceil(W / 8), C] in float32, and the latent map [B, ceil(H / 8), ceil(W / 8), F].

    Raises:
      UserError: a field has a value that is not offered.
    """
    dtype = layers.compute_dtype(self.dtype)
    trunk = {"width": self.width, "batch_norm": self.batch_norm, "dtype": dtype, "name": "backbone"}
    match self.backbone:
      case "resnet18":
        latent = ResNet18(num_stages=self.num_stages, output_stride=STRIDE, **trunk)(images, train)
      case "resnet38":
        if self.num_stages != 4:
          raise UserError(f"num_stages is {self.num_stages}, but resnet38 is always whole; leave it at 4")
        latent = ResNet38(dropout=self.dropout, **trunk)(images, train, keys)
      case _:
        raise UserError(f"unknown backbone {self.backbone!r} of the segmenter; choose one of {', '.join(BACKBONES)}")
    head = Head(self.num_classes, self.head_channels, self.head_dilation, dtype, name="head")
    return head(latent), latent
