"""Every field of every experiment, with its default and its meaning.

An experiment file's `get_config(arg)` starts from `base()`, changes what it is about and returns it. Keys that are not
here cannot be set: the trainer locks the config. Durations are text: "10 epochs", "500 steps", "20000 examples" or
"5%" of the whole training.
"""

from ml_collections import ConfigDict

from jaxmlic.models import trunks


def base() -> ConfigDict:
    """The defaults: a small CNN with a linear head and binary cross-entropy on the embedded data set."""
    config = ConfigDict()
    config.seed = 0  # the one seed: data order, split, initial weights, augmentation, dropout

    config.head = "linear"  # file under jaxmlic/models/heads
    config.model = ConfigDict()  # the head's Model(num_labels, **config.model)
    config.model.trunk = "small_cnn"  # file under jaxmlic/models/trunks (or a variant's name, "efficientnet_lite0")
    # feature map -> vector: "avg", "max", "avg_max" (both, side by side) or "avg_unit" (the mean, of length one)
    config.model.pool = "avg"
    config.model.dropout = 0.0  # on the pooled vector
    config.model.batch_norm = "train"  # "train": batch statistics; "frozen": running averages, never updated
    # "bfloat16": the trunk's convolutions, matrix products and feature map. Parameters, batch and group statistics,
    # heads, logits, losses, gradients and the optimizer's state stay float32.
    config.model.dtype = "float32"
    config.pretrained = ""  # weight file for the trunk; empty = from scratch

    # A run folder whose best checkpoint gives every parameter of the same name and shape (only the trunk's if its
    # classes are others): linear probing before fine-tuning, recipes of several stages. After `pretrained`.
    config.start_from = ""

    # Zero-shot: a text encoder's file of class-name vectors that the layer `classifier` starts from, in place of what
    # `start_from` gives it, so that logits are scale * cos(image, label) + bias; docs/zero_shot.md. Needs
    # model.pool="avg_unit" and a trunk whose vector lies in the text's space.
    config.text = ConfigDict()
    config.text.vectors = ""  # .npz or .safetensors; empty = no text
    config.text.scale = 0.0  # of the cosines; 0 = the file's exp(logit_scale), or 100 where it has none
    config.text.bias = 0.0  # added to the file's logit_bias, which is 0 where it has none

    config.loss = ConfigDict()
    config.loss.name = "binary_cross_entropy"  # function in jaxmlic.losses
    config.loss.options = ()  # (name, value) pairs for it, such as (("gamma_neg", 2.0), ("clip", 0.0))

    config.data = ConfigDict()
    config.data.name = "scenes"  # a data set made by `jaxmlic data prepare`
    # Where data sets live; empty = $JAXMLIC_DATA or ~/.cache/jaxmlic/data. Those of gs:// and s3:// are copied here.
    config.data.dir = ""
    config.data.train_split = "train"
    config.data.val_split = ""  # model selection; empty = carve `val_fraction` from train, stratified over labels
    config.data.val_fraction = 0.1  # 0 = no selection: the last checkpoint is the result
    config.data.test_split = "test"  # what `jaxmlic evaluate` reads by default; training never does
    config.data.image_size = 48  # side of the square that the model sees
    config.data.resize = 0  # side the host resizes training images to before the crop; 0 = image_size
    config.data.difficult = "ignore"  # unknown (-1) training labels: "ignore", "positive" or "negative"
    config.data.drop_empty = False  # leave out images without a present label, in every split (COCO, NUS-WIDE)
    config.data.cache = False  # decode each image once and keep the pixels in memory
    config.data.limit = 0  # use only the first N examples of each split; 0 = all
    config.data.threads = 2  # host threads that read and decode
    # File of `jaxmlic propagate`: labels and weights for all images of train_split. Needs val_split or val_fraction 0.
    config.data.pseudo_labels = ""

    # Wrong training labels on purpose (never in validation or test): their share, 0 = none, and the kind: "random"
    # (positives change images, class frequencies stay), "images" (a share of the images gets new labels, uniformly
    # drawn), "missing" (positives dropped), "flip" (entries turned over) or "unknown" (entries become -1).
    config.data.noise_rate = 0.0
    config.data.noise = "random"
    config.data.noise_seed = -1  # -1 = config.seed

    # "images"; "features": those that `jaxmlic features` stored of the frozen trunk; "descriptors": the same of
    # features.sets, which take the trunk's place; "file": those of features_file.
    config.data.source = "images"
    config.data.features_file = ""  # .npz with features [N, D] or [N, h, w, D] and ids [N]: no trunk at all
    # The trunk that made it of the images squashed to image_size, so that `jaxmlic predict` takes photographs; the file
    # of its weights; and for vectors, how its map was pooled: "avg" or "max".
    config.data.features_trunk = ""
    config.data.features_weights = ""
    config.data.features_pool = "avg"

    config.features = ConfigDict()  # what `jaxmlic features` stores
    # "pooled": one vector an image (model.pool avg or max); "map": the feature map; "stages": several maps of the
    # trunk, for heads that read them.
    config.features.store = "pooled"
    config.features.stages = ()  # for "stages", there and in features.pools: their names; () = the trunk's levels
    config.features.dtype = "float16"  # or "bfloat16"
    config.features.crops = 4  # views of a training image where augment.crop_area asks for random crops
    # For data.source="descriptors": what stands for an image, side by side. "TRUNK@SIDE" is a pretrained trunk on the
    # image with that short side; "colour", "texture" and "gradient" need no weights. See docs/features.md.
    config.features.sets = ()
    config.features.weights = ""  # folder with one file of weights for each trunk of the sets
    # Of a trunk: its map averaged ("avg"), its maxima ("max"), its generalised mean ("gem"); of each of features.stages
    # mean and deviation of the channels ("stages").
    config.features.pools = ("avg", "stages")
    config.features.gem_power = 3.0  # of "gem": 1 averages, more comes nearer to the maximum
    config.features.aspect = "keep"  # "square": images are squashed
    config.features.mirror = True  # descriptors of the image and of its mirror image are averaged

    config.augment = ConfigDict()
    config.augment.flip = True  # horizontal, probability 1/2
    config.augment.crop_area = (1.0, 1.0)  # random resized crop: share of the area; (1, 1) = no crop
    config.augment.crop_aspect = (3 / 4, 4 / 3)  # its aspect ratio, drawn log-uniformly
    # Mean of two images and OR of their labels, partners drawn within the batch: "off", "every_epoch" or
    # "every_second_epoch" (the first, the third, ...).
    config.augment.mixup = "off"
    # RandAugment's operations: so many an image, each one of shear, translate, rotate, brightness, color, contrast,
    # sharpness, posterize, solarize, autocontrast and none, drawn anew.
    config.augment.ops = 0
    config.augment.magnitude = 9.0  # their strength, 0 to 30
    config.augment.cutout = 0.0  # a square in the image's mean colour: its side, of the image's; 0 = off

    config.optim = ConfigDict()
    # "adamw", "adam", "sgd", "sgd_nesterov" or "rmsprop"; L2 is coupled except in adamw. "none" for heads without steps
    config.optim.name = "adamw"
    config.optim.lr = 1e-3  # peak learning rate
    config.optim.schedule = "cosine"  # "cosine", "one_cycle", "constant" or "step"
    config.optim.warmup = "0%"  # linear from 0 (for one_cycle: the rising part)
    config.optim.milestones = ()  # for "step": durations at which the rate is multiplied by `gamma`
    config.optim.gamma = 0.1
    config.optim.momentum = 0.9  # sgd and rmsprop; beta 1 of adam
    config.optim.beta2 = 0.999  # adam's second decay; rmsprop's decay
    config.optim.eps = 1e-8  # adam and adamw: added to the root of the second moment; rmsprop: to what is under it
    config.optim.weight_decay = 1e-4
    config.optim.decay = ".*(kernel|embedding)"  # names (regular expression) that are decayed
    config.optim.clip_norm = 0.0  # clip the global gradient norm; 0 = off
    config.optim.ema = 0.0  # decay of the averaged parameters used for evaluation; 0 = off
    # (regular expression over the whole parameter name, learning-rate multiplier), the first match counts;
    # None freezes; a parameter that nothing matches is an error.
    config.optim.groups = ((".*", 1.0),)
    # Each stage of the trunk learns at so much of the next one's rate, the last one at its group's; 1 = all alike.
    config.optim.stage_decay = 1.0

    config.train = ConfigDict()
    config.train.duration = "10 epochs"  # "0 steps": what the run starts from is its result
    config.train.batch_size = 64  # global
    config.train.eval_batch_size = 0  # global; 0 = batch_size
    config.train.eval_every = "1 epochs"  # scores on the validation split, and a checkpoint
    config.train.checkpoint_every = "100%"  # further checkpoints, for resuming
    config.train.keep_every = 0  # K: every K-th checkpoint is kept too, beside the best and the last two
    config.train.log_every = "50 steps"
    # Micro-batches that a step takes one after the other; their gradients are summed before the one update. The numbers
    # are those of the whole batch, but for what counts over a batch: batch norm's statistics, losses with batch counts,
    # draws of dropout.
    config.train.accumulate = 1
    # What the trunk computes again in the backward pass in place of keeping it: "none", "blocks" (a fourth more work),
    # or "full" (half as much again; of each stage only its input is kept).
    config.train.remat = "none"
    config.train.shard_state = (
        False  # parameters, optimizer state and averages divided over the devices, not replicated
    )
    config.train.prefetch = 2  # batches that wait on the devices
    config.train.trackers = ()  # "wandb", "mlflow": these get what metrics.jsonl and TensorBoard get
    # Without accelerator: devices to divide a batch over; 0 = one per core. Plain convolutions of small networks gain
    # (1.6x on 2 cores), depthwise ones lose (0.8x).
    config.train.cpu_devices = 1

    config.eval = ConfigDict()
    config.eval.protocol = "all_point"  # see jaxmlic.metrics.PROTOCOLS
    config.eval.metric = "mAP"  # the best checkpoint has the highest value of this
    config.eval.min_positives = 1  # a class with fewer positives in the split is left out of the means
    config.eval.trained_classes_only = False  # leave out classes without a positive in the training split
    return config


