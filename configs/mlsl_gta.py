"""MLSL, GTA5 → Cityscapes, as in table 1 of the paper: ResNet-38, 6 rounds of 2 epochs, SISC with 50 patches, weak labels.

  python -m jax_uda.main --config configs/mlsl_gta.py --check
  python -m jax_uda.main --config configs/mlsl_gta.py --config.data_dir=DATA --workdir runs/mlsl_gta

DATA/GTA5 holds images/ and labels/, DATA/Cityscapes holds leftImg8bit/ and gtFine/. The paper reports a mIoU of 35.4 for
the source stage and 49.0 at the end; nobody has measured this config yet. It started from ImageNet weights of ResNet-38,
which jax_uda cannot read yet: until it can, the source stage starts at random and will fall short of the paper's.
"""

from configs import default


def get_config():
  """The paper's setting."""
  config = default.mlsl()
  config.source = default.dataset("gta5", dir="GTA5")
  config.target = default.dataset("cityscapes", dir="Cityscapes", split="train")
  config.test = default.dataset("cityscapes", dir="Cityscapes", split="val")
  config.canvas = (1052, 2048)  # neither GTA5's 1052x1914 nor Cityscapes' 1024x2048 is scaled
  config.rounds.batch = 1  # the paper's, with weak labels
  config.rounds.batch_norm = "frozen"  # code; a batch of one has no statistics worth having
  config.checkpoint_every = 2000
  return config
