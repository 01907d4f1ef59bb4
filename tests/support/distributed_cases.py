"""What one process of tests/library/test_replicas.py does.

It trains on its share and saves what it got.
"""

import datetime
import os
import sys
import warnings
from functools import partial

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from support.patience import PATIENCE
from support.rules import SASSHA, SOPHIA
from support.spoiled import Spoiled
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.distributed.algorithms.join import Join
from torch.distributed.checkpoint import state_dict
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from adahessian import AdaHessian

STEPS, BATCH = 20, 256
PART = {"curvature_fraction": 0.25}


class Network(nn.Module):
    """Convolution, attention-free, no batch normalization: the loss is a mean over the images."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3)
        self.hidden = nn.Linear(6 * 9, 13)  # 13 rows: no world size divides them
        self.out = nn.Linear(13, 10)

    def forward(self, x):
        x = nn.functional.max_pool2d(torch.relu(self.conv(x)), 2).flatten(1)
        return self.out(torch.relu(self.hidden(x)))


def data():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(BATCH, 1, 8, 8, generator=g, dtype=torch.float64)
    return x, torch.randint(10, (BATCH,), generator=g)


class Spoilable(Network):
    """Its last layer's last rows have no second derivative in some steps of the last process."""

    spoil = False

    def forward(self, x):
        out = super().forward(x)
        weight = self.out.weight
        here = weight.detach().clone()  # at each evaluation: the same computation
        if Spoiled.at is None:
            Spoiled.at = here
        Spoiled.spoil = self.spoil
        return out + 0.1 * Spoiled.apply(weight).sum(1)


def as_it_is(model, world):
    return model


def left_out(wrap=as_it_is, **options):
    """Train with a curvature that is not finite in one process, at the first step and later."""

    def case(rank, world):
        torch.manual_seed(0)
        model = Spoilable().double()
        wrapped = wrap(model, world)
        if world > 1 and wrap is as_it_is:
            options["process_group"] = dist.group.WORLD
        optimizer = AdaHessian(wrapped.parameters(), lr=0.05, **options)
        x, y = (t.chunk(world)[rank] for t in data())

        def closure():
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(wrapped(x), y)
            loss.backward(create_graph=optimizer.needs_graph)
            return loss

        for step in range(8):
            Spoiled.at, model.spoil = None, step in (0, 4, 5) and rank == world - 1
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                optimizer.step(closure)
            assert len(caught) == (step in (0,)), [str(w.message) for w in caught]
        Spoiled.spoil = False
        steps = [s["num_refreshes"].item() for s in optimizer.state.values()]
        assert sorted(set(steps)) == [7, 8], steps
        return values(model)

    return case


def with_ddp(model, world):
    return nn.parallel.DistributedDataParallel(model)


def with_fsdp(model, world):
    for layer in (model.conv, model.hidden, model):
        fully_shard(layer, mesh=dist.init_device_mesh("cpu", (world,)))
    return model


def train(model, rank, world, optimizer=None, micro_batches=1, shards=1, **options):
    """Take ``STEPS`` steps; one process alone takes its parts as ``shards`` of them would."""
    x, y = (t.chunk(world)[rank] for t in data())
    options = {"lr": 0.05, "block_size": "kernel", "weight_decay": 0.01, **options}
    optimizer = optimizer or AdaHessian(model.parameters(), **options)

    def closure():
        optimizer.zero_grad()
        total = 0.0
        for xs, ys in zip(x.chunk(micro_batches), y.chunk(micro_batches), strict=True):
            loss = nn.functional.cross_entropy(model(xs), ys) / micro_batches
            loss.backward(create_graph=optimizer.needs_graph)
            total += loss.detach()
        return total

    def curvature_closure(start, stop):
        parts = []
        for xs, ys in zip(x.chunk(shards), y.chunk(shards), strict=True):
            rows = slice(round(start * len(xs)), round(stop * len(xs)))
            parts.append((xs[rows], ys[rows]))
        xs, ys = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        return nn.functional.cross_entropy(model(xs), ys)

    part = {"curvature_closure": curvature_closure} if "curvature_fraction" in options else {}
    for _ in range(STEPS):
        optimizer.step(closure, **part)
    return optimizer


