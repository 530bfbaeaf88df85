"""Self-training, tiny and with synced BatchNorm, as a config file: for tests that start several processes."""

from tests.tiny import tiny


def get_config():
  config = tiny("self_training")
  config.network.batch_norm = "synced"
  config.rounds.target_share = 0.6  # three of five images: from among those of all processes
  return config
