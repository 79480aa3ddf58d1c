#!/usr/bin/env bash
# A real Slurm of two nodes on this machine, one CPU each: no root, nothing installed, loopback only.
#   cluster.sh up FOLDER     unpacks Debian's packages there and starts it; then: . FOLDER/env.sh
#   cluster.sh down FOLDER   stops it
# FOLDER: below 70 characters, for its sockets. Exit status 3: the packages cannot be had, or do not run here.
set -euo pipefail
act=${1:?up or down} folder=$(mkdir -p "${2:?a folder}" && cd "$2" && pwd)
root=$folder/root lib=$folder/root/usr/lib/x86_64-linux-gnu
packages="slurmctld slurmd slurm-client slurm-wlm-basic-plugins munge libmunge2 libhwloc15 liblua5.1-0"
pid() { cat "$folder/$1.pid" 2> /dev/null; }
running() { kill -0 "$(pid "$1")" 2> /dev/null; }

if [ "$act" = down ]; then
  . "$folder/env.sh"
  scontrol shutdown 2> /dev/null || true
  for daemon in slurmd-n1 slurmd-n2 slurmctld munged; do
    for _ in $(seq 80); do running $daemon && [ $daemon != munged ] || break; sleep 0.1; done
    kill "$(pid $daemon)" 2> /dev/null || true
    while running $daemon; do sleep 0.1; done
  done
  exit 0
fi

if [ ! -d "$root" ]; then
  mkdir -p "$folder/deb"
  (cd "$folder/deb" && apt-get download -qq $packages > /dev/null 2>&1) || { echo "no packages of Slurm"; exit 3; }
  for deb in "$folder"/deb/*.deb; do dpkg-deb -x "$deb" "$root"; done
  for tool in "$root"/usr/*bin/*-wlm; do ln -sf "$(basename "$tool")" "${tool%-wlm}"; done
fi
mkdir -p "$folder/state" "$folder/spool" "$folder/log"
chmod 700 "$folder/state"
[ -f "$folder/munge.key" ] || (umask 077 && head -c 1024 /dev/urandom > "$folder/munge.key")
# What is killed of a job is known within seconds, and what is requeued starts again within seconds.
cat > "$folder/slurm.conf" << CONF
ClusterName=here
SlurmctldHost=localhost(127.0.0.1)
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket,cred_expire=5
CredType=cred/munge
SlurmctldPort=16817
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd-%n.pid
SlurmctldLogFile=$folder/log/slurmctld
SlurmdLogFile=$folder/log/slurmd-%n
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool/%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
KillWait=5
PluginDir=$lib/slurm-wlm
NodeName=n[1-2] NodeHostname=localhost NodeAddr=127.0.0.1 Port=[17001-17002] CPUs=1 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=2
CONF
cat > "$folder/env.sh" << ENV
export SLURM_CONF=$folder/slurm.conf PATH=$root/usr/bin:$root/usr/sbin:\$PATH
export LD_LIBRARY_PATH=$lib:$lib/slurm-wlm\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH}
ENV
. "$folder/env.sh"
for daemon in slurmctld slurmd munged; do "$daemon" --version > /dev/null 2>&1 || "$daemon" -V > /dev/null || exit 3; done
running munged || munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" \
  --pid-file="$folder/munged.pid" --log-file="$folder/log/munged" --seed-file="$folder/munge.seed"
running slurmctld || slurmctld
for node in n1 n2; do
  running slurmd-$node || slurmd -N $node -d "$(echo "$root"/usr/sbin/slurmstepd)"
done
for _ in $(seq 30); do
  [ "$(sinfo -h -p main -o %T)" = idle ] && exit 0
  sleep 1
done
sinfo
exit 1
