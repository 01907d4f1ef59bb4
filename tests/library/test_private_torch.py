"""torch's private names are there, do what we need, and are touched in one file only.

Runs on the oldest and the newest torch that we support.
"""

import contextlib
import re
import warnings
import weakref
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from adahessian import _torch

LIBRARY = Path(_torch.__file__).parent
# torch._foreach_* are documented.
PRIVATE = re.compile(
    r"torch\._C|torch\._(?!foreach_)\w+|torch(\.\w+)*\._\w+ import|torch[\w.]* import .*\b_\w+"
    r"|\._(is_view|version|schema)\b|(?<!self)\._buffers\b"
)


def test_a_backward_method_runs_within_a_context_once():
    seen = []

    @contextlib.contextmanager
    def context():
        seen.append("in")
        try:
            yield
        finally:
            seen.append("out")

    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, *grads):
            seen.append("backward")
            if len(seen) == 2:
                raise ValueError("once")
            return grads[0] * 2

    x = torch.ones(2, requires_grad=True)
    y = Double.apply(x)
    assert y.grad_fn is not None
    alive = weakref.ref(y.grad_fn)
    _torch.run_backward_within(y.grad_fn, context())
    with pytest.raises(ValueError, match="once"):
        y.sum().backward(retain_graph=True)
    y.sum().backward()
    assert seen == ["in", "backward", "out", "backward"] and (x.grad == 2).all()
    _torch.run_backward_within(y.grad_fn, context())
    del y
    assert alive() is None  # it does not hold itself


def test_nothing_else_touches_a_private_name():
    found = [
        f"{path.relative_to(LIBRARY)}:{number}: {line.strip()}"
        for path in sorted(LIBRARY.rglob("*.py"))
        if path.name != "_torch.py"
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if PRIVATE.search(line) and "import _torch" not in line
    ]
    assert not found, "give these a function with a reason in adahessian/_torch.py"


def test_the_search_finds_them():
    text = (LIBRARY / "_torch.py").read_text()
    assert len(PRIVATE.findall(text)) >= 8
    for line in ("x._version", "torch._C._x()", "from torch.utils import _pytree", "m._buffers",
                 "from torch.autograd.graph import Node, _engine_run_backward",
                 "from torch.distributed.tensor._utils import x"):  # fmt: skip
        assert PRIVATE.search(line), line
    for line in ("torch._foreach_mul(x, y)", "self._buffers", "from torch import nn"):
        assert not PRIVATE.search(line), line


def test_what_is_not_compiled_is_called_by_what_is():
    seen = []

    @_torch.not_compiled
    def step(x):
        """Double."""
        seen.append(torch.compiler.is_compiling())
        return 2 * x

    compiled = torch.compile(lambda x: step(x + 1), backend="eager")
    assert compiled(torch.ones(())) == 4 and seen == [False]
    assert step.__doc__ == "Double."


def test_in_backward():
    seen = []
    x = torch.ones(2, requires_grad=True)
    y = x * 2
    y.register_hook(lambda grad: seen.append(_torch.in_backward()))
    y.sum().backward()
    assert seen == [True] and not _torch.in_backward()


def test_in_function_forward():
    seen = {}

    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            seen["forward"] = _torch.in_function_forward()
            return x * 2

        @staticmethod
        def backward(ctx, *grads):
            return grads[0] * 2

    x = torch.ones(2, requires_grad=True)
    Double.apply(x).sum().backward()
    for name, context in (("no_grad", torch.no_grad()), ("inference", torch.inference_mode())):
        with context:
            seen[name] = _torch.in_function_forward()
    assert seen == {"forward": True, "no_grad": False, "inference": False}
    assert not _torch.in_function_forward()


