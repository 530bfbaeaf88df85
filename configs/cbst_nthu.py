"""CBST, Cityscapes → one city of the NTHU set, as in the paper's cross-city table: ResNet-38, 10 folds, 13 classes.

  python -m jax_uda.cross_validate --config configs/cbst_nthu.py --folds 10 --workdir runs/nthu_rome \\
    --config.data_dir=DATA
  python -m jax_uda.main --config configs/cbst_nthu.py --config.data_dir=DATA --workdir runs/nthu_rome_fold_0
  … --workdir runs/nthu_tokyo --config.target.domain=Tokyo --config.test.domain=Tokyo \\
    --config.start_from=runs/nthu_rome/fold_0

DATA/Cityscapes holds leftImg8bit/ and gtFine/, DATA/NTHU the folders Rome, Rio, Tokyo and Taipei. A fold adapts to 90
images of the city and is scored on the other 10; the ten folds' confusion matrices are pooled. Which images make a fold
the paper does not say; here it is every tenth. `start_from` spares the other cities the source stage.

The paper's mIoU before and after: Rome 45.7, 53.6; Rio 45.4, 52.2; Tokyo 40.3, 48.8; Taipei 43.2, 50.3. Nobody has measured
this config yet. The paper's network began with ImageNet weights of ResNet-38, which jax_uda cannot read yet.
"""

from configs import default


def get_config():
  """The paper's setting; `jax_uda.cross_validate` goes through the folds."""
  config = default.self_training()
  config.source = default.dataset("cityscapes", dir="Cityscapes", split="train")
  config.target = default.dataset("nthu", dir="NTHU", domain="Rome", split="train0")
  config.test = default.dataset("nthu", dir="NTHU", domain="Rome", split="test0")
  config.protocols = "nthu13"
  config.canvas = (1024, 2048)  # all images' own size
  config.rounds.batch_norm = "frozen"  # code
  config.checkpoint_every = 2000
  return config
