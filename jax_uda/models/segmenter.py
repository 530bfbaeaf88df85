"""The segmentation network of self-training and MLSL: a backbone and a head that gives logits at stride 8."""

import jax
from flax import linen as nn

from jax_uda.errors import UserError
from jax_uda.models import layers
from jax_uda.models.decoders import FCN8s, Head
from jax_uda.models.resnet import ResNet18
from jax_uda.models.vgg import VGG16
from jax_uda.models.wide_resnet import ResNet38

STRIDE = 8  # pixels per position of the logits
BACKBONES = ("resnet18", "resnet38", "fcn8s_vgg16")
WITHOUT_BATCH_NORM = ("fcn8s_vgg16",)


class Segmenter(nn.Module):
  """A backbone and a head, found under these two names in the parameters.

  Attributes:
    num_classes: C.
    backbone: resnet18 or resnet38, whose latent map goes through `Head`; or fcn8s_vgg16, VGG16 under FCN-8s.
    width: multiplies the backbone's channels.
    num_stages: of resnet18: 4, or 3 to leave out layer4.
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
    dtype = layers.compute_dtype(self.dtype)
    trunk = {"width": self.width, "dtype": dtype, "name": "backbone"}
    match self.backbone:
      case "resnet38" | "fcn8s_vgg16" if self.num_stages != 4:
        raise UserError(f"num_stages is {self.num_stages}, but {self.backbone} is always whole; leave it at 4")
      case "resnet18":
        latent = ResNet18(self.num_stages, STRIDE, batch_norm=self.batch_norm, **trunk)(images, train)
      case "resnet38":
        latent = ResNet38(dropout=self.dropout, batch_norm=self.batch_norm, **trunk)(images, train, keys)
      case "fcn8s_vgg16":
        pool3, pool4, latent = VGG16(dropout=self.dropout, **trunk)(images, train, keys)
        return FCN8s(self.num_classes, name="head")(pool3, pool4, latent), latent
      case _:
        raise UserError(f"unknown backbone {self.backbone!r} of the segmenter; choose one of {', '.join(BACKBONES)}")
    head = Head(self.num_classes, self.head_channels, self.head_dilation, dtype, name="head")
    return head(latent), latent
