"""Multi-adversarial proxies on the built-in street world: from its game look to its photo look, on two cores.

  python -m jax_uda.main --config configs/adversarial_demo.py --workdir runs/adversarial_demo

Some 6 minutes. mIoU on the test photos with seeds 0 and 1: 15.6 and 13.5 after the source stage, 31.8 and 32.1 after the
adversarial one, 30.8 and 29.5 at the end; with `--config.labels.p1=1.0 --config.labels.p2=0.48` 32.3 and 32.2.
"""

from configs import default, demo


def get_config():
  """The demo's data, and a ResNet-18 of its width."""
  config = default.adversarial()
  other = demo.get_config()
  config.update({name: other[name] for name in ("source", "target", "test", "canvas", "eval_batch")})
  config.network.update({"backbone": "resnet18", "width": 0.5, "num_stages": 3, "channels": 64, "units": 1})
  config.augmentation.crop = (96, 192)  # whole: discriminators soon tell crops and scales apart
  config.optimizer.clip = 1.0  # else the first steps at such a rate spoil the weights
  config.source_training.update({"steps": 400, "batch": 8, "rate": 0.03})
  # A higher rate than a tenth of the source stage's, or of the discriminators, and nothing is gained.
  config.adversarial.update({"steps": 200, "batch": 4, "rate": 0.003, "discriminator_rate": 1e-4, "channels": 32})
  config.adversarial.update({"weight_1": 0.01, "weight_2": 0.002, "target_crop": (96, 192), "target_scale": 1.0})
  config.labels.update({"scale": 1.0, "batch": 4})
  config.retraining.update({"steps": 600, "batch": 8, "rate": 0.03, "crop": (80, 160), "scale": (0.8, 1.4), "jitter": 0.4})
  config.statistics_steps = 25
  return config
