from support.harness import small_config

from experiments.runs.labels import settings_apart, titles, words


def found(*configs):
    models = [config.model.label for config in configs]
    apart = settings_apart([config.model_dump() for config in configs], models)
    return [words(one) for one in apart]


def test_only_what_differs_and_only_between_runs_of_one_optimizer():
    rates = [small_config(f"optimizers.sgd.lr={lr}") for lr in (0.1, 0.3)]
    assert found(*rates) == ["lr=0.1", "lr=0.3"]
    assert found(*rates, small_config(optimizer="adam")) == ["lr=0.1", "lr=0.3", ""]
    assert found(rates[0]) == [""]


def test_seed_and_optimizer_are_there_without_being_words():
    one, two = settings_apart(
        [small_config(seed=1).model_dump(), small_config(optimizer="adam", seed=2).model_dump()],
        ["resnet8"] * 2,
    )
    assert one == {"optimizer": "sgd", "seed": 1} and two == {"optimizer": "adam", "seed": 2}
    assert words(one) == ""


def test_shared_settings_differ_between_all_optimizers_of_a_model_and_no_others():
    short, long = small_config(), small_config("epochs=5", optimizer="adam")
    deeper = small_config("model.depth=14", "batch_size=64")
    assert found(short, long, deeper) == ["epochs=2", "epochs=5", ""]


def test_what_cannot_change_a_result_tells_nothing_apart():
    assert found(small_config(), small_config("device=cpu", "checkpoint_every_steps=3")) == ["", ""]


def test_a_key_that_an_older_version_did_not_write_counts_as_its_default():
    old, new = small_config().model_dump(), small_config().model_dump()
    for key in ("micro_batches", "channels_last", "autocast"):
        del old[key]
    del old["dataset"]["image_size"], old["schedule"]["plateau"]
    del old["optimizers"]["sgd"]["after_epochs"]
    assert settings_apart([old, new], ["resnet8"] * 2) == [{}, {}]
    new["micro_batches"] = 2
    assert [words(one) for one in settings_apart([old, new], ["resnet8"] * 2)] == [
        "micro_batches=1",
        "micro_batches=2",
    ]


def test_keys_inside_and_keys_that_only_one_run_has():
    plain = small_config(optimizer="adahessian")
    sparse = small_config("optimizers.adahessian.after_epochs.5.update_interval=4",
                          optimizer="adahessian")  # fmt: skip
    assert found(plain, sparse) == ["", "after_epochs.5.update_interval=4"]


def test_titles():
    configs = [small_config("optimizers.sgd.lr=0.3", seed=3), small_config()]
    assert titles(configs) == [
        "digits resnet8 sgd lr=0.3 seed 3",
        "digits resnet8 sgd lr=0.1 seed 1",
    ]
    assert titles(configs[1:]) == ["digits resnet8 sgd seed 1"]


def test_networks_of_one_name_are_told_apart_by_their_arguments():
    convnet = "{{constructor: experiments.models.convnet.ConvNet, depth: 3, {}}}"
    configs = [small_config(f"model={convnet.format(own)}") for own in ("width: 8", "width: 4", "")]
    assert titles(configs) == [
        "digits ConvNet sgd model.width=8 seed 1",
        "digits ConvNet sgd model.width=4 seed 1",
        "digits ConvNet sgd seed 1",
    ]
    assert titles([*configs[:1], small_config()])[0] == "digits ConvNet sgd seed 1"