# The labels of their tests were never published.
TESTED_ON_VAL = ("coco2014", "coco2017", "coco_images", "voc2012")
FROZEN_GROUPS = (("trunk/.*", None), (".*", 1.0))


def test_rules(config: ConfigDict) -> None:
    """Where the data set of `config.data.name` is tested, and how, if it has a way of its own."""
    config.data.test_split = "val" if config.data.name in TESTED_ON_VAL else "test"
    if config.data.name == "corel5k":  # five words an image, means over the words that occur in train and test
        config.eval.protocol = "top5_forced"
        config.eval.trained_classes_only = True
    if config.data.name == "voc2007_subset":  # some of its classes have one or two test positives
        config.eval.min_positives = 5


def freeze_trunk(config: ConfigDict) -> None:
    """The trunk of `config.model.trunk` stays as it is: no parameter learns, no running average moves."""
    config.model.batch_norm = "frozen" if trunks.has_batch_norm(config.model.trunk) else "train"
    config.optim.groups = FROZEN_GROUPS


def smoke(config: ConfigDict) -> ConfigDict:
    """The same experiment made tiny, to see it run in seconds: few examples, few steps. Its numbers mean nothing."""
    config.data.limit = 96
    config.data.val_fraction = 0.25
    config.train.batch_size = 8
    config.train.eval_batch_size = 16
    config.train.duration = "12 steps"
    config.train.eval_every = "6 steps"
    config.train.log_every = "3 steps"
    return config
