"""The strategic curriculum, GTA5 → Cityscapes, as in table 1 of Chitta et al. (2018): ResNet-18, two decoders, 20 epochs.

  python -m jax_uda.main --config configs/curriculum_gta.py --config.weights=runs/ade20k --config.data_dir=DATA \\
    --workdir runs/curriculum_gta

runs/ade20k is a finished run of `ade20k.py`. DATA/GTA5 holds images/ and labels/, DATA/Cityscapes leftImg8bit/ and gtFine/.
`configs/ladders/curriculum.py` has the rungs; the paper's mIoU and pixel accuracy: source only 24.3 and 56.0, self-training
27.5 and 74.9, with weighted loss 30.1 and 81.2, with easy mining 39.2 and 85.4, with hard mining (this config as it is)
40.7 and 86.1; with the target's labels 59.3 and 93.2. Nobody has measured this config yet. The paper's batch of 12 was on
three devices, with batch statistics of 4 images each.
"""

from configs import default


def get_config():
  """The paper's setting."""
  config = default.curriculum()
  default.gta5_to_cityscapes(config)
  return config
