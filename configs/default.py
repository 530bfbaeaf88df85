"""Every field there is, with the papers' values where they give one; the other configs change what they need.

Not to be run itself. Sizes are (height, width). "Code" marks a value that only the authors' released code gives.
"""

from ml_collections import ConfigDict

from jax_uda.errors import UserError


def dataset(kind: str = "", **fields) -> ConfigDict:
  """A data set: `kind` and what that kind needs of the rest (see `jax_uda/data/sources.py`)."""
  spec = ConfigDict({
    "kind": kind,  # street_world, folder, camvid, gta5, synthia, cityscapes, bdd100k, nthu, ade20k; empty for none
    "dir": "",  # under data_dir, unless it is absolute
    "list": "",
    "only": "",  # path of a text file of image ids, one a line: the others are left out
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
  config.classes = ()  # their names; filled in, too
  config.canvas = (512, 1024)  # images are scaled to fit it, then padded: what training crops from and labelling sees
  # A file, .safetensors or .pth in torchvision's names, .params in MXNet's (ResNet-38); or --workdir of a finished run of
  # the same network, whose classes may be others: the classifiers then start at random. Empty: all of it does.
  config.weights = ""
  config.weights_partial = False  # go on with those that fit
  config.start_from = ""  # --workdir of a run whose finished first stage is taken over
  config.stop_after = ""  # name of a stage, as source: the run ends after it; the same command without this goes on
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
  config.eval_batch = 1  # images a device
  config.eval_scales = "1"  # of the canvas, commas between: their softmax is averaged where the run is scored
  config.eval_flip = False  # average with the mirror image's, too (code)
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
  """ST and CBST (Zou et al., ECCV 2018)."""
  config = general()
  config.method = "self_training"
  config.mode = "adapt"  # adapt, source_only (the same steps on source labels), oracle (on the target's true labels)
  config.network = ConfigDict({
    "backbone": "resnet38",  # resnet10, resnet18, resnet50, resnet101, resnet38, fcn8s_vgg16
    "width": 1.0,  # multiplies the backbone's channels
    "num_stages": 4,  # of ResNets but resnet38: 4, or 3 to leave out layer4
    "head_channels": 512,  # this and the next two: not of fcn8s_vgg16
    "head_dilation": 12,
    "batch_norm": "per_device",  # per_device, synced, frozen
    "dtype": "float32",  # float32, bfloat16
    "dropout": True,  # of resnet38 and fcn8s_vgg16
  })
  config.optimizer = ConfigDict({
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "head_multiplier": 1.0,  # of the head's learning rate
    "bias_multiplier": 1.0,  # of the learning rate of the convolutions' biases; code: 2
    "bias_decay": True,  # whether weight decay reaches those biases; code: no
  })
  # Where the loss compares: `pixels`, upsampled logits with all labels; `stride` (code), the logits as they are with the
  # label in the middle of each cell.
  config.loss_at = "pixels"
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
    # So many batches of whole target images, before the first round and at the end of each, whose mean statistics become
    # BatchNorm's running ones (AdaBN; our choice).
    "statistics_steps": 0,
    "jitter": 0.0,  # colours in the rounds alone (our choice): brightness, contrast and saturation; an eighth of it for hue
    "rate_divisor": 2**0.5,  # round by round (code)
    "source_share": 0.03,  # of the source images, mixed with the target's (code)
    "source_share_step": 0.0025,
    "source_share_max": 0.06,
    "source_draw": "cumulative",  # cumulative: a round's images are among the next one's; random: drawn anew
    # Of the target images, those trained on: the easiest, by the mean over the predicted classes of the mean confidence,
    # found anew each round. The published results use 505 of 2975 images.
    "target_share": 1.0,
    # Online hard example mining (code of MLSL, for SISC alone: 0.6): the loss counts pixels whose label has at most this
    # probability, and at least `hard_least` of each crop; 1 counts all.
    "hard_below": 1.0,
    "hard_least": 256,  # by crop is our choice
  })
  # Rare-class mining: with this probability a crop is centred on a pixel of a class that the target is seldom predicted as,
  # where the image has one.
  config.mining = ConfigDict({
    "probability": 0.8,  # code; 0 leaves it out
    "classes": 5,  # the least predicted ones; code: 3
    "rare": 0.001,  # classes below this share of the target's pixels come first
    "on": "target",  # target, source, both (code)
  })
  config.labels = ConfigDict({
    "threshold": "class_balanced",  # class_balanced (CBST), global (ST)
    "rank": "paper",  # paper, code
    "inclusive": False,  # whether a confidence equal to the threshold is selected (code)
    "pool_stride": 1,  # the thresholds are found from every so many-th row and column; code: 4
    "portion": 0.20,
    "portion_step": 0.05,
    "portion_max": 0.50,
    "prior": False,  # spatial prior (-SP)
    "prior_kernel": 70.0,  # pixels of the canvas: full width of the Gaussian that smooths it
    "prior_sigma": 70 / 6,  # its standard deviation (our choice)
    # Of whole images, for single inference and `sisc.whole_image`: scales of the canvas, commas between, whose softmax is
    # averaged (code: one, of 1850 pixels' width), and whether with the mirror images' (code).
    "scales": "1",
    "flip": False,
    "upsampling": "linear",  # of the softmax: linear, cubic (code)
    "batch": 1,  # images a device at once
    "keep_gib": 4.0,  # memory for the network's outputs; beyond it they go to a file in the workdir
    "spill_gib": 64.0,  # the most that this file may take
  })
  return config


