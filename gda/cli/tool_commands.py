"""The commands that are not stages: verify, merge, export, ema, config show, recipes, lineage, summary, doctor."""

import argparse
import json
from pathlib import Path
from typing import Any

from gda.config.load import parse_config
from gda.errors import ConfigError, DataError, UsageError
from gda.runtime.reading import YAML_LIMIT, parse_yaml, read_json, read_text


def add_commands(commands: Any) -> None:
    """Add the tools' parsers to `commands`."""
    verify = _add(
        commands,
        "verify",
        "re-hash an output of any kind and name what is wrong",
        _verify,
        ("directory", Path, None, "the output to check"),
    )
    verify.add_argument("--reproduce", type=int, metavar="N", help="sample N random batches of a set again and compare the pixels")
    verify.add_argument("--generator", help="the generator of the set (default: search next to the set)")
    verify.add_argument("--snapshot", type=Path, help="of an image-to-image set, the real snapshot (default: search next to the set)")
    verify.add_argument("--seed", type=int, default=0, help="another seed chooses other batches")
    merge = _add(
        commands, "merge", "join synthetic snapshots without rewriting bytes", _merge, ("directories", Path, "+", "the snapshots to join")
    )
    merge.add_argument("--out", type=Path, required=True, help="folder to write; finished work in it is kept")
    export = _add(
        commands,
        "export",
        "write a snapshot, or with --to onnx a classifier, for other tools",
        _export,
        ("directory", Path, None, "a snapshot or a classifier"),
    )
    export.add_argument("--to", choices=("imagefolder", "npz", "hf", "onnx"), required=True, help="onnx is for classifiers")
    export.add_argument("--out", type=Path, required=True, help="a folder, or the .onnx file")
    ema = _add(commands, "ema", "average a generator's weights again, at any width, from the snapshots that finetune kept", _ema)
    ema.add_argument("--generator", type=Path, required=True, help="output of a finetune with finetune.ema_snapshot_steps")
    ema.add_argument("--sigma-rel", type=float, required=True, metavar="X", help="width of the average relative to training, below 0.288")
    ema.add_argument("--out", type=Path, required=True, help="folder to write; finished work in it is kept")
    ema.add_argument("--step", type=int, metavar="N", help="as after this optimizer step (default: the last snapshot)")
    ema.add_argument("--force", action="store_true", help="write it even where the snapshots are too sparse for this width and step")
    lineage = _add(
        commands, "lineage", "what an output was made from, back to the images", _lineage, ("directory", Path, None, "any output")
    )
    lineage.add_argument("--json", action="store_true", help="as one JSON object")
    config = _add(
        commands,
        "config",
        "show the configuration, or convert an old params.yaml",
        _config,
        ("action", str, None, "show: print the whole; convert: rewrite a params.yaml with old names"),
    )
    config.add_argument("fields", nargs="*", metavar="SECTION[.FIELD]", help="with show: only these sections and fields")
    config.add_argument("--plain", action="store_true", help="with show: without the comments that explain each field")
    config.add_argument("--params", type=Path, metavar="FILE", help="configuration (default: params.yaml where there is one)")
    config.add_argument("--set", action="append", default=[], metavar="SECTION.FIELD=VALUE", help="override one field; may be repeated")
    _add(commands, "recipes", "the training recipes that classify.recipe takes, with their sources", _recipes)
    _add(commands, "summary", "the result table of the last run in this folder", _summary)
    _add(commands, "doctor", "check that this machine has what the job needs", _doctor)


def _add(
    commands: Any, name: str, help_text: str, tool: Any, positional: tuple[str, type, str | None, str] | None = None
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=help_text, description=help_text)
    parser.set_defaults(tool=tool)
    if positional is not None:
        argument, kind, count, meaning = positional
        if argument == "action":
            parser.add_argument(argument, choices=("show", "convert"), help=meaning)
        else:
            parser.add_argument(argument, type=kind, nargs=count, help=meaning)
    return parser


def _verify(args: argparse.Namespace) -> int:
    from gda.verify import verify_output

    if args.reproduce is not None and args.reproduce < 1:
        raise UsageError(f"--reproduce {args.reproduce}: expected a number of batches, 1 or more")
    if args.reproduce is None and (given := [f"--{name}" for name in ("generator", "snapshot") if getattr(args, name) is not None]):
        raise UsageError(f"{given[0]}: goes with --reproduce N")
    if not args.directory.is_dir():
        raise UsageError(f"{args.directory}: no such directory")
    kind, problems = verify_output(args.directory)
    for problem in problems:
        print(problem)
    if problems:
        raise DataError(f"{args.directory}: {len(problems)} problems found, first: {problems[0]}")
    print(f"verify: {args.directory} is whole ({kind})")
    if args.reproduce is not None:
        _reproduce(args)
    return 0


