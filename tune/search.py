"""`python -m tune.search`: search a space with Ray Tune and Optuna, resumably, into a run folder."""

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Self

# Ray reads these when it is imported or started. Nothing here prints or writes but us.
os.environ.update(
    RAY_CHDIR_TO_TRIAL_DIR="0",
    RAY_AIR_NEW_OUTPUT="0",
    TUNE_DISABLE_AUTO_CALLBACK_LOGGERS="1",
    TUNE_DISABLE_SIGINT_HANDLER="1",  # Ctrl-C reaches us as KeyboardInterrupt
    TUNE_GLOBAL_CHECKPOINT_S="1000000000",  # the run folder is the truth, not Ray's snapshots
    # Tune (2.60) breaks down when Ray's memory monitor kills a worker, but not when the kernel does, workers first.
    RAY_memory_monitor_refresh_ms="0",
    # Else one worker starts at a time. The searcher itself hands out no more trials than there are slots.
    TUNE_MAX_PENDING_TRIALS_PG="1000000",
    # A Ray of our own listens on loopback only, as it does by default on the systems that this is named for.
    RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0",
    GRPC_VERBOSITY="NONE",
    RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",  # workers choose their device themselves; older Rays warn without it
    RAY_worker_niceness="0",  # else trials run at nice 15 and starve beside any other work
    RAY_ENABLE_UV_RUN_RUNTIME_ENV="0",  # else `uv run` ships the current folder to workers on this machine, or refuses
)

import ray
import torch
from ray import tune as ray_tune
from rich.console import Console
from threadpoolctl import threadpool_limits

from model.command import STOP_SIGNALS, Stopped, run_command
from model.config import InputError
from model.data import Dataset
from model.memory import PROCESS_BYTES, available_bytes
from model.ranks import scaling
from tune import warm_start
from tune.announce import announce, extent, summarise
from tune.checkpoint import Checkpoints, start_keeper
from tune.cluster import Nodes, check_address, started_ray
from tune.commands import resume_command
from tune.limits import epoch_flops, memory_bytes, refusal
from tune.mirror import Mirror
from tune.panel import new_console
from tune.plan import Options, new_run
from tune.progress import Progress
from tune.record import Recorder
from tune.resume import extend, resumed_run
from tune.run import Manifest, Run, repair
from tune.scheduler import LegScheduler
from tune.searcher import StudySearcher
from tune.trial import Worker


def main(options: Options) -> None:
    console = new_console()
    if options.time_budget_s is not None and not options.time_budget_s > 0:
        raise InputError(f"--time-budget-s {options.time_budget_s}: it must be above 0")
    if not 0 <= options.nice <= 19:
        raise InputError(f"--nice {options.nice}: it must be from 0 to 19")
    os.nice(options.nice)
    if options.address is not None:
        check_address(options.address)
    if options.resume:
        run, dataset = resumed_run(options, console)
    else:
        run, dataset = new_run(options, console)
    with run.lock():
        for line in repair(run):
            console.print(f"repaired: {line}")
        if options.resume:
            extend(run, options, console)
        announce(run, dataset, console)
        try:
            # the cores are the workers': small matrices over several threads here took three times as long
            with Mirror(run, console) as mirror, threadpool_limits(1):
                _search(run, dataset, mirror, options, console)
        except KeyboardInterrupt as stop:
            said = "stopped" if isinstance(stop, Stopped) else "interrupted"
            sys.stderr.write(f"\n{said}; every finished epoch is kept. Continue with:\n  {resume_command(run.path)}\n")
            sys.exit(128 + getattr(stop, "signum", signal.SIGINT))
        summarise(run, console)


def _search(run: Run, dataset: Dataset, mirror: Mirror, options: Options, console: Console) -> None:
    """Run the trials that are still to be run; a kill at any moment leaves a folder from which to go on."""
    manifest, searcher = run.manifest, _searcher(run, dataset)
    recorder = Recorder(run, dataset, searcher, mirror)
    scratch = run.path / "ray"  # Ray's own state: nothing reads it again
    with (
        Progress(run, searcher, console, options.time_budget_s) as progress,
        _errors_explained(run),
        Signals() as signals,
    ):
        if searcher.is_over():
            verb = "is" if manifest.budget else "are"
            console.print(f"{extent(run)} {verb} done; --trials N or --budget B adds more")
            return
        with ExitStack() as stack:
            stack.callback(shutil.rmtree, scratch, ignore_errors=True)
            searcher.slots = stack.enter_context(started_ray(manifest, options.address, console))
            if not (options.address or manifest.gpus_per_trial):
                free = available_bytes(torch.device("cpu"))
                searcher.memory_bytes = free - searcher.slots * PROCESS_BYTES
            if manifest.ranks > 1:
                _say_scaling(run, dataset, console)
            nodes = Nodes(manifest, searcher, console)
            keeper = start_keeper(run.path) if options.address else None  # some nodes may not see the folder
            uri = mirror.storage.uri if mirror.storage and options.address else None
            checkpoints = Checkpoints(run.path, scratch, uri, keeper)
            progress.begin()
            # tune.run rather than Tuner: a Tuner pickles searcher and callbacks, which hold open files
            ray_tune.run(
                ray_tune.with_parameters(
                    Worker,
                    dataset=dataset,
                    checkpoints=checkpoints,
                    threads=manifest.threads,
                    ranks=manifest.ranks,
                    gpus=manifest.gpus_per_trial,
                    measure=manifest.measure,
                ),
                resources_per_trial={"cpu": manifest.cpus_per_trial, "gpu": manifest.gpus_per_trial},
                search_alg=searcher,
                scheduler=LegScheduler(),
                num_samples=-1,  # legs, until the searcher has finished
                time_budget_s=options.time_budget_s,
                reuse_actors=True,
                max_failures=0,  # what broke off is taken up again by the searcher, not at once
                raise_on_failed_trial=False,
                callbacks=[recorder, progress, nodes, signals],
                name=scratch.name,
                storage_path=str(run.path),
                trial_dirname_creator=lambda trial: str(trial.config["number"]),
                verbose=0,
            )
            recorder.close_settled()


