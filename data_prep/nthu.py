"""Prepares the NTHU cross-city set (Chen et al., ICCV 2017): 100 labelled photos in each of four cities.

From https://yihsinchen.github.io/segmentation_adaptation (on request), DIR being the unpacked folder:

  DIR/Rome/Images/Test/*.png
  DIR/Rome/Labels/Test/*.png     of the same names, with or without _eval at the end; Cityscapes ids

and alike for Rio, Tokyo and Taipei; Images/Train, if there, is not needed. Prepared splits: the cities. A config chooses
one by `domain`, and with `split` one of the ten folds, which are made when the images are read.
"""

import sys
from collections.abc import Sequence

from data_prep import core
from jax_uda.data.layouts import NTHU_CITIES

SPLITS = tuple(core.Split(city, {"domain": city, "split": "all"}, whole=True) for city in NTHU_CITIES)


def main(argv: Sequence[str] | None = None) -> int:
  """Prepares the data set; returns the exit status."""
  return core.main("nthu", __doc__, SPLITS, argv)


if __name__ == "__main__":
  sys.exit(main())
