"""The commands that need the base install only: generate, info."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click

from retnet_edge.cli.say import for_display, say, show, show_piece
from retnet_edge.errors import InputError
from retnet_edge.runtime.bundle.manifest import Backend

if TYPE_CHECKING:
    from retnet_edge.runtime.bundle.bundle import Bundle
    from retnet_edge.runtime.session.protocol import Session


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("-p", "--prompt", help="The text to continue.")
@click.option("-i", "--interactive", is_flag=True, help="Read lines; the state carries on.")
@click.option("-n", "--max-tokens", type=int, default=200, show_default=True)
@click.option("--temperature", type=float, default=0.8, show_default=True, help="0: greedy.")
@click.option("--top-k", type=int, default=40, show_default=True, help="0: off.")
@click.option("--top-p", type=float, default=0.95, show_default=True, help="1: off.")
@click.option("--min-p", type=float, default=0.0, show_default=True, help="0: off.")
@click.option("--repetition-penalty", type=float, default=1.0, show_default=True, help="1: off.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--stop", multiple=True, help="End before this text (may be given again).")
@click.option(
    "--control-tokens/--no-control-tokens",
    default=True,
    show_default=True,
    help="Names such as <|endoftext|> in what is fed are the tokens, not text.",
)
@click.option(
    "--state",
    type=click.Path(path_type=Path),
    help="Go on from this state file if it is there, and leave the new state in it.",
)
@click.option("--threads", type=int, help="Computing threads, 1 to 256 [default: chosen].")
@click.option(
    "--backend",
    type=click.Choice(get_args(Backend)),
    help="Of those that BUNDLE has [default: the first].",
)
def generate(
    bundle: Path,
    prompt: str | None,
    interactive: bool,
    max_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    repetition_penalty: float,
    seed: int,
    stop: tuple[str, ...],
    control_tokens: bool,
    state: Path | None,
    threads: int | None,
    backend: str | None,
) -> None:
    """Continue a text with BUNDLE, streaming to standard output.

    With --interactive, every line read continues the same text; the state stays the same size
    however long it gets. Ctrl-D ends. With --state, it also survives the end of the program: the
    next call goes on where this one, or the last reply of an interactive one, ended. Ctrl-C and a
    reader that goes away end a reply, and the file gets what was shown until then.
    """
    from retnet_edge.atomic import locked
    from retnet_edge.runtime.backends.select import open_session
    from retnet_edge.runtime.bundle.packed import open_bundle
    from retnet_edge.runtime.text.generate import generate as stream
    from retnet_edge.runtime.text.sampling import Sampling
    from retnet_edge.runtime.text.snapshot import check_state_folder, load_snapshot

    if (prompt is None) != interactive:
        raise InputError("give either --prompt TEXT or --interactive")
    sampling = Sampling(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
    if state is not None:
        check_state_folder(state)
    with nullcontext() if state is None else locked(state):
        opened = open_bundle(bundle)
        tokenizer = opened.tokenizer()
        session = open_session(opened, threads, backend)
        if state is not None and state.exists():
            load_snapshot(state, opened).restore(session)

        def reply(text: str) -> None:
            pieces = stream(
                session,
                tokenizer,
                text,
                max_tokens=max_tokens,
                sampling=sampling,
                stop=stop,
                end_of_text=opened.manifest.tokenizer.ends,
                control_tokens=control_tokens,
                on_prefill=_feeding(),
            )
            before = session.position
            try:
                _print(pieces)
            except (KeyboardInterrupt, OSError):  # Ctrl-C, SIGTERM, a reader that went away
                if session.position != before:
                    _save(session, opened, state)
                raise
            _save(session, opened, state)

        if prompt is None:
            _converse(session, reply)
        else:
            reply(prompt)


def _save(session: Session, bundle: Bundle, state: Path | None) -> None:
    """Leave the session's state in the file; Ctrl-C waits meanwhile."""
    from retnet_edge.interrupts import deliver, held_back
    from retnet_edge.runtime.text.snapshot import Snapshot, save_snapshot

    if state is None:
        return
    with held_back() as came:
        save_snapshot(Snapshot.of(session), bundle, state)
    deliver(came)


def _feeding() -> Callable[[int, int], None]:
    """Shows how much of a long prompt was fed; on a terminal, one line that is wiped at the end."""
    from retnet_edge.progress import clock

    began = time.monotonic()

    def show(done: int, total: int) -> None:
        if done < total:
            left = clock((time.monotonic() - began) / done * (total - done))
            end = "\r" if sys.stderr.isatty() else "\n"
            text = f"prompt: {done:,} of {total:,} tokens, {left} left{end}"
            click.echo(text, nl=False, err=True)
        elif sys.stderr.isatty():
            click.echo("\x1b[K", nl=False, err=True)

    return show


def _converse(session: Session, reply: Callable[[str], None]) -> None:
    """Answer lines of standard input until it ends; then say what the state takes."""
    try:
        while True:
            if sys.stdin.isatty():
                click.echo("> ", nl=False, err=True)
            line = sys.stdin.buffer.readline()
            if not line:
                break
            try:
                text = line.decode().rstrip("\r\n")
            except UnicodeDecodeError as error:
                say(
                    f"this line was left out: it is not UTF-8 (byte {error.start} is "
                    f"0x{line[error.start]:02x})"
                )
                continue
            if text:
                reply(text if session.position == 0 else f"\n{text}")
    finally:
        click.echo(
            f"state: {session.state_bytes:,} bytes after {session.position:,} tokens", err=True
        )


def _print(pieces: Iterator[str]) -> None:
    """Print the pieces and a line's end; what came before Ctrl-C is printed whole."""
    pending, write = "", sys.stdout.write
    try:
        for pending in pieces:
            pending = for_display(pending)
            # Ctrl-C comes between calls, and there is none between these: written once, or pending.
            text, pending = pending, ""
            write(text)
            sys.stdout.flush()
    finally:
        show_piece(f"{pending}\n")


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def info(path: Path, as_json: bool) -> None:
    """Print what PATH, a bundle or a checkpoint, holds."""
    from retnet_edge.pipeline.info import info as describe

    facts = describe(path)
    if as_json:
        show(json.dumps(facts, indent=2))
        return
    from retnet_edge.tables import show_facts, standard_output

    console = standard_output()
    for title, rows in facts.items():
        show_facts(console, title, [(name, _cell(value)) for name, value in rows.items()])


def _cell(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return value if isinstance(value, str) else json.dumps(value)