def network(unused=False, only=None):
    torch.manual_seed(0)
    model = Network().double()
    if unused:
        model.unused = nn.Parameter(torch.ones(3, dtype=torch.float64))
    if only is not None:  # the only parameter that is trained
        model.requires_grad_(False)
        model.get_parameter(only).requires_grad_()
    return model


def values(model):
    # The unused one differs: processes exchange zeros for its gradient, and weight decay acts.
    params = [p for name, p in model.named_parameters() if name != "unused"]
    full = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in params]
    return [p.detach().clone() for p in full]


def bare(curvature, unused=False, **options):
    def case(rank, world):
        model = network(unused)
        group = dist.group.WORLD
        optimizer = train(model, rank, world, curvature=curvature, process_group=group, **options)
        optimizer.check_replicas()
        return values(model)

    return case


def ddp(curvature="finite_difference", options=None, only=None, **wrapping):
    def case(rank, world):
        model = nn.parallel.DistributedDataParallel(network(only=only), **wrapping)
        train(model, rank, world, curvature=curvature, **(options or {})).check_replicas()
        return values(model)

    return case


def fsdp(**options):
    def case(rank, world):
        model = with_fsdp(network(), world)
        train(model, rank, world, curvature="finite_difference", **options)
        return values(model)

    return case


def ddp_double_backward(only=None):
    def case(rank, world):
        model = nn.parallel.DistributedDataParallel(network(only=only))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch's, of the same
                train(model, rank, world)
        except RuntimeError as error:
            return "\n".join([str(error), *getattr(error, "__notes__", ())])

    return case


def ddp_with_hook(hook, **options):
    """Its parameters, or the error."""

    def case(rank, world):
        model = nn.parallel.DistributedDataParallel(network())
        if isinstance(hook, dist.BuiltinCommHookType):
            model._register_builtin_comm_hook(hook)
        else:
            model.register_comm_hook(None, hook)
        try:
            train(model, rank, world, curvature="finite_difference", **options)
        except RuntimeError as error:
            return str(error)
        return values(model)

    return case


class Alike(nn.Module):
    """Parameters of one shape, as many as there are processes."""

    def __init__(self):
        super().__init__()
        values = torch.ones(3, dtype=torch.float64)
        self.all = nn.ParameterList([values.clone() for _ in range(dist.get_world_size())])

    def forward(self):
        return sum(5 * (p**2).sum() for p in self.all)


def differing(make, **options):
    """Return the error of a step of an optimizer, by process."""

    def case(rank, world):
        model = nn.parallel.DistributedDataParallel(Alike())
        optimizer = make(model.parameters(), rank, lr=0.05, **options)

        def closure():
            optimizer.zero_grad()
            loss = model()
            loss.backward()
            return loss

        if PART.keys() <= options.keys():
            optimizer.optim.curvature_closure = lambda start, stop: model()
        try:
            optimizer.step(closure)
        except RuntimeError as error:
            return str(error)

    return case


def zero(params, rank, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch 2.11's own of torch.jit
        from torch.distributed.optim import ZeroRedundancyOptimizer
    return ZeroRedundancyOptimizer(params, optimizer_class=AdaHessian, **options)


def of_another_seed(params, rank, **options):
    return AdaHessian(params, seed=rank, **options)


class Parallel(nn.Module):
    """Of two kinds of parallelism: divided weights, and a normalization of divided sequences."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.hidden = nn.Linear(4, 8)
        self.out = nn.Linear(8, 4)

    def forward(self, x):
        return self.out(torch.tanh(self.hidden(self.norm(x))))


def sequence_parallel(curvature):
    """The gradients of the normalization's parameters are sums, of which each has a summand."""

    def case(rank, world):
        torch.manual_seed(0)
        model = Parallel().double()
        x, y = torch.randn(2, 2, 8, 4, dtype=torch.float64)
        if world > 1:
            plan = {
                "norm": SequenceParallel(),
                "hidden": ColwiseParallel(input_layouts=Shard(1)),
                "out": RowwiseParallel(output_layouts=Replicate()),
            }
            parallelize_module(model, dist.init_device_mesh("cpu", (world,)), plan)
            x = x.chunk(world, 1)[rank]
        optimizer = AdaHessian(model.parameters(), lr=0.05, curvature=curvature)

        def closure():
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(x), y)
            loss.backward(create_graph=optimizer.needs_graph)
            return loss

        try:
            for _ in range(5):
                optimizer.step(closure)
        except RuntimeError as error:
            return str(error)
        if world > 1:
            optimizer.check_replicas()
        return values(model)

    return case


