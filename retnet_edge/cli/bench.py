"""The commands that belong to one machine: prepare packs weights for it, bench measures on it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import get_args

import click

from retnet_edge.cli.say import say, show
from retnet_edge.errors import InputError
from retnet_edge.runtime.bundle.manifest import Backend


class IntegerList(click.ParamType):  # type: ignore[type-arg]
    """Whole numbers with commas between; an empty text is none."""

    name = "N,N,…"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """Raises click's usage error for anything else."""
        if isinstance(value, tuple):
            return value
        try:
            return tuple(int(part) for part in str(value).split(",") if part)
        except ValueError:
            self.fail(f"{value!r} is not a list of whole numbers such as 512,2048", param, ctx)


INTEGER_LIST = IntegerList()


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
def prepare(bundle: Path) -> None:
    """Pack BUNDLE's weights for this machine, into BUNDLE.prepared beside it.

    Sessions map the packed weights from there: they load faster and hold no copy of their own.
    """
    from retnet_edge.runtime.backends.ort.prepare import prepare as run

    folder = run(bundle, say=say)
    show(f"wrote {folder}")


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--prompt", type=INTEGER_LIST, default="512", show_default=True, help="Prompt lengths."
)
@click.option(
    "--generate", type=INTEGER_LIST, default="128", show_default=True, help="Steps to time."
)
@click.option(
    "--depth", type=INTEGER_LIST, default="0", show_default=True, help="Tokens seen before."
)
@click.option("--threads", type=INTEGER_LIST, default="", help="1 to 256 each [default: chosen].")
@click.option(
    "--batch", type=INTEGER_LIST, default="1", show_default=True, help="Sequences a step."
)
@click.option("--repetitions", type=int, default=5, show_default=True)
@click.option(
    "--backend",
    type=click.Choice(get_args(Backend)),
    help="Of those that BUNDLE has [default: the first].",
)
@click.option("--memory/--no-memory", default=True, show_default=True, help="Measure memory too.")
@click.option("--profile", is_flag=True, help="Print the time of a step by operator instead.")
@click.option("--markdown", "form", flag_value="markdown", help="Print Markdown.")
@click.option("--csv", "form", flag_value="csv", help="Print CSV.")
@click.option("--json", "form", flag_value="json", help="Print JSON.")
def bench(
    bundle: Path,
    prompt: tuple[int, ...],
    generate: tuple[int, ...],
    depth: tuple[int, ...],
    threads: tuple[int, ...],
    batch: tuple[int, ...],
    repetitions: int,
    backend: str | None,
    memory: bool,
    profile: bool,
    form: str | None,
) -> None:
    """Measure how fast BUNDLE is on this machine, and the memory that it takes.

    Lists of lengths, depths and threads are measured in every combination, in turns.
    """
    import msgspec

    from retnet_edge.progress import progress, working
    from retnet_edge.runtime.backends.profile import profile as run_profile
    from retnet_edge.runtime.bench.bench import bench as run
    from retnet_edge.runtime.bench.output import print_bench, print_profile, to_csv, to_markdown
    from retnet_edge.runtime.bundle.packed import open_bundle
    from retnet_edge.tables import standard_output

    console = standard_output()
    if profile:
        steps = (generate or (128,))[0]
        opened = open_bundle(bundle)
        counts: tuple[int | None, ...] = threads or (None,)
        if form in ("markdown", "csv"):
            raise InputError(f"--profile prints a table or --json, not --{form}")
        for count in counts:
            with working(f"profiling {steps:,} steps"):
                operators = run_profile(opened, steps=steps, threads=count, backend=backend)
            if form == "json":
                show(msgspec.json.format(msgspec.json.encode(operators), indent=1).decode())
            else:
                print_profile(operators, steps, console)
        return
    with ExitStack() as stack:
        advance: Callable[[int], None] | None = None
        seen = 0

        def count_on(done: int, total: int) -> None:
            nonlocal advance, seen
            if advance is None:
                advance = stack.enter_context(progress("bench", total))
            advance(done - seen)
            seen = done

        result = run(
            bundle,
            prompt=prompt,
            generate=generate,
            depth=depth,
            threads=threads,
            batch=batch,
            repetitions=repetitions,
            backend=backend,
            memory=memory,
            progress=count_on,
        )
    if form == "json":
        show(msgspec.json.format(msgspec.json.encode(result), indent=1).decode())
    elif form == "csv":
        show(to_csv(result).removesuffix("\n"))
    elif form == "markdown":
        show(to_markdown(result).removesuffix("\n"))
    else:
        print_bench(result, console)
