"""``ditf eval``: published benchmarks, by the protocols that published numbers were made with."""

from __future__ import annotations

import functools
import json as _json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from . import common, eval_davis, eval_hpatches, eval_synthetic
from .common import Clock, ModelOptions
from .eval_output import bars, introduce, show_comparison, show_result

if TYPE_CHECKING:
    from ..benchmarks.methods import Method, ModelMethod
    from ..benchmarks.pairs import PairSet
    from ..benchmarks.protocols import Protocol
    from ..benchmarks.registry import Benchmark
    from ..benchmarks.runner import Evaluation
    from ..extractor import FeatureExtractor

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


@dataclass(frozen=True)
class _Wish:
    """What was asked for besides the model."""

    data: Path
    out: Path
    split: str
    protocol: str
    dtype: Literal["float32", "float16"]
    outside: Literal["clip", "drop", "error"]
    prompt: str | None
    captions: Path | None
    size: int | None
    ablate: str | None
    fuse: str | None
    fuse_channels: int | None
    sample: int | None
    symmetry: Path | None
    align_pose: bool
    store: Path | None
    store_gb: float
    local_files_only: bool
    json: bool
    verbose: bool


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
        wish = _Wish(
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


def _run(benchmark: Benchmark, options: ModelOptions, wish: _Wish) -> None:
    from ..benchmarks.ablations import AXES, ablation_summary
    from ..benchmarks.protocols import find_protocol
    from ..benchmarks.results import result_document, save_result
    from ..benchmarks.runner import evaluate
    from ..errors import InputError
    from ..store import FeatureStore

    started, clock = datetime.now(UTC), Clock()
    protocol = find_protocol(benchmark.protocols, wish.protocol, benchmark.name)
    if wish.ablate is not None and not set(wish.ablate.split(",")) <= set(AXES):
        raise InputError.of("--ablate", wish.ablate, f"one or more of {', '.join(AXES)}, joined by commas")
    if wish.fuse_channels is not None and wish.fuse is None:
        raise InputError("--fuse-channels: what is projected are features beside others; give --fuse dinov2 too")
    protocol = protocol.with_pose() if wish.align_pose else protocol
    check_out(wish.out)
    captions = _captions(wish.captions)
    with clock.stage("read"):
        pairs = _pairs(benchmark, protocol, wish)
    work = wish.out.with_suffix(".work")
    common.make_folder(work, "--out")
    limit = None if wish.store_gb <= 0 else int(wish.store_gb * 1e9)
    store = FeatureStore(wish.store or work / "features", limit=limit)
    if not wish.json:
        introduce(benchmark, protocol, f"{len(pairs.pairs)} pairs")
    with clock.stage("model"):
        fx = options.load(wish.verbose)
        methods, unavailable = _methods(fx, protocol, wish, captions)
    with clock.stage("evaluate"), bars() as progress:
        evaluation = evaluate(
            methods, pairs, protocol, folder=work, store=store, outside=wish.outside, dtype=wish.dtype,
            progress=progress,
        )  # fmt: skip
    card = _card(methods, wish, captions, evaluation) | {"unavailable": unavailable}
    document = result_document(evaluation, pairs, benchmark.about, card=card)
    if wish.ablate is not None:
        document["ablation"] = ablation_summary(document, fx.backbone.name)
    files = save_result(document, wish.out)
    with clock.stage("pictures"):
        files += _pictures(evaluation, wish.out)
    write_sidecar(wish.out, started, clock)
    if wish.json:
        common.print_json(document)
    else:
        show_result(document, files, clock, work)
    if evaluation.problems.damage:
        raise typer.Exit(1)


def _pairs(benchmark: Benchmark, protocol: Protocol, wish: _Wish) -> PairSet:
    """What is scored.

    Raises:
        InputError: symmetry of points that have no ids, or pose alignment without it.
    """
    from ..benchmarks.sampling import sample_pairs
    from ..benchmarks.symmetry import read_symmetry
    from ..errors import InputError

    options = {}
    if (wish.symmetry is not None or protocol.align_pose) and not benchmark.named_points:
        name = "--align-pose" if wish.symmetry is None else "--symmetry"
        raise InputError(f"{name}: the points of {benchmark.title} have no ids; only spair and ap10k take it")
    if wish.symmetry is not None:
        options["symmetry"] = read_symmetry(wish.symmetry)
    pairs = benchmark.read(wish.data, wish.split, protocol, **options)
    if protocol.align_pose and any(pair.counterparts is None for pair in pairs.pairs):
        raise InputError("--align-pose: which points change places in a mirror is not known; give --symmetry FILE.json")
    return pairs if wish.sample is None else sample_pairs(pairs, wish.sample)


def check_out(out: Path) -> None:
    """Before the first forward.

    Raises:
        InputError, StoreError: it is a folder, or its folder takes no files.
    """
    from ..errors import InputError

    if out.is_dir() or out.suffix != ".json":
        raise InputError(f"--out: got {out}, expected a file such as result.json")
    common.make_folder(out.parent, "--out")


def _captions(path: Path | None) -> dict[str, str]:
    from ..errors import InputError

    if path is None:
        return {}
    try:
        content = _json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"--captions: no such file: {path} (now in {Path.cwd()})") from None
    except (OSError, ValueError) as error:
        raise InputError(f"--captions: {path} cannot be read ({error}); give a JSON object of texts") from None
    if not isinstance(content, dict) or not all(isinstance(v, str) for v in content.values()):
        raise InputError(f"--captions: {path} is no JSON object of texts; keys are category/image.jpg")
    return content


