"""The same jobs from a shell: ``zfkit atlas | site | mine | train | sweep | doctor | models | cache``."""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from .arguments import (
    ATLAS_EXAMPLE,
    CACHE_EXAMPLE,
    DOCTOR_EXAMPLE,
    MINE_EXAMPLE,
    SITE_EXAMPLE,
    SWEEP_EXAMPLE,
    TRAIN_EXAMPLE,
    feature_maps,
    file_path,
    key,
    number,
    side,
)
from .atlas.page import estimate_atlas, write_atlas
from .atlas.site import RULES, write_site
from .batching import out_of_memory
from .checks import between, expect_extra
from .deconv.rules import Options
from .doctor import examine
from .errors import ZfkitError
from .figures.training import training_figure
from .files import cache_folder, cached, check_room, expect_own, limit_cache, unmarked, write_whole
from .images.imageset import ImageSet
from .images.sources import load_images
from .nets.model import VisionModel
from .nets.paper import ARCHITECTURES
from .nets.zoo import list_models, load_model
from .sweeps import find_workers, plan_sweep, read_parameters, run_sweep
from .sweeps.runs import read_notebook
from .topk.estimate import estimate_mining
from .topk.mine import mine, state_file
from .topk.table import TopK
from .training.evaluate import evaluate
from .training.fit import fit
from .training.recipe import RECIPES, Recipe
from .training.run import Run
from .version import __version__

