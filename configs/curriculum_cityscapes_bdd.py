"""The strategic curriculum, Cityscapes → BDD100K, as in table 2 of Chitta et al. (2018), the source at a height of 720.

  python -m jax_uda.main --config configs/curriculum_cityscapes_bdd.py --config.weights=runs/ade20k \\
    --config.data_dir=DATA --workdir runs/curriculum_cityscapes_bdd

runs/ade20k is a finished run of `ade20k.py`. DATA/Cityscapes holds leftImg8bit/ and gtFine/, DATA/BDD100K images/10k/ and
labels/sem_seg/masks/. The paper's mIoU and pixel accuracy: self-training 34.3 and 84.2, this config as it is 36.7 and
86.5; with the target's labels 47.8 and 91.7. Nobody has measured this config yet.
"""

from configs import default


def get_config():
  """The paper's setting."""
  config = default.curriculum()
  config.source = default.dataset("cityscapes", dir="Cityscapes", split="train", height=720)
  default.to_bdd100k(config)
  config.canvas = (720, 1440)  # Cityscapes' 1024x2048 at that height; BDD100K's 720x1280 are not scaled
  return config
