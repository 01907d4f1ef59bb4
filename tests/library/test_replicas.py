"""Several real processes (gloo on the CPU) train what one process trains on the whole batch."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support import distributed_cases
from support.nightly import NIGHTLY
from support.patience import PATIENCE
from support.rules import SASSHA, SOPHIA

from adahessian import AdaHessian

TESTS = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=[2, 4] if NIGHTLY else [2], ids="{} processes".format)
def results(request, tmp_path_factory):
    """Return what each process got, by case."""
    out = tmp_path_factory.mktemp("processes")
    world = request.param
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "error", TESTS / "support/distributed_cases.py", str(rank),
             str(world), out / "store", out],
            env={"PYTHONPATH": f"{TESTS.parent}:{TESTS}", "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(world)
    ]  # fmt: skip
    outputs = [p.communicate(timeout=PATIENCE)[0] for p in processes]
    assert all(p.returncode == 0 for p in processes), "\n".join(outputs)
    return [
        {**torch.load(out / f"{rank}.pt", weights_only=True), "out": out} for rank in range(world)
    ]


def alone(unused=False, only=None, **options):
    model = distributed_cases.network(unused, only)
    distributed_cases.train(model, 0, 1, **options)
    return distributed_cases.values(model)


def assert_equal(results, case, expected, tolerance):
    for result in results:
        for ours, reference in zip(result[case], expected, strict=True):
            torch.testing.assert_close(ours, reference, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("case", "options"),
    [
        ("double backward", {}),
        ("double backward, signed", {"averaging": "signed", "num_samples": 2}),
        ("double backward, clipped", {"max_grad_norm": 0.05}),
        ("double backward, unused parameter", {"unused": True}),
        ("double backward, sophia", {**SOPHIA, "lr": 0.5}),
        ("double backward, sassha", SASSHA),
    ],
)
def test_double_backward_on_the_bare_module(results, case, options):
    """Regression: REF averages |H·z| and discards it; DAV reduces nothing: the replicas drift."""
    assert_equal(results, case, alone(**options), 1e-12)


@pytest.mark.parametrize(
    ("case", "options"),
    [
        ("finite difference, bare", {}),
        ("finite difference, unused parameter", {"unused": True}),
        ("ddp", {}),
        ("ddp, bucket views", {}),
        ("ddp, one parameter", {"only": "out.bias"}),  # a bucket holds nothing else
        ("ddp, plain hook", {}),
        ("fsdp", {}),
        ("fsdp, runs of 7", {"block_size": 7}),
        ("fsdp, clipped", {"max_grad_norm": 0.05}),
        ("fsdp, sassha", SASSHA),
    ],
)
def test_finite_difference(results, case, options):
    assert_equal(results, case, alone(curvature="finite_difference", **options), 1e-6)


@pytest.mark.parametrize(
    ("case", "curvature"),
    [
        ("part, bare", "double_backward"),
        ("part, bare, finite difference", "finite_difference"),
        ("part, ddp", "double_backward"),
        ("part, ddp, static graph", "double_backward"),
        ("part, ddp, unused", "double_backward"),
        ("part, ddp, finite difference", "finite_difference"),
    ],
)
def test_part_of_the_batch(results, case, curvature):
    """Each process takes a part of its own shard; their mean is the part of one process alone."""
    expected = alone(curvature=curvature, shards=len(results), **distributed_cases.PART)
    assert_equal(results, case, expected, 1e-6 if "finite" in curvature else 1e-12)


def test_part_of_the_batch_of_another_rule(results):
    expected = alone(shards=len(results), **{**distributed_cases.PART, **SOPHIA, "lr": 0.5})
    assert_equal(results, "part, bare, sophia", expected, 1e-12)


def test_part_of_the_batch_is_not_left_unaveraged(results):
    assert all("process_group=" in result["part, no group"] for result in results)


def test_part_of_the_batch_under_fsdp_is_refused(results):
    assert all("does not work with fully_shard" in result["part, fsdp"] for result in results)


@pytest.mark.parametrize("how", ["", ", ddp"])
@pytest.mark.parametrize("curvature", ["double_backward", "finite_difference"])
def test_a_part_that_one_process_lacks_postpones_the_refresh_of_all(results, curvature, how):
    """Also where a check is due, in which the processes exchange what they find."""
    case = f"part, one lacks it, {curvature}{how}"
    assert all(result[case] == [0, 1, 1, 3] for result in results)


@pytest.mark.parametrize("which", ["", ", one parameter"])
def test_double_backward_under_ddp_names_the_ways_out(results, which):
    for result in results:
        assert "process_group=" in result[f"ddp, double backward{which}"]
        assert "finite_difference" in result[f"ddp, double backward{which}"]


@pytest.mark.parametrize("hook", ["bf16_compress_hook", "FP16_COMPRESS"])
def test_a_hook_that_changes_gradients_is_refused(results, hook):
    """Regression: the difference of compressed gradients was exactly zero, or off by 39 %."""
    for result in results:
        assert f"{hook} of DistributedDataParallel" in result[f"ddp, {hook}"]
        assert "curvature_fraction" in result[f"ddp, {hook}"]


def test_a_part_of_the_batch_is_averaged_beside_a_hook(results):
    """The gradient is a compressed one, so that parameters agree to its digits."""
    expected = alone(curvature="finite_difference", shards=len(results), **distributed_cases.PART)
    assert_equal(results, "part, ddp, compressed", expected, 5e-3)
    pair = [result["part, ddp, compressed"] for result in results[:2]]
    for ours, first in zip(*pair, strict=True):
        assert torch.equal(ours, first)


@pytest.mark.parametrize("case", ["zero", "part, zero", "other seeds"])
def test_optimizers_that_differ_are_refused(results, case):
    """Regression: with parameters of each process's own, z · Hz was half of the truth."""
    assert all("optimizers of the processes" in result[case] for result in results)