MAPS = "how many feature maps of each layer, 'all', or which: 17,42 of every layer, conv5:17,42 of this one"
OWN_NETWORK = "mean scale input_size classes channels output show".split()  # options for `load_model`


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 0, or 2 for input that cannot be used."""
    parser = _parser()
    args = parser.parse_args(arguments)
    try:
        code: int | None = args.run(args)
        return code or 0
    except ZfkitError as error:
        print(f"zfkit {args.command}: {error}", file=sys.stderr)
        return 2
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        remedy = "out of memory; take smaller pictures, a smaller batch size, or another device"
        print(f"zfkit {args.command}: {remedy} ({' '.join(str(error).split())[:200]})", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        # What was written is whole, and where the command goes on from.
        again = shlex.join(sys.argv[1:] if arguments is None else arguments)
        print(f"\nzfkit {args.command}: {str(stop) or 'interrupted'}; again: zfkit {again}", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="zfkit", description="See what a convolutional network has learned, as Zeiler & Fergus did."
    )
    parser.add_argument("--version", action="version", version=f"zfkit {__version__}")
    parser.set_defaults(run=lambda args: print(parser.format_help()))
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for run, example, add_options in (
        (_atlas, ATLAS_EXAMPLE, _atlas_options),
        (_site, SITE_EXAMPLE, _site_options),
        (_mine, MINE_EXAMPLE, _mine_options),
        (_train, TRAIN_EXAMPLE, _train_options),
        (_sweep, SWEEP_EXAMPLE, _sweep_options),
        (_doctor, DOCTOR_EXAMPLE, None),
        (_models, "example:\n  zfkit models\n", None),
        (_cache, CACHE_EXAMPLE, _cache_options),
    ):
        name, what = run.__name__[1:], str(run.__doc__)
        short = what[0].lower() + what[1:].rstrip(".")
        command = commands.add_parser(
            name, help=short, description=what, epilog=example, formatter_class=_HelpFormatter
        )
        command.set_defaults(run=run)
        if add_options is not None:
            add_options(command)
    return parser


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of the examples, and names the defaults that say something."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        silent = action.default is None or action.default is False or action.default == argparse.SUPPRESS
        silent = silent or "(default: " in text
        return text if silent else f"{text} (default: %(default)s)"


def _input_options(parser: argparse.ArgumentParser, **model: Any) -> None:
    add = parser.add_argument
    names = "one that `zfkit models` names, a file, or your module.py:function"
    add("--model", **{"default": "zfnet64", "help": names} | model)
    add("--weights", default="DEFAULT", help="their name, 'none' for random ones, or a file (.pt ...)")
    sources = "photos, photos-small, textures, folder:PATH, parquet:PATH or torchvision:NAME"
    add("--images", default="photos", help=sources)
    add("--size", type=side, help="of the pictures in px, or HEIGHTxWIDTH (default: 224, for textures 64)")
    add("--limit", type=int, help="only the first so many pictures")
    add("--layers", nargs="+", help="layer names (default: every convolutional layer)")
    add("-k", default=9, type=int, help="pictures for each feature map")
    add("--device", help="cpu, cuda, cuda:1 ... (default: a GPU if there is one)")
    add = parser.add_argument_group("your own network: input = (rgb_0_255 - mean) * scale").add_argument
    add("--mean", type=float, nargs="+", metavar="N", help="one number, or one for each channel")
    add("--scale", type=float, nargs="+", metavar="N", help="likewise")
    add("--input-size", type=side, metavar="PX", help="of the pictures it was trained on, or HEIGHTxWIDTH")
    add("--classes", metavar="FILE", help="names of its classes, one on each line")
    add("--channels", choices=("rgb", "bgr"), help="the order in which it takes them (default: rgb)")
    add("--output", metavar="KEY", type=key, help="which to look at of several outputs")
    add("--show", type=int, nargs=3, metavar="BAND", help="bands to show as red, green and blue, from 0")


def _atlas_options(parser: argparse.ArgumentParser) -> None:
    _input_options(parser)
    add = parser.add_argument
    add("--out", default="atlas", type=file_path, help="folder to write to")
    add("--maps", default=["24"], nargs="+", metavar="MAPS", help=f"{MAPS} (default: 24)")
    add("--rule", default="deconvnet", help="deconvnet, guided or gradient")
    add("--seed", default=0, type=int, help="draws the feature maps")
    add("--patches-only", action="store_true", help="leave out the projections, as for layers that have none")
    add("--colours", default="signed", help="natural: projections in the colours of photographs, for looking")
    add(
        "--notebook",
        type=file_path,
        help="make it through this notebook and leave the executed copy in --out",
    )
    add("--dry-run", action="store_true", help="say how long it will take, and stop")


def _site_options(parser: argparse.ArgumentParser) -> None:
    several = "as for atlas; two or more are shown side by side (default: zfnet64)"
    _input_options(parser, action="append", default=None, help=several)
    add = parser.add_argument
    add("--out", default="site", type=file_path, help="folder: new, empty, or begun by the same command")
    add("--maps", default=["all"], nargs="+", metavar="MAPS", help=f"{MAPS} (default: all)")
    add("--rules", default=[*RULES], nargs="+", help="of the projections, the first of which is shown first")
    add("--seed", default=0, type=int, help="draws the feature maps")


def _mine_options(parser: argparse.ArgumentParser) -> None:
    _input_options(parser)
    add = parser.add_argument
    add("--out", default="topk.parquet", type=file_path, help="Parquet file to write")
    add("--batch-size", type=int, help="pictures at a time (default: by the size of the activations)")
    add("--precision", default="float32", help="float32 or bf16")
    add("--inside", action="store_true", help="leave out units that look beyond the picture's border")
    state = "keep the state in OUT.part every N pictures; the same command goes on from there"
    add("--checkpoint-every", default=10_000, type=int, metavar="N", help=state)
    add("--dry-run", action="store_true", help="say how long it will take, and stop")
    cluster = "mine on a Dask cluster, as tcp://10.0.0.1:8786; its workers need the pictures under one path"
    add("--scheduler", metavar="ADDRESS", help=cluster)


def _train_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", default="zfnet64-narrow", choices=[*ARCHITECTURES], help="an architecture")
    add("--images", default="textures", help="labelled pictures")
    add("--val", help="pictures to measure with (default: the other split of --images)")
    add("--size", type=int, help="side of the pictures in px (default: the network's input)")
    add("--limit", type=int, help="only the first so many training pictures")
    add("--out", type=file_path, help="folder of the run (default: runs/MODEL)")
    add = parser.add_argument_group("the network (default: as the model has it)").add_argument
    add("--widths", type=int, nargs=5, metavar="N", help="maps of conv1 ... conv5")
    add("--hidden", type=int, metavar="N", help="units of fc6 and fc7")
    add("--conv1", type=int, nargs=3, metavar=("KERNEL", "STRIDE", "PAD"), help="first layer")
    add("--blur", type=int, choices=(0, 3, 5), help="taps of a low-pass before every subsampling")
    add("--without", nargs="+", metavar="LAYER", help="leave out conv3, conv4, fc6 or fc7")
    add = parser.add_argument_group("the recipe").add_argument
    add(
        "--recipe",
        default="paper",
        choices=[*RECIPES],
        help="the paper's, or He initialisation with inputs / std",
    )
    for setting in dataclasses.fields(Recipe):
        flag, default = f"--{setting.name.removeprefix('random_').replace('_', '-')}", setting.default
        why = f"{setting.metadata['why']} (default: {default})".replace("%", "%%")
        kind: dict[str, Any] = {"type": int if type(default) is int or setting.name == "shift" else number}
        if setting.name == "snapshots":
            kind = {"type": int, "nargs": "*", "metavar": "EPOCH"}
        elif isinstance(default, str):
            kind = {}
        # Those that are not given stay away, so that the recipe's own value holds.
        kind = {"metavar": "N", **kind} if kind else {}
        add(flag, **kind, dest=setting.name, default=argparse.SUPPRESS, help=why)
    add = parser.add_argument_group("the machine").add_argument
    add("--device", help="cpu, cuda, cuda:1, mps (default: the best there is)")
    add("--precision", help="32-true, bf16-mixed ... (default: bf16 where a GPU has it)")
    add("--compile", nargs="?", const=True, default=False, metavar="MODE", help="compile; pays on a GPU")
    add("--workers", type=int, metavar="N", help="stream, with so many reading processes")
    add("--save-every", type=int, metavar="STEPS", help="keep the state within epochs, too")
    add("--data-name", metavar="TEXT", help="what the provenance calls the data")


def _sweep_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("notebook", metavar="NOTEBOOK", type=file_path, help="a notebook with a cell tagged 'parameters'")
    add(
        "--grid",
        required=True,
        type=file_path,
        help="YAML: parameters with lists of values, or a list of runs",
    )
    add("--out", default="runs", type=file_path, help="folder to write to")
    add("--jobs", type=int, help="runs at a time (default: what cores and memory allow)")
    add("--scheduler", metavar="ADDRESS", help="run on a Dask cluster, as tcp://10.0.0.1:8786")
    add("--timeout", type=float, default=3600, metavar="S", help="longest that a run may take, in seconds")
    add("--threads", type=int, help="threads of each run (default: cores divided by jobs)")
    add("--again", action="store_true", help="run also what is done")
    add("--max-runs", type=int, default=1000, metavar="N", help="refuse more")
    add("--dry-run", action="store_true", help="check everything, list the runs, run none")


def _inputs(args: argparse.Namespace, progress: bool = True) -> tuple[VisionModel, ImageSet]:
    return _model(args, args.model), load_images(
        args.images, size=args.size, limit=args.limit, progress=progress
    )


def _model(args: argparse.Namespace, name: str) -> VisionModel:
    return load_model(name, weights=args.weights, device=args.device, **_own_network(args))


def _own_network(args: argparse.Namespace) -> dict[str, Any]:
    """What is said of one's own network, as `load_model` takes it."""
    own = {name: getattr(args, name) for name in OWN_NETWORK}
    one = {name: v[0] for name, v in own.items() if isinstance(v, list) and len(v) == 1}  # for all channels
    return own | one


