"""The strategic curriculum on the built-in street world: from its game look to its photo look, on two cores.

  python -m jax_uda.main --config configs/curriculum_demo.py --workdir runs/curriculum_demo
"""

from configs import default, demo


def get_config():
  """The demo's data, and a ResNet-18 of its width with two decoders."""
  config = default.curriculum()
  other = demo.get_config()
  config.update({name: other[name] for name in ("source", "target", "test", "canvas", "eval_batch")})
  config.network.update({"width": 0.5, "num_stages": 3})
  config.augmentation.update({"crop": (80, 160), "scale": (0.8, 1.4)})
  config.source_training.update({"steps": 700, "batch": 8, "rate": 0.03})
  config.curriculum.update({"epoch_steps": 20, "batch": 8, "rate": 0.006})
  config.curriculum.statistics_steps = 13  # each image once
  return config
