"""The shipped experiments: every entry of every sweep is a config, and its model can be made at the paper's size."""

import pytest
from jaxmlic.configs import cnn_rnn, common, mscnn_lce_mic, multi_order_rnn

from jaxmlic import config as config_lib
from jaxmlic import metrics
from jaxmlic.cli import main as cli
from jaxmlic.errors import UserError
from jaxmlic.experiments import sweep
from jaxmlic.inputs import open_source
from jaxmlic.models.heads import contract
from jaxmlic.models.heads.mscnn_lce_mic import Model
from jaxmlic.training import optim
from jaxmlic.training import state as state_lib

CLASSES = {"coco2014": 80, "nus_wide": 81, "nus_wide_tags": 1000, "corel5k": 374}  # others: 20
# Without an argument a sweep holds the tables of its paper; the others are the data sets that a CPU trains on.
SPECS = (
    *("quickstart", "linear", "linear:mode=finetune", "linear:dataset=corel5k,mode=finetune", "baseline_ensemble"),
    "linear:mode=tuned",
    *("cnn_rnn", "cnn_rnn:dataset=corel5k", "cnn_rnn:dataset=voc2007_subset", "cnn_rnn:dataset=scenes,trunk=vgg16_fc"),
    *("multi_order_rnn", "multi_order_rnn:dataset=corel5k", "multi_order_rnn:dataset=voc2007_subset"),
    *("cnn_lstm_rmlc", "cnn_lstm_rmlc:dataset=corel5k", "cnn_lstm_rmlc:dataset=cifar10_jpeg,noise,batches=5"),
    *("cnn_lstm_rmlc:dataset=cifar10,head=path", "cnn_lstm_rmlc:dataset=stl10,folds=10", "cnn_lstm_rmlc:noise"),
    *("mscnn_lce_mic", "mscnn_lce_mic:dataset=coco2014", "mscnn_lce_mic:dataset=corel5k"),
    *("mscnn_lce_mic:labelled=few", "mscnn_lce_mic:dataset=cifar10,rows=propagation"),
    *("yardsticks", "yardsticks:dataset=scenes", "yardsticks:dataset=corel5k", "yardsticks:head=csra"),
    *("yardsticks:rows=heads,dataset=scenes", "yardsticks:rows=losses"),
)


def configs(spec, overrides=()):
    """{entry: its config}, as `jaxmlic sweep` makes them."""
    base = config_lib.load(spec, overrides)
    return {entry.name: sweep.config_of(spec, base, entry, overrides) for entry in sweep.entries(spec)}


def check_model(config):
    """The model can be made, and the groups of learning rates fit its parameters; nothing is computed."""
    model = contract.make_model(contract.find(config.head), config, CLASSES.get(config.data.name, 20), 5)
    found = optim.multipliers(config.optim.groups, state_lib.parameter_names(model, open_source(config).example()))
    optim.paced(found, config.model.trunk, config.optim.stage_decay)


@pytest.mark.parametrize("spec", SPECS)
def test_every_entry_is_a_config(spec):
    for name, config in configs(spec, ["--config.train.log_every=7 steps"]).items():
        assert config.train.log_every == "7 steps", name
        metrics.get_protocol(config.eval.protocol)
        head = contract.find(config.head)
        if contract.has_closed_form(head):
            assert not config.loss
            continue
        loss_fn = head.loss_fn
        assert set(config.loss) <= {*(loss_fn.__kwdefaults__ or {}), *loss_fn.__annotations__}, name


def test_every_head_and_trunk_can_be_made_at_the_papers_size():
    """`make test-slow` has all entries."""
    heads, trunks = set(), set()
    for spec in ("linear", "baseline_ensemble", "cnn_rnn", "multi_order_rnn", "cnn_lstm_rmlc", "mscnn_lce_mic"):
        for config in configs(spec).values():
            if config.head not in heads or config.model.trunk not in trunks:
                check_model(config)
                heads.add(config.head)
                trunks.add(config.model.trunk)
    assert len(heads) == 6 and trunks == {"efficientnet_lite0", "vgg16_fc", "resnet101", "cifar14", "vgg16"}


@pytest.mark.slow
@pytest.mark.parametrize("spec", SPECS)
def test_every_model_can_be_made_at_the_papers_size(spec):
    for config in configs(spec).values():
        check_model(config)


@pytest.mark.parametrize("name", ["quickstart", "linear", "baseline_ensemble", "cnn_rnn", "multi_order_rnn"])
def test_smoke_shrinks_every_experiment(name):
    assert config_lib.load(f"{name}:smoke").train.duration == "12 steps"


@pytest.mark.parametrize("head", ["ml_decoder", "csra", "query2label", "linear"])
def test_smoke_shrinks_the_yardsticks(head):
    for dataset in ("coco2014", "scenes", "corel5k"):
        config = config_lib.load(f"yardsticks:head={head},dataset={dataset},smoke")
        assert config.head.endswith(head) and config.train.duration == "12 steps" and config.data.image_size <= 64


