"""The start of a run: its settings, folder, actors and global network, new or resumed."""

import collections
import dataclasses
import math
import os
import sys

from runtime import checkpoints
from runtime.actors import ActorsKeepDying, new_actors, restore_games, screens, start_actors
from runtime.command_line import changeable, check, fail, option, shown, user_errors
from runtime.cores import usable_cores
from runtime.curve import curve_of
from runtime.display import counted, duration
from runtime.global_network import GlobalNetwork
from runtime.output import OutputThread
from runtime.run_folder import RunFolder, have_temporary_folder, new_path
from runtime.supervisor import Supervisor
from runtime.windows import PlotWindow, window_of


class Starting:
    """A `with` around a process' run: at its end the actors are gone and all is printed.

    A signal during start-up ends the program with the signal's status.
    """

    def __init__(self, Settings, given, signals):
        """Note what the user asked for.

        Args:
            Settings: the script's dataclass.
            given: dict of the settings on the command line.
            signals: the process' `Signals`.
        """
        self.Settings, self.given, self.signals = Settings, given, signals
        self.notices = []  # lines for the user
        self.actors = self.output = None

    def __exit__(self, kind, error, traceback):
        if self.actors:
            self.actors.close()
        if self.output:
            self.output.end()
        if isinstance(error, KeyboardInterrupt):
            sys.exit(self.signals.status())
        if isinstance(error, ActorsKeepDying):
            fail(error, status=1)


class Launch(Starting):
    """The start of a run in one process, to be used in a `with`."""

    SUPERVISOR = Supervisor
    CONTINUES_GAMES = True  # whether a resumed run's workers continue the games they played

    def __init__(self, command, given, Settings, signals):
        """Note what the user asked for.

        Args:
            command: the namespace from the command line.
            given, Settings, signals: as for `Starting`.
        """
        super().__init__(Settings, given, signals)
        self.command = command
        self.folder = self.checkpoint = self.path = None
        self.begun = False

    def __enter__(self):
        """Find the run's settings. A user's mistake ends the program with one line."""
        try:
            with user_errors():
                self.settings = self.find_settings()
        except KeyboardInterrupt:
            sys.exit(self.signals.status())
        self.output = OutputThread(self.notices)
        return self

    def __exit__(self, kind, error, traceback):
        if error and self.folder and not self.begun and not self.command.resume:
            self.folder.remove(self.folder.path)
        super().__exit__(kind, error, traceback)

    def find_settings(self):
        """Return the settings of a new run, or of the one to resume, whose folder is opened."""
        settings = self._resumed() if self.command.resume else self.Settings(**self.given)
        if settings.seed is None:  # drawn here, so that config.json has it
            settings = dataclasses.replace(settings, seed=int.from_bytes(os.urandom(3)))
        return settings

    def _resumed(self):
        path, allowed = self.command.resume, changeable(self.Settings)
        for name in self.given:
            if name not in allowed:
                raise ValueError(f"{option(name)} belongs to the run: --resume cannot change it")
        self.folder = RunFolder.existing(path, self.notices)
        if checkpoints.paths(path):
            self.checkpoint = checkpoints.load_newest(path)
            self.notices.extend(self.checkpoint.passed_over)
        else:
            self.notices.append(f"{path} has no checkpoint yet: the run starts again at step 0")
        kept = self.checkpoint.about["settings"] if self.checkpoint else {}
        return resumed_settings(self.Settings, self.folder, kept, self.given, self.notices)

    def start_actors(self, units, policy_units, ahead):
        """Start the actors; return the `Actors`.

        Args:
            units: hidden units of all networks.
            policy_units: hidden units of the policy network.
            ahead: whether the action after a rollout is chosen with the rollout's policy.
        """
        with user_errors():
            self.path = self.folder.path if self.folder else new_path(self.settings.run_dir)
            have_temporary_folder(self.path)
            self.actors = new_actors(self.settings, units, policy_units, ahead)
            if self.checkpoint:  # other games for workers that have none to continue
                self.actors.started = self.checkpoint.about["actors_started"]
            shows = self.settings.render in ("window", "auto") and screens()
            self.window = window_of(self.path) if shows else None
            self.in_window = start_actors(self.actors, self.settings, self.window)
        self.notices.append(first_line(self.settings, self.actors))
        return self.actors

    def global_network(self, session):
        """Return the global network: here one of this process."""
        return GlobalNetwork(session, self.settings)

    def begin(self, run, workers):
        """Begin the run, or continue from the newest checkpoint that fits.

        The folder of a new run is made here, when nothing else can fail any more.
        """
        if self.checkpoint:
            self._continue_from(self._fitting(run), run, workers)
        settings, epsilons = dataclasses.asdict(run.settings), final_epsilons(workers)
        if self.command.resume:
            path = self.checkpoint.path if self.checkpoint else None
            self.folder.resume(path, settings, epsilons, run.episodes, run.agent_steps)
        else:
            with user_errors():
                self.folder = RunFolder.new(self.path, settings, epsilons, self.notices)
        if epsilons:
            counts = collections.Counter(epsilons.values())
            each = (f"{epsilon:g} ({number} of them)" for epsilon, number in counts.items())
            self.notices.append(f"the workers' epsilons fall from 1 to {', '.join(each)}")
        anneal_steps, max_steps = run.settings.anneal_steps, run.settings.max_steps
        if anneal_steps and (max_steps or math.inf) > anneal_steps:
            self.notices.append(
                f"from step {anneal_steps:,} on the learning rates are 0 (--anneal-steps)"
            )
        path = self.folder.path
        self.notices.append(f"curve in {path} (tensorboard --logdir {path}), Ctrl-C stops")
        run.globalnet.begin(run)

    def _fitting(self, run):
        """Return the newest checkpoint that fits the run's global network."""

        def misfit(checkpoint):
            return why_not(checkpoint, run.settings.method, run.globalnet.variables())

        if misfit(self.checkpoint):
            try:
                self.checkpoint = checkpoints.load_newest(self.folder.path, misfit)
            except ValueError as error:
                fail(error)
            run.notices.extend(self.checkpoint.passed_over)
        return self.checkpoint

    def _continue_from(self, checkpoint, run, workers):
        about = checkpoint.about
        run.globalnet.restore(checkpoint)
        run.restore(curve_of(checkpoint.arrays), about["seconds"])
        if self.CONTINUES_GAMES:
            then, now = about["versions"]["ale-py"], checkpoints.versions()["ale-py"]
            if then != now:
                run.notices.append(
                    f"ale-py was {then} and is {now}: every worker begins a new game"
                )
            restore_games(workers, checkpoint, same_emulator=then == now)
        played = f"{about['games']:,} games, {about['agent_steps']:,} steps"
        seconds = duration(about["seconds"])
        run.notices.append(f"resuming from {checkpoint.path}: {played} in {seconds}")

    def supervisor(self, run, workers):
        """Return the `Supervisor`; start the plot's window if W_0 has one."""
        self.signals.starting, self.begun = False, True
        plot = None
        if self.in_window:
            try:
                plot = PlotWindow(self.folder.path, self.window.shift)
            except OSError as error:
                run.notices.append(f"no window for the plot: {checkpoints.why(error)}")
        return self.SUPERVISOR(
            run, workers, self.folder, self.actors, self.output, plot, self.signals
        )


