"""ST, GTA5 → Cityscapes, as in table 3 of the CBST paper: `cbst_gta` with one threshold for all classes.

  python -m jax_uda.main --config configs/st_gta.py --config.data_dir=DATA --workdir runs/st_gta \\
    --config.start_from=runs/cbst_gta
  python -m jax_uda.main --config configs/st_gta.py … --config.labels.prior=True                ST-SP
  python -m jax_uda.main --config configs/st_gta.py:vgg16 …                                     FCN8s-VGG16
  python -m jax_uda.main --config configs/st_gta.py:code …                                      as the released code has it

Data as for `cbst_gta`, whose finished source stage `start_from` takes over. The paper's mIoU before and after:
ResNet-38 35.4, 41.5 (though the IoUs that it prints by class average 48.4); FCN8s-VGG16 24.3, 28.1; it has no ST-SP
here. Nobody has measured this config yet.
"""

from configs import cbst_gta


def get_config(reading: str = "paper"):
  """Words as for `cbst_gta`. The paper mines rare classes for CBST and CBST-SP; `code` mines them here too."""
  config = cbst_gta.get_config(reading)
  config.labels.threshold = "global"
  if "code" not in reading.split(","):
    config.mining.probability = 0.0
  return config