def test_recipes_of_the_yardsticks():
    """The settings of the authors' code that must not move."""
    found = {
        head: config_lib.load(f"yardsticks:head={head}") for head in ("csra", "ml_decoder", "query2label", "linear")
    }
    for head, optimizer in {
        "csra": ("sgd", 0.1, "step", 1e-4, 0.0, 16),
        "ml_decoder": ("adam", 1e-4, "one_cycle", 1e-4 / (80 * 56), 0.9997, 56),
        "query2label": ("adamw", 1e-4, "one_cycle", 1e-2, 0.9997, 64),
        "linear": ("adam", 1e-4, "one_cycle", 1e-4 / (80 * 128), 0.9997, 128),
    }.items():
        optim = found[head].optim
        own = (optim.name, optim.lr, optim.schedule, optim.weight_decay, optim.ema, found[head].train.batch_size)
        assert own == optimizer
        assert (found[head].data.image_size, found[head].model.trunk) == (448, "resnet101")
        assert found[head].data.drop_empty == (head != "query2label")
        # Images are squashed to the square; ASL's cutout and RandAugment, and no flip.
        strong = (found[head].augment.flip, found[head].augment.cutout, found[head].augment.ops)
        assert strong == ((True, 0.0, 0) if head == "csra" else (False, 0.5, 2))
        assert found[head].loss.name == ("binary_cross_entropy" if head == "csra" else "asymmetric")
    assert (found["ml_decoder"].model.embedding, found["ml_decoder"].model.hidden) == (768, 2048)
    assert (found["query2label"].model.embedding, found["query2label"].model.hidden) == (0, 8192)
    names = [entry.name for entry in sweep.entries("yardsticks")]
    assert names == [
        *("coco2014_ml_decoder", "voc2007_csra_h1", "coco2014_csra_h4"),
        *("coco2014_query2label", "coco2014_query2label_576", "coco2014_linear"),
    ]
    rows = configs("yardsticks:head=csra")
    assert [rows[name].model.attention_weight for name in ("voc2007_csra_h1", "coco2014_csra_h4")] == [0.1, 0.5]


@pytest.mark.parametrize("head", ["csra", "ml_decoder", "query2label"])
def test_recipes_of_heads_on_a_frozen_trunk(head):
    """Each head has what was selected for it; a data set without a selection has Corel-5K's."""

    def recipe(spec):
        config = config_lib.load(spec)
        return config.optim.lr, config.optim.weight_decay, config.train.duration

    own = {"csra": (1e-2, 3e-2, 0.1), "ml_decoder": (3e-3, 1e-3, 1.0), "query2label": (3e-3, 1e-3, 1.0)}[head]
    for rows in ("", "rows=heads,"):
        for dataset in ("corel5k", "coco_images"):
            assert recipe(f"yardsticks:{rows}head={head},dataset={dataset}") == (own[0], 0.1, "8 epochs")
        found = recipe(f"yardsticks:{rows}head={head},dataset=voc2007_subset")
        assert found == (own[1], own[2], "24 epochs")
    assert recipe(f"yardsticks:rows=heads,head={head},dataset=scenes") == (own[0], 0.1, "8 epochs")


@pytest.mark.parametrize("dataset", ["voc2007_subset", "corel5k", "scenes"])
def test_heads_are_compared_on_equal_features(dataset):
    """One trunk, size, mirror image and precision, all training images, one rule: the head and its recipe differ."""
    found = configs(f"yardsticks:rows=heads,dataset={dataset}")
    assert [config.head.rpartition(".")[2] for config in found.values()] == [
        *("linear", "csra", "ml_decoder", "query2label", "cnn_rnn", "multi_order_rnn", "positions"),
        *("mscnn_lce_mic", "mscnn_lce_mic"),
    ]
    one = found["linear"]
    for name, config in found.items():
        stages = name in ("mscnn", "ml_gcn")
        assert (config.data.source, config.features.store) == ("features", "stages" if stages else "map")
        assert config.augment == one.augment and config.data == one.data and config.eval == one.eval
        assert {**config.features, "store": ""} == {**one.features, "store": ""}
        assert (config.model.trunk, config.model.batch_norm) == ("efficientnet_lite0", "frozen")
        assert config.data.name == dataset and config.data.val_fraction == 0
        assert config.optim.groups[0] == common.FROZEN_GROUPS[0]
    assert found["ml_gcn"].model.stages == ("head",) and found["mscnn"].model.stages == ()
    smoke = config_lib.load(f"yardsticks:rows=heads,dataset={dataset},head=mscnn,trunk=resnet18,smoke")
    assert (smoke.train.duration, smoke.model.trunk, smoke.data.image_size) == ("12 steps", "resnet18", 64)


