"""The parsers of the commands about arms: `classify`, and `arms`, which lists for DVC what each arm is trained on."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gda.artifacts.outcome import Outcome
from gda.cli.stage_parser import Runner, stage_parser
from gda.config.arm import DATA, HOW, Arm
from gda.config.load import Config
from gda.flow import ARM_SETS, arm_inputs
from gda.runtime.parallel import is_first_process


def add_arms(commands: Any) -> None:
    """The command `arms`."""

    def runner(config: Config, args: argparse.Namespace) -> Outcome:
        from gda.stages import arms

        sets = {role: getattr(args, role) for role in ARM_SETS}
        return arms.run(config, sets=sets, needs={arm: tuple(arm_inputs(arm)) for arm in config.classify.arms}, out=args.out)

    parser = stage_parser(commands, "arms", "write digests of what each arm is trained on, so that dvc repro sees a change", runner)
    _add_arm_sets(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder to write; finished work in it is kept")


def add_classify(commands: Any) -> None:
    """The command `classify`."""

    def each(config: Config, args: argparse.Namespace) -> Iterator[argparse.Namespace]:
        """A command per classifier: of the given seed, or of each that the arm has."""
        args.synthetic = _own_set(args)  # what the run's record names
        if args.seed is not None:
            yield args
            return
        seeds = config.classify.seeds_of(args.arm)
        others = _other_seeds(args, seeds)  # looked at before anything is trained, and removed after
        for seed in seeds:
            yield argparse.Namespace(**vars(args) | {"seed": seed, "all_seeds": True, "out": args.out / str(seed)})
        if others:
            yield argparse.Namespace(**vars(args) | {"runner": remover(others)})

    def remover(seeds: tuple[int, ...]) -> Runner:
        def remove(_: Config, args: argparse.Namespace) -> Outcome:
            from gda.stages import classify

            return classify.remove(args.out, args.arm, seeds)

        return remove

    def runner(config: Config, args: argparse.Namespace) -> Outcome:
        from gda.stages import classify

        return classify.run(
            config,
            snapshot=args.snapshot,
            arm=args.arm,
            seed=args.seed,
            out=args.out,
            synthetic=_own_set(args),
            verdict=args.verdict,
            pool=args.pool,
            reference=args.reference,
            if_compared=args.if_compared,
            with_seeds=config.classify.seeds_of(args.arm) if args.all_seeds else (),
            replacing=args.replace,
            progress=args.progress,
        )

    parser = stage_parser(commands, "classify", "train the classifiers of one arm, or the one of a seed", runner)
    parser.set_defaults(each=each)
    parser.add_argument("--snapshot", type=Path, required=True, help="the real snapshot, output of gda snapshot")
    _add_arm_sets(parser)
    parser.add_argument("--if-compared", action="store_true", help="skip an arm that classify.arms does not name")
    parser.add_argument("--arm", type=_arm, required=True, metavar="ARM", help=f"{', '.join(DATA)}; {HOW}")
    parser.add_argument("--seed", type=int, help="train this one; without it every configured seed, in a folder each below --out")
    parser.add_argument(
        "--all-seeds",
        action="store_true",
        help="train the arm's other configured seeds as well; their commands then only publish (under torchrun: only the given seed)",
    )
    parser.add_argument(
        "--replace",
        action="store_true",
        help="leave only this command's classifiers in --out: those of the arm with other settings or seeds move to .gda/replaced",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write; finished work in it is kept")


def _other_seeds(args: argparse.Namespace, seeds: tuple[int, ...]) -> tuple[int, ...]:
    """With `--replace`: the seeds of classifiers in `--out` that are not among `seeds`. Raises if it holds anything else."""
    if not args.replace or not is_first_process():
        return ()
    from gda.stages import classify

    return tuple(sorted(set(classify.seeds_in(args.out, args.arm)) - set(seeds)))


def _add_arm_sets(parser: argparse.ArgumentParser) -> None:
    """Flags of everything that arms read in addition to the real snapshot, by role."""
    parser.add_argument("--synthetic", type=Path, help="the synthetic set that the verdict is about")
    parser.add_argument("--verdict", type=Path, help="verdict.json of that set")
    parser.add_argument("--zero-shot", type=Path, help="images of a generator that was not fine-tuned")
    parser.add_argument("--img2img", type=Path, help="real training images, noised and denoised again")
    parser.add_argument("--pool", type=Path, help="more real images, of gda snapshot --as pool")
    parser.add_argument("--reference", type=Path, help="output of gda reference, which names the hard classes for targeted data")


def _arm(name: str) -> Arm:
    try:
        return Arm(name)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _own_set(args: argparse.Namespace) -> Path | None:
    """The generated images that the arm reads, out of all given sets; --synthetic may also name a control set."""
    data = args.arm.data
    return (getattr(args, data.others) or args.synthetic) if data.synthetic else None
