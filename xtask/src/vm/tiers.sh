# Probes of the tiers in `$tiers` (from the kernel's command line) count the CPU time of cgroups.

# Moves the probes to the CPUs of a mask.
#
# The kernel adds the run time of a task to the per-CPU counter of the CPU that updates the task's
# clock (kernel/cgroup/rstat.c, __cgroup_account_cputime). That is another CPU when that CPU
# migrates or wakes the task. While the test checks where the loops run, all other tasks are
# therefore pinned: on a loaded host, the error is as long as the host stops the guest's CPU.
move_probes() {
    for probe in $probes; do taskset -ap "$1" "$probe" > /dev/null; done
}
# CPU time of a process in hundredths of a second: fields 14 and 15 of its stat.
process_time() {
    read -r stat < "/proc/$1/stat"
    set -- $stat
    echo $((${14} + ${15}))
}

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

# A job that ends before the first snapshot. It is a copy of busybox, which runs its own applets
# without exec. It runs before the loops, because the tier `files` is not exact for the root cgroup
# while they run (docs/attribution.md).
cp /bin/busybox /tmp/yes
/tmp/yes > /dev/null & job=$!
while [ "$(process_time $job)" -lt 50 ]; do sleep 0.1; done
kill $job
move_probes 1
stage loops

mkdir /sys/fs/cgroup/one /sys/fs/cgroup/two
burn one 1
burn two 2; two=$!

snapshot() {
    stage "$1"
    port=9500
    for tier in $(echo "$tiers" | tr , ' '); do
        for name in one two; do get_usage $name; report "$1 $tier $name before $usage"; done
        wget -qO /dev/null --post-data='' http://127.0.0.1:$port/api/v1/mark
        # Read before the kernel's second figure: a tick may happen between mark and page.
        wget -qO /tmp/page http://127.0.0.1:$port/metrics
        for name in one two; do get_usage $name; report "$1 $tier $name after $usage"; done
        grep -E '^wattcast_(source_up.source="jobs"|stream_energy|container_cpu_seconds|conservation|cpu_source_info|cpu_intervals|container_context|container_runqueue_wait_seconds_(sum|count))' /tmp/page |
            while read -r line; do report "$1 $tier page $line"; done
        port=$((port + 1))
    done
}
run_for one 4000000
run_for two 1
snapshot running
move_probes 3
kill $two
sleep 0.3
snapshot before-offline
echo 0 > /sys/devices/system/cpu/cpu1/online
run_for one 1000000
snapshot offline
echo 1 > /sys/devices/system/cpu/cpu1/online
burn two 2
run_for two 2000000
snapshot online
stage end
kill $probes
wait $probes
