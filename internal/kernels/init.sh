#!/bin/busybox sh
# The only process of a machine that run.sh starts: runs its tests, and ends it.
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
for module in tun veth dummy wireguard sch_ingress cls_bpf; do
	modprobe $module || echo "== no module $module"
done
echo "== $(uname -sr)"

# Tests of what ends after a while make its rows up to a minute older, but none can be older
# than the machine.
while [ "$(cut -d. -f1 /proc/uptime)" -lt 75 ]; do sleep 1; done

failed=0
while read -r name folder run skip; do
	cd "/src/$folder"
	if "/tests/$name" -test.v -test.timeout 40m -test.run "$run" -test.skip "$skip" </dev/null; then
		echo "== $folder: passed after $(cut -d. -f1 /proc/uptime) s"
	else
		echo "== $folder: FAILED"
		failed=$((failed + 1))
	fi
done </tests.list
cd /src
while read -r file; do
	[ -n "$file" ] || continue
	if weft lab run "$file" </dev/null; then
		echo "== $file: passed after $(cut -d. -f1 /proc/uptime) s"
	else
		echo "== $file: FAILED"
		failed=$((failed + 1))
	fi
done </scenarios.list
echo "== done: $failed failed"
poweroff -f
