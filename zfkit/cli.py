"""The same jobs from a shell: ``zfkit atlas | mine | models``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist

from . import __version__
from .atlas import write_atlas
from .deconv import Options
from .errors import ZfkitError
from .images import ImageSet, load_images
from .models import VisionModel, list_models, load_model
from .topk import TopK, mine

ATLAS_EXAMPLE = """examples:
  zfkit atlas                                                   the bundled network on the bundled photographs
  zfkit atlas --images folder:my/pictures --out mine --maps all
  zfkit atlas --model torchvision:vgg11 --layers features.8 features.18 --maps 12
"""
MINE_EXAMPLE = """examples:
  zfkit mine --images "parquet:shards/*.parquet" --size 64 --out topk.parquet
  torchrun --nproc-per-node 2 -m zfkit mine --images folder:my/pictures      in two processes, the same table
  python -c 'import zfkit; print(zfkit.TopK.load("topk.parquet").table("conv5"))'
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 0, or 2 for input that cannot be used."""
    parser = _parser()
    args = parser.parse_args(arguments)
    try:
        result: int = args.run(args)
        return result
    except ZfkitError as error:
        print(f"zfkit {args.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"zfkit {args.command}: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="zfkit", description="See what a convolutional network has learned, as Zeiler & Fergus did."
    )
    parser.add_argument("--version", action="version", version=f"zfkit {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    atlas = _command(
        commands,
        "atlas",
        "top patches beside their projections, as a page and a PNG per layer",
        ATLAS_EXAMPLE,
    )
    _add_inputs(atlas)
    atlas.add_argument("--out", default="atlas", help="folder to write to (default: %(default)s)")
    atlas.add_argument(
        "--maps", default="24", type=_maps, help="feature maps of each layer, or 'all' (default: 24)"
    )
    atlas.add_argument(
        "--rule", default="deconvnet", help="deconvnet, guided or gradient (default: %(default)s)"
    )
    atlas.add_argument("--seed", default=0, type=int, help="draws the feature maps (default: 0)")
    atlas.add_argument(
        "--notebook", help="make it through this notebook and leave the executed copy in --out"
    )
    atlas.set_defaults(run=_atlas)

    mining = _command(
        commands, "mine", "the strongest activations of every feature map, as a table", MINE_EXAMPLE
    )
    _add_inputs(mining)
    mining.add_argument("--out", default="topk.parquet", help="Parquet file to write (default: %(default)s)")
    mining.add_argument(
        "--batch-size", type=int, help="pictures at a time (default: by the size of the activations)"
    )
    mining.add_argument("--precision", default="float32", help="float32 or bf16 (default: %(default)s)")
    mining.add_argument(
        "--inside", action="store_true", help="leave out units that look beyond the picture's border"
    )
    mining.add_argument(
        "--checkpoint-every", default=10_000, type=int, metavar="N",
        help="keep the state in OUT.part every N pictures; the same command goes on from there (default: %(default)s)",
    )  # fmt: skip
    mining.set_defaults(run=_mine)

    models = _command(
        commands, "models", "list the networks that are known by name", "example:\n  zfkit models\n"
    )
    models.set_defaults(run=_models)
    return parser


def _command(commands: Any, name: str, what: str, example: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=what,
        description=f"{what[0].upper()}{what[1:]}.",
        epilog=example,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser


def _add_inputs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        default="zfnet64",
        help="a name from `zfkit models`, torchvision:NAME, or a .safetensors file (default: %(default)s)",
    )
    parser.add_argument(
        "--weights",
        default="DEFAULT",
        help="torchvision: name of the weights, or 'none' for random ones (default: %(default)s)",
    )
    parser.add_argument(
        "--images",
        default="photos",
        help="photos, folder:PATH, parquet:PATH or torchvision:NAME (default: %(default)s)",
    )
    parser.add_argument(
        "--size", default=224, type=int, help="side of the pictures in px (default: %(default)s)"
    )
    parser.add_argument("--limit", type=int, help="only the first so many pictures")
    parser.add_argument("--layers", nargs="+", help="layer names (default: every convolutional layer)")
    parser.add_argument(
        "-k", default=9, type=int, help="pictures for each feature map (default: %(default)s)"
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: a GPU if there is one)")


def _maps(text: str) -> int | Literal["all"]:
    if text == "all":
        return "all"
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of feature maps nor 'all'")
    return int(text)


def _inputs(args: argparse.Namespace, progress: bool = True) -> tuple[VisionModel, ImageSet]:
    model = load_model(args.model, weights=args.weights, device=args.device)
    return model, load_images(args.images, size=args.size, limit=args.limit, progress=progress)


def _atlas(args: argparse.Namespace) -> int:
    if args.notebook:
        return _atlas_through_notebook(args)
    model, images = _inputs(args)
    atlas = write_atlas(
        model,
        images,
        args.out,
        layers=args.layers,
        maps=args.maps,
        k=args.k,
        options=Options(args.rule),
        seed=args.seed,
    )
    _tell(args, TopK.load(atlas.table))
    return 0


def _atlas_through_notebook(args: argparse.Namespace) -> int:
    """Let papermill execute the notebook with this command's model, images, maps and seed."""
    try:
        import papermill
    except ImportError:
        raise ZfkitError("--notebook needs papermill: pip install 'zfkit[notebooks]'") from None
    notebook, out = Path(args.notebook), Path(args.out).expanduser().resolve()
    if not notebook.is_file():
        raise ZfkitError(f"there is no notebook {args.notebook!r}; check the path")
    parameters = {
        "model": args.model,
        "images": args.images,
        "maps": args.maps,
        "seed": args.seed,
        "out": str(out),
    }
    fixed = {
        "layers": None,
        "k": 9,
        "rule": "deconvnet",
        "weights": "DEFAULT",
        "size": 224,
        "limit": None,
        "device": None,
    }
    changed = [name for name, value in fixed.items() if getattr(args, name) != value]
    if changed:
        raise ZfkitError(f"the notebook does not take {', '.join(changed)}: leave out --notebook")
    unknown = set(parameters) - set(papermill.inspect_notebook(str(notebook)))
    if unknown:
        raise ZfkitError(
            f"{notebook.name} has no parameter {', '.join(sorted(unknown))}: it does not make the atlas"
        )
    out.mkdir(parents=True, exist_ok=True)
    try:
        papermill.execute_notebook(
            str(notebook), str(out / notebook.name), parameters, kernel_name="python3", execution_timeout=900
        )
    except papermill.PapermillExecutionError as error:
        raise ZfkitError(
            f"{notebook.name} stopped with {error.ename}: {error.evalue} (see {out / notebook.name})"
        ) from None
    _tell(args, TopK.load(out / "topk.parquet"))
    return 0