@contextmanager
def _errors_explained(run: Run) -> Iterator[None]:
    """Says what a search ended of and how to go on."""
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error  # Ray wraps what a callback raises
        while cause and not isinstance(cause, OSError | InputError):
            cause = cause.__cause__ or cause.__context__
        go_on = f"every finished epoch is kept; go on with: {resume_command(run.path)}"
        if isinstance(cause, InputError):
            raise InputError(f"{cause}; {go_on}") from error
        if isinstance(cause, BrokenPipeError) or not cause:
            sys.stderr.write(f"the search broke down; {go_on}\n")
            raise
        if isinstance(cause, ConnectionError):
            raise InputError(f"the search lost Ray ({cause}); {go_on}") from error
        raise InputError(f"the search can't write: {cause}; make room, or let it write there; {go_on}") from error


class Signals(ray_tune.Callback):
    """Ends the search on Ctrl-C and STOP_SIGNALS, also where Python loses the exception: one that is raised in a
    destructor or in a callback from C is dropped, so it is raised again at the next step. Use as a context manager."""

    def __init__(self) -> None:
        self._stop: KeyboardInterrupt | None = None

    def __enter__(self) -> Self:
        known = (signal.SIGINT, *STOP_SIGNALS)
        self._before = {each: signal.getsignal(each) for each in known if signal.getsignal(each) is not signal.SIG_IGN}
        self._take()
        self._report = sys.unraisablehook
        sys.unraisablehook = self._dropped
        return self

    def _dropped(self, error: "sys.UnraisableHookArgs") -> None:
        if not isinstance(error.exc_value, KeyboardInterrupt):
            self._report(error)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        sys.unraisablehook = self._report
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        if self._stop and kind and issubclass(kind, KeyboardInterrupt):
            raise self._stop from None  # Ray makes a plain KeyboardInterrupt of what a handler raises

    def _take(self) -> None:
        for signum in self._before:
            signal.signal(signum, self._come)

    def _come(self, signum: int, _: object) -> None:
        ending = self._stop is not None
        self._stop = KeyboardInterrupt() if signum == signal.SIGINT else Stopped(signum)
        if not ending or signum == signal.SIGINT:  # cleaning up goes on when SIGTERM comes again
            raise self._stop

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self._take()  # Ray Tune has taken SIGUSR1 meanwhile, to end as if all were done
        if self._stop:
            raise self._stop


def _searcher(run: Run, dataset: Dataset) -> StudySearcher:
    """What the run's manifest asks for, brought up to what is on record."""
    manifest, classes, examples = run.manifest, len(dataset.classes), len(dataset.train_labels)
    base_flops = epoch_flops(run.space.base, classes, examples)
    return StudySearcher(
        run.study(),
        run.space,
        run.trials(),
        sampler=manifest.sampler,
        seed=manifest.seed,
        most_trials=manifest.trials,
        budget=None if manifest.budget is None else manifest.budget * run.space.base.epochs,
        objective=run.objective,
        cost=lambda config: epoch_flops(config, classes, examples) / base_flops,
        memory=lambda config: memory_bytes(config, classes, examples, manifest.ranks),
        refused=lambda config: refusal(config, classes, examples, run.space.limits),
        metrics=run.metrics,
        earlier=warm_start.load(run),
    )


def _say_scaling(run: Run, dataset: Dataset, console: Console) -> None:
    """Time the ranks of a trial against one of them, on a node where trials run."""
    manifest = run.manifest
    measure: Any = scaling  # ray's types know functions of positional arguments only
    gpus = manifest.gpus_per_trial
    timing = ray.remote(measure).options(num_cpus=manifest.cpus_per_trial, num_gpus=gpus)
    gain = ray.get(timing.remote(run.space.base, dataset, manifest.ranks, threads=manifest.threads, gpus=gpus))
    for line in scaling_lines(manifest, gain):
        console.print(line)


def scaling_lines(manifest: Manifest, gain: float) -> list[str]:
    """What it means that a trial's ranks train `gain` times as fast as one, with a warning where it doesn't pay."""
    ranks = manifest.ranks
    one = "GPU" if manifest.gpus_per_trial else f"rank of {manifest.threads} CPU threads"
    lines = [
        f"{ranks} ranks per trial: a step of the base is {gain:.2f} times as fast as on one {one} "
        f"({100 * gain / ranks:.0f}% scaling efficiency)"
    ]
    if gain <= 1:
        better = "--gpus-per-trial 1" if manifest.gpus_per_trial else "--ranks-per-trial 1"
        lines.append(f"warning: {ranks} ranks are no faster than one; a new run with {better} has more trials at once")
    return lines


if __name__ == "__main__":
    run_command(main, Options, prog="python -m tune.search")
