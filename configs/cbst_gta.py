"""CBST, GTA5 → Cityscapes, as in table 3 of the paper: ResNet-38 or FCN8s-VGG16, 3 rounds of 2 epochs.

  python -m jax_uda.main --config configs/cbst_gta.py --config.data_dir=DATA --workdir runs/cbst_gta
  python -m jax_uda.main --config configs/cbst_gta.py … --config.labels.prior=True              CBST-SP
  python -m jax_uda.evaluate --workdir runs/cbst_gta_sp --scales 0.5,0.75,1.0                   CBST-SP+MST
  python -m jax_uda.main --config configs/cbst_gta.py:vgg16 …                                   FCN8s-VGG16
  python -m jax_uda.main --config configs/cbst_gta.py:code …                                    as the released code has it

DATA/GTA5 holds images/ and labels/, DATA/Cityscapes holds leftImg8bit/ and gtFine/. The paper's mIoU with ResNet-38:
source stage 35.4, CBST 45.2, CBST-SP 46.2, CBST-SP+MST 47.0; with FCN8s-VGG16: 24.3, CBST 30.9, CBST-SP 36.1. Nobody
has measured this config yet. The paper began with ImageNet weights; without `--config.weights` training starts at
random and falls short.
"""

from configs import default


def get_config(reading: str = "paper"):
  """The paper's setting; `code` for that of the released code, `vgg16` for FCN8s-VGG16, `code,vgg16` for both."""
  chosen = default.words(reading, "code", "vgg16")
  config = default.self_training()
  default.gta5_to_cityscapes(config)
  if "code" in chosen:
    default.released_self_training(config)
  if "vgg16" in chosen:
    default.vgg16(config)
  return config
