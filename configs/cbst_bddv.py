"""CBST, GTA5 → BDD-V, as in table 4 of the paper (appendix B): ResNet-38, 3 rounds of 2 epochs.

  python -m jax_uda.main --config configs/cbst_bddv.py --config.data_dir=DATA --workdir runs/cbst_bddv
  python -m jax_uda.main --config configs/cbst_bddv.py … --config.labels.prior=True             CBST-SP
  python -m jax_uda.main --config configs/cbst_bddv.py … --config.labels.threshold=global       ST; with both, ST-SP
  python -m jax_uda.main --config configs/cbst_bddv.py:code …                                   as the released code has it
  … --config.target.dir=BDD100K --config.test.dir=BDD100K                                       the public set in its place

DATA/GTA5 holds images/ and labels/. The paper's BDD-V, the Berkeley DeepDrive Video Dataset (1280x720, 41 classes; 3,333
images for training, 745 for validation, 1,483 for testing), is not the public BDD100K, and its layout is not known:
DATA/BDD-V has to be laid out as BDD100K is, images/10k/{train,val} and labels/sem_seg/masks/{train,val} with train ids
of the 19 classes. `--check` counts BDD100K's images, 7,000 and 1,000.

The paper's mIoU on the 745: source stage 35.0, ST 37.8, ST-SP 39.5, CBST 39.3, CBST-SP 40.6. Nobody has measured this
config yet. The paper began with ImageNet weights; without `--config.weights` training starts at random and falls
short.

Rare classes are mined, in ST too: the version of the paper that has this table makes no exception. That GTA5 is scaled
down to the target's height is our choice.
"""

from configs import default


def get_config(reading: str = "paper"):
  """The paper's setting; `code` for that of the released code, as it has GTA5 → Cityscapes."""
  chosen = default.words(reading, "code")
  config = default.self_training()
  default.at_full_size(config)
  config.source = default.dataset("gta5", dir="GTA5")
  config.target = default.dataset("bdd100k", dir="BDD-V", split="train")
  config.test = default.dataset("bdd100k", dir="BDD-V", split="val")
  config.canvas = (720, 1310)  # BDD-V's 720x1280 are not scaled; GTA5's 1052x1914 just fit
  if "code" in chosen:
    default.released_self_training(config, width=1280)
  return config
