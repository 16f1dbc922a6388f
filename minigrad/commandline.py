"""The command line around Hydra: its options, its help, and one clear line for every mistake.

Hydra composes and sweeps. Exceptions reach this module, which alone maps them to exit codes: 2 for a mistake of the
user's, 1 for a run that failed, 130 or 143 for one that SIGINT or SIGTERM interrupted.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

from minigrad import catalog, interruption
from minigrad.errors import RunFailed, UserError

if TYPE_CHECKING:
    from omegaconf import DictConfig

Start = Callable[[str, dict[str, Any], set[str]], None]

PROGRAM = "minigrad-train"


def run(start: Start, arguments: Sequence[str]) -> int:
    """Carry out a command line and return its exit code.

    Args:
        start: called once for every run, with the experiment's stem, its composed values and the keys that the command
            line itself gives.
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
    print(f"{PROGRAM}: {error}", file=sys.stderr, flush=True)


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
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from minigrad.resumption import choices_of_the_resumed

    _refuse_hydra(options.overrides)
    chosen = [] if options.multirun else choices_of_the_resumed(options.overrides)
    overrides = [*chosen, *options.overrides]
    errors: list[Exception] = []
    jobs = 0

    def job(config: "DictConfig") -> None:
        nonlocal jobs
        jobs += 1
        own = HydraConfig.get()
        if options.multirun:
            print(f"run {own.job.num + 1} of the sweep: {' '.join(own.overrides.task)}", flush=True)
        try:
            if "experiment" not in own.runtime.choices:
                raise UserError(f"no experiment is left; name one of {', '.join(catalog.groups()['experiment'])}")
            start(str(own.runtime.choices["experiment"]), _resolve(config), _keys(own.overrides.task))
        except Exception as error:
            errors.append(error)  # raised below, and not to Hydra, which would announce it with a line of its own
            if options.multirun:
                _complain(error)

    flags = [flag for flag in ("multirun", "shell_completion") if getattr(options, flag)]
    command = [PROGRAM, *(f"--{flag.replace('_', '-')}" for flag in flags)]
    command += ["--cfg", options.cfg] if options.cfg else []
    with tempfile.TemporaryDirectory() as scratch:
        # Hydra's sweeper insists on writing a file of its own.
        command += [*overrides, f"hydra.sweep.dir='{scratch}'"] if options.multirun else overrides
        try:
            with _environment("HYDRA_FULL_ERROR", "1"), _argv(command):
                hydra.main(config_path=str(catalog.CONFIGS), config_name="train", version_base="1.3")(job)()
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            from minigrad.diagnosis import diagnose

            raise diagnose(overrides, options.multirun, error) from error
    unexpected = [error for error in errors if not isinstance(error, (UserError, RunFailed))]
    if unexpected:
        raise unexpected[0]
    if errors and options.multirun:
        kind = UserError if all(isinstance(error, UserError) for error in errors) else RunFailed
        raise kind(f"{len(errors)} of the sweep's runs failed")
    if errors:
        raise errors[0]
    if options.multirun and not jobs and not options.cfg and not options.shell_completion:
        raise UserError("the sweep has no run: a pattern matches nothing; see minigrad-train --help for what there is")


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
        "  -c, --cfg job        print the composed config and stop",
        "  -sc, --shell-completion install=bash   print what makes the shell complete keys and options",
        "  -h, --help           this help; with a NAME of one of these groups, its keys",
    ]
    return "\n".join(lines)
