"""What a compiled program must not do."""

from sedjax.benchmarks import compiled


def host_transfers(program: compiled.Program) -> list[str]:
    """Names of the instructions that exchange data with the host, or call it."""
    return [instruction.name for instruction, _, _ in compiled.executed(program)
            if instruction.kind in ("infeed", "outfeed", "send", "recv")
            or "callback" in instruction.attributes.partition("metadata=")[0]]
