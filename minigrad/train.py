"""Composes a config and starts the experiment it names: `python -m minigrad.train [experiment=...] [key=value ...]`.

The console script `minigrad-train` is the same program.
"""

import shlex
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from minigrad import catalog, commandline
from minigrad.errors import RunFailed


def start(stem: str, values: dict[str, Any], given: set[str], compared: Mapping[str, Collection[str]]) -> None:
    """Run the experiment `experiments/<stem>.py` with the values of a composed config.

    Args:
        stem: the experiment's.
        values: the composed config.
        given: the keys that the command line itself gives.
        compared: by which runs are to be compared, with all their values, as far as they are known.

    Raises:
        UserError: a key is unknown, or a value is wrong.
        RunFailed: what the experiment set out to show did not come true.
    """
    from minigrad.config import typed
    from minigrad.ranks import joined, remembered
    from minigrad.resumption import settled
    from minigrad.run import Run

    earlier = remembered()
    again = {} if earlier is None else {"resume": str(earlier)}
    values = settled({"experiment": stem, **values, **again}, given)
    experiment = catalog.load_experiment(values["experiment"])
    config = typed(experiment.Config, values, f"experiment={values['experiment']}")
    with joined(config.seconds_for_ranks) as ranks:
        with Run(config, values.get("resume") is not None, ranks, compared) as run:
            print(f"{config.label} on {run.device} ({run.path} path), seed {config.seed}", flush=True)
            try:
                reached = experiment.run(config, run)
            except (RunFailed, KeyboardInterrupt):
                print(f"stopped; {run.whereabouts}", flush=True)
                if "resume" in values:
                    print(f"go on with: minigrad-train resume={shlex.quote(str(run.directory))}", flush=True)
                raise
        print(f"{reached}; {run.whereabouts}", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, by default that of this process, and return its exit code."""
    return commandline.run(start, sys.argv[1:] if arguments is None else arguments)


if __name__ == "__main__":
    sys.exit(main())