def first_line(settings, actors):
    """Return the line with which a run begins: its workers, and what to expect of the default."""
    line = f"{counted(len(actors), 'worker')} on {counted(usable_cores(), 'core')}"
    learning = [
        field
        for field in dataclasses.fields(settings)
        if not field.metadata["changeable"] and field.name not in ("seed", "run_dir")
    ]
    if all(getattr(settings, field.name) == field.default for field in learning):
        line += "; the chapter's settings learn slowly and stay below -9, --preset rally wins"
    return line


def final_epsilons(workers):
    """Return a dict of the name of a worker -> its final epsilon; {} for A3C, which has none."""
    finals = {worker.name: worker.epsilon(math.inf) for worker in workers}
    return {name: float(final) for name, final in finals.items() if final is not None}


def why_not(checkpoint, method, variables):
    """Return why a checkpoint does not fit a method's variables, in words; None if it fits.

    variables: dict of name -> variable. Each must be there, with its shape.
    """
    if checkpoint.about["method"] != method:
        return f"it is of the method {checkpoint.about['method']}, not {method}"
    for name, variable in variables.items():
        array = checkpoint.arrays.get(name)
        if array is None or list(array.shape) != variable.shape.as_list():
            return f"it is of another network: {name}"
    return None


def resumed_settings(Settings, folder, kept, given, notices):
    """Return the settings of a run to resume, as the command line changes them.

    Args:
        Settings: the script's dataclass.
        folder: the run's `RunFolder`.
        kept: dict of the settings in its checkpoint; {} if there is none yet.
        given: dict of the settings on the command line, all of them changeable.
        notices: list of lines for the user, to add to.

    Raises:
        ValueError: with one line for the user.
    """
    names, may_change = [f.name for f in dataclasses.fields(Settings)], changeable(Settings)
    config = f"{folder.path}/config.json"
    try:
        values = folder.config()["settings"]
        settings = Settings(**{name: values[name] for name in names if name in values} | given)
        check(settings)
    except (OSError, ValueError, TypeError) as error:
        if not kept:
            raise ValueError(f"{config}: {checkpoints.why(error)}") from None
        line = f"{config} is not readable ({checkpoints.why(error)}): "
        notices.append(line + "the settings are the checkpoint's")
        values = kept
        settings = Settings(**{name: kept[name] for name in names if name in kept} | given)
    for name in [n for n in names if n in kept and n in values and n not in may_change]:
        if values[name] != kept[name]:
            notices.append(
                f"{config} says {name} {shown(values[name])}, which was {shown(kept[name])}"
            )
    for name in [name for name in names if name not in values]:
        default = shown(getattr(settings, name))
        notices.append(f"{config} does not say {name}: it is {default}")
    for name in [name for name in values if name not in names]:
        notices.append(f"{config} says {name}, which is no setting: left out")
    return settings
