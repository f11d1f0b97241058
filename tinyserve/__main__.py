"""`tinyserve <command>`: finds the command's module and hands it the rest of the line. Knows no flag of any command."""

import importlib
import sys

COMMANDS = {  # name -> (module with a main(argv), one line for --help)
    "serve": ("tinyserve.serve.launch", "serve a model: controller and worker together"),
    "controller": ("tinyserve.serve.controller", "start a controller"),
    "worker": ("tinyserve.serve.model_worker", "start a model worker"),
    "chat": ("tinyserve.serve.cli", "chat with a served model in the terminal"),
    "register-worker": ("tinyserve.serve.register_worker", "tell a controller about a worker"),
    "test-message": ("tinyserve.serve.test_message", "send one message and print the answer"),
    "merge": ("tinyserve.models.merging", "write an adapter and its base as one model folder"),
    "demo": ("tinyserve.demo.demo", "quantize a small real model, serve it and stream an answer"),
}


def usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join(["usage: tinyserve COMMAND [FLAGS]", "", *lines, "", "tinyserve COMMAND --help lists the flags."])


def main(argv: list[str] | None = None) -> int:
    """Runs one command and returns its exit code; an unknown command is 2."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0 if argv else 2
    name, *rest = argv
    if name not in COMMANDS:
        print(f"tinyserve: unknown command {name!r}\n\n{usage()}", file=sys.stderr)
        return 2
    sys.argv[0] = f"tinyserve {name}"  # what argparse prints as the program
    return importlib.import_module(COMMANDS[name][0]).main(rest) or 0


if __name__ == "__main__":
    sys.exit(main())
