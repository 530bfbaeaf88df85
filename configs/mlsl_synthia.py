"""MLSL, SYNTHIA → Cityscapes, as in table 2 of the paper: `mlsl_gta` with the data and the classes of `cbst_synthia`.

  python -m jax_uda.main --config configs/mlsl_synthia.py --config.data_dir=DATA --workdir runs/mlsl_synthia
  python -m jax_uda.main --config configs/mlsl_synthia.py:sisc …       SISC alone, without weak labels
  python -m jax_uda.main --config configs/mlsl_synthia.py:code …       as the released code has it; also :code,sisc

DATA/SYNTHIA holds RGB/ and GT/, DATA/Cityscapes holds leftImg8bit/ and gtFine/. The paper's mIoU over 16 and over 13
classes (synthia16, synthia13): source stage 29.2, 33.6; SISC alone 44.4, 50.8; with weak labels 45.2, 51.0. Nobody
has measured this config yet. The paper began with ImageNet weights; without `--config.weights` training starts at
random and falls short.

No rare-class mining, as in `cbst_synthia`. The released code's own numbers are for GTA5: `code` takes the first portion and
source share from CBST's code for SYNTHIA and leaves the spatial prior out, as the views differ.
"""

from configs import default


def get_config(reading: str = "paper"):
  """The paper's setting; `code` for that of the released code, `sisc` for SISC alone, `code,sisc` for both."""
  chosen = default.words(reading, "code", "sisc")
  config = default.mlsl()
  default.synthia_to_cityscapes(config)
  config.rounds.batch = 1  # the paper's, with weak labels
  if "sisc" in chosen:
    default.sisc_alone(config)
  if "code" in chosen:
    default.released_mlsl(config, portion=0.20, source_share=0.02, prior=False)
  return config