def test_the_sequence_of_operations_and_their_tracebacks():
    x = torch.ones(2, requires_grad=True)
    first = _torch.sequence_number()
    with torch.autograd.set_detect_anomaly(True, check_nan=False):
        y = x.exp()
    z = y.sum()
    assert _torch.number_in_sequence(y.grad_fn) == first
    assert _torch.number_in_sequence(z.grad_fn) == first + 1 == _torch.sequence_number() - 1
    # Not the last one where torch has a default device, whose mode calls it.
    assert any("y = x.exp()" in line for line in _torch.traceback_of(y.grad_fn))
    assert not _torch.traceback_of(z.grad_fn)


class Counting(TorchFunctionMode):
    """Counts the functions that run, and backward passes apart, with itself on within them."""

    def __init__(self):
        super().__init__()
        self.functions, self.backwards = [], 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is Tensor.backward:
            self.backwards += 1
            with self:
                _torch.run_backward([args[0]], [torch.ones_like(args[0])], False, False, [])
            return None
        self.functions.append(func)
        return func(*args, **(kwargs or {}))


def test_a_backward_pass_runs_with_a_mode_on():
    """A checkpoint runs its forward pass a second time within backward: the mode sees it."""
    x = torch.full((2,), 0.5, requires_grad=True)
    with Counting() as mode:
        loss = checkpoint(torch.tanh, x, use_reentrant=False).sum()
        first = mode.functions.count(torch.tanh)
        loss.backward()
    assert mode.backwards == 1 and mode.functions.count(torch.tanh) == 2 * first == 2
    torch.testing.assert_close(x.grad, 1 - torch.tanh(x.detach()) ** 2)


def test_gradients_by_run_backward():
    x, y = (torch.ones(2, requires_grad=True) for _ in range(2))
    loss = (x**3 * y).sum()
    _torch.run_backward([loss], [torch.tensor(2.0)], True, True, [x])
    assert x.grad.tolist() == [6, 6] and x.grad.requires_grad and y.grad is None
    _torch.run_backward([loss], [torch.tensor(1.0)], False, False, [])
    assert y.grad.tolist() == [1, 1]
    with pytest.raises(RuntimeError, match="second time"):
        _torch.run_backward([loss], [torch.tensor(1.0)], False, False, [])


def test_under_functorch():
    seen = []

    def function(x):
        seen.append(_torch.under_functorch())
        return x.sum()

    torch.func.grad(function)(torch.ones(2))
    torch.func.vmap(function)(torch.ones(2, 2))
    assert seen == [True, True] and not _torch.under_functorch()


@pytest.mark.parametrize("reentrant", [False, True])
def test_saved_tensor_hooks(reentrant):
    seen = []

    def function(x):
        seen.append(_torch.has_saved_tensor_hooks())
        return x**2

    x = torch.ones(2, requires_grad=True)
    checkpoint(function, x, use_reentrant=reentrant).sum().backward()
    assert seen == ([False, False] if reentrant else [True, True])
    assert not _torch.has_saved_tensor_hooks()


