"""MLSL on folders of your own: labelled images in one, unlabelled ones in the other.

  python -m jax_uda.main --config configs/mlsl_folder.py --workdir runs/mine \\
    --config.source.dir=/path/to/labelled --config.target.dir=/path/to/unlabelled

The source's folder holds images/ (PNG or JPEG, any sizes), labels/ (PNGs of the same names, as indices or colours) and
classes.csv (name,id,red,green,blue); the target's holds images. Worth setting:

  --config.weights=resnet18.safetensors            torchvision's ImageNet weights; without them training starts at random
  --config.canvas='(256,512)'                      (height, width) that images are scaled to fit; larger sees smaller things
  --config.augmentation.crop='(208,416)'           what training sees of it; let sisc.size be the same
  --config.test.dir=/path/to/labelled              photographs to score on
  --config.source_training.steps=20000             more labelled images want more steps

For a try on a CPU, some minutes on images of 96x192 (and a network too small and too little trained to be of use):

  --config.canvas='(96,192)' --config.augmentation.crop='(80,160)' --config.sisc.size='(80,160)' --config.sisc.patches=6 \\
    --config.network.backbone=resnet10 --config.network.width=0.5 --config.source_training.steps=150 \\
    --config.rounds.num=1 --config.rounds.steps=60
"""

from configs import default


def get_config():
  """Meant for one GPU or TPU; nobody has chosen these numbers on your images."""
  config = default.mlsl()
  config.source = default.dataset("folder")
  config.target = default.dataset("folder")
  config.test = default.dataset("folder")  # may be left without `dir`
  config.canvas = (256, 512)
  config.network.update({"backbone": "resnet18", "num_stages": 3, "head_channels": 128, "head_dilation": 2})
  config.augmentation.crop = (208, 416)
  config.source_training.update({"steps": 3000, "batch": 8, "rate": 0.01, "power": 0.9})
  config.optimizer.head_multiplier = 10.0
  config.rounds.update({"num": 4, "steps": 300, "batch": 4, "paired": True, "rate": 0.005, "power": 0.9})
  config.rounds.update({"statistics_steps": 30, "jitter": 0.4})
  config.rounds.update({"source_share": 1.0, "source_share_max": 1.0})
  config.labels.batch = 2
  config.sisc.update({"patches": 24, "size": (208, 416), "batch": 8})
  config.weak_labels.update({"width": 0.125, "multiplier": 40.0})  # 1 / weight, as in the demo
  return config
