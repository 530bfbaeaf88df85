"""CBST, Cityscapes → one city of the NTHU set, as in table 1 of the paper: ResNet-38, 10 folds, 13 classes.

  python -m jax_uda.cross_validate --config configs/cbst_nthu.py --folds 10 --workdir runs/nthu_rome \\
    --config.data_dir=DATA
  python -m jax_uda.main --config configs/cbst_nthu.py --config.data_dir=DATA --workdir runs/nthu_rome_fold_0
  … --workdir runs/nthu_tokyo --config.target.domain=Tokyo --config.test.domain=Tokyo \\
    --config.start_from=runs/nthu_rome/fold_0
  … --config configs/cbst_nthu.py:code                                                as the released code has it
  … --config.labels.threshold=global --config.mining.probability=0                    ST

DATA/Cityscapes holds leftImg8bit/ and gtFine/, DATA/NTHU the folders Rome, Rio, Tokyo and Taipei. A fold adapts to 90
images of the city and is scored on the other 10; the ten folds' confusion matrices are pooled. Which images make a
fold the paper does not say; here it is every tenth. `start_from` spares the other cities the source stage.

The paper's mIoU of source, ST and CBST: Rome 45.7, 48.9, 53.6; Rio 45.4, 50.8, 52.2; Tokyo 40.3, 44.6, 48.8; Taipei
43.2, 44.6, 50.3. Nobody has measured this config yet. The paper began with ImageNet weights; without
`--config.weights` training starts at random and falls short.
"""

from configs import default


def get_config(reading: str = "paper"):
  """The paper's setting, or `code`; `jax_uda.cross_validate` goes through the folds."""
  chosen = default.words(reading, "code")
  config = default.self_training()
  default.at_full_size(config)
  config.source = default.dataset("cityscapes", dir="Cityscapes", split="train")
  config.target = default.dataset("nthu", dir="NTHU", domain="Rome", split="train0")
  config.test = default.dataset("nthu", dir="NTHU", domain="Rome", split="test0")
  config.protocols = "nthu13"
  config.canvas = (1024, 2048)  # all images' own size
  if "code" in chosen:
    default.released_self_training(config, portion=0.20)  # the paper's: the code's 0.15 is for GTA5
  return config
