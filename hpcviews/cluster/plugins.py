"""Launchers by name: finding the plug-ins, pairing them, and asking what works on this machine."""

from __future__ import annotations

import difflib
import importlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hpcviews.cluster.batch import BatchScheduler
from hpcviews.cluster.spec import Detection, Host, Launcher, Scheduler, Starter
from hpcviews.errors import LauncherUnavailable, UnknownLauncher

log = logging.getLogger("hpcviews.cluster.plugins")

SCHEDULERS = "hpcviews.schedulers"
STARTERS = "hpcviews.starters"
LOCAL = "local"

# The entry points of this distribution, once more. Looking for entry points reads the metadata of everything that
# is installed and takes 30 ms, which is felt in a start of 0.5 s, so launchers of ours are found without. It also
# means that nobody else's plug-in can take their names. A test compares this table with the real entry points.
BUILT_IN: Mapping[str, Mapping[str, str]] = {
    SCHEDULERS: {
        "local": "hpcviews_launchers.local:LocalScheduler",
        "slurm": "hpcviews_launchers.slurm:SlurmScheduler",
    },
    STARTERS: {
        "fork": "hpcviews_launchers.fork:ForkStarter",
        "mpiexec": "hpcviews_launchers.mpiexec:MpiexecStarter",
        "srun": "hpcviews_launchers.srun:SrunStarter",
    },
}


@dataclass(frozen=True)
class BrokenPlugin:
    """One that could not be loaded, and is left out."""

    kind: str
    name: str
    origin: str
    why: str


@dataclass(frozen=True)
class Plugins:
    """Those that could be loaded, and those that could not."""

    schedulers: Mapping[str, Scheduler]
    starters: Mapping[str, Starter]
    broken: tuple[BrokenPlugin, ...] = ()
    origins: Mapping[tuple[str, str], str] = field(default_factory=dict)
    """(group, name) -> the distribution it came from."""

    def list_names(self) -> list[str]:
        """What ``--launcher`` takes, apart from SCHEDULER+STARTER."""
        return sorted({*self.schedulers, *self.starters})

    def find(self, name: str) -> Launcher | None:
        """The launcher of that name, or None.

        A scheduler's name stands for the scheduler with its default starter, a starter's name for that starter
        on this machine; SCHEDULER+STARTER names both.
        """
        first, plus, second = name.partition("+")
        if plus:
            pair = (first, second)
        elif name in self.schedulers:
            pair = (name, self.schedulers[name].default_starter)
        else:
            pair = (LOCAL, name)
        scheduler, starter = self.schedulers.get(pair[0]), self.starters.get(pair[1])
        if scheduler is None or starter is None:
            return None
        return Launcher(name, scheduler, starter)


@dataclass(frozen=True)
class PluginReport:
    """One line of `hpcviews launchers`."""

    kind: str
    """"scheduler" or "starter"."""
    name: str
    origin: str
    detection: Detection


def load_built_in() -> Plugins:
    """Those of this distribution alone, fast."""
    loaded = {
        group: {name: _make(target, group, name) for name, target in table.items()} for group, table in BUILT_IN.items()
    }
    origins = {(group, name): "hpcviews" for group, table in BUILT_IN.items() for name in table}
    return Plugins(loaded[SCHEDULERS], loaded[STARTERS], (), origins)


def load_plugins() -> Plugins:
    """All that are installed. One that is broken is logged and left out."""
    from importlib.metadata import entry_points

    built_in = load_built_in()
    loaded: dict[str, dict[str, Any]] = {
        SCHEDULERS: dict(built_in.schedulers),
        STARTERS: dict(built_in.starters),
    }
    origins = dict(built_in.origins)
    broken: list[BrokenPlugin] = []
    for group in (SCHEDULERS, STARTERS):
        for entry in entry_points(group=group):
            origin = entry.dist.name if entry.dist is not None else "?"
            if BUILT_IN[group].get(entry.name) == entry.value:
                continue
            try:
                if entry.name in loaded[group]:
                    raise ValueError(f"the name is taken by {origins[group, entry.name]}")
                loaded[group][entry.name] = _make(entry.value, group, entry.name)
            except Exception as error:  # noqa: BLE001 - somebody else's code, run at import
                why = f"{type(error).__name__}: {error}"
                log.warning("launcher plug-in %s (%s of %s): left out: %s", entry.name, group, origin, why)
                broken.append(BrokenPlugin(_kind(group), entry.name, origin, why))
            else:
                origins[group, entry.name] = origin
    return Plugins(loaded[SCHEDULERS], loaded[STARTERS], tuple(broken), origins)


def get_launcher(name: str) -> Launcher:
    """The launcher of that name.

    Raises:
        UnknownLauncher: There is none; the message lists those that exist, and what is wrong with broken ones.
    """
    found = load_built_in().find(name)
    if found is None:
        plugins = load_plugins()
        found = plugins.find(name)
        if found is None:
            raise UnknownLauncher(_explain_unknown(name, plugins))
    return found


