"""``ditf eval``: published benchmarks, by the protocols that published numbers were made with."""

from __future__ import annotations

import functools
import json as _json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from . import common, eval_davis, eval_hpatches, eval_synthetic
from .common import Clock, ModelOptions
from .eval_output import bars, introduce, show_comparison, show_result
from .eval_points import Wish, make_card, make_methods, read_captions, read_pairs, save_pictures

if TYPE_CHECKING:
    from ..benchmarks.registry import Benchmark

NAME = "eval"


class _Group(TyperGroup):
    """With a command for every data set of labelled pairs, made once one is asked for: their protocols need PyTorch."""

    def list_commands(self, ctx):
        self._add_pairs()
        return super().list_commands(ctx)

    def get_command(self, ctx, cmd_name):
        self._add_pairs()
        return super().get_command(ctx, cmd_name)

    def _add_pairs(self) -> None:
        self.commands = {**_pair_commands(), **self.commands}


app = typer.Typer(
    name=NAME,
    cls=_Group,
    no_args_is_help=True,
    help="Score a model on a published benchmark, every average and trivial rival beside it.",
    epilog="Example:  ditf eval spair --data SPair-71k --model ditf-tiny --protocol ditf-code --out r.json",
)

_PROTOCOL = "Protocol"


def _make_command(name: str, protocol_default: str, protocols: Sequence[str]) -> Callable[..., None]:
    def command(
        data: Annotated[Path, typer.Option(metavar="FOLDER", help="The unpacked data set.", show_default=False)],
        out: Annotated[
            Path,
            typer.Option(metavar="FILE.json", help="The result; tables and pictures beside it.", show_default=False),
        ],
        protocol: Annotated[
            str, typer.Option(help="What fixes all that is not the model.", rich_help_panel=_PROTOCOL)
        ] = protocol_default,
        split: Annotated[
            str, typer.Option(help="As the data set's folders name it.", rich_help_panel=_PROTOCOL)
        ] = "test",
        dtype: Annotated[
            Literal["float32", "float16"],
            typer.Option(help="Of the matching; float16 is the reference code's.", rich_help_panel=_PROTOCOL),
        ] = "float32",
        outside: Annotated[
            Literal["clip", "drop", "error"],
            typer.Option(help="Source points outside their image.", rich_help_panel=_PROTOCOL),
        ] = "clip",
        prompt: Annotated[
            str | None,
            typer.Option(
                metavar="TEMPLATE",
                help='Such as "a photo of a {category}".',
                show_default="the protocol's",
                rich_help_panel=_PROTOCOL,
            ),
        ] = None,
        captions: Annotated[
            Path | None,
            typer.Option(
                metavar="FILE.json",
                help="Texts of single images; the template where one is missing.",
                show_default=False,
                rich_help_panel=_PROTOCOL,
            ),
        ] = None,
        ablate: Annotated[
            str | None,
            typer.Option(
                metavar="normalization,discard,condition",
                help="Rows of the method's parts.",
                show_default=False,
                rich_help_panel=_PROTOCOL,
            ),
        ] = None,
        fuse: Annotated[
            str | None,
            typer.Option(
                metavar="dinov2|MODEL",
                help="Also a row beside DINO's features: hub id or folder.",
                show_default=False,
                rich_help_panel=_PROTOCOL,
            ),
        ] = None,
        fuse_channels: Annotated[
            int | None,
            typer.Option(
                metavar="N",
                help="Project each pair's fused features to this many channels together; DiTF's rows: 1280.",
                show_default="as they are",
                rich_help_panel=_PROTOCOL,
            ),
        ] = None,
        sample: Annotated[
            int | None,
            typer.Option(
                metavar="N",
                help="Only N pairs of every category, drawn as GeoAware-SC and sd-dino do (theirs: 20).",
                show_default="all pairs",
                rich_help_panel=_PROTOCOL,
            ),
        ] = None,
        symmetry: Annotated[
            Path | None,
            typer.Option(
                metavar="FILE.json",
                help="Which points are alike and which change places in a mirror, by their ids.",
                show_default="AP-10K's by their names; none otherwise",
                rich_help_panel=_PROTOCOL,
            ),
        ] = None,
        align_pose: Annotated[
            bool,
            typer.Option(
                "--align-pose",
                help="Match the mirrored source where that is nearer to the target (GeoAware-SC).",
                rich_help_panel=_PROTOCOL,
            ),
        ] = False,
        store: Annotated[
            Path | None,
            typer.Option(
                metavar="FOLDER", help="Features; may be shared.", show_default="OUT's name with .work, in features/"
            ),
        ] = None,
        store_gb: Annotated[
            float, typer.Option(help="Features on disk before those of finished categories give way; 0: no limit.")
        ] = 2.0,
        json: common.Json = False,
        verbose: common.Verbose = False,
        model: common.Model = "ditf-tiny",
        fused: common.Fused = "true",
        device: common.Device = None,
        model_dtype: common.Dtype = None,
        revision: common.Revision = None,
        local_files_only: common.LocalFilesOnly = False,
        block: common.Block = None,
        timestep: common.Timestep = None,
        ensemble: common.Ensemble = None,
        discard: common.Discard = None,
        size: common.Size = None,
        seed: common.Seed = 0,
    ) -> None:
        from ..benchmarks.registry import find_benchmark

        common.set_voice(verbose)
        options = ModelOptions(
            model, "semantic", fused, device, model_dtype, revision, local_files_only, block, timestep, ensemble,
            discard, None, seed,
        )  # fmt: skip
        options.overrides()
        wish = Wish(
            data,
            out,
            split,
            protocol,
            dtype,
            outside,
            prompt,
            captions,
            size,
            ablate,
            fuse,
            fuse_channels,
            sample,
            symmetry,
            align_pose,
            store,
            store_gb,
            local_files_only,
            json,
            verbose,
        )
        _run(find_benchmark(name), options, wish)

    said = f"What fixes all that is not the model: {', '.join(protocols)}."
    command.__annotations__["protocol"] = Annotated[str, typer.Option(help=said, rich_help_panel=_PROTOCOL)]
    return command


