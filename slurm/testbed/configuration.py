"""The text of slurm.conf."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hosts import HEAD, get_address

MEMORY_MB = 4000


def render_configuration(directory: Path, nodes: Sequence[str], cpus: int, extra: Sequence[str] = ()) -> str:
    """slurm.conf for the nodes; lines of `extra` replace ours of the same key."""
    lines = [
        "ClusterName=testbed",
        f"SlurmctldHost={HEAD}({get_address(HEAD)})",
        "SlurmUser=root",
        "SlurmdUser=root",
        "AuthType=auth/munge",
        f"AuthInfo=socket={directory}/munge/socket",
        f"SlurmctldPidFile={directory}/slurmctld.pid",
        f"SlurmdPidFile={directory}/%n.slurmd.pid",
        f"SlurmctldLogFile={directory}/log/slurmctld.log",
        f"SlurmdLogFile={directory}/log/%n.slurmd.log",
        f"StateSaveLocation={directory}/state",
        f"SlurmdSpoolDir={directory}/spool/%n",
        # Without cgroups, which containers seldom have. User code that leaves its session outlives its job then.
        "ProctrackType=proctrack/linuxproc",
        "TaskPlugin=task/none",
        "SelectType=select/cons_tres",
        "SelectTypeParameters=CR_CPU_Memory",
        "DefMemPerCPU=100",
        # What the nodes claim counts, not what the machine has.
        "SlurmdParameters=config_overrides",
        "AccountingStorageType=accounting_storage/none",
        "MpiDefault=none",
        # Quick, so that tests are: start at once, kill soon, miss a dead node early.
        "SchedulerParameters=bf_interval=1,sched_interval=5,batch_sched_delay=0,sched_min_interval=0",
        "ReturnToService=2",
        "SlurmdTimeout=15",
        "KillWait=5",
        "MessageTimeout=10",
        "TCPTimeout=2",
        "PreemptType=preempt/partition_prio",
        "PreemptMode=REQUEUE",
    ]
    keys = {line.partition("=")[0] for line in extra}
    lines = [line for line in lines if line.partition("=")[0] not in keys]
    lines += [
        f"NodeName={node} NodeAddr={get_address(node)} CPUs={cpus} RealMemory={MEMORY_MB} State=UNKNOWN"
        for node in nodes
    ]
    everything = f"Nodes={','.join(nodes)}"
    lines.append(f"PartitionName=main {everything} Default=YES DefaultTime=10 MaxTime=60 PriorityTier=1")
    lines.append(f"PartitionName=short {everything} DefaultTime=1 MaxTime=2 PriorityTier=1")
    lines.append(f"PartitionName=urgent {everything} DefaultTime=10 MaxTime=60 PriorityTier=10")
    return "\n".join([*lines, *extra]) + "\n"
