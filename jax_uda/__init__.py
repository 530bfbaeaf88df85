"""Unsupervised domain adaptation of semantic segmentation in JAX.

    network = jax_uda.load("runs/demo")
    labels = network.predict(image)
"""

import importlib
import os

# Of a broken image OpenCV would print lines of its own beside the one that we print.
os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")

# What programs may count on, and where it is; imported when it is asked for, so that --help is quick.
_MODULES = ("metrics", "pseudo_labels")
_NAMES = {
  "Manner": "trained",
  "TrainedNetwork": "trained",
  "UserError": "errors",
  "colorize": "data.label_spaces",
  "load": "trained",
}
__all__ = [*_MODULES, *_NAMES]


def __getattr__(name: str) -> object:
  if name in _MODULES:
    return importlib.import_module(f"jax_uda.{name}")
  if name in _NAMES:
    return getattr(importlib.import_module(f"jax_uda.{_NAMES[name]}"), name)
  raise AttributeError(f"module 'jax_uda' has no attribute {name!r}")


def __dir__() -> list[str]:
  return sorted(__all__)
