"""The sources keep to their layout: who imports whom, how long things are, what is documented."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import video_diffusion_pytorch

PACKAGE = Path(video_diffusion_pytorch.__file__).parent
NAME = PACKAGE.name
SOURCES = {
    ".".join((NAME, *path.relative_to(PACKAGE).with_suffix("").parts)): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
TREES = {module: ast.parse(path.read_text()) for module, path in SOURCES.items()}
every_module = pytest.mark.parametrize("module", SOURCES)

# Rooms that know nothing of ours outside themselves, but for these
CLOSED_ROOMS = {
    "data": {f"{NAME}.{m}" for m in ("conditions", "arguments", "files", "value_scale")},
    "evaluation": {f"{NAME}.{m}" for m in ("conditions", "arguments", "files")},
    # hub: what a diffusion and its network share, to become files
    "model": {f"{NAME}.{m}" for m in ("reference.state_dict", "host_memory", "hub", "conditions")},
}
# Rooms, and what they must not know
BLIND_TO = {"diffusion": {"model", "training", "data", "cli"}, "training": {"model", "cli"}}


def of_us(module):
    """Our modules that a module imports, those for type checkers left out."""
    found = set()
    guarded = {
        inner
        for node in ast.walk(TREES[module])
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(TREES[module]):
        if node in guarded:
            continue
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")[: -node.level] if node.level else []
            source = ".".join((*above, *filter(None, [node.module])))
            for alias in node.names:
                inner = f"{source}.{alias.name}"
                is_module = inner in SOURCES or f"{inner}.__init__" in SOURCES
                found.add(inner if is_module else source)
    return {name for name in found if name.split(".")[0] == NAME}


def room(module):
    return module.split(".")[1] if "." in module else "__init__"


def functions(module):
    for node in ast.walk(TREES[module]):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node


def public_objects(node, name):
    """Modules, classes, functions and methods whose names, and whose owners' names, are public."""
    yield name, node
    for child in getattr(node, "body", []):
        is_object = isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        if is_object and not child.name.startswith("_") and not isinstance(node, ast.FunctionDef):
            yield from public_objects(child, f"{name}.{child.name}")


# Who imports whom


def test_the_sources_are_found():
    rooms = {room(module) for module in SOURCES}
    assert {"__init__", "data", "model", "diffusion", "training", "reference", "text"} <= rooms
    assert f"{NAME}.model.conditioning" in of_us(f"{NAME}.model.unet3d")


@pytest.mark.parametrize("name", CLOSED_ROOMS)
def test_rooms_that_know_themselves_only(name):
    for module in SOURCES:
        if room(module) == name:
            others = {m for m in of_us(module) if room(m) != name}
            assert others <= CLOSED_ROOMS[name], module


@pytest.mark.parametrize("name", BLIND_TO)
def test_any_network_and_any_loop_will_do(name):
    for module in SOURCES:
        if room(module) == name:
            known = {room(m) for m in of_us(module)}
            assert known & BLIND_TO[name] == set(), module
            assert NAME not in of_us(module), module


def test_no_module_imports_itself_by_way_of_others():
    graph = {module: of_us(module) & SOURCES.keys() for module in SOURCES}
    done = set()

    def visit(module, path):
        assert module not in path, " -> ".join([*path, module])
        if module in done:
            return
        for other in sorted(graph[module]):
            visit(other, [*path, module])
        done.add(module)

    for module in graph:
        visit(module, [])


def test_no_module_is_a_drawer():
    assert {path.stem for path in SOURCES.values()} & {"utils", "util", "helpers", "misc"} == set()


# How long things are


@every_module
def test_lines_are_short(module):
    lines = SOURCES[module].read_text().splitlines()
    assert [n for n, line in enumerate(lines, 1) if len(line) > 100] == []


@every_module
def test_functions_are_short(module):
    for node in functions(module):
        # options are many, a line each: the body counts
        start = node.body[0].lineno
        length = node.end_lineno - start + 1
        if ast.get_docstring(node) is not None:
            docstring = node.body[0]
            length -= docstring.end_lineno - docstring.lineno + 1
        assert length <= 60, node.name


