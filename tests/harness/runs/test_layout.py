from support.harness import finish_run, small_config

from experiments.runs import layout


def test_what_is_made_is_found_and_nothing_else_is(tmp_path):
    configs = [
        small_config(optimizer=name, seed=seed) for name in ("adam", "sgd") for seed in (1, 2)
    ]
    for config in configs:
        finish_run(tmp_path, config, [0.5])
    here = [tmp_path / layout.path_of(config) for config in configs]
    (here[0] / "DONE").unlink()
    (tmp_path / ".slurm" / "code-1" / "experiments" / "runs").mkdir(parents=True)
    (tmp_path / "report" / "a" / "b" / "c").mkdir(parents=True)
    assert layout.find(tmp_path) == here
    assert layout.find(tmp_path, holding="DONE") == here[1:]
    assert layout.find(tmp_path, dataset="digits", model="resnet8") == here
    assert layout.find(tmp_path, dataset="cifar10") == layout.find(tmp_path / "nowhere") == []


def test_the_seeds_of_a_configuration(tmp_path):
    for seed in (1, 3):
        finish_run(tmp_path, small_config(seed=seed), [0.5])
    finish_run(tmp_path, small_config("epochs=3"), [0.5])
    found = layout.find_seeds(tmp_path, small_config(seed=7), holding="DONE")
    assert [path.name[-3:] for path in found] == ["-s1", "-s3"]
