"""MLSL on the built-in street world: from its game look to its photo look, in a few minutes on two cores.

  make demo
  python -m jax_uda.main --config configs/demo.py --workdir runs/demo

mIoU on the test photos, seed 0: 16.9 after the source stage, 27.7 with the photos' batch statistics, 33.2 at the end.
Trained on photo labels (`--config.source.domain=photo --config.rounds.num=0`) the same network has 37.1 after the source
stage.
"""

from configs import default


def get_config():
  """A narrow ResNet-18 on small images."""
  config = default.mlsl()
  size = {"height": 96, "width": 192}
  config.source = default.dataset("street_world", domain="game", split="train", num=300, **size)
  config.target = default.dataset("street_world", domain="photo", split="train", num=100, **size)
  config.test = default.dataset("street_world", domain="photo", split="test", num=60, **size)
  config.canvas = (96, 192)
  config.network.update(
    {"backbone": "resnet18", "width": 0.5, "num_stages": 3, "head_channels": 64, "head_dilation": 2}
  )
  config.augmentation.update({"crop": (80, 160), "scale": (0.8, 1.4)})
  config.source_training.update({"steps": 700, "batch": 8, "rate": 0.06, "power": 0.9})
  config.rounds.update({"num": 3, "steps": 200, "batch": 4, "paired": True, "rate": 0.03, "power": 0.9})
  config.rounds.update({"source_share": 1.0, "source_share_max": 1.0, "statistics_steps": 25, "jitter": 0.4})
  config.labels.batch = 4
  config.sisc.update({"patches": 12, "size": (80, 160), "batch": 24})
  config.weak_labels.update({"width": 0.05, "multiplier": 40.0})
  config.eval_batch = 8
  return config
