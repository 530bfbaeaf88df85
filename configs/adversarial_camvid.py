"""Multi-adversarial proxies on real photographs: CamVid by day → at dusk, ResNet-18 to layer3, at 180x240.

  python -m jax_uda.main --config configs/adversarial_camvid.py --config.data_dir=DATA --workdir runs/adversarial_camvid \\
    --config.weights=resnet18.safetensors

Data and weights are those of `mlsl_camvid.py`, see there. Some 10 minutes on two CPU cores. mIoU on the 62 test frames with
seeds 0 and 1: 32.4 and 30.9 after the source stage, 37.5 and 37.0 after the adversarial one, 37.7 and 35.3 at the end; with
`--config.labels.p1=1.0 --config.labels.p2=0.48` 38.7 and 37.6 (configs/ladders/README.md).
"""

from configs import default, mlsl_camvid


def get_config():
  """The network that is retrained has as many steps as the one that labels for it."""
  config = default.adversarial()
  other = mlsl_camvid.get_config()
  config.update({name: other[name] for name in ("source", "target", "test", "canvas", "eval_batch")})
  config.network.update({"backbone": "resnet18", "num_stages": 3, "channels": 64, "units": 1})
  config.augmentation.crop = (180, 240)  # whole
  config.optimizer.clip = 1.0  # as on the street world, see adversarial_demo
  config.source_training.update({"steps": 400, "batch": 4, "rate": 0.01})
  config.adversarial.update({"steps": 200, "batch": 2, "rate": 0.001, "discriminator_rate": 1e-4, "channels": 32})
  config.adversarial.update({"weight_1": 0.01, "weight_2": 0.002, "target_crop": (180, 240), "target_scale": 1.0})
  config.labels.update({"scale": 1.0, "batch": 4})
  config.retraining.update({"steps": 600, "batch": 4, "rate": 0.01, "crop": (144, 192), "jitter": 0.4})
  config.statistics_steps = 21
  return config
