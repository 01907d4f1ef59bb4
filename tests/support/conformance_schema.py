"""The format of the conformance vectors; `vectors/schema.json` is made from it."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from typing_extensions import TypeAliasType

Number = Annotated[float, Field(allow_inf_nan=False)]
Array = TypeAliasType("Array", "Number | list[Array]")  # nested lists, row by row
Tensors = list[Array]  # one array for each parameter
BlockSize = Literal["kernel", "row"] | Annotated[int, Field(ge=1)] | None


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Options(Part):
    lr: Number
    betas: list[Number]
    eps: Number
    weight_decay: Number
    hessian_power: Number
    block_size: BlockSize
    averaging: Literal["abs", "signed"]
    update_interval: int
    num_samples: int
    seed: int
    max_grad_norm: Number | None
    maximize: bool


class RuleOptions(Options):
    """Of a case in format 2."""

    second_moment: Literal["rms", "mean_abs", "signed"]
    bias_correction: Literal["refreshes", "steps"] | None
    update_clip: Number | None


class OwnOptions(Part):
    """What differs from the options of the case; only what is there."""

    lr: Number = 0
    betas: list[Number] = []
    eps: Number = 0
    weight_decay: Number = 0
    hessian_power: Number = 0
    block_size: BlockSize = None


class Parameter(Part):
    name: str
    axes: list[Literal["out", "in", "kernel"]]
    value: Array
    options: OwnOptions


class Quadratic(Part):
    kind: Literal["quadratic"]
    matrix: list[list[Number]]
    vector: list[Number]


class Polynomial(Part):
    kind: Literal["polynomial"]
    a: list[Number]
    b: list[Number]
    c: list[Number]
    u: list[Number]


class Examples(Part):
    kind: Literal["network", "convolution"]
    inputs: Array
    targets: Array
    batches: list[Annotated[list[int], Field(min_length=2, max_length=2)]]


class Batch(Part):
    grads: Tensors
    products: list[Tensors]  # H·z of each sample


class Expected(Part):
    exp_avg: Tensors
    exp_hessian_diag_sq: Tensors
    params: Tensors


class ExpectedOfMagnitudes(Part):
    exp_avg: Tensors
    exp_hessian_diag_abs: Tensors
    params: Tensors


class ExpectedSigned(Part):
    exp_avg: Tensors
    exp_hessian_diag: Tensors
    params: Tensors


class Step(Part):
    probes: list[Tensors]  # z of each sample
    batches: list[Batch]
    expected: Expected


class RuleStep(Step):
    expected: Expected | ExpectedOfMagnitudes | ExpectedSigned


class Tolerance(Part):
    rtol: Number
    atol: Number


class Case(Part):
    """One trajectory of AdaHessian."""

    format: Literal[1]
    name: str
    about: str
    options: Options
    problem: Quadratic | Polynomial | Examples
    params: list[Parameter]
    tolerance: Tolerance
    steps: list[Step]


class RuleCase(Case):
    """One trajectory of another rule on the same curvature, or of AdaHessian with its options."""

    format: Literal[2]
    options: RuleOptions
    steps: list[RuleStep]


AnyCase = TypeAdapter(Annotated[Case | RuleCase, Field(discriminator="format")])