def replicated(rank, world):
    """Replicated weights and divided examples: gradient and loss are sums over the processes."""
    torch.manual_seed(0)
    weight = torch.randn(2, 3, dtype=torch.float64)
    x, y = (torch.randn(8, n, dtype=torch.float64) for n in (3, 2))
    if world > 1:
        mesh = dist.init_device_mesh("cpu", (world,))
        weight = distribute_tensor(weight, mesh, [Replicate()])
        x, y = (distribute_tensor(t, mesh, [Shard(0)]) for t in (x, y))
    model = nn.ParameterList([weight])
    optimizer = AdaHessian(model.parameters(), lr=0.05, curvature="finite_difference")

    def closure():
        optimizer.zero_grad()
        loss = (torch.tanh(x @ model[0].t()) - y).square().sum()
        loss.backward()
        return loss

    losses = [optimizer.step(closure) for _ in range(5)]
    return [*values(model), torch.stack(losses)]


def large_in_one_process(check_interval):
    """Return (error, scale of h): the step is lost in the rounding of the first process's rows."""

    def case(rank, world):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
        with torch.no_grad():
            model[0].weight[: 8 // world] *= 1e4
        x = torch.randn(16, 4).chunk(world)[rank]
        fully_shard(model, mesh=dist.init_device_mesh("cpu", (world,)))
        optimizer = AdaHessian(
            model.parameters(), curvature="finite_difference", check_interval=check_interval
        )

        def closure():
            optimizer.zero_grad()
            loss = (model(x) - 1).square().mean()
            loss.backward()
            return loss

        error = ""
        try:
            optimizer.step(closure)
        except RuntimeError as raised:
            error = str(raised)
        return error, optimizer.param_groups[0]["difference_scale"]

    return case


def reduced_in_bfloat16(rank, world):
    model = network()
    policy = MixedPrecisionPolicy(reduce_dtype=torch.bfloat16)
    fully_shard(model, mesh=dist.init_device_mesh("cpu", (world,)), mp_policy=policy)
    try:
        train(model, rank, world, curvature="finite_difference")
    except RuntimeError as error:
        return str(error)


def doubted_in_one_process(rank, world):
    """Return what the second step warned of, and whether the curvature is finite."""
    model = with_fsdp(network(), world)
    optimizer = AdaHessian(model.parameters(), curvature="finite_difference")
    x, y = (t.chunk(world)[rank] for t in data())
    evaluations = []

    def closure(step):
        evaluations.append(0)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        return loss + 1000 * len(evaluations) * (step == 1 and rank == 0)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(2):
            optimizer.step(partial(closure, step))
    local = optimizer.state[model.out.weight]["exp_hessian_diag_sq"].to_local()
    return [str(w.message) for w in caught], local.isfinite().all().item()


def replicas_of_shards(shards):
    """Return what check_replicas says, before and after a parameter of one process changed."""

    def case(rank, world):
        model, said = network(), []
        mesh = (world // shards(world), shards(world))
        fully_shard(model, mesh=dist.init_device_mesh("cpu", mesh, mesh_dim_names=("a", "b")))
        optimizer = AdaHessian(model.parameters())
        for _ in range(2):
            try:
                optimizer.check_replicas()
                said.append("")
            except RuntimeError as error:
                said.append(str(error))
            if rank == 1:
                model.hidden.weight.detach().to_local().mul_(2)
        return said

    return case


def joined(**options):
    """Processes with different numbers of batches; return the parameters, or the error."""

    def case(rank, world):
        model = nn.parallel.DistributedDataParallel(network())
        optimizer = AdaHessian(
            model.parameters(), curvature="finite_difference", lr=0.05, **options
        )
        x, y = (t.chunk(world)[rank] for t in data())

        def closure():
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            return loss

        def part(start, stop):
            rows = slice(round(start * len(x)), round(stop * len(x)))
            return nn.functional.cross_entropy(model(x[rows]), y[rows])

        if PART.keys() <= options.keys():
            optimizer.curvature_closure = part
        try:
            with Join([model]):
                for _ in range(2 + rank):
                    optimizer.step(closure)
        except RuntimeError as error:
            return str(error)
        return values(model)

    return case


def drift(rank, world):
    model = network()
    optimizer = AdaHessian(model.parameters())
    optimizer.check_replicas()
    if rank == 1:
        with torch.no_grad():  # a permutation: the norm stays
            w = model.out.bias
            w.copy_(w.flip(0))
    try:
        optimizer.check_replicas()
    except RuntimeError as error:
        return str(error)


def part_without_group(rank, world):
    """Bare modules whose gradients somebody else averages."""
    try:
        train(network(), rank, world, **PART)
    except RuntimeError as error:
        return str(error)


def part_under_fsdp(rank, world):
    try:
        fsdp(**PART)(rank, world)
    except ValueError as error:
        return str(error)


def part_that_one_process_lacks(curvature, with_ddp):
    """As where a shard of an epoch's last batch is empty; every refresh checks itself."""

    def case(rank, world):
        module, refreshed = network(), []
        group = None if with_ddp else dist.group.WORLD
        model = nn.parallel.DistributedDataParallel(module) if with_ddp else module
        options = {**PART, "curvature": curvature, "check_interval": 1, "process_group": group}
        optimizer = AdaHessian(module.parameters(), **options)
        x, y = (t.chunk(world)[rank] for t in data())
        for step in range(4):

            def part(start, stop, step=step):
                if step == 2 and rank == world - 1:
                    return None
                rows = slice(round(start * len(x)), round(stop * len(x)))
                return nn.functional.cross_entropy(model(x[rows]), y[rows])

            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step(curvature_closure=part)
            refreshed.append(optimizer.param_groups[0]["last_refresh"])
        optimizer.check_replicas()
        return refreshed

    return case


def sharded(options):
    """Return (model, optimizer) under fully_shard, not stepped yet."""
    model = with_fsdp(network(), dist.get_world_size())
    return model, AdaHessian(model.parameters(), curvature="finite_difference", **options)


def save(path, model, optimizer, **flags):
    options = state_dict.StateDictOptions(**flags)
    state = state_dict.get_state_dict(model, optimizer, options=options)
    dcp.save(dict(zip(("model", "optimizer"), state, strict=True)), checkpoint_id=path)


def load(path, model, optimizer, **flags):
    """As a training does that is begun anew: the files go into what a fresh optimizer has."""
    options = state_dict.StateDictOptions(**flags)
    state = state_dict.get_state_dict(model, optimizer, options=options)
    state = dict(zip(("model", "optimizer"), state, strict=True))
    dcp.load(state, checkpoint_id=path)
    state_dict.set_state_dict(
        model,
        optimizer,
        model_state_dict=state["model"],
        optim_state_dict=state["optimizer"],
        options=options,
    )


# Each is a folder that a single process reads as well.
CHECKPOINTS = {
    "checkpoint": {},
    "checkpoint, flattened": {"flatten_optimizer_state_dict": True},
    "checkpoint between refreshes": {},
    "checkpoint of another rule": {},
}
CHECKPOINT_OPTIONS = {
    "checkpoint between refreshes": {"update_interval": 3},
    "checkpoint of another rule": SASSHA,
}


def checkpoint(name):
    flags = CHECKPOINTS[name]
    options = {"lr": 0.05, "weight_decay": 0.01, **CHECKPOINT_OPTIONS.get(name, {})}

    def case(rank, world):
        model, optimizer = sharded(options)
        train(model, rank, world, optimizer)
        save(f"{OUT}/{name}", model, optimizer, **flags)
        model, optimizer = sharded(options)
        with torch.no_grad():
            for p in model.parameters():
                p.zero_()
        load(f"{OUT}/{name}", model, optimizer, **flags)
        assert all(s["num_refreshes"] > 0 for s in optimizer.state.values())
        train(model, rank, world, optimizer)
        return values(model)

    return case


OUT = ""  # where to write, of the process
CASES = {
    **{name: checkpoint(name) for name in CHECKPOINTS},
    "part, fsdp": part_under_fsdp,
    **{
        f"part, one lacks it, {curvature}{how}": part_that_one_process_lacks(curvature, bool(how))
        for curvature in ("double_backward", "finite_difference")
        for how in ("", ", ddp")
    },
    "double backward": bare("double_backward"),
    "double backward, signed": bare("double_backward", averaging="signed", num_samples=2),
    "double backward, clipped": bare("double_backward", max_grad_norm=0.05),
    "double backward, unused parameter": bare("double_backward", unused=True),
    "double backward, sophia": bare("double_backward", **{**SOPHIA, "lr": 0.5}),
    "double backward, sassha": bare("double_backward", **SASSHA),
    "finite difference, bare": bare("finite_difference"),
    "finite difference, unused parameter": bare("finite_difference", unused=True),
    "ddp": ddp(),
    "ddp, bucket views": ddp(gradient_as_bucket_view=True),
    "ddp, one parameter": ddp(only="out.bias", gradient_as_bucket_view=True),
    "part, bare": bare("double_backward", **PART),
    "part, bare, finite difference": bare("finite_difference", **PART),
    "part, ddp": ddp("double_backward", PART),
    "part, ddp, finite difference": ddp("finite_difference", PART, gradient_as_bucket_view=True),
    "part, ddp, static graph": ddp("double_backward", PART, static_graph=True),
    "part, ddp, unused": ddp("double_backward", PART, find_unused_parameters=True),
    "part, no group": part_without_group,
    "fsdp": fsdp(),
    "fsdp, runs of 7": fsdp(block_size=7),
    "fsdp, clipped": fsdp(max_grad_norm=0.05),
    "fsdp, sassha": fsdp(**SASSHA),
    "part, bare, sophia": bare("double_backward", **{**PART, **SOPHIA, "lr": 0.5}),
    "ddp, double backward": ddp_double_backward(),
    "ddp, double backward, one parameter": ddp_double_backward("out.bias"),
    "ddp, plain hook": ddp_with_hook(default_hooks.allreduce_hook),
    "ddp, bf16_compress_hook": ddp_with_hook(default_hooks.bf16_compress_hook),
    "ddp, FP16_COMPRESS": ddp_with_hook(dist.BuiltinCommHookType.FP16_COMPRESS),
    "part, ddp, compressed": ddp_with_hook(default_hooks.bf16_compress_hook, **PART),
    "zero": differing(zero, curvature="finite_difference"),
    "part, zero": differing(zero, **PART),
    "other seeds": differing(of_another_seed, curvature="finite_difference"),
    "sequence parallel": sequence_parallel("finite_difference"),
    "replicated": replicated,
    "sequence parallel, double backward": sequence_parallel("double_backward"),
    "fsdp, large in one process": large_in_one_process(500),
    "fsdp, large in one process, unchecked": large_in_one_process(0),
    "fsdp, reduced in bfloat16": reduced_in_bfloat16,
    "fsdp, doubted in one process": doubted_in_one_process,
    "fsdp, replicas": replicas_of_shards(lambda world: world),
    "fsdp, replicas of shards": replicas_of_shards(lambda world: world // 2),
    "ddp, join": joined(),
    "ddp, join, unchecked": joined(check_interval=0),
    "part, ddp, join": joined(**PART),
    "drift": drift,
    "left out, bare": left_out(),
    "left out, bare, finite difference": left_out(curvature="finite_difference"),
    "left out, ddp": left_out(with_ddp, curvature="finite_difference"),
    "left out, fsdp": left_out(with_fsdp, curvature="finite_difference"),
}


def main(rank, world, store, out):
    global OUT
    OUT = out
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", f"file://{store}", rank=rank, world_size=world,
        timeout=datetime.timedelta(seconds=PATIENCE),
    )  # fmt: skip
    torch.save({name: case(rank, world) for name, case in CASES.items()}, f"{out}/{rank}.pt")
    dist.barrier()  # nobody closes a connection that another one still uses
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4])
    # Past the interpreter's own end: a communication thread of torch that still wants to call
    # Python then, as after the failed backward under DistributedDataParallel, kills the process
    # ("terminate called without an active exception", seen once in CI).
    sys.stdout.flush()
    os._exit(0)
