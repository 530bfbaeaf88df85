"""Every field there is, with the papers' values where they give one; the other configs change what they need.

Not to be run itself. Sizes are (height, width). "Code" marks a value that only the authors' released code gives.
"""

from ml_collections import ConfigDict


def dataset(kind: str = "", **fields) -> ConfigDict:
  """A data set: `kind` and what that kind needs of the rest (see `jax_uda/data/sources.py`)."""
  spec = ConfigDict({
    "kind": kind,  # street_world, folder, camvid, gta5, synthia, cityscapes, bdd100k, nthu, ade20k; empty for none
    "dir": "",  # under data_dir, unless it is absolute
    "list": "",
    "split": "",
    "domain": "",
    "num": 0,
    "height": 0,
    "width": 0,
    "unknown_colors": "ignore",
  })
  spec.update(fields)
  return spec


def general() -> ConfigDict:
  """What every method has."""
  config = ConfigDict()
  config.method = ""  # a module in jax_uda/methods
  config.seed = 0
  config.data_dir = ""  # empty: $JAX_UDA_DATA, else data/ in the working directory
  config.source = dataset()
  config.target = dataset()
  config.test = dataset()
  config.num_classes = 0  # filled in from the source's label space
  config.canvas = (512, 1024)  # images are scaled to fit it, then padded: what training crops from and labelling sees
  config.weights = ""  # .safetensors in torchvision's names; empty starts at random
  config.weights_partial = False  # go on with those that fit
  config.start_from = ""  # --workdir of a run whose finished first stage is taken over
  config.network = ConfigDict({
    "backbone": "resnet38",
    "width": 1.0,
    "num_stages": 4,
    "head_channels": 512,
    "head_dilation": 12,
    "batch_norm": "per_device",  # per_device, synced, frozen
    "dtype": "float32",  # float32, bfloat16
    "dropout": True,
  })
  config.augmentation = ConfigDict({
    "crop": (500, 500),
    "scale": (0.7, 1.3),
    "flip": True,
    "brightness": 0.0,  # colours as torchvision's ColorJitter: factors in 1 - x … 1 + x
    "contrast": 0.0,
    "saturation": 0.0,
    "hue": 0.0,  # at most 0.5: half the colour circle either way
    "blur": 0.0,  # probability of a Gaussian blur
    "blur_sigma": (0.1, 2.0),  # pixels of the crop
  })
  config.optimizer = ConfigDict({
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "head_multiplier": 1.0,  # of the head's learning rate
  })
  config.eval_batch = 1  # images a device
  # What is scored of the classes that the network knows: cityscapes19, synthia16, synthia13, nthu13, camvid11, ade150, with
  # commas between; the first gives the run's mIoU. Empty: all its classes.
  config.protocols = ""
  config.absent_as_zero = False  # whether a class in neither truth nor prediction counts 0 in the mean, or not at all
  config.pictures = 6  # target images in the report
  config.log_every = 20  # steps
  config.checkpoint_every = 500  # steps
  config.threads = 2  # that decode
  config.keep_gib = 1.0  # memory for decoded images of the source, and as much for the target; others are decoded anew
  config.max_bad_images = 0  # unreadable source and target images that training passes over, taking the next; 0: an error
  return config


def self_training() -> ConfigDict:
  """ST and CBST (papers 002 and 004)."""
  config = general()
  config.method = "self_training"
  config.mode = "adapt"  # adapt, source_only (the same steps on source labels), oracle (on the target's true labels)
  config.source_training = ConfigDict({
    "steps": 0,  # 0: from epochs
    "epochs": 30,
    "batch": 16,
    "rate": 0.0016,
    "power": 0.0,  # of the polynomial decay; 0 is constant
  })
  config.rounds = ConfigDict({
    "num": 3,
    "steps": 0,  # of each round; 0: from epochs
    "epochs": 2,
    "batch": 2,
    "rate": 1e-4,
    "power": 0.0,
    "batch_norm": "",  # empty: as the network's; the code's is frozen
    # False: one shuffled list of source and target images (code). True, our choice: `batch` source and `batch` target
    # images a step, each half normalised by its own statistics and counted alike in the loss, whatever the portion; the
    # running statistics are the target's.
    "paired": False,
    "statistics_steps": 0,  # before the first round: running batch statistics from the target alone (AdaBN; our choice)
    "statistics_pace": 1.0,  # of the running batch statistics: 1 averages over about 10 steps, 0.2 over 50
    "jitter": 0.0,  # colours in the rounds alone (our choice): brightness, contrast and saturation; an eighth of it for hue
    "rate_divisor": 2**0.5,  # round by round (code)
    "source_share": 0.03,  # of the source images, mixed with the target's (code)
    "source_share_step": 0.0025,
    "source_share_max": 0.06,
  })
  config.labels = ConfigDict({
    "threshold": "class_balanced",  # class_balanced (CBST), global (ST)
    "rank": "paper",  # paper, code
    "portion": 0.20,
    "portion_step": 0.05,
    "portion_max": 0.50,
    "prior": False,  # spatial prior (-SP)
    "batch": 1,  # images a device at once
    "keep_gib": 4.0,  # memory for the network's outputs; beyond it they go to a file in the workdir
  })
  return config


def mlsl() -> ConfigDict:
  """MLSL (paper 003)."""
  config = self_training()
  config.method = "mlsl"
  config.rounds.num = 6
  config.sisc = ConfigDict({
    "patches": 50,
    "size": (512, 512),
    "batch": 10,  # patches a device at once
    "votes": False,  # relative frequency of the argmax instead of averaged softmax (the paper's ablation, worse)
  })
  config.weak_labels = ConfigDict({
    "weight": 0.025,  # lambda; 0 leaves image-level labels out
    "eta": 0.05,
    "width": 1.0,  # multiplies the image classifier's channels
    "multiplier": 1.0,  # of the classifier's learning rate; 1 / weight makes up for the weight, where steps are few
  })
  return config
