"""Multi-adversarial proxies, SYNTHIA → Cityscapes, as in table 2 of Shen et al. (2019): ResNet-101 or VGG16, 16 classes.

  python -m jax_uda.main --config configs/adversarial_synthia.py --config.weights=resnet101.safetensors \\
    --config.data_dir=DATA --workdir runs/adversarial_synthia
  python -m jax_uda.main --config configs/adversarial_synthia.py … --config.network.backbone=vgg16

DATA/SYNTHIA holds RGB/ and GT/, DATA/Cityscapes leftImg8bit/ and gtFine/; the weights are torchvision's, from ImageNet. The
paper's mIoU over 16 and over 13 classes (synthia16, synthia13), source only and with proxies: ResNet-101 33.4, 38.3 and
45.0, 52.3 (its text says 45.5); VGG16 20.6, 24.5 and 36.8, 43.0. Nobody has measured this config yet.
"""

from configs import default


def get_config():
  """The paper's setting."""
  config = default.adversarial()
  default.synthia_to_cityscapes(config)
  # Seen at their own size; the canvas has them scaled up to Cityscapes' height.
  config.augmentation.update({"crop": (760, 1280), "scale": (760 / 1024, 760 / 1024)})
  return config