@functools.cache
def _pair_commands() -> dict[str, Any]:
    from ..benchmarks.registry import BENCHMARKS

    made = typer.Typer()
    for benchmark in (b for b in BENCHMARKS.values() if b.kind == "pairs"):
        made.command(
            benchmark.name,
            help=f"{benchmark.title}: points of one image found in another, scored in all five published averages.\n\n"
            "Stopped at any moment, the same command goes on where it was. The exit code is 1 where pairs of the data "
            "set could not be scored.",
            epilog=f"Example:  ditf eval {benchmark.name} --data FOLDER --model ditf-tiny --out result.json",
        )(_make_command(benchmark.name, benchmark.protocol, list(benchmark.protocols)))
    return dict(typer.main.get_group(made).commands)


for _other in (eval_hpatches, eval_davis, eval_synthetic):
    app.command(_other.NAME, epilog=_other.EXAMPLE)(_other.command)


@app.command("compare", epilog="Example:  ditf eval compare a.json b.json")
def compare_results(
    first: Annotated[Path, typer.Argument(metavar="A.json", show_default=False)],
    second: Annotated[Path, typer.Argument(metavar="B.json", show_default=False)],
    alpha: Annotated[str | None, typer.Option(help="Threshold.", show_default="the first that both have")] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(help="Row of A, then of B; once: of both.", show_default="the first of each"),
    ] = None,
    json: common.Json = False,
) -> None:
    """Every average of two results, and their difference with its interval: a paired bootstrap over target images."""
    from ..benchmarks.compare import compare, read_result
    from ..errors import InputError

    rows = method or [None]
    if len(rows) > 2:
        raise InputError.of("--method", rows, "at most two names")
    found = compare(read_result(first), read_result(second), methods=(rows[0], rows[-1]), alpha=alpha)
    if json:
        common.print_json(found)
        return
    show_comparison(found)


def _run(benchmark: Benchmark, options: ModelOptions, wish: Wish) -> None:
    from ..benchmarks.ablations import AXES, ablation_summary
    from ..benchmarks.protocols import find_protocol
    from ..benchmarks.results import result_document, save_result
    from ..benchmarks.rules import check_dtype
    from ..benchmarks.runner import evaluate
    from ..errors import InputError
    from ..store import FeatureStore

    started, clock = datetime.now(UTC), Clock()
    protocol = find_protocol(benchmark.protocols, wish.protocol, benchmark.name)
    check_dtype(wish.dtype, protocol)
    if wish.ablate is not None and not set(wish.ablate.split(",")) <= set(AXES):
        raise InputError.of("--ablate", wish.ablate, f"one or more of {', '.join(AXES)}, joined by commas")
    if wish.fuse_channels is not None and wish.fuse is None:
        raise InputError("--fuse-channels: what is projected are features beside others; give --fuse dinov2 too")
    protocol = protocol.with_pose() if wish.align_pose else protocol
    check_out(wish.out)
    captions = read_captions(wish.captions)
    with clock.stage("read"):
        pairs = read_pairs(benchmark, protocol, wish)
    work = wish.out.with_suffix(".work")
    common.make_folder(work, "--out")
    limit = None if wish.store_gb <= 0 else int(wish.store_gb * 1e9)
    store = FeatureStore(wish.store or work / "features", limit=limit)
    if not wish.json:
        introduce(benchmark, protocol, f"{len(pairs.pairs)} pairs")
    with clock.stage("model"):
        fx = options.load(wish.verbose)
        methods, unavailable = make_methods(fx, protocol, wish, captions)
    with clock.stage("evaluate"), bars() as progress:
        evaluation = evaluate(
            methods, pairs, protocol, folder=work, store=store, outside=wish.outside, dtype=wish.dtype,
            progress=progress,
        )  # fmt: skip
    card = make_card(methods, wish, captions, evaluation) | {"unavailable": unavailable}
    document = result_document(evaluation, pairs, benchmark.about, card=card)
    if wish.ablate is not None:
        document["ablation"] = ablation_summary(document, fx.backbone.name)
    files = save_result(document, wish.out)
    with clock.stage("pictures"):
        files += save_pictures(evaluation, wish.out)
    write_sidecar(wish.out, started, clock)
    if wish.json:
        common.print_json(document)
    else:
        show_result(document, files, clock, work)
    if evaluation.problems.damage:
        raise typer.Exit(1)


def check_out(out: Path) -> None:
    """Before the first forward.

    Raises:
        InputError, StoreError: it is a folder, or its folder takes no files.
    """
    from ..errors import InputError

    if out.is_dir() or out.suffix != ".json":
        raise InputError(f"--out: got {out}, expected a file such as result.json")
    common.make_folder(out.parent, "--out")


def write_sidecar(out: Path, started: datetime, clock: Clock) -> None:
    from ..types import write_atomically

    about = {
        "started": started.isoformat(timespec="seconds"),
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": clock.seconds,
    }
    write_atomically(out.with_suffix(".run.json"), (_json.dumps(about, indent=1) + "\n").encode())