class Kernels(_torch.TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(_torch.kernel_name(func))
        with _torch.below_torch_functions():
            return func(*args, **(kwargs or {}))


def test_kernels_below_functions():
    with Counting() as functions, Kernels() as kernels:
        torch.nn.functional.relu(torch.ones(2))
    assert "relu" in kernels.names
    assert functions.functions.count(torch.nn.functional.relu) == 1
    assert not [f for f in functions.functions if "aten" in str(f)]


def test_the_derivative_that_is_being_computed():
    x = torch.ones(2, requires_grad=True)
    names = []

    class Derivatives(_torch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            names.append(_torch.derivative_in_backward())
            return func(*args, **(kwargs or {}))

    y = x.prod()
    with Derivatives():
        y.backward()
    assert "ProdBackward0" in names and _torch.derivative_in_backward() == ""


class Arguments(_torch.TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.given = _torch.kernel_arguments(func, args, kwargs or {})
        self.is_mutable = _torch.kernel_is_mutable(func)
        return func(*args, **(kwargs or {}))


def test_arguments_of_kernels():
    x = torch.ones(4)
    with Arguments() as kernels:
        torch.clamp(x, max=3)
        assert kernels.given == {"self": x, "min": None, "max": 3} and not kernels.is_mutable
        x.clamp_(0)
        assert kernels.given["min"] == 0 and kernels.is_mutable


def test_norms_over_all_dims_but_one():
    v = torch.randn(3, 2)
    torch.testing.assert_close(_torch.norm_except_dim(v, 2, 0), v.norm(dim=1, keepdim=True))


def test_views_and_versions():
    x = torch.ones(4)
    assert _torch.is_view(x[:2]) and not _torch.is_view(x)
    before = _torch.version(x)
    x.data.add_(1)
    assert _torch.version(x) == before
    x.add_(1)
    assert _torch.version(x) == before + 1


def test_buffers_are_replaced():
    layer = nn.BatchNorm1d(2)
    own, mean = _torch.buffers(layer), layer.running_mean
    assert list(own) == ["running_mean", "running_var", "num_batches_tracked"]
    own["running_mean"] = torch.full((2,), 3.0)
    assert layer.running_mean.tolist() == [3, 3] and mean.tolist() == [0, 0]


def test_parameters_and_modules_are_those_of_torchs_own_methods():
    shared = nn.Linear(1, 1, bias=False)
    model = nn.Sequential(nn.Sequential(nn.ReLU(), shared), shared, nn.Bilinear(1, 1, 1))
    model.register_module("none", None)
    assert list(_torch.named_modules(model)) == list(model.named_modules())
    for module in model.modules():
        assert _torch.parameters(module) == dict(module.named_parameters(recurse=False))
    unready = nn.Linear.__new__(nn.Linear)
    assert not _torch.parameters(unready) and dict(_torch.named_modules(unready)) == {"": unready}


class _Double(nn.Module):
    def forward(self, x):
        return 2 * x


def test_parametrizations_are_computed_anew_within():
    layer = nn.Linear(2, 2)
    parametrize.register_parametrization(layer, "weight", _Double())
    with parametrize.cached():
        known = layer.weight
        with _torch.without_known_parametrizations():
            within = layer.weight
            assert within is not known and layer.weight is within
        assert layer.weight is known
        with pytest.raises(ValueError), _torch.without_known_parametrizations():
            raise ValueError
        assert layer.weight is known
    with _torch.without_known_parametrizations():
        assert layer.weight is not layer.weight
    assert layer.weight is not layer.weight


def test_the_old_arguments_of_losses():
    assert _torch.legacy_reduction(None, False) == "none"
    assert _torch.legacy_reduction(False, None) == "sum"
    assert _torch.legacy_reduction(True, True) == "mean"


def test_nested_structures():
    paths, spec = _torch.pytree.tree_flatten_with_path({"a": [1, (2,)]})
    assert [value for _, value in paths] == [1, 2]
    assert _torch.pytree.keystr(paths[1][0]) == "['a'][1][0]"
    assert _torch.pytree.tree_unflatten([3, 4], spec) == {"a": [3, (4,)]}
    assert _torch.pytree.tree_leaves({"a": [1, (2,)]}) == [1, 2]


def test_parts_of_a_sharded_tensor():
    from torch.distributed.tensor import DTensor, Shard, init_device_mesh
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist = torch.distributed
    dist.init_process_group("fake", store=FakeStore(), rank=1, world_size=2)
    try:
        part = torch.ones(2, 3)  # the second of two; 5 rows in all
        tensor = DTensor.from_local(
            part, init_device_mesh("cpu", (2,)), [Shard(0)], shape=(5, 3), stride=(3, 1)
        )
        assert _torch.local_shape_and_offset(tensor) == ((2, 3), (3, 0))
    finally:
        dist.destroy_process_group()


def test_hooks_that_reduce_gradients(tmp_path):
    from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

    dist = torch.distributed
    dist.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        names = []
        for hook in (
            None,
            default_hooks.allreduce_hook,
            default_hooks.fp16_compress_hook,
            dist.BuiltinCommHookType.ALLREDUCE,
            dist.BuiltinCommHookType.FP16_COMPRESS,
        ):
            model = nn.parallel.DistributedDataParallel(nn.Linear(2, 2))
            if isinstance(hook, dist.BuiltinCommHookType):
                model._register_builtin_comm_hook(hook)
            elif hook is not None:
                model.register_comm_hook(None, hook)
            names.append(_torch.communication_hook(model))
    finally:
        dist.destroy_process_group()
    assert names == ["", "", "fp16_compress_hook", "", "BuiltinCommHookType.FP16_COMPRESS"]


def test_the_policy_of_sharding():
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
    from torch.distributed.tensor import init_device_mesh
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist = torch.distributed
    dist.init_process_group("fake", store=FakeStore(), rank=1, world_size=2)
    try:
        policy = MixedPrecisionPolicy(reduce_dtype=torch.bfloat16)
        model = nn.Sequential(nn.Linear(2, 2))
        fully_shard(model, mesh=init_device_mesh("cpu", (2,)), mp_policy=policy)
        assert _torch.sharding_policy(model).reduce_dtype is torch.bfloat16
        assert _torch.sharding_policy(model[0]) is None
    finally:
        dist.destroy_process_group()


def test_within_join(tmp_path):
    from torch.distributed.algorithms.join import Join

    dist = torch.distributed
    dist.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(nn.Linear(2, 2))
        before = _torch.is_within_join(model)
        with Join([model]):
            within = _torch.is_within_join(model)
    finally:
        dist.destroy_process_group()
    assert within and not before


def test_autocast_of_any_kind_is_seen():
    assert not _torch.is_any_autocast_enabled()
    with torch.autocast("cpu", torch.bfloat16):
        assert _torch.is_any_autocast_enabled()
        with torch.autocast("cpu", enabled=False):
            assert not _torch.is_any_autocast_enabled()


def test_gradients_keep_modes_on():
    """A checkpoint runs its forward pass again within them."""
    seen = []

    class Mode(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            seen.append((func, _torch.in_backward()))
            return func(*args, **(kwargs or {}))

    x = torch.ones(3, requires_grad=True)
    unused = torch.ones(2, requires_grad=True)
    with Mode():
        loss = checkpoint(torch.sin, x, use_reentrant=False).sum()
        found, nothing = _torch.gradients(loss, [x, unused])
    torch.testing.assert_close(found, torch.cos(x), check_dtype=True)
    assert nothing is None and x.grad is None and not found.requires_grad
    assert (torch.sin, True) in seen


@pytest.mark.parametrize("old", [True, False])
def test_weight_norm(old):
    """Both of torch's weight normalizations call it by this name."""
    seen = []

    class Calls(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of the old one
        make = nn.utils.weight_norm if old else nn.utils.parametrizations.weight_norm
        layer = make(nn.Linear(3, 2))
    with Calls():
        layer(torch.ones(1, 3))
    assert _torch.weight_norm in seen


def test_hooks_are_set_aside():
    p = torch.ones(2, requires_grad=True)
    called = []
    handle = p.register_hook(lambda grad: called.append(grad))
    with _torch.without_hooks([p, torch.ones(2, requires_grad=True)]):
        torch.autograd.grad(p.sum(), p)
    assert not called
    torch.autograd.grad(p.sum(), p)
    assert len(called) == 1
    handle.remove()
    torch.autograd.grad(p.sum(), p)
    assert len(called) == 1


def test_a_hook_comes_before_those_that_are_there():
    p = torch.ones(2, requires_grad=True)
    seen = []
    p.register_hook(lambda grad: grad * 3)
    handle = _torch.register_first_hook(p, lambda grad: seen.append(grad.tolist()))
    for _ in range(2):
        (grad,) = torch.autograd.grad(p.sum(), p)
        assert grad.tolist() == [3, 3]
        handle.remove()
    assert seen == [[1, 1]]