def test_gradients_that_are_summands_are_summed(results):
    """Regression: each process stepped by its own summand, and the replicas drifted."""
    expected = distributed_cases.sequence_parallel("finite_difference")(0, 1)
    assert_equal(results, "sequence parallel", expected, 1e-5)


def test_a_loss_that_is_a_sum_over_the_processes(results):
    """Regression: torch refused to compare two of them."""
    assert_equal(results, "replicated", distributed_cases.replicated(0, 1), 1e-5)


def test_double_backward_of_dtensors_is_refused(results):
    assert all("DTensors" in result["sequence parallel, double backward"] for result in results)


def test_processes_with_parts_of_parameters_decide_alike(results):
    """Regression: one chose another step h, or raised, and the others waited for it."""
    found = [result["fsdp, large in one process"] for result in results]
    assert len(set(found)) == 1 and not found[0][0] and found[0][1] > 1
    errors = {result["fsdp, large in one process, unchecked"][0] for result in results}
    assert len(errors) == 1 and "lost in the rounding" in errors.pop()


def test_a_reduction_that_rounds_is_refused(results):
    """Regression: z · Hz was exactly zero."""
    assert all("reduce_dtype" in result["fsdp, reduced in bfloat16"] for result in results)


def test_what_one_process_doubts_is_left_out_by_all(results):
    for result in results:
        (said,), is_finite = result["fsdp, doubted in one process"]
        assert "too far from the first" in said and is_finite


def test_replicas_of_shards_are_compared(results):
    """Regression: the shards of one parameter were, and are not the same."""
    for result in results:
        assert result["fsdp, replicas"] == ["", ""]
        equal, drifted = result["fsdp, replicas of shards"]
        assert equal == "" and "parameter 2 of the optimizer" in drifted


@pytest.mark.parametrize("case", ["ddp, join", "part, ddp, join"])
def test_join_names_the_way(results, case):
    """Regression: a process without data answered the checks' messages as if a bucket's."""
    assert all("check_interval=0" in result[case] for result in results)


def test_join_without_checks(results):
    assert_equal(results, "ddp, join, unchecked", results[0]["ddp, join, unchecked"], 1e-12)


def test_drift_is_found_on_every_process(results):
    for result in results:
        assert "drifted apart: parameter 5" in result["drift"]


@pytest.mark.parametrize("curvature", ["double_backward", "finite_difference"])
def test_accumulation_over_micro_batches_is_the_whole_batch(curvature):
    """Regression: the published ones average over no micro-batches, or add up |H·z|."""
    expected = alone(curvature=curvature)
    tolerance = 1e-12 if curvature == "double_backward" else 1e-6
    for ours, reference in zip(alone(curvature=curvature, micro_batches=4), expected, strict=True):
        torch.testing.assert_close(ours, reference, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("case", "curvature"),
    [
        ("left out, bare", "double_backward"),
        ("left out, bare, finite difference", "finite_difference"),
        ("left out, ddp", "finite_difference"),
        ("left out, fsdp", "finite_difference"),
    ],
)
def test_a_curvature_that_is_not_finite_in_one_process_is_left_out_by_all(results, case, curvature):
    expected = distributed_cases.left_out(curvature=curvature)(0, 1)
    assert all(p.isfinite().all() for p in expected)
    assert_equal(results, case, expected, 1e-6 if "finite" in curvature else 1e-12)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("case", distributed_cases.CHECKPOINTS)
def test_a_distributed_checkpoint_goes_on_sharded_and_alone(results, case):
    """Under fully_shard, into as many processes and into one."""
    flags = distributed_cases.CHECKPOINTS[case]
    options = {"curvature": "finite_difference", "lr": 0.05, "weight_decay": 0.01}
    options |= distributed_cases.CHECKPOINT_OPTIONS.get(case, {})
    model = distributed_cases.network()
    optimizer = distributed_cases.train(model, 0, 1, **options)
    distributed_cases.train(model, 0, 1, optimizer)
    expected = distributed_cases.values(model)
    assert_equal(results, case, expected, 1e-6)
    alone = distributed_cases.network()
    optimizer = AdaHessian(alone.parameters(), **options)
    distributed_cases.load(results[0]["out"] / case, alone, optimizer, **flags)
    distributed_cases.train(alone, 0, 1, optimizer)
    assert_equal([{case: distributed_cases.values(alone)}], case, expected, 1e-6)