def _atlas(args: argparse.Namespace) -> None:
    """Top patches beside their projections, as a page and a PNG per layer."""
    args.maps = feature_maps(args.maps)
    if args.notebook:
        _atlas_through_notebook(args)
        return
    model, images = _inputs(args)
    what: dict[str, Any] = {name: getattr(args, name) for name in ("layers", "maps", "k", "patches_only")}
    what["options"] = Options(args.rule)
    if args.dry_run:
        print(estimate_atlas(model, images, **what))
        return
    atlas = write_atlas(model, images, args.out, **what, random_seed=args.seed, colours=args.colours)
    _say_where(args, TopK.load(atlas.table))


def _site(args: argparse.Namespace) -> None:
    """A page for every feature map, as a folder of files that any browser opens."""
    args.model, *others = args.model or ["zfnet64"]
    model, images = _inputs(args)
    index = write_site(
        [model, *(_model(args, name) for name in others)], images, args.out, layers=args.layers,
        maps=feature_maps(args.maps), k=args.k, rules=args.rules, random_seed=args.seed,
    )  # fmt: skip
    print(f"\n  open  {index}\n")


def _atlas_through_notebook(args: argparse.Namespace) -> None:
    """Let papermill execute the notebook with this command's model, images, maps and seed."""
    try:
        import papermill
    except ImportError:
        raise ZfkitError("--notebook needs papermill: pip install 'zfkit[notebooks]'") from None
    notebook, out = args.notebook, args.out.resolve()
    known = read_parameters(read_notebook(notebook), notebook.name)
    names = ("model", "weights", "images", "maps", "seed")
    parameters = {name: getattr(args, name) for name in names} | {"out": str(out)}
    own = {name: value for name, value in _own_network(args).items() if value is not None}
    parameters |= {name: list(value) if isinstance(value, tuple) else value for name, value in own.items()}
    fixed = {"k": 9, "rule": "deconvnet", "patches_only": False, "dry_run": False}
    fixed |= dict.fromkeys(("layers", "size", "limit", "device"))
    changed = [name for name, value in fixed.items() if getattr(args, name) != value]
    changed += ["the numbers of maps"] * (not isinstance(args.maps, int | str))
    changed += [name for name in own if name not in known]
    if changed:
        raise ZfkitError(f"the notebook does not take {', '.join(changed)}: leave out --notebook")
    unknown = ", ".join(sorted(set(parameters) - set(known)))
    if unknown:
        raise ZfkitError(f"{notebook.name} has no parameter {unknown}: it does not make the atlas")
    out.mkdir(parents=True, exist_ok=True)
    expect_own(executed := out / notebook.name)
    if executed.exists() and executed.samefile(notebook):
        raise ZfkitError(
            f"{notebook.name} itself lies in {str(args.out)!r}, and would be replaced: say another --out"
        )
    try:
        papermill.execute_notebook(
            str(notebook), str(executed), parameters, kernel_name="python3", execution_timeout=900,
            store_widget_state=False,
        )  # fmt: skip
    except papermill.PapermillExecutionError as error:
        raise ZfkitError(
            f"{notebook.name} stopped with {error.ename}: {error.evalue} (see {executed})"
        ) from None
    _say_where(args, TopK.load(out / "topk.parquet"))


