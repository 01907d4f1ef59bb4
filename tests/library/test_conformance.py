"""The conformance vectors: made again by the oracle, passed by ours, and able to tell faults.

`UPDATE_CONFORMANCE=1 pytest tests/library/test_conformance.py` writes them anew, and the table of
docs/implementations.md.
"""

import copy
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import conformance_table, conformance_vectors, published
from support.conformance_cases import CASES, DEFAULTS, RULE
from support.conformance_schema import AnyCase
from support.nightly import NIGHTLY

from adahessian.conformance import __main__ as command
from adahessian.conformance import cases, check
from adahessian.conformance.problems import is_of_another_rule
from adahessian.conformance.recorded import FOLDER
from adahessian.conformance.torch_port import port

ROOT = Path(__file__).parents[2]
UPDATE = bool(os.environ.get("UPDATE_CONFORMANCE"))
PORTS = {
    "torch": "adahessian.conformance.torch_port:port",
    "JAX": "adahessian.jax.conformance:port",
    "torch_optimizer": "support.published:torch_optimizer",
    "pytorch_optimizer": "support.published:pytorch_optimizer",
    "timm": "support.published:timm",
}


def one(name):
    (case,) = cases(name)
    return case


def alike(a, b):
    """Equal but for the last digits of floats, which are another machine's to choose."""
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-10, abs_tol=1e-14)
    if isinstance(a, dict) and isinstance(b, dict):
        return list(a) == list(b) and all(alike(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(alike, a, b))
    return type(a) is type(b) and a == b


class TestTheVectors:
    @pytest.mark.parametrize("name", CASES)
    def test_are_what_the_oracle_says(self, name):
        made = conformance_vectors.make(name)
        file = FOLDER / "cases" / f"{name}.json"
        # Those that say the same stay as they are: last digits are another machine's to choose.
        if UPDATE and not (file.exists() and alike(json.loads(file.read_text("utf-8")), made)):
            file.write_text(conformance_vectors.text(made), encoding="utf-8")
        assert alike(json.loads(file.read_text("utf-8")), made)

    @pytest.mark.parametrize("name", ["probes.json", "schema.json"])
    def test_files_beside_them_are_what_they_were_made_from(self, name):
        text = conformance_vectors.beside_the_cases()[name]
        if UPDATE:
            (FOLDER / name).write_text(text, encoding="utf-8")
        assert (FOLDER / name).read_text("utf-8") == text

    def test_there_are_no_others_and_they_are_small(self):
        files = [path for path in FOLDER.rglob("*") if path.is_file()]
        names = {path.relative_to(FOLDER).as_posix() for path in files}
        assert names == {f"cases/{name}.json" for name in CASES} | {"probes.json", "schema.json"}
        assert sum(path.stat().st_size for path in files) < 500_000

    def test_a_reader_of_format_1_meets_no_option_that_it_does_not_know(self):
        for case in cases():
            known = {**DEFAULTS, **RULE} if case["format"] == 2 else DEFAULTS
            assert case["options"].keys() == known.keys()

    def test_fit_the_schema(self):
        for case in cases():
            AnyCase.validate_python(case)

    def test_stay_where_rounding_is_small(self):
        """A port may round otherwise: nothing may hang on the last digits."""
        for case in cases():
            for step in case["steps"]:
                assert "NaN" not in json.dumps(step) and "Infinity" not in json.dumps(step)
                params = json.dumps(step["expected"]["params"])
                assert all(abs(float(x)) < 10 for x in re.findall(r"[-\d.e]+", params)), case[
                    "name"
                ]

    def test_probes_are_those_of_the_docs(self):
        page = (ROOT / "docs" / "conformance.md").read_text("utf-8")
        names = {}
        exec(re.search(r"^def mix.*?^```", page, re.DOTALL | re.MULTILINE)[0][:-3], names)
        vectors = json.loads((FOLDER / "probes.json").read_text("utf-8"))
        assert len(vectors) == len(conformance_vectors.PROBES)
        for vector in vectors:
            signs = vector.pop("signs")
            assert names["probe"](**vector) == signs
        for case in cases():
            seed = case["options"]["seed"]
            for step, record in enumerate(case["steps"]):
                for sample, probes in enumerate(record["probes"]):
                    for tensor, z in enumerate(probes):
                        flat = [int(x) for x in re.findall(r"-?\d", json.dumps(z))]
                        assert flat == names["probe"](seed, step, sample, tensor, len(flat))


class TestOurs:
    @pytest.mark.parametrize("factory", [port, published.ours], ids=["by itself", "replayed"])
    def test_torch_passes(self, factory):
        outcomes = [check(factory, case) for case in cases()]
        assert not [o for o in outcomes if o.is_bad]
        left_out = {o.case for o in outcomes if o.verdict != "passes"}
        assert left_out == {name for name in CASES if name.startswith("hwio")}

    @pytest.mark.parametrize("name", ["hwio-runs", "accumulated", "clipped"])
    def test_jax_passes(self, name):
        pytest.importorskip("optax")
        from adahessian.jax.conformance import port

        assert check(port, one(name)).verdict == "passes"

    def test_jax_says_what_it_has_not(self):
        pytest.importorskip("optax")
        from adahessian.jax.conformance import port

        for name in ("sassha-delayed", "sophia-delayed", "uncorrected"):
            assert check(port, one(name)).verdict == "not implemented"


def without(case, option):
    changed = copy.deepcopy(case)
    changed["options"][option] = {**DEFAULTS, **RULE}[option]
    return changed


class TestTheyTell:
    @pytest.mark.parametrize("option", {**DEFAULTS, **RULE})
    def test_an_option_that_is_ignored(self, option):
        usual = {**DEFAULTS, **RULE}[option]
        chosen = [c for c in cases() if c["options"].get(option, usual) != usual]

        def params_alone(case):  # the averages of another rule have other names
            step = port(case)
            return lambda given: {"params": step(given)["params"]}

        verdicts = {c["name"]: check(params_alone, without(c, option)).verdict for c in chosen}
        assert "fails" in verdicts.values(), verdicts

    @pytest.mark.parametrize(
        ("place", "option"),
        [(i, name) for i, p in enumerate(one("groups")["params"]) for name in p["options"]],
    )
    def test_an_option_of_a_parameter_that_is_ignored(self, place, option):
        case = one("groups")
        del case["params"][place]["options"][option]
        assert check(port, case).verdict == "fails"

    def test_a_layout_that_is_ignored(self):
        for case in cases("hwio-*"):
            for param in case["params"]:
                order = ("out", "in", "kernel")
                param["axes"] = sorted(param["axes"], key=order.index)
            assert check(published.ours, case).verdict == "fails", case["name"]

    def test_micro_batches_whose_magnitudes_are_added(self):
        def factory(case):
            step = published.ours(case)

            def wrong(given):
                probes = given["probes"]
                for batch in given["batches"]:
                    batch["products"] = [
                        [magnitude(h, z) for h, z in zip(hs, zs, strict=True)]
                        for hs, zs in zip(batch["products"], probes, strict=True)
                    ]
                return step(given)

            return wrong

        def magnitude(h, z):  # |h| with z's sign, so that z times it is a magnitude
            if isinstance(h, list):
                return [magnitude(a, b) for a, b in zip(h, z, strict=True)]
            return abs(h) * z

        assert check(factory, one("defaults-convolution")).verdict == "passes"
        assert check(factory, one("accumulated")).verdict == "fails"

    def test_a_digit_in_any_quantity(self):
        def factory(case):
            step = port(case)

            def wrong(given):
                found = {key: [a.tolist() for a in arrays] for key, arrays in step(given).items()}
                found[quantity][1][0] *= 1 + 1e-8
                return found

            return wrong

        for quantity in ("params", "exp_avg", "exp_hessian_diag_sq"):
            outcome = check(factory, one("betas"))
            assert outcome.verdict == "fails"
            assert outcome.remark.startswith(f"step 1, {quantity} of biases: ")
            assert check(factory, one("betas"), rtol=1e-6).verdict == "passes"

    @pytest.mark.parametrize(
        ("found", "verdict", "remark"),
        [
            ({"params": [[1.0] * 6, [1.0]]}, "fails", r"shape \(6,\) instead of \(2, 3\)"),
            ({"params": [[[math.nan] * 3] * 2, [1.0] * 2]}, "fails", "nan instead of"),
            ({"params": [[1.0]]}, "error", "1 arrays in 'params' for 2 parameters"),
            ({"params": [[[1.0], [1.0, 2.0]], [1.0]]}, "error", "rows differ in length"),
            ({"exp_avg": []}, "error", 'a dict with "params"'),
            ({"params": [], "m": []}, "error", "'m', which is none of"),
            (None, "error", 'a dict with "params"'),
        ],
    )
    def test_what_is_no_answer(self, found, verdict, remark):
        outcome = check(lambda case: lambda given: found, one("defaults-quadratic"))
        assert outcome.verdict == verdict and re.search(remark, outcome.remark), outcome

    def test_an_error_is_a_line_and_what_is_expected_is_not_shown(self):
        def factory(case):
            assert "steps" not in case

            def step(given):
                assert given.keys() == {"probes", "batches"}
                return {}["no such\nkey"]

            return step

        outcome = check(factory, one("betas"))
        assert outcome.verdict == "error" and outcome.remark.startswith("step 1, KeyError")
        assert "\n" not in outcome.remark


class TestTheCommand:
    def test_passes(self, capsys):
        arguments = ["adahessian.conformance.torch_port:port", "--cases", "*network"]
        assert command.main(arguments) == 0
        out = capsys.readouterr().out
        assert "runs-network" in out and "4 cases: 3 passes, 1 not implemented" in out

    def test_fails_and_says_where(self, tmp_path):
        (tmp_path / "stranger.py").write_text(
            "def factory(case):\n"
            "    return lambda given: {'params': [p['value'] for p in case['params']]}\n",
            encoding="utf-8",
        )
        result = subprocess.run(
            [sys.executable, "-m", "adahessian.conformance", "stranger:factory"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        assert result.returncode == 1 and not result.stderr, result.stderr
        assert re.search(r"^betas +fails +step 1, params of kernels: \S+ instead of \S+$",
                         result.stdout, re.MULTILINE)  # fmt: skip
        assert re.search(rf"^{len(CASES)} cases: 1 passes, \d+ fails$", result.stdout, re.MULTILINE)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["nothing"], "'nothing' is not of the form module:factory"),
            (["no_such_module:factory"], "No module named 'no_such_module'"),
            (["json:factory"], "no attribute 'factory'"),
            (["json:loads", "--cases", "x*"], "no case is named 'x\\*'"),
        ],
    )
    def test_refuses_in_one_line(self, arguments, message, capsys):
        assert command.main(arguments) == 2
        error = capsys.readouterr().err
        assert re.search(message, error) and error.count("\n") == 1

    def test_needs_no_torch(self):
        code = (
            "import sys, adahessian.conformance as c; c.cases(); assert 'torch' not in sys.modules"
        )
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)

    def test_says_that_none_of_ours_can_run(self, monkeypatch, capsys):
        monkeypatch.setattr(command, "find_spec", lambda package: None)
        assert command.main([]) == 2
        assert "none of ours can run here" in capsys.readouterr().err

    def test_ours_are_what_is_installed(self):
        keras = "adahessian.keras.conformance:port"
        assert set(command.OURS) == {PORTS["torch"], PORTS["JAX"], keras}


@pytest.mark.slow
@pytest.mark.skipif(not NIGHTLY, reason="at night: ours are tested above, case by case")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_table_of_the_docs():
    for package in ("optax", "timm", "torch_optimizer", "pytorch_optimizer"):
        pytest.importorskip(package)
    chosen, columns = cases(), {}
    for name, factory in PORTS.items():
        columns[name] = [check(command.load(factory), case) for case in chosen]
    assert not [o for name in ("torch", "JAX") for o in columns[name] if o.is_bad]
    left_out = {o.case for o in columns["JAX"] if o.verdict != "passes"}
    assert left_out == {c["name"] for c in chosen if is_of_another_rule(c)}
    cells = {
        name: {o.case: conformance_table.cell(o) for o in column}
        for name, column in columns.items()
    }
    conformance_table.check(cells, UPDATE)