def _methods(
    fx: FeatureExtractor, protocol: Protocol, wish: _Wish, captions: dict[str, str]
) -> tuple[list[Method], dict[str, str]]:
    """The rows to be, and those that the model cannot give, with the reason."""
    from ..benchmarks.ablations import ablation_methods
    from ..benchmarks.fusion import FusedMethod, load_dino
    from ..benchmarks.methods import ModelMethod, PatchMethod

    def make(name: str, extractor: FeatureExtractor) -> ModelMethod:
        return ModelMethod(name, extractor, protocol, size=wish.size, prompt=wish.prompt, captions=captions)

    rows, unavailable = [make(fx.backbone.name, fx)], {}
    if wish.ablate is not None:
        rows, unavailable = ablation_methods(fx, wish.ablate.split(","), make)
    methods: list[Method] = list(rows)
    if wish.fuse is not None:
        dino = load_dino(wish.fuse, device=fx.backbone.device, local_files_only=wish.local_files_only)
        name = f"{rows[0].name} + DINO" + ("" if wish.fuse_channels is None else f", {wish.fuse_channels} channels")
        methods.append(FusedMethod(name, rows[0], dino, protocol, wish.fuse_channels))
    return [*methods, PatchMethod(protocol)], unavailable


def _card(methods: list[Method], wish: _Wish, captions: dict[str, str], evaluation: Evaluation) -> dict[str, Any]:
    from .. import __version__
    from ..benchmarks.fusion import FusedMethod
    from ..benchmarks.methods import ModelMethod, caption_of

    card: dict[str, Any] = {"ditf": __version__, "match_dtype": wish.dtype, "outside": wish.outside}
    card["methods"] = {m.name: m.card() if isinstance(m, ModelMethod | FusedMethod) else m.about() for m in methods}
    if captions:
        sides = {
            side
            for one in evaluation.pairs
            for side in ((one.pair.source_prompt, one.pair.source.name), (one.pair.target_prompt, one.pair.target.name))
        }
        missing = sum(caption_of(captions, *side) is None for side in sides)
        card["captions"] = {"found": len(sides) - missing, "template_instead": missing}
    return card


def write_sidecar(out: Path, started: datetime, clock: Clock) -> None:
    from ..types import write_atomically

    about = {
        "started": started.isoformat(timespec="seconds"),
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": clock.seconds,
    }
    write_atomically(out.with_suffix(".run.json"), (_json.dumps(about, indent=1) + "\n").encode())


def _pictures(evaluation: Evaluation, out: Path) -> list[Path]:
    """The worst and best pairs of the first method."""
    import io

    from ..benchmarks.pictures import draw_extremes
    from ..types import write_atomically

    content, path = io.BytesIO(), out.with_suffix(".png")
    draw_extremes(evaluation, next(iter(evaluation.found))).save(content, "PNG")
    write_atomically(path, content.getvalue())
    return [path]