def _say_where(args: argparse.Namespace, top: TopK) -> None:
    """Where things are, and what to try next."""
    out = args.out
    print(f"\n{top!r}\n\n  open      {out / 'index.html'}")
    print(f"  pictures  {', '.join(str(p) for p in sorted(out.glob('*.png')))}")
    if args.notebook:
        print(f"  notebook  {out / args.notebook.name}")
    print(f"  table     {out / 'topk.parquet'}   (zfkit.TopK.load)\n\nTry next:")
    checkout = Path("Makefile").exists() and Path("notebooks").is_dir()
    if checkout:
        print("  make lab                                       the notebooks, in JupyterLab")
    print(
        "  zfkit atlas --images folder:PATH --out mine    your own pictures"
        + (" (from .venv/bin/, or activate it)" if checkout else "")
        + "\n  zfkit atlas --maps all                         every feature map\n"
    )


def _mine(args: argparse.Namespace) -> None:
    """The strongest activations of every feature map, as a table."""
    together = int(os.environ.get("WORLD_SIZE", "1")) > 1  # set by torchrun
    if together:
        dist.init_process_group("gloo")  # it carries small tables only
        if args.device is None and torch.cuda.is_available():
            args.device = f"cuda:{int(os.environ['LOCAL_RANK']) % torch.cuda.device_count()}"
    first = not together or dist.get_rank() == 0
    out = args.out
    if not out.name:
        raise ZfkitError(f"--out names no file: {str(out)!r}")
    part = out.with_name(f"{out.name}.part")
    try:
        model, images = _inputs(args, progress=first)
        options = {
            "layers": args.layers, "k": args.k, "inside": args.inside, "batch_size": args.batch_size,
            "precision": args.precision,
        }  # fmt: skip
        if args.scheduler:  # Dask runs again what was lost
            processes, how = sum(find_workers(args.scheduler).values()), {"scheduler": args.scheduler}
        else:
            processes = dist.get_world_size() if together else 1
            how = {"checkpoint": part, "checkpoint_every": args.checkpoint_every}
        if first:
            check_room(out, 0)
            estimate = estimate_mining(model, images, **options, processes=processes)
            print(estimate, flush=True)
            state_bytes = 0 if args.scheduler else processes * estimate.state_bytes
            check_room(out, 0 if args.dry_run else estimate.table_bytes + state_bytes)
        if args.dry_run:
            return
        top = mine(model, images, **options, **how)
        if first:
            print(f"{top!r}\n  table  {top.save(out)}")
        if together:
            dist.barrier()
        if not args.scheduler:
            state_file(part).unlink(missing_ok=True)  # this process's own
    finally:
        if together:
            dist.destroy_process_group()


