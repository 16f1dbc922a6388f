"""The house rules: imports run one way, the public names are what is built, and what belongs together is together."""

import ast
import importlib
import inspect
import json
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from minigrad import catalog
from minigrad.train import main

ROOT = Path(__file__).parents[1]

# From the bottom up. A module may import what lies below it and, as long as no circle arises, beside it. A * stands for
# all modules of a package.
LAYERS = (
    (
        "minigrad_kernels*",
        "minigrad.errors",
        "minigrad.figures",
        "minigrad.files",
        "minigrad.generators",
        "minigrad.leaderboard",
        "minigrad.options",
        "minigrad.ranks",
        "minigrad.tables",
    ),
    ("minigrad.checks", "minigrad.eager", "minigrad.functions", "minigrad.names", "minigrad.watched"),
    ("minigrad.functional",),
    ("minigrad.autodiff*", "minigrad.nn", "minigrad.verification"),
    ("minigrad.models",),
    ("minigrad.objectives*", "minigrad.rules", "minigrad.schedules"),
    (
        "minigrad.captured",
        "minigrad.data_parallel",
        "minigrad.guard",
        "minigrad.monitoring*",
        "minigrad.record",
        "minigrad.tensors",
        "minigrad.trainer",
    ),
    ("minigrad.checkpoints", "minigrad.interruption", "minigrad.loading", "minigrad.stopping"),
    ("minigrad.config", "minigrad.path", "minigrad.progress", "minigrad.recipe", "minigrad.run", "minigrad.tracking"),
    ("minigrad.surveys", "minigrad.watching"),
    ("minigrad",),  # the package's own file, which gathers the public names
    ("experiments.*", "bench.*"),
    (
        "minigrad.catalog",
        "minigrad.commandline",
        "minigrad.diagnosis",
        "minigrad.resumption",
        "minigrad.sweep",
        "minigrad.train",
        "minigrad.workers",
    ),
)
# Who knows config objects, besides the experiments.
KNOW_CONFIGS = {"minigrad.commandline", "minigrad.config", "minigrad.diagnosis", "minigrad.train"}
# What `import minigrad` leaves to those who use it.
HEAVY = ("hydra", "matplotlib", "mlxtend", "omegaconf", "rich", "sklearn", "tensorboard", "torch._dynamo", "triton")

PUBLIC = {
    "minigrad": [
        "GradientMonitor",
        "Thresholds",
        "Trainer",
        "bias_activation",
        "check_gradients",
        "derivative",
        "draw_graph",
        "gradient",
        "hessian",
        "hessian_vector_product",
        "jacobian",
        "load",
        "nn",
        "relu",
        "saved_for_backward",
        "sigmoid",
        "tanh",
        "trace_backward",
    ],
    "minigrad.nn": ["Linear", "MLP", "ReLU", "Sigmoid", "Tanh", "replace_activations"],
    "minigrad_kernels": [
        "ACTIVATIONS",
        "BACKWARD",
        "COLUMNS",
        "DTYPES",
        "FORWARD",
        "Fired",
        "Layer",
        "MAX_ORDER",
        "Tally",
        "backward_from_output",
        "bias_activation",
        "bias_activation_backward",
        "check_device",
        "derivative",
        "double_backward",
        "make_differentiable",
        "new_fused_update",
        "new_tally",
        "norm",
        "path_for",
        "put_row",
    ],
}


def _modules() -> dict[str, ast.Module]:
    roots = {"minigrad": "minigrad", "kernels/minigrad_kernels": "minigrad_kernels", "kernels/bench": "bench"}
    found = {}
    for folder, package in {**roots, "experiments": "experiments"}.items():
        for file in sorted((ROOT / folder).rglob("*.py")):
            name = ".".join((package, *file.relative_to(ROOT / folder).with_suffix("").parts))
            found[name.removesuffix(".__init__")] = ast.parse(file.read_text(encoding="utf-8"), str(file))
    return found


MODULES = _modules()


def _imports(name: str) -> Iterator[str]:
    """Yield all that a module imports, anywhere in it and for type checkers too: modules, and names in modules."""
    for node in ast.walk(MODULES[name]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} has a relative import: name the module in full"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            yield from (value.value for value in node.args[:1] if isinstance(value, ast.Constant))


def _own_imports(name: str) -> set[str]:
    """Return the project's own modules that a module imports."""
    found = set()
    for imported in _imports(name):
        while imported and imported not in MODULES:
            imported = imported.rpartition(".")[0]
        found.add(imported)
    return found - {"", name}


