"""Multi-adversarial proxies, GTA5 → Cityscapes, as in table 1 of Shen et al. (2019): ResNet-101 or VGG16.

  python -m jax_uda.main --config configs/adversarial_gta.py --config.weights=resnet101.safetensors \\
    --config.data_dir=DATA --workdir runs/adversarial_gta
  python -m jax_uda.main --config configs/adversarial_gta.py … --config.network.backbone=vgg16

DATA/GTA5 holds images/ and labels/, DATA/Cityscapes leftImg8bit/ and gtFine/; the weights are torchvision's, from ImageNet.
`configs/ladders/adversarial.py` has the rungs of table 3; the paper's mIoU with ResNet-101: source only 38.1, one
discriminator 41.5, two 42.7, proxies with one 47.1, with two (this config as it is) 49.8, and scored at several scales
(`--config.eval_scales=0.5,0.75,1`; which ones is our choice) 50.4; with VGG16 27.9 and 39.0. Nobody has measured this
config yet.

Images of GTA5 are seen at a height of 720, those of Cityscapes at 512x1024; both lie in one canvas, and are scaled on the
device. With `--config.retraining.steps=0` the network that is scored has seen Cityscapes at half its size; there,
`--config.eval_scales=0.5` scores it so (our choice).
"""

from configs import default


def get_config():
  """The paper's setting."""
  config = default.adversarial()
  default.gta5_to_cityscapes(config)
  config.canvas = (1056, 2048)  # of which a half is in whole strides; GTA5 is scaled to 1056x1921 in it
  config.augmentation.update({"crop": (720, 1280), "scale": (720 / 1056, 720 / 1056)})
  return config