def _train(args: argparse.Namespace) -> None:
    """Train a network by the paper's recipe."""
    expect_extra("train", "training", "lightning")
    changed = {f.name: vars(args)[f.name] for f in dataclasses.fields(Recipe) if f.name in args}
    if "snapshots" in changed:
        changed["snapshots"] = tuple(changed["snapshots"])
    recipe = dataclasses.replace(RECIPES[args.recipe], **changed)
    names = ("widths", "hidden", "conv1", "blur", "without")
    shape: dict[str, Any] = {n: getattr(args, n) for n in names if getattr(args, n) is not None}
    shape = {name: tuple(value) if isinstance(value, list) else value for name, value in shape.items()}
    architecture = dataclasses.replace(ARCHITECTURES[args.model], **shape)
    divided = args.images.partition(":")[0] in ("textures", "torchvision")
    if args.val is None and not divided:
        raise ZfkitError(f"say with --val which pictures to measure with: {args.images!r} is not divided")
    first = int(os.environ.get("RANK", "0")) == 0
    size = args.size or architecture.input_size
    train = load_images(args.images, size=size, limit=args.limit, split="train", progress=first)
    val = load_images(args.val or args.images, size=size, split="val", progress=first)
    out = args.out or Path(f"runs/{args.model}")
    run = fit(
        architecture, train, val, recipe, out, device=args.device, precision=args.precision, compile=args.compile,
        workers=args.workers, save_every=args.save_every, data=args.data_name,
    )  # fmt: skip
    if first:
        _report_training(run, load_model(out / "model.safetensors", device=args.device), val, out)