def get_scheduler(name: str) -> BatchScheduler:
    """The batch scheduler of that name.

    Raises:
        UnknownLauncher: There is none.
    """
    scheduler = get_launcher(name).scheduler
    if not isinstance(scheduler, BatchScheduler) or scheduler.name != name:
        raise UnknownLauncher(f"{name!r} is not a batch system's launcher")
    return scheduler


def choose_launcher(name: str | None, host: Host) -> Launcher:
    """The launcher that is meant here.

    Inside an allocation of a batch system (of those that come with hpcviews), no name stands for that system's
    launcher, and a starter's name for that starter on all nodes of the allocation, if it reaches them. Elsewhere
    they stand for this machine. SCHEDULER+STARTER means what it says everywhere.

    Raises:
        UnknownLauncher: There is none of that name.
    """
    around = next((n for n, s in load_built_in().schedulers.items() if n != LOCAL and s.allocation(host)), None)
    if name is None:
        return get_launcher(around or LOCAL)
    launcher = get_launcher(name)
    is_starters_name = launcher.name == launcher.starter.name
    if around is not None and is_starters_name and launcher.starter.reaches_nodes:
        return get_launcher(f"{around}+{name}")
    return launcher


def detect(launcher: Launcher, host: Host) -> Detection:
    """What the launcher's starter found on this machine, needed to start engines with it.

    Raises:
        LauncherUnavailable: It cannot be used here; the message says why, and how to change that.
    """
    for kind, plugin in (("scheduler", launcher.scheduler), ("starter", launcher.starter)):
        detection = _ask(plugin, host)
        if not detection.usable:
            raise LauncherUnavailable(
                f"launcher {launcher.name!r}: its {kind} {plugin.name} cannot be used here: {detection.why} "
                "(`hpcviews launchers` shows what can)"
            )
    return detection


def detect_all(host: Host, plugins: Plugins | None = None) -> list[PluginReport]:
    """Every plug-in, and whether it can be used on this machine; broken ones too."""
    plugins = plugins or load_plugins()
    found: list[tuple[str, str, Scheduler | Starter]] = [
        *((SCHEDULERS, name, scheduler) for name, scheduler in sorted(plugins.schedulers.items())),
        *((STARTERS, name, starter) for name, starter in sorted(plugins.starters.items())),
    ]
    reports = [
        PluginReport(_kind(group), name, plugins.origins.get((group, name), "?"), _ask(plugin, host))
        for group, name, plugin in found
    ]
    reports += [
        PluginReport(b.kind, b.name, b.origin, Detection(usable=False, why=f"cannot be loaded: {b.why}"))
        for b in plugins.broken
    ]
    return reports


def _ask(plugin: Scheduler | Starter, host: Host) -> Detection:
    try:
        return plugin.detect(host)
    except Exception as error:
        log.warning("launcher plug-in %s: detection failed", plugin.name, exc_info=True)
        return Detection(usable=False, why=f"its detection failed: {type(error).__name__}: {error}")


def _make(target: str, group: str, name: str) -> Any:
    module, _, attribute = target.partition(":")
    made = getattr(importlib.import_module(module), attribute)
    plugin = made() if isinstance(made, type) else made
    protocol = Scheduler if group == SCHEDULERS else Starter
    if not isinstance(plugin, protocol):
        missing = sorted(part for part in _parts(protocol) if not hasattr(plugin, part))
        raise TypeError(f"{target} is not a {_kind(group)}: it lacks {', '.join(missing)}")
    if plugin.name != name:
        raise ValueError(f"{target} calls itself {plugin.name!r}, its entry point {name!r}")
    return plugin


def _parts(protocol: type) -> set[str]:
    return {part for part in (*vars(protocol), *protocol.__annotations__) if not part.startswith("_")}


def _kind(group: str) -> str:
    return "scheduler" if group == SCHEDULERS else "starter"


def _explain_unknown(name: str, plugins: Plugins) -> str:
    first, plus, second = name.partition("+")
    lines: list[str] = []
    if plus:
        wrong, names, what = second, sorted(plugins.starters), "starter"
        if first not in plugins.schedulers:
            wrong, names, what = first, sorted(plugins.schedulers), "scheduler"
        lines.append(f"no launcher {name!r}: there is no {what} {wrong!r}")
    else:
        wrong, names = name, plugins.list_names()
        lines.append(f"no launcher {name!r}")
    near = difflib.get_close_matches(wrong, names, n=1)
    if near:
        lines.append(f"did you mean {near[0]!r}?")
    lines.append(f"there are: {', '.join(plugins.list_names())}, and SCHEDULER+STARTER pairs of them")
    lines += [
        f"{b.kind} {b.name} of {b.origin} is broken: {b.why}" for b in plugins.broken if b.name in (first, second)
    ]
    return "; ".join(lines)