def test_losses_for_missing_labels_have_rows():
    found = configs("yardsticks:rows=losses")
    assert {config.loss.name for config in found.values()} == {
        *("binary_cross_entropy", "asymmetric", "hill", "splc", "partial_asymmetric"),
    }
    modes = [dict(found[f"partial_bce_{mode}"].loss.options) for mode in ("ignore", "negative", "selective")]
    assert [options["mode"] for options in modes] == ["ignore", "negative", "selective"]
    assert all(options["gamma_neg"] == options["gamma_unknown"] == 0 for options in modes)
    assert (found["hill"].data.noise, found["partial_bce_ignore"].data.noise) == ("missing", "unknown")
    assert all(config.data.difficult == "ignore" and config.data.noise_rate > 0 for config in found.values())
    starts = {entry.name: entry.start_from for entry in sweep.entries("yardsticks:rows=losses")}
    assert starts["splc"] == "splc_first" and dict(found["splc_first"].loss.options) == {"tau": 1.0}


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("head=cnn_rnn", "goes with rows=heads"),
        ("loss=hill", "goes with rows=losses"),
        ("rows=losses,head=csra", "does not go with rows=losses"),
        ("rows=head", "did you mean 'heads'"),
        ("rows=losses,loss=hil", "did you mean 'hill'"),
    ],
)
def test_mistakes_in_the_argument_of_the_yardsticks(argument, message):
    with pytest.raises(UserError, match=message):
        config_lib.load(f"yardsticks:{argument}")


def test_smoke_shrinks_the_experiments_of_james_and_lakshmi():
    for name in ("cnn_lstm_rmlc", "cnn_lstm_rmlc:dataset=coco2014,smoke", "mscnn_lce_mic"):
        config = config_lib.load(name if "smoke" in name else f"{name}:smoke")
        assert config.train.duration == "12 steps" and config.data.image_size <= 64


@pytest.mark.parametrize("name", ["cnn_rnn", "multi_order_rnn"])
def test_entries_of_the_recurrent_experiments(name):
    for spec in (name, f"{name}:dataset=voc2007_subset"):
        for entry, config in configs(spec, ["--config.optim.lr=0.5"]).items():
            assert entry.startswith(config.data.name) and config.optim.lr == 0.5
    # On stored features sr_cnn_rnn would be mo_rare_first.
    assert len(sweep.entries("multi_order_rnn:dataset=corel5k")) == len(multi_order_rnn.METHODS) - 1 == 19
    assert len(sweep.entries("multi_order_rnn:dataset=corel5k,trunk=resnet101")) == 20
    assert len(cnn_rnn.METHODS) == 13
    # The paper's own networks, and the pieces that must not move.
    config = config_lib.load("cnn_rnn")
    assert (config.model.embedding_size, config.model.recurrent_size, config.model.dropout) == (64, 512, 0.5)
    assert (config.optim.name, config.optim.lr, config.optim.weight_decay) == ("rmsprop", 1e-4, 1e-4)
    config = config_lib.load("multi_order_rnn")
    assert (config.model.embedding_size, config.model.recurrent_size, config.model.num_steps) == (256, 512, 5)
    assert (config.train.batch_size, config.train.duration, config.model.trunk) == (32, "50 epochs", "resnet101")


def test_unknown_method(capsys):
    assert cli.run(["train", "--config=multi_order_rnn:method=multiorder", "--workdir=unused"]) == 2
    assert "method = 'multiorder' is unknown (did you mean 'multi_order'?)" in capsys.readouterr().err


@pytest.mark.parametrize("arg", ["dataset=voc2007", "dataset=coco2014", "dataset=corel5k", "labelled=few"])
def test_every_entry_of_mscnn_lce_mic_is_a_network_of_its_own(arg):
    found = configs(f"mscnn_lce_mic:{arg}").values()
    for config in found:
        Model(4, **config.model)._check()
        attends = any("attention" in pattern for pattern, _ in config.optim.groups)
        assert config.model.attention or not attends  # a pattern without a parameter is an error
    flat = [str(sorted(config_lib.flatten(config).items())) for config in found]
    assert len(set(flat)) == len(flat)


def test_settings_of_mscnn_lce_mic():
    config = config_lib.load("mscnn_lce_mic")
    optimizer = (config.optim.name, config.optim.lr, config.optim.momentum, config.optim.weight_decay)
    assert optimizer == ("sgd", 1e-3, 0.9, 1e-4)
    assert (config.train.batch_size, config.data.image_size, config.loss.name) == (32, 448, "weighted_cross_entropy")
    assert (config.model.trunk, config.model.mfb_dim, config.model.mfb_groups) == ("vgg16", 358, 2)
    with pytest.raises(UserError, match="rows = 'all'"):
        mscnn_lce_mic.get_config("rows=all")
