"""The examples for clusters on this machine, with a worker killed in the middle.

    check-clusters.py PICTURES ENGINE…
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow.parquet as pq
import pyspark

from drawings import drawing

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
N_TASKS = 7  # Spark's and Slurm's
PATIENCE = 1200  # seconds
SLURM = """\
ClusterName=local
SlurmctldHost={host}
AuthType=auth/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={work}/state
SlurmdSpoolDir={work}/spool
SlurmctldPidFile={work}/slurmctld.pid
SlurmdPidFile={work}/slurmd.pid
SlurmctldLogFile={work}/slurmctld.log
SlurmdLogFile={work}/slurmd.log
SlurmctldPort=16817
SlurmdPort=16818
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
NodeName={host} CPUs=8 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES State=UP
"""


def processes(*words):
    """Process ids, by words of the command line."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if all(word in command for word in words):
            found[int(folder.name)] = command
    return sorted(found)


def kill_in_the_middle(run, *words):
    """Kills a process of `run`, by words of its command line, once it has worked for some seconds."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and run.poll() is None:
        if found := processes(*words):
            time.sleep(4)
            if found[0] in processes(*words) and run.poll() is None:
                os.kill(found[0], signal.SIGKILL)
                print(f"  killed a process of `{' '.join(words)}`", flush=True)
                return
        time.sleep(0.1)
    run.kill()
    sys.exit(f"error: there was no process of `{' '.join(words)}` to kill")


def start(command, log, **environment):
    """Starts a program, with what it says in a file."""
    environment = {**os.environ, **environment}
    return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)


def finish(run, log):
    """Waits for a program, and shows the end of what it said if it failed."""
    if code := run.wait(PATIENCE):
        print(*Path(log.name).read_text().splitlines()[-40:], sep="\n")
        sys.exit(f"error: {run.args[0]} ended with {code}")


def check_equal(tables, expected, engine):
    """Compares the rows of a folder of tables with one run's."""
    rows = pq.read_table(tables).sort_by([("path", "ascending"), ("feature", "ascending")])
    if not rows.select(expected.column_names).cast(expected.schema).equals(expected):
        sys.exit(f"error: {engine}: {len(rows)} rows differ from the {len(expected)} of one run")
    print(f"{engine}: {len(rows)} rows equal those of one run", flush=True)


def check_ray(pictures, expected, work):
    """Two killed workers, and a run that is killed and goes on."""
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 1, "object_store_memory": 200 << 20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(2):
        cluster.add_node(num_cpus=2, object_store_memory=200 << 20)
    print(f"ray: {len(cluster.list_all_nodes())} nodes", flush=True)
    tables = work / "ray"
    command = [sys.executable, EXAMPLES / "ray/scan.py", pictures, tables]
    with (work / "ray.log").open("w") as log:
        run = start(command, log, RAY_ADDRESS=cluster.address)
        kill_in_the_middle(run, "llava-sae-cpp", "scan", "--worker")
        kill_in_the_middle(run, "ray::", "MapWorker")
        finish(run, log)
        check_equal(tables, expected, "ray")
        files = sorted(tables.glob("*.parquet"))
        files[0].unlink()
        files[-1].write_bytes(files[-1].read_bytes()[:-9])
        finish(start(command, log, RAY_ADDRESS=cluster.address), log)
        check_equal(tables, expected, "ray, after a table was lost and another cut short")
    cluster.shutdown()


def check_spark(pictures, expected, work):
    """A killed executor."""
    home = Path(pyspark.__file__).parent
    submit = [home / "bin/spark-submit", "--master", "local-cluster[2,1,1024]"]
    for setting in ("spark.ui.enabled=false", "spark.driver.host=127.0.0.1"):
        submit += ["--conf", setting]
    tables = work / "spark"
    command = [*submit, EXAMPLES / "spark/scan.py", pictures, tables, f"--partitions={N_TASKS}"]
    with (work / "spark.log").open("w") as log:
        run = start(command, log, SPARK_HOME=str(home), PYSPARK_PYTHON=sys.executable)
        kill_in_the_middle(run, "llava-sae-cpp", "scan", "--worker")
        kill_in_the_middle(run, "CoarseGrainedExecutorBackend")
        finish(run, log)
    check_equal(tables, expected, "spark")


def check_slurm(pictures, expected, work):
    """A killed task."""
    for folder in ("state", "spool"):
        (work / folder).mkdir()
    settings = work / "slurm.conf"
    settings.write_text(SLURM.format(host=socket.gethostname(), work=work))
    os.environ["SLURM_CONF"] = str(settings)
    Path("/run/munge").mkdir(exist_ok=True)
    shutil.chown("/run/munge", "munge")
    if not processes("munged"):
        subprocess.run(["setpriv", "--reuid=munge", "--regid=munge", "--clear-groups", "munged"], check=True)
    log = (work / "slurm.log").open("w")
    daemons = [start([name, "-D", "-c"], log) for name in ("slurmctld", "slurmd")]
    try:
        out = work / "slurm"
        submit = ["sh", EXAMPLES / "slurm/submit.sh", str(N_TASKS), out, pictures]
        time.sleep(5)
        subprocess.run(submit, check=True, cwd=work)
        waits = subprocess.Popen(["sh", "-c", "while [ -n \"$(squeue -h)\" ]; do sleep 1; done"])
        kill_in_the_middle(waits, "llava-sae-cpp", "scan", "--shard")
        waits.wait(PATIENCE)
        if not (out / "features.parquet").exists():
            for file in sorted(work.glob("slurm-*.out")):
                print(file.name, *file.read_text().splitlines()[-5:], sep="\n  ")
            sys.exit("error: slurm: the jobs gave no table")
        check_equal(out / "features.parquet", expected, "slurm")
    finally:
        for daemon in daemons:
            daemon.terminate()
    if (out / "features.parquet").read_bytes() != (work / "features.parquet").read_bytes():
        sys.exit("error: slurm: the table has other bytes than that of one run")
    print("slurm: the table has the bytes of one run")


def main():
    n_pictures, *engines = sys.argv[1:]
    with tempfile.TemporaryDirectory(prefix="clusters") as work:
        work = Path(work)
        (work / "bin").mkdir()
        (work / "bin/llava-sae-cpp").symlink_to(Path(os.environ["PROGRAM"]).resolve())
        os.environ["PATH"] = f"{work / 'bin'}:{os.environ['PATH']}"
        pictures = work / "drawings"
        for seed in range(int(n_pictures)):
            folder = pictures / f"class {seed % 10}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{seed:05}.png").write_bytes(drawing(seed))
        table = work / "features.parquet"
        subprocess.run(["llava-sae-cpp", "scan", "--quiet", pictures, "-o", table], check=True)
        expected = pq.read_table(table)
        checks = {"ray": check_ray, "spark": check_spark, "slurm": check_slurm}
        for engine in engines:
            checks[engine](pictures, expected, work)


main()
