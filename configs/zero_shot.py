"""Zero-shot: CLIP or SigLIP as it is, its labels the vectors that its text tower gave their names. No step is taken.

Arguments:  dataset=<any prepared data set>,  trunk=vit_base_patch16_clip_projected | <any NAME_projected of CLIP> |
            <any NAME_pooled of SigLIP>,  size=<side>,  smoke
Commands:   jaxmlic train --config=zero_shot:dataset=birds --workdir=runs/zero --config.pretrained=WEIGHTS \\
                --config.text.vectors=names.npz
            Then evaluate, predict, thresholds and add-label as for any run. Steps from there on, for the classifier
            alone: --config.train.duration="5 epochs". docs/zero_shot.md
Paper:      Radford et al., "Learning Transferable Visual Models From Natural Language Supervision" (2021); Zhai et al.,
            "Sigmoid Loss for Language Image Pre-Training" (2023). Not measured here: their weights are not at hand.
"""

from jaxmlic.configs import common

from jaxmlic import config as config_lib
from jaxmlic.models import trunks

CLIP = "vit_base_patch16_clip_projected"


def get_config(arg=None):
    arg = config_lib.parse_arg(arg, dataset="voc2007", trunk=CLIP, size=0)
    config = common.base()
    config.data.name = arg.dataset
    common.test_rules(config)
    config.model.trunk = arg.trunk
    fields = trunks.get(arg.trunk)[1]
    config.data.image_size = arg.size or fields.get("patch", 0) * fields.get("grid", 0) or 224  # as it was trained
    config.model.pool = "avg_unit"
    common.freeze_trunk(config)
    config.train.batch_size = 32
    if arg.smoke:
        common.smoke(config)
    config.train.duration = "0 steps"
    return config
