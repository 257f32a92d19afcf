"""What each command of the command line takes, and how its help explains it."""

from argparse import Namespace
from collections.abc import Sequence
from typing import Any

Options = Sequence[tuple[Sequence[str], dict[str, Any]]]
IMPORT: dict[str, Any] = {
    "dest": "imports",
    "metavar": "FILE",
    "action": "append",
    "default": [],
    "help": "Python file or module to import first, with an attention of your own; may be repeated",
}
_JSON: tuple[Sequence[str], dict[str, Any]] = (
    ["--json"],
    {"action": "store_true", "help": "print JSON instead of a table"},
)
_DATA_ROOT: tuple[Sequence[str], dict[str, Any]] = (
    ["--data-root"],
    {
        "metavar": "DIR",
        "help": "folder of the data sets (default: $SACCADE_DATA, else ~/.cache/saccade)",
    },
)
_DEVICE: tuple[Sequence[str], dict[str, Any]] = (
    ["--device"],
    {"default": "auto", "help": "auto, cpu, cuda or mps (default: auto)"},
)
_MANY: Options = (
    (
        ["--devices"],
        {
            "type": int,
            "metavar": "N",
            "help": "devices of this machine, a process for each (default: 1, or as torchrun has "
            "it); batch_size is that of all devices together",
        },
    ),
    (
        ["--nodes"],
        {
            "type": int,
            "metavar": "N",
            "help": "machines: run the same command on each, with NODE_RANK and MASTER_ADDR set "
            "(default: 1, or as torchrun has it)",
        },
    ),
    (
        ["--strategy"],
        {
            "default": "auto",
            "help": "ddp: the whole model on each device; fsdp: spread over them "
            "(default: auto, which is ddp)",
        },
    ),
)
_RUN: tuple[Sequence[str], dict[str, Any]] = (
    ["run"],
    {"metavar": "RUN", "help": "folder of a run or of kept weights, or a .safetensors file"},
)
_BENCH = ("ops", "train", "infer")
FLAGS: dict[str, tuple[str, Options]] = {
    "train": (
        "Train a recipe, test it once at the end, and write a report.\n\n"
        "  saccade train digits                        the demo\n"
        "  saccade train cifar10 epochs=20 optim.lr=1e-3\n"
        "  saccade train digits model.attention.scale=0.25 --seeds 0,1,2\n"
        "  saccade train runs/digits-s0 --resume       go on after a stop\n"
        "  saccade train cifar10 --devices 4           four GPUs; torchrun works as well",
        (
            (
                ["recipe"],
                {
                    "metavar": "RECIPE",
                    "help": "name (see `saccade list recipes`), YAML file, or folder of a run",
                },
            ),
            (
                ["overrides"],
                {"metavar": "KEY.SUB=VALUE", "nargs": "*", "help": "changes to the recipe"},
            ),
            (
                ["--out"],
                {"metavar": "DIR", "help": "folder of the run (default: runs/<recipe>-s<seed>)"},
            ),
            (["--seed"], {"type": int, "metavar": "N", "help": "of everything random"}),
            (["--seeds"], {"metavar": "N,N,…", "help": "one run for each, then mean and sd"}),
            _DEVICE,
            (
                ["--resume"],
                {
                    "action": "store_true",
                    "help": "go on from the last checkpoint; "
                    "the result equals an uninterrupted run",
                },
            ),
            _DATA_ROOT,
            *_MANY,
            (
                ["--workers"],
                {
                    "type": int,
                    "metavar": "N",
                    "help": "processes that read data too large for memory; 0: none beside the "
                    "training itself (default: by the number of cores)",
                },
            ),
            (
                ["--log"],
                {
                    "metavar": "NAME,…",
                    "help": "tell the log to tensorboard or wandb as well (needs saccade[log])",
                },
            ),
        ),
    ),
    "eval": (
        "Test a trained model on the test set of its data: accuracy, firing rates, energy.\n\n"
        "  saccade eval runs/digits-s0\n"
        "  saccade eval runs/digits-s0 --products int8   what eight bits cost",
        (
            _RUN,
            (
                ["--products"],
                {
                    "metavar": "TYPE",
                    "help": "test it once more with its norms folded and products of this type: "
                    "float32, bfloat16, float16 or int8",
                },
            ),
            _DATA_ROOT,
            _DEVICE,
            _JSON,
        ),
    ),
    "predict": (
        "Name what pictures show.\n\n  saccade predict runs/digits-s0 mine.png",
        (
            _RUN,
            (["images"], {"metavar": "IMAGE", "nargs": "+", "help": "picture files"}),
            (
                ["--top"],
                {
                    "type": int,
                    "default": 3,
                    "metavar": "N",
                    "help": "how many classes to name (default: 3)",
                },
            ),
            (
                ["--invert"],
                {
                    "action": "store_true",
                    "help": "swap black and white first, for ink "
                    "on paper where the model learned light on dark",
                },
            ),
            _JSON,
        ),
    ),
    "list": (
        "List what there is: models, attention, neurons, recipes, data, tasks, optimizers, "
        "schedules, surrogates.\n\n"
        '  saccade list models "spik*"',
        (
            (
                ["kind"],
                {
                    "metavar": "KIND",
                    "help": "models, attention, neurons, recipes, data, tasks, optimizers, "
                    "schedules or surrogates",
                },
            ),
            (
                ["pattern"],
                {
                    "metavar": "PATTERN",
                    "nargs": "?",
                    "default": "*",
                    "help": "shell pattern (default: everything)",
                },
            ),
            _JSON,
        ),
    ),
    "show": (
        "Explain a model, an attention, a neuron, a task, an optimizer or a recipe: structure, "
        "parameters, options, paper, published results.\n\n  saccade show spikformer_8_512",
        (
            (["name"], {"metavar": "NAME", "help": "see `saccade list`"}),
            (
                ["--paths"],
                {
                    "action": "store_true",
                    "help": "run a model once and show which variant of every op ran, and why "
                    "the others did not",
                },
            ),
        ),
    ),
    "cite": (
        "Print the BibTeX of what models, mechanisms, recipes or runs rest on.\n\n"
        "  saccade cite digits tim_2_256_dvs",
        ((["names"], {"metavar": "NAME", "nargs": "+", "help": "names, or folders of runs"}),),
    ),
    "verify": (
        "Compare our modules with golden files: outputs and gradients of the official code in "
        "float64.\nOf an attention, whether it keeps what every attention promises.\n"
        "Exit status 1 where any file differs or a promise is broken.\n\n"
        "  saccade --import mine.py verify mine",
        (
            (
                ["files"],
                {"metavar": "FILE", "nargs": "+", "help": "golden .npz files, or attentions"},
            ),
            _JSON,
        ),
    ),
    "convert": (
        "Turn an official PyTorch checkpoint into ours.\n\n"
        "  saccade convert best.pth --model spikformer_4_384 --out best.safetensors",
        (
            (["checkpoint"], {"metavar": "CHECKPOINT", "help": ".pth or .pt file"}),
            (["--model"], {"required": True, "metavar": "NAME", "help": "model it belongs to"}),
            (["--out"], {"required": True, "metavar": "FILE", "help": ".safetensors to write"}),
        ),
    ),
    "report": (
        "Write the report page of a finished run again.\n\n"
        "  saccade report runs/digits-s0 --figures paper/",
        (
            (["run"], {"metavar": "RUN", "help": "folder of a finished run"}),
            (
                ["--figures"],
                {
                    "metavar": "DIR",
                    "help": "also write each chart as SVG, and its numbers as CSV, into a folder",
                },
            ),
        ),
    ),
    "bench": (
        "Time ops, training steps or inference. What differs from its reference is not timed.\n\n"
        "  saccade bench ops --size cifar              every variant of every op\n"
        '  saccade bench ops "lif*" --size imagenet\n'
        "  saccade bench train spikformer_4_384 image_size=32 num_classes=10 --batch 64\n"
        "  saccade bench infer spikformer_4_384 --scale tokens=64,256,1024 --out tokens.json",
        (
            (["what"], {"metavar": "WHAT", "choices": _BENCH, "help": "ops, train or infer"}),
            (["name"], {"metavar": "NAME", "nargs": "?", "help": "model; or pattern of ops"}),
            (
                ["overrides"],
                {"metavar": "KEY=VALUE", "nargs": "*", "help": "options of the model"},
            ),
            (["--size"], {"metavar": "SIZE", "help": "of ops: small, cifar or imagenet"}),
            (["--batch"], {"type": int, "metavar": "B", "help": "of a model (default: 32)"}),
            (
                ["--paths"],
                {
                    "metavar": "LIST",
                    "help": "of a model: fast, reference (default: both, with their ratio)",
                },
            ),
            (
                ["--precision"],
                {
                    "default": "float32",
                    "metavar": "DTYPE",
                    "help": "float32, bfloat16 or float16 (default: float32)",
                },
            ),
            _DEVICE,
            (
                ["--n"],
                {"type": int, "default": 10, "metavar": "N", "help": "samples (default: 10)"},
            ),
            (
                ["--graph"],
                {"action": "store_true", "help": "make each step one CUDA graph first"},
            ),
            (
                ["--products"],
                {"metavar": "TYPE", "help": "of infer: fuse the model first; int8, bfloat16, …"},
            ),
            (
                ["--profile"],
                {"action": "store_true", "help": "of a model: add what torch spends its time on"},
            ),
            (
                ["--scale"],
                {
                    "metavar": "AXIS=N,N,…",
                    "help": "of a model: repeat over T, tokens, batch or depth, and say whether "
                    "time and memory grow in proportion",
                },
            ),
            (
                ["--out"],
                {"metavar": "FILE", "help": "JSON to write; with --scale a .png beside it"},
            ),
            _JSON,
        ),
    ),
    "doctor": (
        "Print versions, devices, data folder, and which fast paths are active and why.",
        (_JSON,),
    ),
}


def first(a: Namespace) -> list[str]:
    """What stands before the command, as it was given."""
    return [word for name in a.imports for word in ("--import", name)]


def same(a: Namespace) -> list[str]:
    """The options that say on what a run works, where they are not the default."""
    given = {
        "--device": a.device if a.device != "auto" else None,
        "--data-root": a.data_root,
        "--devices": a.devices,
        "--nodes": a.nodes,
        "--strategy": a.strategy if a.strategy != "auto" else None,
        "--workers": a.workers,
        "--log": a.log,
    }
    return [word for k, v in given.items() if v is not None for word in (k, str(v))]
