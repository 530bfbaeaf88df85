"""CBST, SYNTHIA → Cityscapes, as in table 2 of the paper: ResNet-38 or FCN8s-VGG16, trained on the 16 common classes.

  python -m jax_uda.main --config configs/cbst_synthia.py --config.data_dir=DATA --workdir runs/cbst_synthia
  python -m jax_uda.main --config configs/cbst_synthia.py … --config.labels.threshold=global    ST
  python -m jax_uda.main --config configs/cbst_synthia.py:vgg16 …                               FCN8s-VGG16
  python -m jax_uda.main --config configs/cbst_synthia.py:code …                                as the released code has it

DATA/SYNTHIA holds RGB/ and GT/, DATA/Cityscapes holds leftImg8bit/ and gtFine/. The paper's mIoU over 16 and over 13
classes (synthia16, synthia13) with ResNet-38: source stage 29.2, 33.6; ST 32.2, 36.9; CBST 42.5, 48.4; with
FCN8s-VGG16: 22.6, 26.2; 23.9, 27.8; 35.4, 40.7 (the 36.1 that it prints is not the mean of its 13 IoUs). Nobody has
measured this config yet. The paper began with ImageNet weights; without `--config.weights` training starts at random
and falls short.

No rare-class mining, which the paper names for GTA5 and NTHU (`code` mines everywhere). That SYNTHIA's images are scaled
up by 1.35 to Cityscapes' height is our choice.
"""

from configs import default


def get_config(reading: str = "paper"):
  """The paper's setting; `code` for that of the released code, `vgg16` for FCN8s-VGG16, `code,vgg16` for both."""
  chosen = default.words(reading, "code", "vgg16")
  config = default.self_training()
  default.synthia_to_cityscapes(config)
  if "code" in chosen:
    default.released_self_training(config, portion=0.20, source_share=0.02)
  if "vgg16" in chosen:
    default.vgg16(config)
  return config
