# The probe of this guest reads the energy that the probe of its host attributes to it, and divides
# it among two cgroups. The kernel's command line has `$way` and `$host_port`; /energy has modules
# of the kernel in the order to load them, the token, and the authority of the host's certificate.
for module in /energy/*.ko; do insmod "$module"; done
quiet='--docker.socket=/none --no-collector.stats --log.level=warn'

# The host is that of QEMU. vm-test makes a tick of its probe for each of these lines.
mark_https() {
    report mark "$1"
}
start_https() {
    # QEMU's user network: 10.0.2.2 is the host, whose own loopback device has the connections.
    ifconfig eth0 10.0.2.15 netmask 255.255.255.0 up
    echo '10.0.2.2 host' > /etc/hosts
    echo 'hosts: files' > /etc/nsswitch.conf
    host="--energy.host.url=https://host:$host_port --energy.host.ca-file=/energy/ca.pem --energy.host.token-file=/energy/token"
}

# The host is this guest, and its guest is a process with the arguments of QEMU. The loopback of
# vsock has number 1 at both ends.
#
# Prints the guest's row, before a tick too: it may be that of a regular tick.
rows=0
print_row() {
    wget -qO /tmp/host http://127.0.0.1:9501/metrics
    grep '^wattcast_container_energy_joules_total{' /tmp/host | grep 'container="machine"' |
        while read -r line; do report "row $rows $line"; done
    rows=$((rows + 1))
}
mark_vsock() {
    print_row
    wget -qO /dev/null --post-data='' http://127.0.0.1:9501/api/v1/mark
    print_row
}
start_vsock() {
    mkdir /sys/fs/cgroup/machine
    taskset 2 sh -c 'echo 0 > /sys/fs/cgroup/machine/cgroup.procs; while :; do :; done' \
        qemu -device vhost-vsock-pci,guest-cid=1 &
    run_for machine 1
    taskset 3 /probe --energy.source=model --tick=30s --guest.vsock-port=9500 $quiet \
        --web.listen-address=127.0.0.1:9501 --gpu.port=9601 & probes=$!
    until wget -qO /dev/null http://127.0.0.1:9501/ready; do sleep 0.2; done
    run_for machine 500000
    mark_vsock
    host=--energy.host.url=vsock://1:9500
}

probes=
start_$way
stage "$way"
taskset 3 /probe --energy.source=host $host $quiet --web.listen-address=127.0.0.1:9500 & probes="$probes $!"
until wget -qO /dev/null http://127.0.0.1:9500/ready; do sleep 0.2; done
stage ready
mkdir /sys/fs/cgroup/one /sys/fs/cgroup/two
burn one 1
burn two 2

# Prints a page whenever the energy is another one. The host's row stands until the next mark, or a
# regular tick of its probe.
number=0
energy=
while [ $number -le 4 ]; do
    sleep 0.2
    wget -qO /tmp/page http://127.0.0.1:9500/metrics
    now=$(grep '^wattcast_energy_joules_total{' /tmp/page)
    if [ -z "$now" ] || [ "$now" = "$energy" ]; then continue; fi
    energy=$now
    grep -E '^wattcast_((energy|container_energy|retired_energy|system_energy|idle_energy|unattributed_energy)_joules_total|source_up.source="host")' /tmp/page |
        while read -r line; do report "page $number $line"; done
    run_for one 1000000
    number=$((number + 1))
    mark_$way $number
done
kill $probes
wait $probes
