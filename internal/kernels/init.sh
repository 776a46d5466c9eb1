#!/bin/busybox sh
# The only process of a machine that run.sh starts: runs its scripts and tests, and ends it.
if [ ! -e /moved ]; then
	# Nothing can be mounted over an initramfs, as labs do.
	/bin/busybox --install -s /bin
	export PATH=/bin
	mount -t tmpfs -o mode=755,size=90% root /mnt
	for f in /*; do
		[ "$f" = /mnt ] || cp -a "$f" /mnt/
	done
	: >/mnt/moved
	exec /mnt/bin/busybox switch_root /mnt /init
fi
export PATH=/bin HOME=/root TMPDIR=/tmp CI=true
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 cgroup /sys/fs/cgroup
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /run
ln -sf /proc/self/fd /dev/fd
ip link set lo up
for module in tun veth dummy wireguard sctp sch_ingress cls_bpf; do
	modprobe $module || echo "== no module $module"
done
echo "== $(uname -sr)"

failed=0
ended() { # what, and how
	if [ "$2" = 0 ]; then
		echo "== $1: passed after $(cut -d. -f1 /proc/uptime) s"
	else
		echo "== $1: FAILED"
		failed=$((failed + 1))
	fi
}
while read -r module; do
	[ -z "$module" ] || modprobe "$module" || ended "module $module" 1
done </modules.list
cd /src
while read -r file; do
	[ -n "$file" ] || continue
	weft lab run $(cat /lab.flags) "$file" </dev/null
	ended "$file" $?
done </scenarios.list
while read -r name folder run skip; do
	# Tests of what ends after a while make its rows up to a minute older, but none can be older
	# than the machine.
	while [ "$folder" = bpf ] && [ "$(cut -d. -f1 /proc/uptime)" -lt 75 ]; do sleep 1; done
	cd "/src/$folder"
	"/tests/$name" -test.v -test.timeout 40m -test.run "$run" -test.skip "$skip" </dev/null
	ended "$folder" $?
done </tests.list
echo "== done: $failed failed"
sleep 1 # what the kernel says when it stops must not get into that line
poweroff -f
