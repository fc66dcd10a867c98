#!/bin/busybox sh
# The first process of a guest: prepares it, and runs the script that the kernel's command line
# names (`script=tiers`). The kernel passes such words as environment variables.
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc none /proc
mount -t sysfs none /sys
mount -t devtmpfs none /dev
mount -t cgroup2 none /sys/fs/cgroup
mount -t tmpfs none /tmp
ifconfig lo up
# Pins the script to the first CPU.
taskset -p 1 $$ > /dev/null

# Prints a line for vm-test, which counts it as progress.
report() {
    echo "VM $*"
}
stage() {
    report "stage $* at $(cut -d' ' -f1 /proc/uptime) s"
}
# Sets `usage` to the CPU time of a cgroup in microseconds, by the kernel: the first line of
# cpu.stat is `usage_usec 123`.
get_usage() {
    read -r _ usage < "/sys/fs/cgroup/$1/cpu.stat"
}
# Waits until a cgroup has used $2 more microseconds of CPU time.
run_for() {
    get_usage "$1"
    goal=$((usage + $2))
    while [ "$usage" -lt $goal ]; do sleep 0.2; get_usage "$1"; done
}
# Starts a busy loop: cgroup name, CPU mask. It moves to its CPU before it enters the cgroup.
burn() {
    taskset "$2" sh -c "echo 0 > /sys/fs/cgroup/$1/cgroup.procs; while :; do :; done" &
}

report "kernel $(uname -r)"
. "/$script.sh"
report end
poweroff -f
