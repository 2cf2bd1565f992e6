"""All tables of a run, in Markdown."""

from __future__ import annotations

from gpu import figures, memory_figures
from gpu.cells import markdown
from gpu.figures import Document


def report(found: Document) -> list[str]:
    """All that there is to say of a run."""
    tables = (
        *(figures.overview(found), figures.starts(found), figures.phases(found)),
        *(
            memory_figures.beside(found),
            memory_figures.alone(found),
            memory_figures.moving(found),
            memory_figures.kept(found),
        ),
        *(memory_figures.rounds(found), memory_figures.overhead(found)),
        memory_figures.sanitized(found),
        *(figures.checkpoints(found), figures.rates(found), figures.faults(found)),
    )
    lines = [_machine(found)] if found.get("machine") else []
    for rows in tables:
        if len(rows) > 1:
            lines += ["", *markdown(rows)]
    return lines


def _machine(found: Document) -> str:
    machine = found["machine"]
    gpus = "; ".join(machine.get("gpus", [])) or "no GPU"
    return (
        f"{gpus}; {machine['processors']} processors, {machine['memory_gib']} GiB of memory, "
        f"Linux {machine['kernel']}"
    )
