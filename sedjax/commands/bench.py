"""`sedjax bench`: measures the speed of training, evaluation, scoring or feature extraction on this machine.

Speeds are compared with a ceiling and with peers, measured on the same device in the same run.
"""

from collections.abc import Sequence

from absl import flags

from sedjax.benchmarks import audio, compile_for, experiment, suite, summary
from sedjax.commands import config_flag
from sedjax.commands.cli import require_no_arguments
from sedjax.core.errors import UserError
from sedjax.core.files import require_writable, write_json


def define_flags() -> None:
    config_flag.define_flag(required=False)
    flags.DEFINE_string("audio", None, "Folder of recordings: time feature extraction instead of a config.")
    flags.DEFINE_integer("steps", 10, "Steps to time in each measurement, rounded up to a multiple of the config's "
                                      "train.steps_per_call; with --audio, turns per contestant.", lower_bound=1)
    flags.DEFINE_enum("against", None, ["torch"], "Also time this peer on the same recordings, in turns.")
    flags.DEFINE_string("compile_for", None, "Run nothing: compile the steps of the config for this machine, such as "
                                             "v5e:2x4 or h100x8, and report their cost and bottleneck.")
    flags.DEFINE_bool("suite", False, "Measure what decides between accelerators, on random recordings: batch "
                                      "sizes, placements, a whole training, evaluation; --against=torch too if given.")
    flags.DEFINE_list("sweep", [], f"Show how the cost scales with: {', '.join(experiment.DIMENSIONS)}; with "
                                   f"--compile_for: {', '.join(compile_for.DIMENSIONS)}.")
    flags.DEFINE_string("json", None, "Also write the result to this file.")


def main(argv: Sequence[str]) -> None:
    require_no_arguments(argv)
    options = flags.FLAGS
    if bool(options.audio) == bool(options["config"].present):
        raise UserError("Give either --config=FILE, to time an experiment on its records, or --audio=FOLDER, to time "
                        "feature extraction from recordings.")
    if options.json:
        require_writable(options.json)
    if options.compile_for and (options.audio or options.against):
        raise UserError("--compile_for runs nothing: it cannot be combined with --audio or --against.")
    if options.suite and (options.audio or options.sweep):
        raise UserError("--suite cannot be combined with --audio or --sweep.")
    if options.audio and options.sweep:
        raise UserError("--sweep needs --config.")
    against = bool(options.against)
    if options.audio:
        result = audio.bench(options.audio, options.steps, against)
    elif options.compile_for:
        result = compile_for.bench(config_flag.from_flag(), options.compile_for, options.sweep)
    elif options.suite:
        result = suite.bench(config_flag.from_flag(), options.steps, against)
    else:
        result = experiment.bench(config_flag.from_flag(), options.steps, against, options.sweep)
    print(summary.format_result(result))
    if options.json:
        write_json(options.json, result)