def _tell(args: argparse.Namespace, top: TopK) -> None:
    """Where things are, and what to try next."""
    out = Path(args.out)
    print(f"\n{top!r}\n\n  open      {out / 'index.html'}")
    print(f"  pictures  {', '.join(str(p) for p in sorted(out.glob('*.png')))}")
    if args.notebook:
        print(f"  notebook  {out / Path(args.notebook).name}")
    print(
        f"  table     {out / 'topk.parquet'}   (zfkit.TopK.load)\n\nTry next:\n"
        "  make lab                                       the notebooks, in JupyterLab\n"
        "  zfkit atlas --images folder:PATH --out mine    your own pictures (from .venv/bin/, or activate it)\n"
        "  zfkit atlas --maps all                         every feature map\n"
    )


def _mine(args: argparse.Namespace) -> int:
    together = int(os.environ.get("WORLD_SIZE", "1")) > 1  # set by torchrun
    if together:
        dist.init_process_group("gloo")  # it carries small tables only
        if args.device is None and torch.cuda.is_available():
            args.device = f"cuda:{int(os.environ['LOCAL_RANK']) % torch.cuda.device_count()}"
    first = not together or dist.get_rank() == 0
    out = Path(args.out)
    try:
        model, images = _inputs(args, progress=first)
        top = mine(
            model, images, args.layers, args.k, inside=args.inside, batch_size=args.batch_size,
            precision=args.precision, checkpoint=out.with_name(f"{out.name}.part"),
            checkpoint_every=args.checkpoint_every,
        )  # fmt: skip
        if first:
            print(f"{top!r}\n  table  {top.save(out)}")
            for part in out.parent.glob(f"{out.name}.part*"):
                part.unlink()
        if together:
            dist.barrier()
    finally:
        if together:
            dist.destroy_process_group()
    return 0


def _models(args: argparse.Namespace) -> int:
    print(list_models().to_string(na_rep="-"))
    print("\nAlso torchvision:NAME, and the path of a .safetensors file that zfkit wrote.")
    return 0
