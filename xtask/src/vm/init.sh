#!/bin/busybox sh
# The first process of a guest. The kernel passes `tiers=…` of its command line on to it as an
# environment variable.
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc none /proc
mount -t sysfs none /sys
mount -t devtmpfs none /dev
mount -t cgroup2 none /sys/fs/cgroup
mount -t tmpfs none /tmp
ifconfig lo up
# The script stays on the first CPU.
taskset -p 1 $$ > /dev/null

# A line for vm-test. Each is a sign of progress.
say() {
    echo "VM $*"
}
stage() {
    say "stage $* at $(cut -d' ' -f1 /proc/uptime) s"
}
# Sets `usage` to the CPU time of a cgroup in microseconds, by the kernel: the first line of cpu.stat
# is `usage_usec 123`.
get_usage() {
    read -r _ usage < "/sys/fs/cgroup/$1/cpu.stat"
}
# Waits until a cgroup has run for that many microseconds more than now.
run_for() {
    get_usage "$1"
    goal=$((usage + $2))
    while [ "$usage" -lt $goal ]; do sleep 0.2; get_usage "$1"; done
}
# A loop that keeps one CPU busy, in a cgroup: name and CPU mask. It is on its CPU before it enters.
burn() {
    taskset "$2" sh -c "echo 0 > /sys/fs/cgroup/$1/cgroup.procs; while :; do :; done" &
}
# Moves the probes to CPUs: mask.
#
# The kernel adds what a task ran to the per-CPU figure of the CPU that brings the task's clock up to
# date (kernel/cgroup/rstat.c, __cgroup_account_cputime). That is another CPU when one takes a task
# from this one, or gives it a new one. While the test looks where the loops run, nothing else has a
# choice of CPUs: on a loaded host, the error is as long as the host stops the guest's CPU.
move_probes() {
    for probe in $probes; do taskset -ap "$1" "$probe" > /dev/null; done
}
# CPU time of a process in hundredths of a second: fields 14 and 15 of its stat.
process_time() {
    read -r stat < "/proc/$1/stat"
    set -- $stat
    echo $((${14} + ${15}))
}

say "kernel $(uname -r)"
stage doctor
/probe doctor --log.level=error | while read -r line; do echo "doctor: $line"; done
stage probes

probes=
port=9500
for tier in $(echo "$tiers" | tr , ' '); do
    taskset 3 /probe --energy.source=model --docker.socket=/none --no-collector.stats --ffmpeg.match=yes --log.level=warn \
        --cpu.tier="$tier" --web.listen-address=127.0.0.1:$port --gpu.port=$((port + 100)) &
    probes="$probes $!"
    port=$((port + 1))
done
port=9500
for tier in $(echo "$tiers" | tr , ' '); do
    until wget -qO /dev/null http://127.0.0.1:$port/ready; do sleep 0.2; done
    stage "$tier is ready"
    port=$((port + 1))
done

# A job that has ended before the first look. Its file has its own name: busybox runs its applets
# without executing them. It runs before the loops: what the tier `files` leaves for the root cgroup
# beside them is not exact (docs/attribution.md, CPU time).
cp /bin/busybox /tmp/yes
/tmp/yes > /dev/null & job=$!
while [ "$(process_time $job)" -lt 50 ]; do sleep 0.1; done
kill $job
move_probes 1
stage loops

mkdir /sys/fs/cgroup/one /sys/fs/cgroup/two
burn one 1
burn two 2; two=$!

look() {
    stage "$1"
    port=9500
    for tier in $(echo "$tiers" | tr , ' '); do
        for name in one two; do get_usage $name; say "$1 $tier $name before $usage"; done
        wget -qO /dev/null --post-data='' http://127.0.0.1:$port/api/v1/mark
        # The page before the kernel's second figure: a tick may come between mark and page.
        wget -qO /tmp/page http://127.0.0.1:$port/metrics
        for name in one two; do get_usage $name; say "$1 $tier $name after $usage"; done
        grep -E '^wattcast_(source_up.source="jobs"|stream_energy|container_cpu_seconds|conservation|cpu_source_info|cpu_intervals|container_context|container_runqueue_wait_seconds_(sum|count))' /tmp/page |
            while read -r line; do say "$1 $tier page $line"; done
        port=$((port + 1))
    done
}
run_for one 4000000
run_for two 1
look running
move_probes 3
kill $two
sleep 0.3
look before-offline
echo 0 > /sys/devices/system/cpu/cpu1/online
run_for one 1000000
look offline
echo 1 > /sys/devices/system/cpu/cpu1/online
burn two 2
run_for two 2000000
look online
stage end
kill $probes
wait $probes
say end
poweroff -f