def _within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def _layer(name: str) -> int:
    levels = [level for level, layer in enumerate(LAYERS) if any(fnmatchcase(name, entry) for entry in layer)]
    assert levels, f"{name} has no layer: give it one in LAYERS, below all that will import it"
    assert len(levels) == 1, f"{name} has {len(levels)} layers"
    return levels[0]


@pytest.mark.parametrize("name", MODULES)
def test_imports_run_one_way(name):
    level = _layer(name)
    upward = sorted(imported for imported in _own_imports(name) if _layer(imported) > level)
    assert not upward, f"{name} imports {', '.join(upward)} from a layer above its own"


def test_no_imports_run_in_a_circle():
    remaining = {name: _own_imports(name) for name in MODULES}
    while leaves := [name for name, imported in remaining.items() if not imported & remaining.keys()]:
        for name in leaves:
            del remaining[name]
    assert not remaining, f"these import one another in a circle: {', '.join(remaining)}"


def test_every_entry_of_the_layers_is_a_module():
    entries = [entry for layer in LAYERS for entry in layer]
    assert not [entry for entry in entries if not any(fnmatchcase(name, entry) for name in MODULES)]


@pytest.mark.parametrize("name", [name for name in MODULES if _within(name, "minigrad_kernels")])
def test_the_kernels_know_nothing_of_minigrad(name):
    assert not [i for i in _imports(name) if _within(i, "minigrad") or _within(i, "experiments") or _within(i, "bench")]


@pytest.mark.parametrize("name", [name for name in MODULES if _within(name, "minigrad")])
def test_the_library_imports_no_experiment(name):
    assert not [i for i in _imports(name) if _within(i, "experiments") or _within(i, "bench")]


def test_only_the_command_line_and_the_experiments_know_config_objects():
    knowing = {name for name in MODULES if any(_within(i, p) for i in _imports(name) for p in ("hydra", "omegaconf"))}
    assert {name for name in knowing if not _within(name, "experiments")} <= KNOW_CONFIGS


@pytest.mark.parametrize("name", [name for name in MODULES if not _within(name, "bench")])  # which compares with it
def test_every_update_is_written_out(name):
    attributes = {ast.unparse(node) for node in ast.walk(MODULES[name]) if isinstance(node, ast.Attribute)}
    assert not [used for used in {*_imports(name), *attributes} if _within(used, "torch.optim")]


@pytest.mark.parametrize("name", MODULES)
def test_nothing_is_a_placeholder(name):
    for node in ast.walk(MODULES[name]):
        if isinstance(node, ast.Raise) and node.exc is not None:
            assert "NotImplementedError" not in ast.unparse(node.exc), f"{name}, line {node.lineno}"
        if isinstance(node, ast.FunctionDef):
            body = [ast.unparse(statement) for statement in node.body]
            assert body[-1] not in ("pass", "..."), f"{name}.{node.name} does nothing"


def _run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_importing_minigrad_loads_nothing_heavy():
    code = f"""
import torch, sys
before = set(sys.modules)
import minigrad
minigrad.Trainer
print(sorted(set({HEAVY}) & (set(sys.modules) - before)))
"""
    assert _run(code) == "[]\n"


def test_importing_minigrad_changes_nothing_global():
    code = """
import json, logging, os, random, signal, sys, warnings
import numpy, torch

def state():
    return {
        "default dtype": str(torch.get_default_dtype()),
        "default device": str(torch.get_default_device()),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "deterministic": (torch.are_deterministic_algorithms_enabled(), torch.get_deterministic_debug_mode()),
        "gradients": (torch.is_grad_enabled(), torch.is_anomaly_enabled()),
        "precision": torch.get_float32_matmul_precision(),
        "tf32": (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32),
        "cudnn": (torch.backends.cudnn.enabled, torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
        "autocast": torch.is_autocast_enabled("cpu"),
        "random": (hash(random.getstate()), int(torch.initial_seed()), int(numpy.random.get_state()[1].sum())),
        "generator": int(torch.get_rng_state().long().sum()),
        "printing": str(vars(torch._tensor_str.PRINT_OPTS)),
        "CUDA": torch.cuda.is_initialized(),
        "environment": dict(os.environ),
        "warnings": [str(entry) for entry in warnings.filters],
        "logging": (len(logging.getLogger().handlers), logging.getLogger().level),
        "signals": str(signal.getsignal(signal.SIGINT)),
        "path": sys.path,
        "hook": str(sys.excepthook),
    }

torch.initial_seed(), torch.rand(1)
before = json.dumps(state())
import minigrad, minigrad_kernels
minigrad.Trainer
after = json.dumps(state())
print(json.dumps([json.loads(before), json.loads(after)]))
"""
    before, after = json.loads(_run(code))
    assert after == before


