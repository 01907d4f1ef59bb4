"""What code jobs get a copy of: ours, and the user's own that their files name."""

import json
import subprocess
import sys

import pytest
from support.harness import small_config

from experiments.errors import UserError
from experiments.runs import own_code
from slurm import snapshot

NET = "def Net(classes, channels):\n    pass\n"


@pytest.fixture(autouse=True)
def lab(tmp_path, monkeypatch):
    """A folder of the user's own, in which commands are started."""
    folder = tmp_path / "my lab"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("RUNS_ROOT", "runs")
    monkeypatch.setenv("DATA_ROOT", "data")
    return folder


def write(folder, **files):
    """Files by their dotted paths; what is no module has its whole name."""
    for name, text in files.items():
        path = folder / f"{name.replace('__in__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def own(constructor):
    found = snapshot.own_files([small_config(f"model={{constructor: {constructor}}}")])
    return {str(name) for name in found}


def test_it_is_shared_until_the_code_changes(tmp_path, monkeypatch, lab):
    write(lab, snap_a="x = 1\n" + NET)
    configs = [small_config("model={constructor: snap_a.Net}")]
    one = snapshot.write(snapshot.files(configs), tmp_path)
    assert snapshot.write(snapshot.files(configs), tmp_path) == one
    assert set(json.loads((one / "commit.json").read_text())) == {"commit", "dirty"}
    assert {path.name for path in one.iterdir()} == {
        *snapshot.PACKAGES,
        "commit.json",
        "snap_a.py",
    }
    write(lab, snap_a="x = 2\n" + NET)
    two = snapshot.write(snapshot.files(configs), tmp_path)
    assert two != one
    monkeypatch.setattr(snapshot, "git_state", lambda: {"commit": "another", "dirty": False})
    assert snapshot.write(snapshot.files(configs), tmp_path) not in (one, two)


def test_a_package_with_what_it_imports_wherever_it_does(lab):
    write(
        lab,
        snap_b__in____init__="",
        snap_b__in__net="from .layers import x\nimport snap_sibling.deep\n" + NET,
        snap_b__in__layers="def x():\n    import snap_module\n    import torch, numpy, json\n",
        snap_sibling__in__deep="import snap_b",  # a circle
        snap_module="import not_there_at_all\n",
        snap_unasked="",
    )
    (lab / "snap_b" / "class names.txt").write_text("a b", encoding="utf-8")
    (lab / "snap_b" / "template.py").write_text("{{ no Python }}", encoding="utf-8")
    for name in (".git", "__pycache__", ".ipynb_checkpoints"):
        write(lab / "snap_b" / name, left_out="")
    assert own("snap_b.net.Net") == {
        "snap_b/__init__.py", "snap_b/net.py", "snap_b/layers.py", "snap_b/class names.txt",
        "snap_b/template.py", "snap_sibling/deep.py", "snap_module.py",
    }  # fmt: skip


def test_every_kind_of_constructor_is_looked_at(lab):
    write(lab, snap_set="", snap_optimizer="import torch\nclass Mine(torch.optim.SGD): pass\n")
    config = small_config(
        "dataset={name: mine, constructor: snap_set.Set, crop_padding: 0, flip: false, "
        "validation_size: 0}",
        "best_epoch_split=test",
        "optimizers.mine={constructor: snap_optimizer.Mine, lr: 1, weight_decay: 0, "
        "weight_decay_divided_by_lr: false}",
        optimizer="mine",
    )
    found = snapshot.own_files([config])
    assert snapshot.packages(found) == ["snap_optimizer.py", "snap_set.py"]


def test_a_namespace_package_in_two_places(lab, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path / "other")
    write(tmp_path / "other", snap_space__in__one=NET, snap_space__in__both="other")
    write(lab, snap_space__in__two="", snap_space__in__both="lab")
    found = snapshot.own_files([small_config("model={constructor: snap_space.one.Net}")])
    assert {str(name) for name in found} == {f"snap_space/{n}.py" for n in ("one", "two", "both")}
    # As in an import, the place counts that Python looks at first.
    (both,) = [path for name, path in found.items() if name.name == "both.py"]
    assert both.read_text() == "other"


def test_through_links_but_not_in_circles(lab, tmp_path):
    write(tmp_path / "elsewhere", net=NET, inner__in__more="")
    (lab / "snap_link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "again").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "alias").symlink_to(tmp_path / "elsewhere" / "inner")
    (tmp_path / "elsewhere" / "broken").symlink_to(tmp_path / "nothing")
    expected = {"snap_link/net.py", "snap_link/inner/more.py", "snap_link/alias/more.py"}
    assert own("snap_link.net.Net") == expected


def test_a_package_that_is_where_commands_are_started(tmp_path, lab, monkeypatch):
    """Its runs and data are in it then, and huge."""
    package = lab / "snap_here"
    write(package, __init__="", net=NET)
    monkeypatch.chdir(package)
    for name in ("runs", "data"):
        (package / name).mkdir()
        (package / name / "big").write_bytes(b"0" * 2000)
    monkeypatch.setattr(own_code, "LARGEST", 1000)
    assert own("snap_here.net.Net") == {"snap_here/__init__.py", "snap_here/net.py"}


def test_what_is_too_large_is_refused_with_its_place(lab, monkeypatch):
    write(lab, snap_big__in__net=NET, snap_small="import snap_big")
    (lab / "snap_big" / "weights.pt").write_bytes(b"0" * 1001)
    (lab / "next to it").mkdir()
    (lab / "next to it" / "images.bin").write_bytes(b"0" * 5000)
    monkeypatch.setattr(own_code, "LARGEST", 1000)
    with pytest.raises(UserError) as caught:
        own("snap_big.net.Net")
    message = str(caught.value)
    assert message.startswith(f"{lab}/snap_big has more than 0 MB (such as weights.pt)")
    assert "model.constructor names: move out of it what is no code, or install" in message
    with pytest.raises(UserError, match="which .*/snap_small.py imports: move"):
        own("snap_small.Net")
    (lab / "snap_big" / "weights.pt").unlink()
    assert own("snap_big.net.Net") == {"snap_big/net.py"}
    monkeypatch.setattr(own_code, "MOST_FILES", 0)
    with pytest.raises(UserError, match="has more than 0 files"):
        own("snap_big.net.Net")


def test_what_is_installed_stays_where_it_is_and_an_editable_install_does_not(tmp_path, lab):
    """In a real interpreter that a .pth file has led to the folder of an editable install."""
    assert own("torchvision.models.resnet18") == own("timm.create_model") == set()
    source, site = tmp_path / "src", tmp_path / "site-packages"
    write(source, snap_editable=NET)
    write(site, snap_installed=NET)
    (site / "snap.pth").write_text(str(source), encoding="utf-8")
    script = (
        f"import site; site.addsitedir({str(site)!r})\n"
        "from experiments.runs import own_code\n"
        "for name in ('snap_editable', 'snap_installed'): print(own_code._places(name))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True,
                          cwd=snapshot.REPOSITORY, check=True)  # fmt: skip
    assert done.stdout == f"[PosixPath('{source}/snap_editable.py')]\n[]\n"
