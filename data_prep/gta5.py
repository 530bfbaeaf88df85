"""Prepares GTA5, "Playing for Data" (Richter et al., ECCV 2016): 24,966 frames of a game, Cityscapes' 19 classes.

From https://download.visinf.tu-darmstadt.de/data/from_games, all parts of the images and of the labels unpacked into DIR:

  DIR/images/00001.png … 24966.png
  DIR/labels/00001.png … 24966.png     palette PNGs of Cityscapes ids

A few labels have another resolution than their images; these are kept. Prepared split: train.
"""

import sys
from collections.abc import Sequence

from data_prep import core

SPLITS = (core.Split("train", {}),)


def main(argv: Sequence[str] | None = None) -> int:
  """Prepares the data set; returns the exit status."""
  return core.main("gta5", __doc__, SPLITS, argv)


if __name__ == "__main__":
  sys.exit(main())