def mlsl() -> ConfigDict:
  """MLSL (Iqbal and Ali, WACV 2020)."""
  config = self_training()
  config.method = "mlsl"
  config.rounds.num = 6
  config.sisc = ConfigDict({
    "patches": 50,  # of each image; 0: single inference of the whole image, as CBST (the ablation)
    "size": (512, 512),
    "relative_size": 0.0,  # the side of square patches as a share of the canvas's height, in place of `size`
    "flip": False,  # average each patch with its mirror image (code)
    "whole_image": False,  # one more vote everywhere: the whole image, at `labels.scales` and `labels.flip` (code)
    "batch": 10,  # patches a device at once
    "votes": False,  # relative frequency of the argmax instead of averaged softmax (the paper's ablation, worse)
  })
  config.weak_labels = ConfigDict({
    "weight": 0.025,  # lambda; 0 leaves image-level labels out
    "eta": 0.05,
    "strict": True,  # share > eta · h_s; False: >= (code)
    "source": "present",  # source's weak labels: present, any pixel of a class; eta, the target's rule (code)
    "scope": "crop",  # what the share is of: crop, what the classifier sees; image
    "activation": "paper",  # ReLU after all layers but the last; code: after the 1x1 convolution alone
    "width": 1.0,  # multiplies the image classifier's channels
    "multiplier": 1.0,  # of the classifier's learning rate; where steps are few, 1 / weight or more makes up for the weight
  })
  return config


def curriculum() -> ConfigDict:
  """The strategic curriculum of proxy labels (Chitta et al. 2018), which calls its epochs 0, 1, …"""
  config = general()
  config.method = "curriculum"
  config.mode = "adapt"  # adapt, source_only (the same steps on source labels), oracle (on the target's true labels)
  config.network = ConfigDict({
    "backbone": "resnet18",  # resnet10, resnet18, resnet50, resnet101, resnet38
    "width": 1.0,  # multiplies the backbone's channels
    "num_stages": 4,  # of ResNets but resnet38: 4, or 3 to leave out layer4
    "branches": 2,  # decoders
    "decoder_norm": True,  # BatchNorm behind what they pool
    "batch_norm": "per_device",  # per_device, synced, frozen
    "dtype": "float32",  # float32, bfloat16
    "dropout": True,  # of resnet38
  })
  config.augmentation.update({"crop": (600, 600), "scale": (0.5, 1.5)})
  config.optimizer = ConfigDict({
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "decoder_multiplier": 10.0,  # of the decoders' learning rate
    "clip": 0.0,  # norm that the gradients of the encoder and of the decoders are each scaled down to; 0: not; code: 1
  })
  # A stage on source labels before the curriculum, its rate falling step by step: the paper has none, as it starts from
  # weights trained on ADE20K.
  config.source_training = ConfigDict({"steps": 0, "epochs": 0, "batch": 12, "rate": 1e-3, "power": 0.9})
  config.diversity = ConfigDict({
    "weight": 0.01,  # beta, of the decoders' similarity in the loss
    "of": "decoder",  # decoder, cosine of all convolutions' weights; classifier (code), sum |w1'w2| over the last one's
  })
  config.curriculum = ConfigDict({
    "epochs": 20,
    "epoch_steps": 0,  # 0: as many as go through the source once
    "batch": 12,
    "rate": 1e-3,  # of the encoder
    "power": 0.9,  # of the polynomial decay, epoch by epoch
    "gamma": 0.9,  # share of the source's batches in epoch 0 …
    "gamma_end": 0.1,  # … from which it goes to this one
    "gamma_epochs": 10,  # in so many
    "weighted": "wall,fence,pole,traffic light,traffic sign,rider",  # classes that weigh more in the loss
    "class_weight": 2.0,
    "easy_mining": True,  # target pixels where the decoders disagree are left out
    "hard_mining": True,  # source pixels where they agree are left out at random, a share that goes from 0 to 1 …
    "drop_epochs": 10,  # … in so many epochs
    # Of some classes far more is easy than of others, and these would spread: what easy mining keeps of a class weighs as
    # much as all that is predicted so, at most tenfold (our choice).
    "even_mining": False,
    "jitter": 0.0,  # of colours, where `augmentation` has less, as in the rounds of self-training (our choice)
    # Share of the channels that each decoder misses, each others, where it is asked whether it agrees: what it says without
    # them too it is sure of (our choice).
    "vote_dropout": 0.0,
    # Epochs, counted from 1, after which the network is scored and drawn; and after the last. With other ones the images
    # come in another order, too.
    "score_after": "1,2,4,10",
    # So many batches of whole target images, before the curriculum and wherever it is scored, whose mean statistics become
    # BatchNorm's running ones (AdaBN; our choice).
    "statistics_steps": 0,
  })
  return config


