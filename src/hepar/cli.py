"""The `hepar` command: few verbs, few flags. Results go to stdout, progress to stderr."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable

import tyro
from tyro.conf import AvoidSubcommands, FlagCreatePairsOff

from hepar.console import complain
from hepar.errors import EXIT_INTERNAL, HeparError
from hepar.verbs.cohort import phantom, prepare
from hepar.verbs.many import batch, serve
from hepar.verbs.measure import measure
from hepar.verbs.patient import demo, inspect, segment
from hepar.verbs.research import evaluate, info, reproduce, train

VERBS: dict[str, Callable[..., None]] = {
    "segment": segment,
    "measure": measure,
    "inspect": inspect,
    "batch": batch,
    "serve": serve,
    "phantom": phantom,
    "prepare": prepare,
    "train": train,
    "evaluate": evaluate,
    "reproduce": reproduce,
    "info": info,
    "demo": demo,
}


def main(argv: list[str] | None = None) -> None:
    """Run one verb; a refusal prints its remedy and exits with the code of its family."""
    arguments = sys.argv[1:] if argv is None else argv
    try:
        tyro.extras.subcommand_cli_from_dict(
            VERBS,
            prog="hepar",
            description="Finds and explains liver tumors in contrast CT. Not a medical device.",
            args=arguments,
            config=(AvoidSubcommands, FlagCreatePairsOff),
        )
    except HeparError as error:
        error.message = _without_names(error.message, arguments)
        if "--json" in arguments:
            sys.stdout.write(json.dumps({"error": error.as_dict()}, indent=2) + "\n")
        complain(error)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        sys.stderr.write("hepar: interrupted\n")
        raise SystemExit(130) from None
    except Exception:
        sys.stderr.write(_without_names(traceback.format_exc(), arguments))
        sys.stderr.write("hepar: this is a bug of hepar; please report the lines above\n")
        raise SystemExit(EXIT_INTERNAL) from None


def _without_names(text: str, arguments: list[str]) -> str:
    """What is said of a patient's study, without what its files and folders are called."""
    if arguments[:1] not in (["segment"], ["measure"], ["inspect"], ["batch"], ["serve"]):
        return text
    from hepar.io.privacy import scrub

    return scrub(text, arguments[1:])


if __name__ == "__main__":
    main()
