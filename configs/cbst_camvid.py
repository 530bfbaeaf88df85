"""CBST on real photographs, CamVid by day → at dusk: what `mlsl_camvid` is without its patches and image-level labels.

  python -m jax_uda.main --config configs/cbst_camvid.py --config.data_dir=DATA --workdir runs/cbst_camvid \\
    --config.weights=resnet18.safetensors --config.start_from=runs/camvid

`start_from` takes over the source stage of a finished `mlsl_camvid` run made with the same data and weights; see there.
"""

from configs import default, mlsl_camvid


def get_config():
  """Equal steps, networks and data; whole-image labels."""
  config = default.self_training()
  other = mlsl_camvid.get_config()
  config.update({name: other[name] for name in config if name != "method"})
  return config
