"""ADE20K, supervised: what the strategic curriculum's networks start from (Chitta et al. 2018, section 4.2).

  python -m jax_uda.main --config configs/ade20k.py --config.data_dir=DATA --workdir runs/ade20k \\
    --config.weights=resnet18.safetensors
  python -m jax_uda.main --config configs/curriculum_gta.py --config.weights=runs/ade20k …

DATA/ADE20K holds ADEChallengeData2016's images/ and annotations/; mIoU over its 150 classes. The paper gives neither
score nor schedule: batch and rates are the curriculum's, 20 epochs are our choice. Nobody has measured this config yet.
"""

from configs import default


def get_config():
  """The source stage alone. Both decoders are trained; taken over, they keep all but their classifiers."""
  config = default.curriculum()
  config.source = default.dataset("ade20k", dir="ADE20K", split="training")
  config.target = default.dataset("ade20k", dir="ADE20K", split="validation")  # for pictures; no step sees it
  config.test = config.target.copy_and_resolve_references()
  config.canvas = (600, 800)
  config.mode = "source_only"
  config.source_training.epochs = 20
  config.curriculum.epochs = 0
  config.checkpoint_every = 2000
  return config