def adversarial() -> ConfigDict:
  """Multi-adversarial proxies (Shen et al. 2019)."""
  config = general()
  config.method = "adversarial"
  config.mode = "adapt"  # adapt, source_only (no discriminators, no proxies), oracle (retrains on the target's true labels)
  config.network = ConfigDict({
    "backbone": "resnet101",  # resnet10, resnet18, resnet50, resnet101, vgg16
    "width": 1.0,  # multiplies the backbone's channels
    "num_stages": 4,  # of a ResNet: 4, or 3 to leave out layer4
    "channels": 128,  # of the fused maps
    "units": 2,  # residual units that a map passes on its way up (our choice)
    "dilation": 2,  # of their convolutions (our choice)
    "batch_norm": "per_device",  # per_device, synced, frozen
    "dtype": "float32",  # float32, bfloat16
  })
  config.augmentation.scale = (1.0, 1.0)  # almost whole images in `source` and `adversarial`
  config.optimizer = ConfigDict({
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "decoder_multiplier": 1.0,  # of the learning rate of all that is not the backbone
    "clip": 0.0,  # norm that the gradients of backbone, decoder and head are each scaled down to; 0: not
  })
  config.source_training = ConfigDict({"steps": 80_000, "epochs": 0, "batch": 4, "rate": 4e-3, "power": 0.9})
  config.adversarial = ConfigDict({
    "steps": 10_000,
    "batch": 4,  # of each domain
    "rate": 1e-4,  # constant, as the discriminators'
    "discriminators": 2,  # 1: of F alone; 2: of its part F_l, too
    "discriminator_rate": 1e-4,
    "beta1": 0.9,  # of their Adam; both our choice
    "beta2": 0.99,
    "channels": 64,  # of a discriminator's first convolution (our choice)
    "loss": "non_saturating",  # non_saturating (our choice), minimax (eqs. 2 to 4), least_squares
    "segmentation_weight": 1.0,  # lambda_seg; this and the next two are our choice
    "weight_1": 1e-3,  # lambda_1, of what F pays discriminator 1
    "weight_2": 2e-4,
    "target_crop": (512, 1024),
    "target_scale": 0.5,  # of what the canvas holds
  })
  config.labels = ConfigDict({
    "p1": 0.6,  # share of the pixels, those of the greatest adversarial confidence, that labels are chosen from; 1: all
    "p2": 0.8,  # share of each class that is chosen from these
    "confidence": "min_max",  # how the discriminators' outputs are brought to one scale: min_max, rank (both our choice)
    "scale": 0.5,  # of the canvas, at which the network looks
    "rank": "paper",  # paper, code: see `self_training`
    "batch": 1,  # images a device at once
    "keep_gib": 4.0,  # memory for the network's outputs; beyond it they go to a file in the workdir
    "spill_gib": 64.0,  # the most that this file may take
  })
  config.retraining = ConfigDict({
    "steps": 60_000,  # 0 leaves the stage out
    "batch": 16,
    "rate": 1e-2,
    "power": 0.9,
    "crop": (640, 640),
    "scale": (0.7, 1.3),
    "jitter": 0.0,  # of colours, beyond `augmentation` (our choice)
    "fresh": True,  # from the weights that `source` started from; or from those that labelled
  })
  # So many batches of whole target images, at the end of `adversarial` and of `retrain`, whose mean statistics become
  # BatchNorm's running ones (AdaBN; our choice).
  config.statistics_steps = 0
  return config


# What the papers' own settings share. Each function sets fields of a config.


def words(reading: str, *known: str) -> list[str]:
  """What stands after the colon in `--config FILE.py:WORD,WORD`; `paper` changes nothing.

  Raises:
    UserError: a word other than `paper` and those known to this config.
  """
  chosen = reading.split(",")
  if unknown := [word for word in chosen if word not in ("paper", *known)]:
    raise UserError(f"there is no reading {unknown[0]!r}; after the colon may stand paper, {', '.join(known)}")
  return chosen