def _report_training(run: Run, model: VisionModel, val: ImageSet, out: Path) -> None:
    last, ten = run.history.iloc[-1], evaluate(model, val, crops=10)
    print(f"\n{run!r}\n  validation  {last.top1:.1f}% / {last.top5:.1f}% (top-1 / top-5, centre crop)")
    print(f"              {ten.top1:.1f}% / {ten.top5:.1f}% (mean of ten crops)")
    try:
        page, chart = out / "history.html", training_figure(run.history)
        # needs no connection
        write_whole(page, lambda part: part.write_text(chart.to_html(), encoding="utf-8"))
        print(f"  curves      {page}")
    except ImportError:  # a server without the notebooks' packages
        pass
    print(f"  time        {run.history.seconds.sum():.0f} s, {last.images_per_second:,.0f} images/s")
    print(f"  network     {out / 'model.safetensors'}\n  history     {out / 'history.parquet'}")
    if last.top1 < 150 / len(model.classes):
        print("\nNothing was learned. Try next: zfkit train --recipe he --batch-size 32 ...")
        return
    print(
        f"\nTry next:\n  zfkit atlas --model {out / 'model.safetensors'} --images photos --out {out / 'atlas'}"
    )


def _sweep(args: argparse.Namespace) -> int:
    """One notebook over a grid of its parameters."""
    plan = plan_sweep(args.notebook, args.grid, args.out, again=args.again, max_runs=args.max_runs)
    todo = len(plan.todo)
    print(f"{len(plan.runs)} runs of {plan.notebook.name}: {len(plan.done)} done before, {todo} to do")
    if plan.others:
        print(f"{plan.others} notebooks of other sweeps in {args.out} are left alone")
    if args.dry_run:
        for run in plan.runs:
            print(f"  {'done ' if run.name in plan.done else 'to do'}  {run.name}")
        if args.scheduler:
            hosts = find_workers(args.scheduler)
            print(f"{args.scheduler} answers: {sum(hosts.values())} at a time on {len(hosts)} machines")
        return 0
    table = run_sweep(
        plan, jobs=args.jobs, scheduler=args.scheduler, timeout=args.timeout, threads=args.threads
    )
    failed = table[table["status"] == "failed"]
    if len(failed):
        print(f"\n{len(failed)} of {len(table)} runs failed:")
        for run, notebook, error in zip(failed["run"], failed["notebook"], failed["error"], strict=True):
            print(f"  {run}\n    {error}\n    {args.out / notebook}")
    print(f"\n  open   {args.out / 'index.html'}\n  table  {args.out / 'results.parquet'}")
    return 1 if len(failed) else 0


def _doctor(args: argparse.Namespace) -> int:
    """Versions, devices and a self-test, for a bug report."""
    report = examine()
    print(report.markdown())
    for what in report.broken:
        print(f"zfkit doctor: broken: {what}", file=sys.stderr)
    return 1 if report.broken else 0


def _models(args: argparse.Namespace) -> None:
    """List the networks that are known by name."""
    print(list_models().to_string(na_rep="-"))
    print(
        "\nAlso torchvision:NAME, timm:NAME, your own module.py:function, the path of a .safetensors file that zfkit\n"
        "wrote, and that of the ONNX model zoo's zfnet512.onnx. Those that are untrained are there to be trained:\n"
        "zfkit train --help"
    )


def _cache_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--limit", type=float, metavar="MB", help="delete, until so much is left")


def _cache(args: argparse.Namespace) -> None:
    """What zfkit keeps to be quicker the next time: tables, and data sets of torchvision."""
    if args.limit is not None:
        limit_cache(round(1e6 * between(args.limit, "--limit, in MB,", -1e-9, math.inf)))
    entries = cached()
    for path, held, _ in entries:
        print(f"{held / 1e6:10.1f} MB  {path}")
    print(f"{sum(held for _, held, _ in entries) / 1e6:10.1f} MB in {cache_folder()}")
    for path in unmarked():
        print(f"not counted, and left alone, as zfkit did not mark it as its own: {path}")
