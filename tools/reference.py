"""The reference as Markdown, from the code: public names, commands, configuration, metric keys.

Nothing of it is written by hand, so nothing of it can be out of date. What a configuration key
means is what stands beside it in the schema: a comment behind the field or above it.
"""

import ast
import importlib
import inspect
import re
import textwrap
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from experiments.config.metrics import Metric
from experiments.tasks import registry
from experiments.training import step_log
from tools.docstrings import markdown

ROOT = Path(__file__).parents[1]

LIBRARY = {
    "adahessian.md": ("adahessian", ["adahessian"]),
    "spectrum.md": ("adahessian.spectrum", ["adahessian.spectrum"]),
    "jax.md": ("adahessian.jax", ["adahessian.jax", "adahessian.jax.train_state"]),
    "conformance.md": ("adahessian.conformance", ["adahessian.conformance"]),
}
COMMANDS = ("experiments", "experiments/benchmarks", "experiments/ports", "slurm")


class Undocumented(Exception):
    """Public names without a docstring of their own."""


def pages() -> dict[str, str]:
    """The text of each page by its name.

    Raises:
        Undocumented: public names of the library have no docstring.
    """
    texts = {name: _library_page(title, modules) for name, (title, modules) in LIBRARY.items()}
    return {
        **texts,
        "commands.md": _commands_page(),
        "config.md": _config_page(),
        "metrics.md": _metrics_page(),
    }


# ------------------------------------------------------------------------------------- library


def public_names(module: str) -> dict[str, Any]:
    """What a module offers: the names in its `__all__`, or else its own classes and functions."""
    loaded = importlib.import_module(module)
    names = getattr(loaded, "__all__", None) or [
        name
        for name, value in vars(loaded).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module
    ]
    return {name: getattr(loaded, name) for name in names}


def undocumented(module: str) -> list[str]:
    """Public names, and public methods of public classes, without a docstring of their own."""
    found = []
    for name, value in public_names(module).items():
        members = {name: value}
        if inspect.isclass(value):
            own = {n: v for n, v in vars(value).items() if not n.startswith("_")}
            members |= {f"{name}.{n}": v for n, v in own.items() if _is_method(v)}
        for path, member in members.items():
            text = inspect.cleandoc(getattr(member, "__doc__", None) or "")
            # A dataclass without a docstring has its signature as one.
            if not text or text.startswith(f"{name}("):
                found.append(f"{module}.{path}")
    return found


def _is_method(value: Any) -> bool:
    return isinstance(value, types.FunctionType | property | classmethod | staticmethod)


def _library_page(title: str, modules: list[str]) -> str:
    if missing := [name for module in modules for name in undocumented(module)]:
        raise Undocumented(f"no docstring: {', '.join(missing)}")
    lines = [f"# {title}", ""]
    for module in modules:
        lines += [markdown(inspect.getdoc(importlib.import_module(module)) or ""), ""]
        homes: dict[str, list[str]] = {}
        for name, value in public_names(module).items():
            home = value.__module__
            qualified = f"{home}.{getattr(value, '__qualname__', name)}"
            homes.setdefault(qualified, []).append(name)
        for qualified, (name, *aliases) in homes.items():
            lines += [f"::: {qualified}", "    options:", f"      heading: {module}.{name}", ""]
            if aliases:
                lines += [f"Also known as {', '.join(f'`{alias}`' for alias in aliases)}.", ""]
    return "\n".join(lines)


# ------------------------------------------------------------------------------------ commands


def commands() -> Iterator[tuple[str, str]]:
    """The modules that are run by `python -m`, each with its docstring."""
    for folder in COMMANDS:
        for path in sorted((ROOT / folder).glob("*.py")):
            tree = ast.parse(path.read_text("utf-8"))
            if any("__main__" in ast.unparse(node) for node in tree.body if _is_if(node)):
                module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
                yield module, ast.get_docstring(tree) or ""


def _is_if(node: ast.stmt) -> bool:
    return isinstance(node, ast.If)


def _commands_page() -> str:
    lines = [
        "# Commands",
        "",
        "All are run from the repository, after `source .venv/bin/activate`; `--help` lists the "
        "options.",
        "",
    ]
    for module, text in commands():
        lines += [f"## {module}", "", text, ""]
    return "\n".join(lines)


# ----------------------------------------------------------------------------- configuration


