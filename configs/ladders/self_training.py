"""The papers' ladder of self-training, from source only to an oracle; for configs of the method `mlsl`.

Equal steps for all but AdaBN, which trains none: it is the source stage with the target's batch statistics. Where the
config has `rounds.statistics_steps`, all rungs but source only have them. Rare classes are mined from ST to SISC + PWL.

  python -m jax_uda.ladder --config configs/mlsl_camvid.py --variants configs/ladders/self_training.py --seeds 0,1 \\
    --workdir runs/ladder --config.data_dir=DATA --config.weights=resnet18.safetensors
"""

BASELINE, CEILING = "source only", "oracle"

NO_WEAK_LABELS = {"weak_labels.weight": 0.0}
WHOLE_IMAGES = {**NO_WEAK_LABELS, "sisc.patches": 0}


def get_variants():
  """Name of the rung -> fields of the config."""
  return {
    "source only": {**NO_WEAK_LABELS, "mode": "source_only"},
    "AdaBN": {**WHOLE_IMAGES, "rounds.num": 0},
    "ST": {**WHOLE_IMAGES, "labels.threshold": "global"},
    "CBST": WHOLE_IMAGES,
    "CBST-SP": {**WHOLE_IMAGES, "labels.prior": True},
    "SISC": NO_WEAK_LABELS,
    "SISC + PWL": {},
    "oracle": {**NO_WEAK_LABELS, "mode": "oracle"},
  }