def _reproduce(args: argparse.Namespace) -> None:
    from gda.generator.sampling import reproduce

    recorded = reproduce.Recorded.open(args.directory)
    generator = reproduce.find_generator(recorded, args.generator, _next_to(recorded.generator, args.directory, "generator.json"))
    near = _next_to(recorded.sources, args.directory, "snapshot.json") if recorded.sources else []
    context = recorded.context(generator, reproduce.find_sources(recorded, args.snapshot, near))
    if changed := recorded.differences():
        limit = reproduce.TOLERANCES[context.speed.precision]
        print(f"verify: bits are not claimed here ({'; '.join(changed)}); accepted: {limit:g} grey levels rms an image")
    found = []
    for compared in reproduce.compare_batches(recorded, context, reproduce.choose_batches(recorded, args.reproduce, seed=args.seed)):
        found.append(compared)
        print(f"verify: {reproduce.describe_batch(compared)}", flush=True)
    differing = {key: largest for compared in found for key, largest in compared.differing.items()}
    if differing:
        named = ", ".join(f"{key} (by up to {largest} grey levels)" for key, largest in list(differing.items())[:3])
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise DataError(f"{args.directory}: {len(differing)} images differ from those of its plan: {named}{more}")


def _merge(args: argparse.Namespace) -> int:
    from gda.data.store.merge import merge_snapshots

    print(f"merge: {merge_snapshots(args.directories, args.out).summary}")
    return 0


def _export(args: argparse.Namespace) -> int:
    is_classifier, is_snapshot = ((args.directory / card).is_file() for card in ("classifier.json", "snapshot.json"))
    if args.to == "onnx":
        if is_snapshot:
            raise UsageError(f"{args.directory}: --to onnx is for classifiers, and this is a snapshot")
        from gda.training.onnx_file import export_onnx

        print(f"export: {export_onnx(args.directory, args.out).summary}")
        return 0
    if is_classifier:
        raise UsageError(f"{args.directory}: --to {args.to} is for snapshots, and this is a classifier; --to onnx exports it")
    from gda.data.export import export_snapshot

    print(f"export: {export_snapshot(args.directory, args.to, args.out).summary}")
    return 0


def _ema(args: argparse.Namespace) -> int:
    from gda.generator.weights.reaverage import average_generator

    outcome = average_generator(args.generator, args.sigma_rel, args.out, step=args.step, force=args.force)
    print(f"ema: {outcome.summary}")
    return 0


def _config(args: argparse.Namespace) -> int:
    from gda.config.describe import described_config

    default = Path("params.yaml")
    params = args.params or (default if default.exists() else None)
    if args.action == "convert":
        return _convert(params, [*args.set, *args.fields])
    print(described_config(params, args.set, only=args.fields, plain=args.plain), end="")
    return 0


def _convert(params: Path | None, overrides: list[str]) -> int:
    """Rewrite a params.yaml with the names of this version; a file that is not valid afterwards stays as it is."""
    from gda.config.renamed import convert
    from gda.io.atomic import write_bytes

    if params is None or overrides:
        raise UsageError("gda config convert rewrites one file: give --params FILE, and neither --set nor fields")
    parse_yaml(old := read_text(params, limit=YAML_LIMIT, error=ConfigError), params, error=ConfigError)
    new, changes = convert(old, where=str(params))
    parse_config(parse_yaml(new, params, error=ConfigError) or {}, where=str(params))
    if changes:
        write_bytes(params, new.encode())
    print("\n".join([f"config: {params}: {change}" for change in changes] or [f"config: {params} has no old names"]))
    return 0


def _recipes(args: argparse.Namespace) -> int:
    from gda.config.classifier_recipes import recipe_table

    print(recipe_table())
    return 0


def _lineage(args: argparse.Namespace) -> int:
    if not args.directory.is_dir():
        raise UsageError(f"{args.directory}: no such directory")
    from gda.lineage import Lineage, as_json, describe_lineage

    lineage = Lineage.of(args.directory)
    print(json.dumps(as_json(lineage), indent=2, sort_keys=True) if args.json else "\n".join(describe_lineage(lineage)))
    return 0


def _next_to(digest: str, near: Path, card: str) -> list[Path]:
    """Outputs of that digest next to `near`, and averages of weights that `gda sample` made."""
    from gda.io.atomic import work_root

    cards = [*sorted(near.resolve().parent.parent.glob(f"*/*/{card}")), *sorted((work_root() / "averages").glob(f"*/{card}"))]
    return [path.parent for path in cards if _digest_in(path) == digest]


def _digest_in(card: Path) -> str | None:
    """None for a card that cannot be read: a neighbour of an output must not hide the output's own origin."""
    try:
        content = read_json(card)
    except DataError:
        return None
    return content.get("digest") if isinstance(content, dict) else None


def _summary(_: argparse.Namespace) -> int:
    from gda.cli.summary import summary
    from gda.flow import EVALUATION, PROMOTION, VERDICT

    print(summary(Path(EVALUATION), Path(VERDICT), Path(PROMOTION)))
    return 0


def _doctor(_: argparse.Namespace) -> int:
    from gda.cli.doctor import machine_facts

    missing = False
    for fact in machine_facts():
        print(f"{fact.name:<20}{fact.value}", flush=True)
        missing |= fact.missing
    return 5 if missing else 0