def sections(schema: type[BaseModel], path: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """A schema and those of its sections, each with the path of its keys, such as `dataset.`."""
    yield path, schema
    for name, field in schema.model_fields.items():
        for part, inner in _models_in(field.annotation):
            yield from sections(inner, f"{path}{name}.{part}")


def _models_in(annotation: Any) -> Iterator[tuple[str, type[BaseModel]]]:
    """The models in an annotation, each with what stands for its key where it is in a mapping."""
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        yield "", annotation
    elif get_origin(annotation) is dict:
        yield from (("NAME.", model) for _, model in _models_in(get_args(annotation)[1]))
    else:
        for argument in get_args(annotation):
            yield from _models_in(argument)


def meanings(schema: type[BaseModel]) -> dict[str, str]:
    """What the source says of each field of a schema, in its own class or in a base."""
    found: dict[str, str] = {}
    for base in reversed(schema.__mro__):
        if base is not BaseModel and inspect.isclass(base) and issubclass(base, BaseModel):
            told = _told(textwrap.dedent(inspect.getsource(base)))
            found |= {name: text for name, text in told.items() if text or name not in found}
    return {
        name: " ".join((field.description or found.get(name, "")).split())
        for name, field in schema.model_fields.items()
    }


def _told(source: str) -> dict[str, str]:
    """Of each field in a class's source: the string below it, else the comments beside it."""
    lines = source.splitlines()
    found = {}
    (definition,) = ast.parse(source).body
    for node, following in zip(definition.body, [*definition.body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found[node.target.id] = _string(following) or _comments(lines, node)
    return found


def _string(node: ast.stmt | None) -> str:
    """A string that stands alone, on one line."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return " ".join(str(node.value.value).split())
    return ""


def _comments(lines: list[str], node: ast.AnnAssign) -> str:
    """The comment lines right above a field, and the one behind it."""
    behind = lines[node.end_lineno - 1][node.end_col_offset :].strip()
    above, at = [], node.lineno - 2
    while lines[at].strip().startswith("#"):
        above.insert(0, lines[at].strip())
        at -= 1
    text = " ".join(part.lstrip("#").strip() for part in [*above, behind])
    return text.partition("fmt: ")[0].strip()


def schemas() -> dict[str, type[BaseModel]]:
    """The configuration's schema of each task."""
    return {name: registry.config_class(name) for name in registry.TASKS}


def _config_page() -> str:
    lines = [
        "# Configuration keys",
        "",
        "A file below `configs/` holds these keys; `key.path=value` behind a command overrides "
        "one. Unknown keys are refused. A key without a default must be there.",
        "",
    ]
    for task, schema in schemas().items():
        lines += [f"## task: {task}", ""]
        for path, section in sections(schema):
            title = path.rstrip(".") or "The experiment"
            lines += [f"### {_code(title) if path else title}", ""]
            lines += [inspect.cleandoc(section.__doc__ or ""), ""]
            lines += ["| key | type | default | |", "|---|---|---|---|"]
            told = meanings(section)
            for name, field in section.model_fields.items():
                default = (
                    ""
                    if field.is_required()
                    else _code(_text(field.get_default(call_default_factory=True)))
                )
                cells = (_code(path + name), _escaped(_type(field)), default, _escaped(told[name]))
                lines.append(f"| {' | '.join(cells)} |")
            lines.append("")
    return "\n".join(lines)


def _type(field: Any) -> str:
    """A field's type in the words of YAML, with its bounds."""
    bounds = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    limits = [
        f"{sign} {getattr(item, key)}"
        for item in field.metadata
        for key, sign in bounds.items()
        if getattr(item, key, None) is not None
    ]
    return " ".join([_annotation(field.annotation), " and ".join(limits)]).strip()


def _annotation(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    words = {bool: "true or false", int: "integer", float: "number", str: "text", Any: "any"}
    if annotation is type(None):
        return "null"
    if hasattr(annotation, "__metadata__"):
        return _annotation(arguments[0])
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return "section"
    if origin is list or origin is tuple:
        return f"list of {_annotation(arguments[0])}"
    if origin is dict:
        return f"{_annotation(arguments[0])} → {_annotation(arguments[1])}"
    if str(origin) == "typing.Literal":
        return ", ".join(str(value) for value in arguments)
    if origin is not None and arguments:
        return " or ".join(_annotation(argument) for argument in arguments)
    return words.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _text(value: Any) -> str:
    """A default in the words of YAML."""
    if isinstance(value, BaseModel):
        return "its defaults"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def _code(text: str) -> str:
    return f"`{_escaped(text)}`" if text else ""


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


# ----------------------------------------------------------------------------------- metrics

# Rows of `steps.jsonl`.
STEP_KEYS = {
    "step/loss": "the mean loss of the step's batch",
    "step/gradient_norm": "Euclidean norm of the gradient that the step took, clipped where it is "
    "clipped, averaged over processes",
    "step/weight_norm": "of the trained weights, before the step",
    "step/update_norm": "of the change of these weights by the step, weight decay included",
    "step/update_ratio": "`update_norm` divided by `weight_norm`",
    "step/denominator/p05": "AdaHessian: quantiles, also `p50` and `p95`, of what the step was "
    "divided by (over at most 65,536 elements, evenly chosen)",
    "step/curvature/p05": "AdaHessian, at steps that refresh it: the same of the averaged d",
    "step/*/LAYER": "the norms and the ratio of each layer (`log_layers`)",
}

# What the training writes beside a task's metrics; the keys are looked up in the code, and each of
# them must be explained here.
KEYS = {
    "hessian/relative_error_median": "error of the finite difference's H·z, median over the "
    "tensors (`curvature_error_every_epochs`)",
    "hessian/relative_error_largest": "the same, of the worst tensor",
    "hessian/mean_ratio": "mean of \\|z·Hz\\| by finite differences, relative to the exact one",
    "hessian/top_eigenvalue": "the largest eigenvalue of the Hessian; `_2`, `_3`, ... the "
    "next ones (`spectrum_every_epochs`)",
    "hessian/trace": "its trace, by Hutch++ or Hutchinson",
    "hessian/trace_standard_error": "the standard error of that estimate",
    "hessian/smallest_node": "the smallest node of the spectral density",
    "hessian/trace_estimate": "mean of zᵀHz over the epoch's refreshes (`curvature_statistics`)",
    "hessian/trace_estimate_standard_error": "its standard error",
    "hessian/frobenius_norm": "Frobenius norm of single batches' Hessians",
    "hessian/negative_share": "share of negative curvature on the diagonal",
    "hessian/layer_trace/*": "the trace of each module's block",
    "hessian/signal_to_noise/block_*": "of z·Hz, averaged over blocks of that many elements",
    "time/curvature_share": "part of the steps' time that the curvature takes",
    "time/spectrum_seconds": "what the spectrum took",
    "time/epoch_seconds": "the epoch's training, without evaluation",
    "time/waited_share": "share of the steps' time in which the process had no processor",
    "time/step_seconds": "median of the epoch's steps",
    "train/gradients": "gradients that the epoch has evaluated, where there are more than one a "
    "step and the optimizer is no AdaHessian; one whose graph is kept counts as three",
}


def written_keys() -> set[str]:
    """The keys below these names in the code of `experiments/training`; * is what varies."""
    found = set()
    for path in (ROOT / "experiments" / "training").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [str(p.value) if isinstance(p, ast.Constant) else "*" for p in node.values]
                text = "".join(parts)
            else:
                text = node.value if isinstance(node, ast.Constant) else None
            if isinstance(text, str) and re.fullmatch(
                r"(hessian|time)/[a-z_/*]*[a-z*]|train/gradients", text
            ):
                found.add(text)
    return found


def _check_step_keys() -> None:
    names = {"loss", *step_log.NORMS, "update_ratio"}
    names |= {f"{name}/{next(iter(step_log.QUANTILES))}" for name in ("denominator", "curvature")}
    if STEP_KEYS.keys() != {"step/*/LAYER", *(f"step/{name}" for name in names)}:
        raise Undocumented("STEP_KEYS of tools/reference.py are not those that are written")


def _metrics_page() -> str:
    written = written_keys()
    if unknown := written.symmetric_difference(KEYS):
        raise Undocumented(
            f"metric keys: {', '.join(sorted(unknown))}: explain them in KEYS of tools/reference.py"
            " where they are new, take them out where they are gone"
        )
    _check_step_keys()
    lines = [
        "# Metric keys",
        "",
        "A row of `metrics.jsonl`, one per epoch, holds these keys beside `epoch`, `step` and "
        "`learning_rate`. wandb has the same.",
        "",
    ]
    for task, metrics in task_metrics().items():
        lines += [f"## task: {task}", "", "Each as `train/NAME`, `val/NAME` and `test/NAME`.", ""]
        lines += ["| name | better is | shown as |", "|---|---|---|"]
        for metric in metrics:
            unit = f"{metric.scale:g} × value, in {metric.unit}" if metric.unit else "as it is"
            better = "smaller" if metric.direction == "min" else "larger"
            lines.append(f"| `{metric.name}` | {better} | {unit}, {metric.digits} decimals |")
        lines.append("")
    lines += ["## Of any task", "", "| key | |", "|---|---|"]
    lines += [f"| `{key}` | {KEYS[key]} |" for key in KEYS]
    lines += ["", "## Inside an epoch", ""]
    lines += [
        "A row of `steps.jsonl`, one for every `log_every_steps` steps, holds these beside `step`, "
        "`epoch`, with its fraction, and `learning_rate`.",
        "",
    ]
    lines += ["| key | |", "|---|---|"]
    return "\n".join([*lines, *(f"| `{key}` | {STEP_KEYS[key]} |" for key in STEP_KEYS), ""])


def task_metrics() -> dict[str, tuple[Metric, ...]]:
    """What each task measures."""
    return {name: schema.metrics for name, schema in schemas().items()}
