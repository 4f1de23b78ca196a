"""What was found: counted by target and kind, the first of each kept, to be run again."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

from fuzz.scene import keep
from fuzz.worker import Case, Outcome

RIGHT = ("done", "refused")
WRONG = ("crash", "hang", "exception", "memory")
KEPT_OF_A_KIND = 2
CASE_FILE = "case.json"


@dataclass
class Findings:
    """Counts, the slowest and the largest case, and a folder for what went wrong."""

    folder: Path
    counts: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    places: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    examples: dict[tuple[str, str, str], tuple[Path, str]] = field(default_factory=dict)
    slowest: tuple[float, str] = (0.0, "")
    largest: tuple[float, str] = (0.0, "")

    def add(self, case: Case, outcome: Outcome, folder: Path) -> None:
        """Count an outcome; of the first wrong ones of a kind in a place, keep the files."""
        self.counts[case.target, case.depth, outcome.kind] += 1
        if outcome.kind in RIGHT:
            self.slowest = max(self.slowest, (outcome.seconds, str(case)))
            self.largest = max(self.largest, (outcome.mebibytes, str(case)))
            return
        place = (case.target, outcome.kind, outcome.where)
        self.places[place] += 1
        if self.places[place] <= KEPT_OF_A_KIND:
            target = self.folder / str(case).replace(":", "-")
            keep(folder, target)
            said = {"case": str(case), **asdict(outcome)}
            (target / CASE_FILE).write_text(json.dumps(said, indent=2) + "\n")
            self.examples.setdefault(place, (target, outcome.text))

    @property
    def wrong(self) -> int:
        """How many cases ended as none should."""
        return sum(count for (*_, kind), count in self.counts.items() if kind in WRONG)

    def table(self) -> str:
        """One line for each target and depth, then the sums beside what is allowed."""
        head = ("target", "depth", "cases", *RIGHT, *WRONG)
        rows: list[tuple[str, ...]] = [head]
        for target, depth in sorted({key[:2] for key in self.counts}):
            each = [self.counts[target, depth, kind] for kind in (*RIGHT, *WRONG)]
            rows.append((target, depth, *(f"{n:,}" for n in (sum(each), *each))))
        for depth in sorted({key[1] for key in self.counts}):
            each = [
                sum(n for (_, at, found), n in self.counts.items() if (at, found) == (depth, kind))
                for kind in (*RIGHT, *WRONG)
            ]
            rows.append(("all", depth, *(f"{n:,}" for n in (sum(each), *each))))
        widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
        lines = [
            "  ".join(
                cell.ljust(width) if column < 2 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        ]
        lines += [
            f"slowest case that ended well: {self.slowest[0]:.1f} s ({self.slowest[1]})",
            f"largest case that ended well: {self.largest[0]:.0f} MiB ({self.largest[1]})",
        ]
        return "\n".join(lines)

    def list_of_places(self) -> str:
        """What went wrong, the most frequent first, and where an example lies."""
        lines = []
        for place, count in self.places.most_common():
            target, kind, where = place
            path, text = self.examples[place]
            lines += [f"{count:5}  {kind} in {target}: {where}", f"       {path}", f"       {text}"]
        return "\n".join(lines)