def test_the_public_names_are_exactly_these():
    import minigrad
    import minigrad_kernels

    assert sorted(minigrad.__all__) == PUBLIC["minigrad"]
    assert sorted(minigrad_kernels.__all__) == PUBLIC["minigrad_kernels"]
    own = {name for name, value in vars(minigrad.nn).items() if getattr(value, "__module__", "") == "minigrad.nn"}
    assert sorted(name for name in own if not name.startswith("_")) == PUBLIC["minigrad.nn"]


@pytest.mark.parametrize("full_name", [f"{module}.{name}" for module, names in PUBLIC.items() for name in names])
def test_every_public_name_is_there_and_says_what_it_takes(full_name):
    module, _, name = full_name.rpartition(".")
    value = getattr(importlib.import_module(module), name)
    if inspect.ismodule(value) or not callable(value):
        return
    assert value.__doc__, f"{full_name} has no docstring"
    described = inspect.cleandoc(value.__doc__)
    signature = inspect.signature(value)
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = [name for name, parameter in signature.parameters.items() if parameter.kind in named]
    unnamed = [parameter for parameter in parameters if not re.search(rf"\b{parameter}\b", described)]
    assert not unnamed, f"{full_name}: the docstring does not speak of {', '.join(unnamed)}"
    if parameters and _within(module, "minigrad"):
        assert "\nArgs:\n" in described
    if inspect.isfunction(value) and signature.return_annotation not in (None, "None"):
        assert re.search(r"\b(Returns?|Yields)\b", described), (
            f"{full_name}: the docstring does not say what is returned"
        )


def _stems(folder: str, pattern: str) -> set[str]:
    return {file.stem for file in (ROOT / folder).glob(pattern)}


def test_an_experiment_has_one_stem_in_four_places():
    stems = _stems("experiments", "*.py")
    assert _stems("configs/experiment", "*.yaml") == stems
    assert {stem.removeprefix("test_") for stem in _stems("tests/experiments", "test_*.py")} == stems
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\bexperiments/(\w+)\.py\b", readme)) == stems, "the README's rows of experiments differ"


@pytest.mark.parametrize("page", ["README.md", "docs/chapter.md"])
def test_every_link_of_a_page_leads_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("http")]
    assert links
    for link in links:
        file, _, section = link.partition("#")
        target = (ROOT / page).parent / file if file else ROOT / page
        assert target.exists(), f"{page} links to {link}"
        if section:
            titles = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert section in [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles], link


def test_every_picture_is_shown_on_a_page():
    pages = {page: (ROOT / page).read_text(encoding="utf-8") for page in ("README.md", "docs/chapter.md")}
    for picture in (ROOT / "docs").rglob("*.png"):
        assert any(picture.name in text for text in pages.values()), f"no page shows {picture.name}"


def test_every_config_is_the_primary_one_or_a_group_s_option():
    options = {f"{group}/{option}.yaml" for group, names in catalog.groups().items() for option in names}
    files = {file.relative_to(ROOT / "configs").as_posix() for file in (ROOT / "configs").rglob("*") if file.is_file()}
    assert files == {"train.yaml", *options}


# An experiment's option is run by the experiment's own test.
OPTIONS = [(group, name) for group, names in catalog.groups().items() if group != "experiment" for name in names]
# What an option needs besides.
NEEDS = {
    "python": ["objective.start=[1,2,3]", "function=torch:sum"],
    "table": ["objective.file=table.csv"],
    "quadratic_deep": ["judge_every=2"],
}


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_of_a_group_runs(group, option, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("table.csv").write_text("a,b\n" + "".join(f"{i},{2 * i + 0.5}\n" for i in range(12)))
    small = ["objective=wine"] if group != "objective" else []
    assert main([*small, f"{group}={option}", *NEEDS.get(option, []), "steps=2", "device=cpu", "run_dir=here"]) == 0
    summary = json.loads(Path("here", "summary.json").read_text())
    assert (summary["status"], summary["steps"]) == ("finished", 2)
    assert math.isfinite(summary["test/loss"])