# What is said of them


@every_module
def test_what_is_public_is_documented(module):
    missing = [
        name
        for name, node in public_objects(TREES[module], module)
        if ast.get_docstring(node) is None
    ]
    assert missing == []


@every_module
def test_arguments_and_results_have_types(module):
    missing = []
    for node in functions(module):
        arguments = node.args
        named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        named += [a for a in (arguments.vararg, arguments.kwarg) if a is not None]
        missing += [
            f"{node.name}({argument.arg})"
            for argument in named
            if argument.annotation is None and argument.arg not in ("self", "cls")
        ]
        if node.returns is None:
            missing.append(node.name)
    assert missing == []


# Where tensors are made

# Functions of torch that make a tensor of numbers
FACTORIES = {"zeros", "ones", "empty", "full", "eye", "arange", "linspace", "logspace", "tensor"}
FACTORIES |= {"rand", "randn", "randint", "randperm", "as_tensor", "asarray", "scalar_tensor"}
# What constructors make is on the default device, as of torch's own modules
CONSTRUCTORS = {"__init__", "_make_condition_parameters", "remember_training"}


def nameless_tensors(tree):
    """Where a tensor is made that names no device, outside constructors."""
    constructors = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name in CONSTRUCTORS
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or node in constructors:
            continue
        owner, _, name = ast.unparse(node.func).rpartition(".")
        is_named = any(keyword.arg == "device" for keyword in node.keywords)
        if owner == "torch" and name in FACTORIES and not is_named:
            yield node.lineno


def test_a_tensor_without_a_device_is_found():
    made = "torch.rand(3)\ntorch.rand(3, device=x.device)\ndef __init__(self): torch.rand(3)"
    assert list(nameless_tensors(ast.parse(made))) == [1]


@every_module
def test_tensors_are_made_on_explicit_devices(module):
    assert list(nameless_tensors(TREES[module])) == []


# What an import costs


def run(code, cwd):
    command = [sys.executable, "-W", "error", "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, cwd=cwd)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def test_heavy_libraries_are_imported_when_they_are_used(tmp_path):
    heavy = ["transformers", "torchvision", "accelerate", "av", "matplotlib", "jsonargparse"]
    heavy += ["huggingface_hub", "safetensors", "tensorboard", "torchmetrics"]
    code = f"""
import sys
import video_diffusion_pytorch
from video_diffusion_pytorch.video_diffusion_pytorch import *
print(*(name for name in {heavy} if name in sys.modules))
"""
    assert run(code, tmp_path) == [""]


def test_the_network_parses_no_patterns():
    # torch.compile would trace the parsing of each, which made it four times as slow
    code = "".join(path.read_text() for path in (PACKAGE / "model").glob("*.py"))
    assert "class Unet3D" in code
    assert "from einops" not in code
    assert "import einops" not in code


def test_training_and_sampling_need_no_torchvision(tmp_path):
    code = """
import sys
sys.modules["torchvision"] = None
import torch
from video_diffusion_pytorch import GaussianDiffusion, Trainer, Unet3D
from video_diffusion_pytorch.video_diffusion_pytorch import gif_to_tensor, video_tensor_to_gif

for name in "ab":
    video_tensor_to_gif(torch.rand(3, 4, 8, 8), f"clips_{name}.gif")
unet = Unet3D(8, dim_mults=(1, 2), attn_heads=1)
diffusion = GaussianDiffusion(unet, image_size=8, num_frames=4, timesteps=2)
trainer = Trainer(
    diffusion, ".", train_batch_size=2, train_num_steps=1, save_and_sample_every=1,
    gradient_accumulate_every=1, num_sample_rows=1, device="cpu",
)
trainer.train()
assert trainer.step == 1
print(*gif_to_tensor(next(trainer.results_folder.glob("*.gif"))).shape[:2])
print(*diffusion.sample(batch_size=1, progress=False).shape)
"""
    assert run(code, tmp_path) == ["3 4", "1 3 4 8 8"]
