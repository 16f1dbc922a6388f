"""The command line around Hydra: its options, its help, and one clear line for every mistake.

Hydra composes and sweeps. Exceptions reach this module, which alone maps them to exit codes: 2 for a mistake of the
user's, 1 for a run that failed, 130 or 143 for one that SIGINT or SIGTERM interrupted.
"""

import argparse
import itertools
import os
import re
import shlex
import sys
import tempfile
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from minigrad import catalog, interruption, sweep
from minigrad.errors import RunFailed, UserError
from minigrad.ranks import are_started

if TYPE_CHECKING:
    from omegaconf import DictConfig

Start = Callable[[str, dict[str, Any], set[str], Mapping[str, Collection[str]]], None]

PROGRAM = "minigrad-train"
SWEEP_KEYS = ("sweep_dir", "jobs")


def run(start: Start, arguments: Sequence[str]) -> int:
    """Carry out a command line and return its exit code.

    Args:
        start: called once for every run, with the experiment's stem, its composed values, the keys that the command
            line itself gives, and all values of those by which runs are to be compared, as far as they are known.
        arguments: the command line without the program's name.
    """
    try:
        options = _Parser().parse_intermixed_args(arguments)
        if options.help:
            print(_help(options.overrides))
        else:
            with interruption.raising():
                _compose_and_start(start, options)
    except (UserError, RunFailed) as error:
        _complain(error)
        return 2 if isinstance(error, UserError) else 1
    except BrokenPipeError:
        print(f"{PROGRAM}: nobody reads the output any more", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python flushes into it again at exit
        return 1
    except KeyboardInterrupt as interrupt:
        print(f"{PROGRAM}: interrupted", file=sys.stderr)
        return interrupt.exit_code if isinstance(interrupt, interruption.Interrupted) else 130
    return 0


def _complain(error: Exception) -> None:
    rank = os.environ["RANK"] if are_started() else "0"
    who = PROGRAM if rank == "0" else f"{PROGRAM}: rank {rank}"
    print(f"{who}: {error}", file=sys.stderr, flush=True)


class _Parser(argparse.ArgumentParser):
    """Reads the options that are passed on to Hydra; what it cannot read is a UserError."""

    def __init__(self) -> None:
        super().__init__(prog=PROGRAM, add_help=False, allow_abbrev=False)
        self.add_argument("overrides", nargs="*")
        self.add_argument("-h", "--help", action="store_true")
        self.add_argument("-m", "--multirun", action="store_true")
        self.add_argument("-c", "--cfg", choices=["job", "hydra", "all"])
        self.add_argument("-sc", "--shell-completion", action="store_true")

    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized arguments: "):
            option = message.removeprefix("unrecognized arguments: ").split()[0]
            message = f"unknown option {option}"
            if "=" in option:
                message += f"; a key is given without dashes: {option.lstrip('-').replace('-', '_')}"
        raise UserError(f"{message}; see {PROGRAM} --help")


def _compose_and_start(start: Start, options: argparse.Namespace) -> None:
    _refuse_hydra(options.overrides)
    overrides, of_sweep = _parted(options.overrides)
    if options.multirun and not options.cfg and not options.shell_completion:
        _sweep(start, overrides, **of_sweep)
        return
    if of_sweep and not options.multirun:
        key, value = next(iter(of_sweep.items()))
        raise UserError(f"{key}={value} is of a sweep; add -m to run several settings, or leave it out")
    _run(start, options, overrides)


def _run(start: Start, options: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Carry out one run, or show what it was composed of."""
    from minigrad.resumption import choices_of_the_resumed

    errors: list[Exception] = []

    def run(config: "DictConfig") -> None:
        try:
            _begin(start, config)
        except Exception as error:
            errors.append(error)  # raised below, and not to Hydra, which would announce it with a line of its own

    chosen = [] if options.multirun else choices_of_the_resumed(overrides)
    flags = [f"--{flag.replace('_', '-')}" for flag in ("multirun", "shell_completion") if getattr(options, flag)]
    flags += ["--cfg", options.cfg] if options.cfg else []
    _call_hydra(run, flags, [*chosen, *overrides])
    for error in errors:
        raise error


def _sweep(start: Start, overrides: Sequence[str], sweep_dir: str | None = None, jobs: str = "1") -> None:
    """Carry out every run that the overrides give, `jobs` at a time, and tell what became of them."""
    from minigrad.config import check

    processes = _at_a_time(jobs)
    check(sweep_dir != "", "sweep_dir", "", "a path, or null for a new directory below runs/sweeps")
    if are_started():
        raise UserError("a sweep runs in one process: start it without torchrun")
    if "run_dir" in _keys(overrides):
        raise UserError("run_dir is of one run; name the sweep's directory with sweep_dir=")
    if "resume" in _keys(overrides):
        raise UserError("resume is of one run; name the directory of the sweep that is to go on with sweep_dir=")
    runs = _combinations(overrides)
    place = None if sweep_dir == "null" else sweep_dir
    with sweep.opened(place) as directory, tempfile.TemporaryDirectory() as scratch:
        swept = sweep.Sweep(directory, runs)
        processes = min(processes, swept.remaining())
        own = [f"hydra.sweep.dir='{scratch}'"]  # Hydra's sweeper insists on writing a file of its own
        if processes > 1:  # joblib would hand out more and more runs at once if the first ones are quick
            own += ["hydra/launcher=joblib", f"hydra.launcher.n_jobs={processes}", "hydra.launcher.batch_size=1"]
        try:
            swept.launch(lambda: _call_hydra(_Member(start, swept), ["--multirun"], overrides, own), processes)
        except KeyboardInterrupt:
            swept.conclude()
            again = [PROGRAM, "-m", *overrides, *([f"jobs={jobs}"] if jobs != "1" else []), f"sweep_dir={directory}"]
            print(f"{swept.remaining()} of {len(runs)} runs remain; go on with: {shlex.join(again)}", flush=True)
            if failure := swept.failure(but="interrupted"):
                _complain(failure)
            raise
        swept.conclude()
        if failure := swept.failure():
            raise failure


@dataclass(frozen=True)
class _Member:
    """What Hydra calls for every run of a sweep; joblib sends it to other processes."""

    start: Start
    sweep: sweep.Sweep

    def __call__(self, config: "DictConfig") -> None:
        from hydra.core.hydra_config import HydraConfig

        def begin(directory: Path) -> None:
            try:
                _begin(self.start, config, directory, self.sweep.compared)
            except (UserError, RunFailed) as error:
                _complain(error)
                raise
            except BrokenPipeError:
                raise
            except Exception:
                traceback.print_exc()
                raise

        own = HydraConfig.get()
        self.sweep.run(own.job.num + 1, tuple(own.overrides.task), begin)


def _begin(
    start: Start,
    config: "DictConfig",
    directory: Path | None = None,
    compared: Mapping[str, Collection[str]] | None = None,
) -> None:
    """Start the run that Hydra has composed.

    Args:
        start: what starts it.
        config: of the run.
        directory: where a sweep has it lie; None: where its values say.
        compared: keys by which the runs of a sweep differ, with all their values; None: those given here may differ.
    """
    from hydra.core.hydra_config import HydraConfig

    own = HydraConfig.get()
    if "experiment" not in own.runtime.choices:
        raise UserError(f"no experiment is left; name one of {', '.join(catalog.groups()['experiment'])}")
    values, given = _resolve(config), _keys(own.overrides.task)
    placed = values if directory is None else sweep.placed(values, directory)
    known = dict.fromkeys(sorted(given), ()) if compared is None else compared
    start(str(own.runtime.choices["experiment"]), placed, given, known)


def _call_hydra(
    task: Callable[["DictConfig"], None], flags: Sequence[str], overrides: Sequence[str], own: Sequence[str] = ()
) -> None:
    """Let Hydra compose the overrides and call the task.

    Args:
        task: called for every run.
        flags: what Hydra is to do.
        overrides: the user's.
        own: of Hydra's own keys.

    Raises:
        UserError: the overrides do not compose.
    """
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        with _environment("HYDRA_FULL_ERROR", "1"), _argv([PROGRAM, *flags, *overrides, *own]):
            hydra.main(config_path=str(catalog.CONFIGS), config_name="train", version_base="1.3")(task)()
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        from minigrad.diagnosis import diagnose

        raise diagnose(overrides, "--multirun" in flags, error) from error


def _combinations(overrides: Sequence[str]) -> dict[tuple[str, ...], tuple[str, ...]]:
    """Return the overrides of every run of a sweep as Hydra will give them, and those among them that vary.

    Raises:
        UserError: an override cannot be read, there is no run, or one comes twice.
    """
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    choices: dict[str, list[str]] = {}
    varying = set()
    try:
        with initialize_config_dir(str(catalog.CONFIGS), version_base="1.3"):
            parser = OverridesParser.create(GlobalHydra.instance().config_loader())  # it knows what a pattern matches
            for override in parser.parse_overrides(list(overrides)):
                key, varies = override.get_key_element(), override.is_sweep_override()
                values = override.sweep_string_iterator() if varies else [override.get_value_element_as_str()]
                choices[key] = [f"{key}={value}" for value in values]
                varying |= {key} if varies else set()
    except HydraException as error:
        from minigrad.diagnosis import diagnose

        raise diagnose(overrides, True, error) from error
    runs: dict[tuple[str, ...], tuple[str, ...]] = {}
    for combination in itertools.product(*choices.values()):
        varied = tuple(text for key, text in zip(choices, combination, strict=True) if key in varying)
        if combination in runs:
            raise UserError(f"the sweep has {' '.join(varied)} twice; give every value once")
        runs[combination] = varied
    if not runs:
        raise UserError("the sweep has no run: a pattern matches nothing; see minigrad-train --help for what there is")
    return runs


def _parted(overrides: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Return the overrides of runs, and the values of the keys of a sweep."""
    pairs = [(text, *text.partition("=")) for text in overrides]
    of_sweep = {key: value.strip("'\"") for _, key, _, value in pairs if key in SWEEP_KEYS}
    return [text for text, key, _, _ in pairs if key not in SWEEP_KEYS], of_sweep


def _at_a_time(jobs: str) -> int:
    """Return how many runs are to go on at a time.

    Raises:
        UserError: it is no such number, or what several need is not installed.
    """
    if not re.fullmatch(r"0*[1-9][0-9]{0,8}", jobs):
        raise UserError(f"jobs={jobs}: expected an integer from 1 on")
    if int(jobs) > 1:
        try:
            import hydra_plugins.hydra_joblib_launcher  # noqa: F401 - Hydra finds it by itself
        except ImportError:
            command = "pip install -c constraints.txt -e '.[jobs]'"
            raise UserError(f"jobs={jobs} needs hydra-joblib-launcher: {command}") from None
    return int(jobs)


def _refuse_hydra(overrides: Sequence[str]) -> None:
    """Raise a UserError for a key of Hydra's own: some of them name code, and Hydra imports it."""
    for override in overrides:
        if override.lstrip("+~").startswith("hydra"):
            raise UserError(f"cannot set {override.partition('=')[0]}: Hydra's own keys are not part of a run")


def _keys(overrides: Sequence[str]) -> set[str]:
    """Return the keys that overrides name: `rule` for `rule=adam`, `rule.beta1` for `++rule.beta1=0.5`."""
    return {override.lstrip("+~").partition("=")[0] for override in overrides}


def _resolve(config: "DictConfig") -> dict[str, Any]:
    """Return a composed config as plain values, interpolations resolved."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        values = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key}: {str(error).splitlines()[0]}") from error
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """Set an environment variable for a while."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


@contextmanager
def _argv(arguments: list[str]) -> Iterator[None]:
    """Set the command line for a while: Hydra reads it there."""
    before = sys.argv
    sys.argv = arguments
    try:
        yield
    finally:
        sys.argv = before


def _help(overrides: Sequence[str]) -> str:
    """Return the help; what is named among the overrides, `experiment=exactness` say, is shown with its keys."""
    groups = catalog.groups()
    given = {key: option for key, _, option in (text.partition("=") for text in overrides) if key in groups}
    for group, option in given.items():
        catalog.check_option(group, option)
    stem = given.get("experiment", "training")
    named = {"experiment": stem, **catalog.choices(stem), **given}
    lines = [f"usage: {PROGRAM} [{'=NAME] ['.join(groups)}=NAME] [key=value ...]", ""]
    for group, options in groups.items():
        lines += [f"{group}=", *(f"  {option:<20} {catalog.describe(group, option)}" for option in options), ""]
    lines += ["keys of every run, with their defaults:", *(f"  {line}" for line in catalog.common_settings()), ""]
    for group, option in named.items():
        replaced = catalog.overriding(stem) if group != "experiment" else set()
        keys = [line for line in catalog.settings(group, option) if line.partition(":")[0] not in replaced]
        lines += [f"keys of {group}={option}, with their defaults:", *(f"  {key}" for key in keys), ""] if keys else []
    lines += [
        "options:",
        "  -m, --multirun       run every combination: -m activation=tanh,relu seed=0,1,2; -m 'experiment=glob(*)'",
        "      sweep_dir=PLACE  of the sweep, by default below runs/sweeps; that of an earlier sweep goes on: what has",
        "                       finished there is not run again, and what is missing, failed or was interrupted is",
        "      jobs=4           runs at a time, each in a process of its own; 1 by default",
        "  -c, --cfg job        print the composed config and stop",
        "  -sc, --shell-completion install=bash   print what makes the shell complete keys and options",
        "  -h, --help           this help; with a NAME of one of these groups, its keys",
    ]
    return "\n".join(lines)