def gta5_to_cityscapes(config: ConfigDict) -> None:
  """GTA5 → Cityscapes, 19 classes."""
  _to_cityscapes(config)
  config.source = dataset("gta5", dir="GTA5")
  config.canvas = (1052, 2048)  # neither GTA5's 1052x1914 nor Cityscapes' 1024x2048 is scaled


def synthia_to_cityscapes(config: ConfigDict) -> None:
  """SYNTHIA → Cityscapes: trained on the 16 classes that both have, scored on these and on 13 of them."""
  _to_cityscapes(config)
  config.source = dataset("synthia", dir="SYNTHIA")
  config.canvas = (1024, 2048)  # Cityscapes' own size; SYNTHIA's 760x1280 are scaled up to 1024x1725
  config.protocols = "synthia16,synthia13"
  if "rounds" in config:
    config.source_training.epochs = 50
    config.rounds.source_share = 0.02  # code
    config.mining.probability = 0.0  # the paper names GTA5 and NTHU alone


def _to_cityscapes(config: ConfigDict) -> None:
  config.target = dataset("cityscapes", dir="Cityscapes", split="train")
  config.test = dataset("cityscapes", dir="Cityscapes", split="val")
  at_full_size(config)


def to_bdd100k(config: ConfigDict) -> None:
  """→ BDD100K, its 10k images with labels of 19 classes."""
  config.target = dataset("bdd100k", dir="BDD100K", split="train")
  config.test = dataset("bdd100k", dir="BDD100K", split="val")
  at_full_size(config)


def at_full_size(config: ConfigDict) -> None:
  """What large networks on large images want: rounds that leave BatchNorm's statistics alone, fewer checkpoints."""
  if "rounds" in config:
    config.rounds.batch_norm = "frozen"  # code; one or two crops have no statistics worth having
  config.checkpoint_every = 2000


def vgg16(config: ConfigDict) -> None:
  """FCN8s-VGG16 (CBST, appendix A, which speaks of scaled and mirrored crops for ResNet-38 alone).

  The paper gives no numbers for its source stage; here it has ResNet-38's rate and batch, and plain crops as the rounds
  (our choice). Its rate of 1e-6 may presume a loss that is summed over the pixels; here the loss is their mean.
  """
  config.network.backbone = "fcn8s_vgg16"
  config.augmentation.update({"scale": (1.0, 1.0), "flip": False})
  config.rounds.update({"batch": 1, "rate": 1e-6})


def sisc_alone(config: ConfigDict) -> None:
  """MLSL without image-level labels, which leaves room for a second crop (section 4.1.3)."""
  config.weak_labels.weight = 0.0
  config.rounds.batch = 2


def released_self_training(
  config: ConfigDict, portion: float = 0.15, source_share: float = 0.03, width: int = 2048
) -> None:
  """All that the released code of CBST does otherwise than its paper, or that the paper leaves open.

  Args:
    portion, source_share: of the first round; the code's are 0.15 and 0.03 for GTA5, 0.20 and 0.02 for SYNTHIA.
    width: of the target's images, in pixels; the code labels them at 1850.
  """
  config.augmentation.crop = (504, 504)
  config.optimizer.update({"momentum": 0.9, "weight_decay": 5e-4, "bias_multiplier": 2.0, "bias_decay": False})
  config.loss_at = "stride"
  config.rounds.update({"num": 6, "batch_norm": "frozen", "paired": False, "rate_divisor": 2**0.5})
  config.rounds.update({"source_share": source_share, "source_share_step": 0.0025, "source_share_max": 0.06})
  config.rounds.source_draw = "cumulative"
  config.mining.update({"probability": 0.8, "classes": 3, "rare": 0.001, "on": "both"})
  config.labels.update({"rank": "code", "inclusive": True, "pool_stride": 4, "portion": portion})
  config.labels.update({"scales": f"{1850 / width:.4f}", "flip": True, "upsampling": "cubic"})
  config.update({"eval_scales": "1", "eval_flip": True})


def released_mlsl(
  config: ConfigDict, portion: float = 0.15, source_share: float = 0.03, prior: bool = True
) -> None:
  """All that the released code of MLSL does otherwise: with weak labels or, where their weight is 0 by now, SISC alone.

  Args:
    portion, source_share, prior: the code's for GTA5.
  """
  released_self_training(config, portion, source_share)
  config.labels.update({"scales": "1", "prior": prior})
  config.sisc.update({"patches": 25, "flip": True, "whole_image": True})
  config.weak_labels.update({"eta": 0.0225, "strict": False, "source": "eta", "activation": "code"})
  if config.weak_labels.weight:
    config.weak_labels.weight = 0.04
  else:
    config.rounds.update({"hard_below": 0.6, "hard_least": 256})
