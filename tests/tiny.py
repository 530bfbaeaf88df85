"""The configs, made tiny. Importing this changes nothing in JAX, so that processes of their own may."""

import math

import ml_collections
import numpy as np

from jax_uda.config import known_configs, load_config

TINY = {
  "batch": 4,
  "num_stages": 3,
  "backbone": "resnet10",
  "head_channels": 8,
  "head_dilation": 1,
  "width": 0.125,
  "steps": 3,
  "statistics_steps": 2,
  "num": 1,
  "epochs": 2,
  "epoch_steps": 2,
  "patches": 3,
  "crop": (24, 48),
  "size": (24, 48),
  "canvas": (32, 64),
  "dtype": "float32",
  "weights": "",
  "pictures": 2,
  "eval_batch": 1,
  "log_every": 1,
  "checkpoint_every": 2,
  "score_after": "1,2,4,10",
  "gamma_end": 0.1,
  "decoder_norm": True,
  "vote_dropout": 0.5,
  "even_mining": True,
  "channels": 8,
  "units": 1,
  "target_crop": (32, 64),
  "probability": 0.0,  # mining: tests of it turn it on
  "jitter": 0.0,  # a quarter of what a step compiles
}


def shrink(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """Any config on a few small street-world images, with a network of a few thousand parameters."""

  def walk(part):
    for name, value in part.items():
      if name in ("source", "target", "test"):
        continue
      if isinstance(value, ml_collections.ConfigDict):
        walk(value)
      elif name in TINY:
        part[name] = TINY[name]

  walk(config)
  for role, domain, num in (("source", "game", 6), ("target", "photo", 5), ("test", "photo", 3)):
    config[role].update(
      {"kind": "street_world", "domain": domain, "split": "test" if role == "test" else "train", "num": num}
    )
    config[role].update({"height": 32, "width": 64, "dir": "", "list": ""})
  return config


def tiny(method: str) -> ml_collections.ConfigDict:
  """A method's config of the smallest images, made tiny."""
  configs = [config for config in map(load_config, known_configs()) if config.method == method]
  assert configs, f"configs/ holds no config of the method {method}"
  return shrink(min(configs, key=lambda config: math.prod(config.canvas)))


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
  """An image with structure of about the size of a cell."""
  coarse = np.random.default_rng(seed).integers(0, 256, (-(-height // 8), -(-width // 8), 3), np.uint8)
  return np.kron(coarse, np.ones((8, 8, 1), np.uint8))[:height, :width]
