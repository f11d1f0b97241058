"""Chat in the terminal with a model behind a controller or a worker: `tinyserve chat`.

Shows the answer while it arrives and keeps the conversation. The worker applies the model's chat template, so this
program knows no templates; it knows two addresses and the wire protocol.
"""

import argparse
import contextlib
import sys
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from tinyserve.serve import client
from tinyserve.serve.attachments import NUM_FRAMES, AttachmentError, frame_urls, image_url
from tinyserve.serve.client import ServerError

HELP = (
    "/image FILE shows a picture with the next question, /video FILE frames of an animation, /reset begins a new "
    "conversation, /exit or Ctrl-D ends, Ctrl-C stops an answer."
)


class AnswerError(RuntimeError):
    """The stream ended with an error record; the text is its message."""


@dataclass
class Chat:
    """One conversation with one model."""

    address: str  # of a controller or a worker
    model: str
    options: dict[str, Any]  # sampling parameters of every request
    system: str | None = None
    messages: list[dict[str, Any]] = field(default_factory=list)
    images: list[str] = field(default_factory=list)  # data: URLs, for the next question

    def reset(self) -> None:
        self.messages.clear()
        self.images.clear()

    def ask(self, question: str) -> Generator[str, None, None]:
        """The pieces of the answer as they arrive. What has arrived stays in the conversation, however it ends.

        Raises:
            ServerError, AnswerError: the conversation is then as it was before, and the images are gone.
        """
        images, self.images = self.images, []
        parts = [{"type": "image_url", "image_url": {"url": url}} for url in images]
        content = [*parts, {"type": "text", "text": question}] if parts else question
        question_message = {"role": "user", "content": content}
        lead = [{"role": "system", "content": self.system}] if self.system else []
        body = {
            **self.options,
            "model": self.model,
            "messages": [*lead, *self.messages, question_message],
            "stream_format": "delta",
        }
        answer = ""
        with contextlib.closing(client.stream(self.address, body)) as records:
            try:
                for record in records:
                    if record.get("error_code", 0) != 0:
                        raise AnswerError(f"{record.get('text')} (error {record['error_code']})")
                    answer += record["text"]
                    yield record["text"]
            except (ServerError, AnswerError):
                answer = ""
                raise
            finally:
                if answer:
                    self.messages += [question_message, {"role": "assistant", "content": answer}]


def attach(chat: Chat, images: Sequence[Path], video: Path | None, frames: int = NUM_FRAMES) -> None:
    """Shows pictures, and frames of a video, with the next question. Raises AttachmentError."""
    chat.images += [image_url(path) for path in images]
    if video is not None:
        chat.images += frame_urls(video, frames)


def show(pieces: Generator[str, None, None], out: TextIO) -> None:
    """Prints an answer as it arrives. Ctrl-C stops it, and the worker with it."""
    try:
        for piece in pieces:
            print(piece, end="", file=out, flush=True)
    except KeyboardInterrupt:
        print(" [stopped]", end="", file=out)
    finally:
        pieces.close()
        print(file=out, flush=True)


def converse(chat: Chat, out: TextIO) -> None:
    """Questions from the terminal, or one per line from a pipe, until they end."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # arrow keys and history in input()
    while True:
        try:
            question = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return
        except KeyboardInterrupt:
            print(f"\n{HELP}", file=out)
            continue
        if question in ("/exit", "/quit"):
            return
        if question == "/reset":
            chat.reset()
        elif question.startswith(("/image ", "/video ")):
            command, file = question.split(maxsplit=1)
            try:
                attach(chat, [Path(file)] if command == "/image" else [], Path(file) if command == "/video" else None)
            except AttachmentError as error:
                print(f"error: {error}", file=sys.stderr)
        elif question.startswith("/"):
            print(HELP, file=out)
        elif question:
            try:
                show(chat.ask(question), out)
            except (ServerError, AnswerError) as error:
                print(f"error: {error}", file=sys.stderr)


def parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(
        prog="tinyserve chat", description="Chats with a served model in the terminal.", allow_abbrev=False
    )
    flags.add_argument("--controller-address", "--controller", default="http://localhost:21001")
    flags.add_argument("--worker-address", "--worker", help="ask this worker instead of a controller")
    flags.add_argument("--model-name", help="default: the only model there is")
    flags.add_argument("--message", help="ask this one question and end; exit code 1 when the answer failed")
    flags.add_argument(
        "--image", type=Path, action="append", default=[], metavar="FILE", help="shown with the question"
    )
    flags.add_argument("--video", type=Path, metavar="FILE", help="an animated GIF, WebP or PNG, shown as some frames")
    flags.add_argument("--frames", type=int, default=NUM_FRAMES, metavar="N", help="of the video, evenly spaced (8)")
    flags.add_argument("--system", help="system message; default: the model's own")
    flags.add_argument("--temperature", type=float, default=0.2)
    flags.add_argument("--top-p", type=float, default=1.0)
    flags.add_argument("--max-new-tokens", type=int, default=512)
    flags.add_argument("--seed", type=int)
    return flags


def choose_model(args: argparse.Namespace) -> str:
    """Raises ServerError when there is none, or none can be chosen."""
    names = client.model_names(args.controller_address, args.worker_address)
    if args.model_name:
        if args.model_name not in names:
            raise ServerError(f"--model-name {args.model_name} is not served; there are: {', '.join(names) or 'none'}")
        return str(args.model_name)
    if len(names) != 1:
        raise ServerError(f"choose with --model-name, there are: {', '.join(names) or 'none'}")
    return names[0]


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    args.controller_address = args.controller_address.rstrip("/")
    args.worker_address = args.worker_address.rstrip("/") if args.worker_address else None
    options = {"temperature": args.temperature, "top_p": args.top_p, "max_new_tokens": args.max_new_tokens}
    if args.seed is not None:
        options["seed"] = args.seed
    try:
        if args.frames < 1:
            raise AttachmentError(f"--frames must be at least 1, got {args.frames}")
        model = choose_model(args)
        chat = Chat(args.worker_address or args.controller_address, model, options, args.system)
        attach(chat, args.image, args.video, args.frames)
        if args.message is not None:
            show(chat.ask(args.message), sys.stdout)
            return 0
        print(f"{model}. {HELP}", file=sys.stderr)
        converse(chat, sys.stdout)
    except (ServerError, AnswerError, AttachmentError) as error:
        print(f"tinyserve chat: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
